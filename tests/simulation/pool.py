"""Pools whose processes or threads are simulated; Celery's own callbacks hear of their ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery.concurrency.asynpool import SCHED_STRATEGY_FAIR
from celery.concurrency.base import apply_target
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery_claims.headers import HEADER

from .tasks import one_app
from .world import Process

__all__ = ["Forks", "Job", "Threads"]

#: From a child to its parent and back, in seconds.
PIPE = (0.0001, 0.003)
#: How long a parent takes to notice that a child is gone, in seconds.
NOTICED = (0.01, 0.5)
#: How often a child outlives its killed parent.
ORPHANED = 0.5


class Job:
    """As billiard's ``ApplyResult``, as far as anybody looks."""

    def __init__(self, number: int, run: Callable[[], Any], grant: str, options: Any) -> None:
        self._job = number
        #: the id of the grant under which it runs
        self.grant = grant
        self._callback = options["callback"]
        self.run = run
        self.accept = options["accept_callback"]
        self.failed = options["error_callback"]
        #: the child that got it
        self._write_to: Child | None = None
        self._accepted = self._ready = False
        self._worker_pid: int | None = None
        self.terminated = False

    def accepted(self) -> bool:
        return self._accepted

    def ready(self) -> bool:
        return self._ready

    def terminate(self, signum: int) -> None:
        """Kills nothing by itself."""
        self.terminated = True


class Child:
    """A process of the pool, for one job."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    def _is_alive(self) -> bool:
        return self.process.alive


class Forks:
    """As the prefork pool with an event loop.

    Parameters:
        post: calls a function on the parent's loop.
        size: how many processes.
        claims: makes what a child's app has.
    """

    kind = PreforkPool
    is_green = False
    sched_strategy = SCHED_STRATEGY_FAIR

    def __init__(
        self,
        parent: Process,
        post: Callable[..., None],
        size: int,
        claims: Callable[[Process], Any],
    ) -> None:
        self.num_processes = size
        self._parent = parent
        self._world = parent.world
        self._post = post
        self._claims = claims
        self._cache: dict[int, Job] = {}
        self._pool = self
        self._waiting: deque[Job] = deque()
        self._children: dict[int, tuple[Process, Job]] = {}
        self._count = 0
        #: called with each slot that is free again
        self.on_free: Callable[[], Any] = lambda: None
        parent.on_death.append(self._orphan)

    def apply_async(self, target: Any, args: Any = (), kwargs: Any = None, **options: Any) -> Job:
        self._count += 1
        name, task_id, request, *body = args
        # A child gets a copy.
        run = partial(target, name, task_id, dict(request), *body, app=one_app(), **(kwargs or {}))
        job = Job(self._count, run, request[HEADER]["grant_id"], options)
        self._cache[job._job] = job
        self._waiting.append(job)
        self._send()
        return job

    def _send(self) -> None:
        while self._waiting and len(self._children) < self.num_processes:
            job = self._waiting.popleft()
            process = self._parent.sibling(f"{self._parent.name}-child")
            process.parent = self._parent
            process.claims = self._claims(process)
            process.on_death.append(partial(self._child_died, job, process))
            job._write_to = Child(process)
            self._world.simulation.judge.given(job.grant, process)
            self._children[process.pid] = (process, job)
            self._world.after(self._world.rng.uniform(*PIPE), self._begin, job, process)

    def _begin(self, job: Job, process: Process) -> None:
        if process.alive:
            process.start(partial(self._execute, job, process))

    def _execute(self, job: Job, process: Process) -> None:
        self._tell(self._on_accepted, job, process.pid)
        result = job.run()
        process.step()
        self._tell(self._on_result, job, process, result)

    def _tell(self, call: Callable[..., Any], *args: Any) -> None:
        self._world.after(self._world.rng.uniform(*PIPE), self._deliver, call, *args)

    def _deliver(self, call: Callable[..., Any], *args: Any) -> None:
        if self._parent.alive:
            self._post(call, *args)

    # on the parent's loop

    def _on_accepted(self, job: Job, pid: int) -> None:
        if job._job in self._cache and not job._ready:
            job._accepted = True
            job._worker_pid = pid
            job.accept(pid, 0.0)

    def _on_result(self, job: Job, process: Process, result: Any) -> None:
        job._ready = True
        process.on_death.clear()
        process.end()
        self._free(process)
        if self._cache.pop(job._job, None) is not None:
            try:
                job._callback(result)
            finally:
                self.on_free()

    def _child_died(self, job: Job, process: Process) -> None:
        wait = self._world.rng.uniform(*NOTICED)
        self._world.after(wait, self._deliver, self._on_lost, job, process)

    def _on_lost(self, job: Job, process: Process) -> None:
        self._free(process)
        self._failed(job)

    def _failed(self, job: Job) -> None:
        if job._ready:
            return
        job._ready = True
        if self._cache.pop(job._job, None) is None:
            return
        error = Terminated(-15) if job.terminated else WorkerLostError("killed")
        try:
            raise error
        except type(error):
            einfo = ExceptionInfo()
        self._world.running().telling_since = self._world.now
        try:
            job.failed(einfo)
        finally:
            self.on_free()

    def _free(self, process: Process) -> None:
        self._children.pop(process.pid, None)
        self._send()

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        child = self._children.get(pid)
        if child is not None:
            self._world.simulation.judge.stops(child[1].grant)
            child[1].terminated = True
            self._world.after(0.0, child[0].kill)

    def flush(self) -> None:
        """Gives up what has not been accepted, also what was sent to a child."""
        for number, job in list(self._cache.items()):
            if not job._accepted:
                del self._cache[number]
                if job in self._waiting:
                    self._waiting.remove(job)

    # for who looks on

    def processes(self) -> list[Process]:
        return [process for process, _ in self._children.values() if process.alive]

    def is_running(self, pid: int) -> bool:
        child = self._children.get(pid)
        return child is not None and child[0].alive

    def is_idle(self) -> bool:
        return not self._cache and not self._children

    def is_full(self) -> bool:
        return len(self._children) >= self.num_processes

    def _orphan(self) -> None:
        for process, _ in list(self._children.values()):
            process.on_death.clear()
            if self._world.rng.random() >= ORPHANED:
                process.kill()


class Threads:
    """As the thread pool: callbacks come from the thread of the body, and nothing can be killed."""

    kind = ThreadPool
    is_green = False
    flush = None

    def __init__(
        self,
        parent: Process,
        post: Callable[..., None],
        size: int,
        claims: Callable[[Process], Any],
    ) -> None:
        self.num_processes = size
        self._parent = parent
        self._post = post
        self._running = 0
        self._waiting: deque[Callable[[], Any]] = deque()
        self.on_free: Callable[[], Any] = lambda: None

    def apply_async(self, target: Any, args: Any = (), kwargs: Any = None, **options: Any) -> None:
        given = {**(kwargs or {}), "app": one_app()}
        run = partial(apply_target, target, args, given, pid=self._parent.pid, **options)
        self._waiting.append(run)
        self._send()

    def _send(self) -> None:
        while self._waiting and self._running < self.num_processes:
            self._running += 1
            self._parent.start(partial(self._run, self._waiting.popleft()))

    def _run(self, run: Callable[[], Any]) -> None:
        try:
            run()
        finally:
            self._running -= 1
            if self._parent.alive:
                self._post(self.on_free)
                self._post(self._send)

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        raise NotImplementedError

    def processes(self) -> list[Process]:
        return []

    def is_running(self, pid: int) -> bool:
        return False

    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def is_full(self) -> bool:
        return self._running >= self.num_processes
