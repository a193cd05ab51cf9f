"""Time, processes and threads of the simulation: a heap of timers, and greenlets for what waits.

Everything runs in one thread of the operating system. Code that would block gives way here, and
goes on when its timer is due; between two such points nothing else happens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any

from celery_claims.host import Host
from greenlet import GreenletExit, getcurrent, greenlet

__all__ = ["EPOCH", "Alarm", "Fate", "Fiber", "Process", "Timer", "World", "the_world"]

#: Seconds between two looks whether it is over.
LOOK = 1.0
#: When a simulation begins, in seconds since the epoch; nothing reads the real clock.
EPOCH = 1_700_000_000
#: Before everything.
NEVER = -1e9


class Timer:
    """A call to come."""

    __slots__ = ("args", "call")

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.call: Callable[..., Any] | None = call
        self.args = args

    def cancel(self) -> None:
        self.call = None
        self.args = ()


@dataclass(slots=True, eq=False)
class Fate:
    """What befell a process, also when it is long gone.

    Parameters:
        struck_at: when it last was killed, or stood still.
        unanswered_at: when the store last did not answer it, as far as it knows.
        unsettled_at: the same, of ends and of what it gave back.
        untouched_at: when the broker did not answer it as it told of what it has: then it keeps the
            claims for a sweep to find.
    """

    struck_at: float = NEVER
    unanswered_at: float = NEVER
    unsettled_at: float = NEVER
    untouched_at: float = NEVER

    def was_hit(self, since: float) -> bool:
        """Whether it was struck, or had no answer."""
        return max(self.struck_at, self.unanswered_at) >= since


class World:
    """A simulated world.

    Parameters:
        seed: decides everything that could have happened otherwise.
        tell: gets each line of the timeline; None: nobody wants to know.
    """

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.now = 0.0
        self.rng = Random(seed)
        self.events = 0
        self.hub: greenlet = getcurrent()
        self.fiber: Fiber | None = None
        #: what no code may let through, with who did
        self.failures: list[str] = []
        self._tell = tell
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._pids = 0
        self._processes: dict[Process, None] = {}
        #: of every process that ever was, by its pid
        self.fates: dict[int, Fate] = {}
        _worlds[:] = [self]

    # time

    def at(self, when: float, call: Callable[..., Any], *args: Any) -> Timer:
        timer = Timer(call, args)
        self._count += 1
        heappush(self._heap, (max(when, self.now), self._count, timer))
        return timer

    def after(self, delay: float, call: Callable[..., Any], *args: Any) -> Timer:
        return self.at(self.now + delay, call, *args)

    def run(self, until: float, over: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until a moment, or until it is all over, which is asked now and then."""
        while self.now < until and not self.failures and not over():
            self._run(min(self.now + LOOK, until))

    def _run(self, until: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, timer = heappop(heap)
            if timer.call is not None:
                self.events += 1
                timer.call(*timer.args)
                if self.failures:
                    return
        self.now = until

    def wait(self, seconds: float) -> None:
        """The running fiber goes on after so much time of the world."""
        fiber = self.running()
        ticket = fiber.ticket = fiber.ticket + 1
        self.after(seconds, fiber.resume, ticket)
        fiber.give_way()

    def running(self) -> Fiber:
        assert self.fiber is not None, "only what runs in a fiber may wait"
        return self.fiber

    # processes

    def new_pid(self) -> int:
        self._pids += 1
        return self._pids

    def new_id(self, size: int) -> str:
        return f"{self.rng.getrandbits(8 * size):0{2 * size}x}"

    def add(self, process: Process) -> None:
        self._processes[process] = None
        self.fates[process.pid] = process.fate

    def remove(self, process: Process) -> None:
        self._processes.pop(process, None)

    def processes(self) -> list[Process]:
        """Those that live."""
        return list(self._processes)

    def close(self) -> None:
        """End what still runs, so that nothing of it is left to the garbage collector."""
        for process in list(self._processes):
            process.kill()
        _worlds.clear()

    # telling

    def tell(self, who: object, what: str, *args: Any) -> None:
        if self._tell is not None:
            self._tell(f"{self.now:12.6f}  {who!s:<10} {what % args if args else what}")

    def fail(self, what: str) -> None:
        """Note a violation; the simulation ends."""
        self.tell("VIOLATION", what.replace("%", "%%"))
        self.failures.append(f"{self.now:.6f} {what}")


_worlds: list[World] = []


def the_world() -> World:
    """The one that there is now: only one simulation runs at a time."""
    return _worlds[0]


class Process:
    """A process of a simulated host: it lives, pauses and dies as a whole.

    Parameters:
        name: for the timeline.
        rate, offset: of the host's monotonic clock, in its seconds per second of the world.
    """

    def __init__(self, world: World, name: str, rate: float = 1.0, offset: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.rate = rate
        self.offset = offset
        self.pid = world.new_pid()
        self.fate = Fate()
        self.alive = True
        self.paused = False
        self.killed = False
        self.fibers: dict[Fiber, None] = {}
        #: called once, when it is dead
        self.on_death: list[Callable[[], Any]] = []
        #: steps that are left before something befalls it, and what; see ``step``
        self.ambush: tuple[int, Callable[[], Any]] | None = None
        #: the claims of its app
        self.claims: Any = None
        self.parent: Process | None = None
        self._stopped: list[tuple[Fiber, int]] = []
        world.add(self)

    def __str__(self) -> str:
        return f"{self.name}/{self.pid}"

    def clock(self) -> float:
        return self.offset + self.rate * self.world.now

    def sibling(self, name: str) -> Process:
        """Another process of this host."""
        return Process(self.world, name, self.rate, self.offset)

    def host(self, is_running: Callable[[int], bool]) -> Host:
        """What the package sees of it."""
        return Host(
            clock=self.clock,
            new_id=self.world.new_id,
            rng=self.world.rng,
            pid=lambda: self.pid,
            is_running=is_running,
            start_thread=self.start,
            alarm=lambda: Alarm(self),
        )

    def start(self, run: Callable[[], None], name: str = "") -> Fiber:
        fiber = Fiber(self, run)
        self.world.after(0.0, fiber.resume, 0)
        return fiber

    def kill(self) -> None:
        """At once, wherever its fibers are. Not from one of them: see ``die``."""
        if self.alive:
            self.fate.struck_at = self.world.now
            self.killed = True
            self.end()

    def end(self) -> None:
        """As ``kill``, but in good order: its work is done."""
        if not self.alive:
            return
        self.alive = False
        for fiber in list(self.fibers):
            fiber.throw()
        self.world.remove(self)
        for call in self.on_death:
            call()
        self.on_death.clear()

    def die(self) -> None:
        """The running fiber kills its own process."""
        self.world.after(0.0, self.kill)
        self.world.running().park()

    def step(self) -> None:
        """The running fiber is about to do something that others can see, or has just done it."""
        if not self.alive:
            raise GreenletExit
        if self.ambush is not None:
            left, befall = self.ambush
            if left > 1:
                self.ambush = (left - 1, befall)
                return
            self.ambush = None
            self.world.after(0.0, befall)
            # Until it has happened.
            self.world.wait(0.0)

    def pause(self) -> None:
        self.paused = True
        self.fate.struck_at = self.world.now

    def go_on(self) -> None:
        self.paused = False
        self.fate.struck_at = self.world.now
        stopped, self._stopped = self._stopped, []
        for fiber, ticket in stopped:
            self.world.after(0.0, fiber.resume, ticket)

    def stop(self, fiber: Fiber, ticket: int) -> None:
        """The fiber would go on, but for the pause."""
        self._stopped.append((fiber, ticket))


class Fiber:
    """A thread of a process."""

    def __init__(self, process: Process, run: Callable[[], None]) -> None:
        self.process = process
        #: which of its waits is under way; what comes for an earlier one comes too late
        self.ticket = 0
        self.over = False
        #: questions to the store without an answer
        self.unanswered = 0
        #: for the judge: what its task knew when it came to an end
        self.ending: Any = None
        #: for the judge: since when it has told of the end of a body that did not live to do so
        self.telling_since = NEVER
        self._run = run
        self._joined: list[Alarm] = []
        self._greenlet = greenlet(self._main, parent=process.world.hub)
        process.fibers[self] = None

    def _main(self) -> None:
        process = self.process
        try:
            self._run()
        except GreenletExit:
            pass
        except Exception as error:  # noqa: BLE001 - of any kind: it would end a real process
            if process.alive:
                process.world.fail(f"{process}: {type(error).__name__}: {error}")
        finally:
            self.over = True
            process.fibers.pop(self, None)
            for alarm in self._joined:
                alarm.set()

    def resume(self, ticket: int) -> None:
        process = self.process
        if ticket != self.ticket or self.over or not process.alive:
            return
        if process.paused:
            process.stop(self, ticket)
            return
        world = process.world
        before, world.fiber = world.fiber, self
        try:
            self._greenlet.switch()
        finally:
            world.fiber = before

    def throw(self) -> None:
        world = self.process.world
        before, world.fiber = world.fiber, self
        try:
            self._greenlet.throw(GreenletExit)
        finally:
            world.fiber = before

    def give_way(self) -> None:
        """Wait for ``resume``."""
        if self.process.alive:
            self.process.world.hub.switch()
        if not self.process.alive:
            raise GreenletExit

    def park(self) -> None:
        """Wait for the end."""
        self.ticket += 1
        while True:
            self.give_way()

    # what ``NativeThread`` has

    def join(self, timeout: float | None = None) -> bool:
        if not self.over:
            alarm = Alarm(self.process)
            self._joined.append(alarm)
            alarm.wait(timeout)
        return self.over


class Alarm:
    """As ``native.Wakeup``, in simulated time."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._is_set = False
        self._waiting: tuple[Fiber, int] | None = None

    def set(self) -> None:
        self._is_set = True
        if self._waiting is not None:
            fiber, ticket = self._waiting
            self._waiting = None
            self._process.world.after(0.0, fiber.resume, ticket)

    def wait(self, timeout: float | None = None) -> bool:
        """Parameters: ``timeout``: seconds of the host."""
        world = self._process.world
        if not self._is_set:
            fiber = world.running()
            ticket = fiber.ticket = fiber.ticket + 1
            self._waiting = (fiber, ticket)
            timer = None
            if timeout is not None:
                timer = world.after(max(timeout, 0.0) / self._process.rate, fiber.resume, ticket)
            fiber.give_way()
            if timer is not None:
                timer.cancel()
        self._waiting = None
        rang, self._is_set = self._is_set, False
        return rang


class Mailbox:
    """Calls for a fiber, from anywhere."""

    def __init__(self, process: Process) -> None:
        self._alarm = Alarm(process)
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def post(self, call: Callable[..., Any], *args: Any) -> None:
        self._calls.append((call, args))
        self._alarm.set()

    def wake(self) -> None:
        self._alarm.set()

    def take(self) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        """The next call; None, after a wait, if there is none."""
        if self._calls:
            return self._calls.popleft()
        self._alarm.wait()
        return None

    def clear(self) -> None:
        self._calls.clear()
