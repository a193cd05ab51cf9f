"""One run: a plan comes to life, things go wrong, everything heals, and all must be done."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery.worker import state
from celery_claims.config import read_settings
from celery_claims.run import Run

from .broker import Broker, Copy
from .comeback import settle_in
from .judge import Judge
from .link import Service
from .plan import Plan, Work
from .store import StoreServer
from .tasks import KINDS, iso
from .worker import Worker
from .world import Process, World

__all__ = ["Result", "Simulation", "simulate"]

#: Steps of a worker within which an ambush waits for it.
AMBUSH = 40
#: Clocks differ by so much in a second, well within the tenth that trust leaves.
DRIFT = 0.03


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Parameters:
        violations: broken promises, with their time.
        events: things that happened.
        seconds: of the world.
        counts: of what happened, by name.
    """

    plan: Plan
    violations: tuple[str, ...]
    events: int
    seconds: float
    counts: Counter[str]


class Simulation:
    """A world with a store, a broker and workers."""

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.world = World(plan.seed, tell)
        self.world.simulation = self
        self.judge = Judge(self.world, plan)
        self.settings: dict[str, Any] = {
            "url": "memory://",
            "tasks": ["sim.*"],
            "lease": plan.lease,
            "keep_finished": 7200.0 + 4 * plan.visibility,
            "cleanup_every": plan.sweep_every,
            "max_wait": plan.max_wait,
            "store_timeout": plan.timeout,
            "max_deliveries": plan.max_deliveries,
        }
        self.claims_settings = read_settings(self.settings, prefix="")
        self.store = StoreServer(Service(self.world, "simulated", plan.timeout), self.judge)
        self.broker = Broker(self.world, plan, self.judge)
        self.judge.note, self.judge.unnote = self.broker.note, self.broker.unnote
        self.judge.taken_over = self.broker.taken_over
        self.comebacks = settle_in(self)
        self.requeued: Counter[str] = Counter()
        self.workers: list[Worker] = []
        #: whether faults may still happen
        self.calm = False
        self._last_fault = 0.0
        self._sent = 0

    # life

    def begin(self) -> None:
        world, plan = self.world, self.plan
        for number in range(plan.workers):
            self.workers.append(self._boot(f"w{number + 1}"))
        for task_id, work in plan.work.items():
            for _ in range(work.copies):
                world.at(work.sent_at, self._send, task_id, work)
        if plan.faults:
            world.after(world.rng.expovariate(1 / plan.every), self._go_wrong)

    def _boot(self, name: str) -> Worker:
        rng = self.world.rng
        rate = 1.0 + (rng.uniform(-DRIFT, DRIFT) if "drift" in self.plan.faults else 0.0)
        process = Process(self.world, name, rate, rng.uniform(1e3, 1e6))
        self.world.tell(process, "starts")
        self.comebacks.changed()
        worker = Worker(self, name, process)
        process.on_death.append(lambda: self._died(worker))
        return worker

    def _died(self, worker: Worker) -> None:
        self.world.tell(worker.process, "is dead")
        if worker.process.killed:
            self.comebacks.killed(worker.process)
        else:
            self.comebacks.left(worker.process)
        self.comebacks.changed()
        wait = self.world.rng.uniform(0.2, 2 * self.plan.lease)
        self.world.after(wait, self._replace, worker)

    def _replace(self, worker: Worker) -> None:
        self.workers[self.workers.index(worker)] = self._boot(worker.name)

    def _send(self, task_id: str, work: Work) -> None:
        headers: dict[str, Any] = {
            "lang": "py",
            "task": work.kind,
            "id": task_id,
            "root_id": task_id,
            "retries": 0,
            "argsrepr": "()",
            "kwargsrepr": "{}",
        }
        if work.countdown:
            headers["eta"] = iso(work.sent_at + work.countdown)
        embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        body = json.dumps([[], {}, embed]).encode()
        self.broker.send(headers, body, {}, late=KINDS[work.kind]["acks_late"])

    def publish(self, headers: dict[str, Any], body: Any, properties: dict[str, Any]) -> None:
        """A body sends a message, e.g. of its next attempt."""
        self.judge.leaves("a message")
        encoded = json.dumps(body).encode()
        late = KINDS[headers["task"]]["acks_late"]
        self.broker.send(headers, encoded, properties, late=late)

    def case_of(self, process: Process, run: Run | None) -> Any:
        """The worker's own view of a run."""
        parent = process.parent or process
        keeper = parent.claims.keeper
        if run is None or keeper is None or not parent.alive:
            return None
        return keeper.case(run.token.grant_id)

    # faults

    def _go_wrong(self) -> None:
        world, plan = self.world, self.plan
        if world.now >= plan.until:
            return
        name = world.rng.choice(sorted(plan.faults))
        getattr(self, f"_{name.replace(' ', '_')}")()
        world.after(world.rng.expovariate(1 / plan.every), self._go_wrong)

    def _some_worker(self) -> Worker | None:
        living = [each for each in self.workers if each.process.alive]
        return self.world.rng.choice(living) if living else None

    def _some_process(self) -> Process | None:
        worker = self._some_worker()
        if worker is None:
            return None
        return self.world.rng.choice([worker.process, *worker.pool.processes()])

    def _befall(self, process: Process, befall: Callable[[], Any]) -> None:
        """Now, or at one of its next steps."""
        if self.world.rng.random() < 0.5:
            befall()
        else:
            process.ambush = (self.world.rng.randint(1, AMBUSH), befall)

    def _crash(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            self._befall(worker.process, worker.process.kill)

    def _child(self) -> None:
        worker = self._some_worker()
        children = worker.pool.processes() if worker is not None else []
        if children:
            process = self.world.rng.choice(children)
            self._befall(process, process.kill)

    def _pause(self) -> None:
        process = self._some_process()
        if process is not None:
            self._befall(process, lambda: self._pause_now(process))

    def _pause_now(self, process: Process) -> None:
        if process.paused or not process.alive:
            return
        seconds = self.world.rng.choice([0.2, 1.1, 3.0]) * self.plan.lease
        self.world.tell(process, "stands still for %.1f s", seconds)
        process.pause()
        self.world.after(seconds, self._go_on, process)
        worker = next((each for each in self.workers if each.process is process), None)
        # The broker misses its heartbeats, and closes the connection.
        channel = worker.channel if worker is not None else None
        if channel is not None and seconds > self.plan.lease and not self.broker.is_redis:
            self.world.after(seconds / 2, channel.lose)

    def _go_on(self, process: Process) -> None:
        self.world.tell(process, "goes on")
        process.go_on()

    def _restart(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            self.comebacks.changed()
            worker.stop()

    def _store_down(self) -> None:
        self._for_a_while(self.store.service, "down", value=True)

    def _store_slow(self) -> None:
        self._for_a_while(self.store.service, "slow", value=True)

    def _store_lost(self) -> None:
        self._for_a_while(self.store.service, "loses", value=self.world.rng.choice([0.1, 0.5, 1.0]))

    def _for_a_while(self, service: Service, name: str, *, value: Any) -> None:
        seconds = self.world.rng.choice([0.1, 0.5, 2.0]) * self.plan.lease
        self.world.tell("store", f"{name} {value} for {seconds:.1f} s")
        setattr(service, name, value)
        self.world.after(seconds, self._heal, service, name)

    def _heal(self, service: Service, name: str) -> None:
        self.world.tell(service.name, f"no longer {name}")
        if service.is_bad():
            service.healed_at = self.world.now
        setattr(service, name, type(getattr(service, name))(0))

    def _disconnect(self) -> None:
        worker = self._some_worker()
        if worker is not None and worker.channel is not None:
            self.world.tell("broker", f"cuts {worker.process} off")
            self.comebacks.changed()
            worker.channel.lose(restores=self.world.rng.random() < 0.5)

    def _broker_down(self) -> None:
        seconds = self.world.rng.choice([0.1, 0.5, 1.5]) * self.plan.lease
        self.world.tell("broker", f"is down for {seconds:.1f} s")
        self.broker.set_down(down=True)
        for worker in self.workers:
            if worker.channel is not None:
                worker.channel.lose(restores=False)
        self.world.after(seconds, self._broker_up)

    def _broker_up(self) -> None:
        self.world.tell("broker", "is up")
        self.broker.service.healed_at = self.world.now
        self.broker.set_down(down=False)

    def _duplicate(self) -> None:
        broker = self.broker
        copies = broker.messages()
        if copies:
            broker.duplicate(self.world.rng.choice(copies))

    def _drift(self) -> None:
        """All the time."""

    # the end

    def finish(self) -> None:
        world, plan, judge = self.world, self.plan, self.judge
        ends = [work.sent_at for work in plan.work.values()]
        last = max([plan.until, *ends] if plan.faults else ends)
        world.run(last)
        self._heal_all()
        healed = world.now
        world.run(healed + plan.bound, self._is_over)
        if world.failures:
            return
        if not self._is_over():
            self._fail_unfinished("back soon", plan.bound)
            return
        # What is left by now is what the broker itself must find.
        late = plan.bound + 1.5 * plan.visibility
        world.run(healed + late, self._is_empty)
        if world.failures:
            return
        if not self._is_empty():
            self._fail_unfinished("nothing lost", late)
        judge.check_calm()

    def _heal_all(self) -> None:
        self.world.tell("world", "nothing goes wrong from now on")
        self.calm = True
        for service in (self.store.service, self.broker.service):
            service.slow, service.loses, service.healed_at = False, 0.0, self.world.now
        self.store.service.down = False
        if self.broker.service.down:
            self._broker_up()
        for process in self.world.processes():
            process.ambush = None
            if process.paused:
                self._go_on(process)

    def _fail_unfinished(self, promise: str, seconds: float) -> None:
        left = ", ".join(self.judge.unfinished()) or "none"
        parts = [str(copy.part) for copy in self.broker.messages()]
        self.judge.fail(
            promise,
            f"{seconds:.0f} s after the last fault: unfinished tasks {left}; "
            f"messages left of {', '.join(parts) or 'none'}",
        )

    def _is_over(self) -> bool:
        if not all(map(self._may_stay, self.broker.messages())):
            return False
        waiting = {copy.part[0] for copy in self.broker.messages()}
        return waiting.issuperset(self.judge.undone)

    def _is_empty(self) -> bool:
        return not (self.broker.messages() or self.judge.undone)

    def _may_stay(self, copy: Copy) -> bool:
        """What a worker leaves to the visibility timeout of Redis: a message whose attempt is
        at its end, for which nobody waits; and one that it had neither claimed nor touched yet."""
        left = self.broker.is_redis and copy.tag in self.broker.unacked
        over = copy.part in self.judge.finished or self.judge.is_superseded(copy.part)
        return left and (over or not copy.known)


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines: the timeline has what they would say."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def simulate(plan: Plan, tell: Callable[[str], None] | None = None) -> Result:
    """Run a plan to its end, or to the first broken promise."""
    with quiet():
        simulation = Simulation(plan, tell)
        world = simulation.world
        try:
            simulation.begin()
            simulation.finish()
        finally:
            events, seconds = world.events, world.now
            world.close()
            for books in (state.requests, state.reserved_requests, state.active_requests):
                books.clear()
            state.total_count.clear()
    return Result(plan, tuple(world.failures), events, seconds, simulation.judge.counts)
