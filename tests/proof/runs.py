"""One run: clients in an arena while things go wrong, and the judgement of what they heard."""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from celery_claims.protocol import ClaimRequest, Exhausted, Success, TookOver
from celery_claims.stores import Store

from .arenas import Arena, pause
from .clients import Job, Plan
from .counterexample import explain
from .history import Amnesia, Key, Operation, by_key, read_logs
from .linearizability import BUDGET, check, only_reads

__all__ = [
    "History",
    "Judgement",
    "Settings",
    "answers_lost",
    "judge",
    "record",
    "tokens_that_went_back",
]

#: Seconds between two looks at whether the clients are done.
LOOK = 0.05

#: Seconds that clients may take beyond all faults; then the run has hung.
PATIENCE = 120.0

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Settings:
    """What a run is.

    Parameters:
        operations: how many all clients ask together, at least.
        processes: clients are processes, some of which are killed and paused; else threads.
        clients: how many.
        fault_every: seconds from the end of one fault to the next, on the average; 0 for none.
        seed: of all choices. Which operation meets which fault is not repeated by it.
        wrap: what stands between each client and the store.
    """

    operations: int
    processes: bool = False
    clients: int = 6
    fault_every: float = 0.3
    seed: int = 0
    wrap: Callable[[Store], Store] | None = None


@dataclass(frozen=True)
class History:
    """What was heard in a run.

    Parameters:
        operations: of all clients.
        faults: how often each happened, also those that never did.
        seconds: that the clients took.
    """

    operations: Sequence[Operation]
    faults: Counter[str]
    seconds: float


class _Crowd(ABC):
    """Clients that run at the same time."""

    def __init__(self, job: Job, clients: int) -> None:
        self._job = job
        self._clients = clients

    #: the operations of each client, and last the faults
    counts: Any

    def asked(self) -> int:
        """How many operations there were."""
        return int(sum(self.counts[:-1]))

    def start(self) -> None:
        for number in range(self._clients):
            self.begin(number, f"c{number}")

    @abstractmethod
    def begin(self, number: int, name: str) -> None:
        """Start a client."""

    @abstractmethod
    def is_running(self) -> bool: ...

    @abstractmethod
    def finish(self) -> None:
        """Wait for the clients, and fail if one did."""

    def faults(self, rng: random.Random) -> dict[str, Callable[[], object]]:
        """What may be done to clients; False says that it was done to none."""
        return {}


class _Threads(_Crowd):
    def __init__(self, job: Job, clients: int) -> None:
        super().__init__(job, clients)
        self.counts = [0] * (clients + 1)
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def begin(self, number: int, name: str) -> None:
        thread = threading.Thread(target=self._run, args=(number, name), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, number: int, name: str) -> None:
        try:
            self._job.run(number, name, self.counts)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._errors.append(error)

    def is_running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client hangs"
        if self._errors:
            raise self._errors[0]


class _Processes(_Crowd):
    def __init__(self, job: Job, clients: int) -> None:
        super().__init__(job, clients)
        # Forked from a process with threads, a client might inherit a lock that nobody gives back.
        self._context = multiprocessing.get_context("spawn")
        # Without a lock: a killed client could not give it back, and each place has one writer.
        self.counts = self._context.RawArray("q", clients + 1)
        self._processes: dict[int, Any] = {}
        self._killed = 0

    def begin(self, number: int, name: str) -> None:
        process = self._context.Process(
            target=self._job.run, args=(number, name, self.counts), daemon=True
        )
        process.start()
        self._processes[number] = process

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self._processes.values())

    def finish(self) -> None:
        for process in self._processes.values():
            process.join(PATIENCE)
            assert process.exitcode == 0, f"a client ended with {process.exitcode}"

    def faults(self, rng: random.Random) -> dict[str, Callable[[], object]]:
        return {
            "client killed": lambda: self._kill(rng),
            "client paused": lambda: self._pause(rng),
        }

    def _kill(self, rng: random.Random) -> None:
        """With SIGKILL, in the middle of whatever it does; another one takes its place."""
        number = rng.randrange(self._clients)
        process = self._processes[number]
        process.kill()
        process.join(PATIENCE)
        self._killed += 1
        self.begin(number, f"c{number}-{self._killed}")

    def _pause(self, rng: random.Random) -> bool:
        pid = self._processes[rng.randrange(self._clients)].pid
        try:
            process = psutil.Process(pid)
        except psutil.NoSuchProcess:
            return False
        with pause([process]):
            threading.Event().wait(rng.uniform(0.02, 0.5))
        return True


def record(arena: Arena, settings: Settings, progress: Progress = lambda _: None) -> History:
    """Let clients ask while things go wrong, and read what they noted.

    Parameters:
        progress: told now and then how many operations there were.
    """
    rng = random.Random(settings.seed)
    with tempfile.TemporaryDirectory(prefix="claims-history-") as folder:
        crowd = _make_crowd(arena, settings, Path(folder))
        began = time.monotonic()
        crowd.start()
        faults = _while_running(arena, crowd, settings, rng, progress)
        crowd.finish()
        seconds = time.monotonic() - began
        operations = [*read_logs(Path(folder).iterdir())]
    return History(operations, faults, seconds)


def _make_crowd(arena: Arena, settings: Settings, folder: Path) -> _Crowd:
    job = Job(
        plan=Plan(
            settings.seed,
            settings.operations,
            started=time.monotonic(),
            name=f"{settings.seed}-{'processes' if settings.processes else 'threads'}-",
            until_fault=_has_faults(arena, settings),
        ),
        folder=folder,
        url=arena.url,
        options=arena.options,
        odds=arena.odds if settings.fault_every else 0.0,
        wrong_clock=arena.wrong_clock and settings.processes,
        wrap=settings.wrap,
    )
    crowd = _Processes if settings.processes else _Threads
    return crowd(job, settings.clients)


def _has_faults(arena: Arena, settings: Settings) -> bool:
    """Whether something can go wrong outside of the clients."""
    return bool(settings.fault_every and (arena.faults() or settings.processes))


def _while_running(
    arena: Arena, crowd: _Crowd, settings: Settings, rng: random.Random, progress: Progress
) -> Counter[str]:
    happened: Counter[str] = Counter()
    to_come: list[str] = []
    pause_until = 0.0
    while crowd.is_running():
        asked = crowd.asked()
        progress(asked)
        faults = {**arena.faults(), **crowd.faults(rng)} if settings.fault_every else {}
        happened.update(dict.fromkeys(faults, 0))
        # A client that is about to end need not be killed: another would start for nothing.
        under_way = asked and (asked < settings.operations * 0.95 or not happened.total())
        if faults and under_way and time.monotonic() >= pause_until:
            # Each of them once before any comes again, so that none is missing by chance.
            to_come = [name for name in to_come if name in faults] or rng.sample(
                sorted(faults), len(faults)
            )
            name = to_come.pop()
            if faults[name]() is False:
                continue
            happened[name] += 1
            crowd.counts[-1] = happened.total()
            pause_until = time.monotonic() + rng.expovariate(1 / settings.fault_every)
        threading.Event().wait(LOOK)
    return happened


@dataclass(frozen=True)
class Judgement:
    """What came of a run.

    Parameters:
        operations, unknown, keys, longest: of the history; the longest one of a record.
        configurations, seconds: what the search took.
        violations: the records whose history has no order.
        undecided: the records whose search was given up.
        counterexample: one of them, in words.
    """

    operations: int
    unknown: int
    keys: int
    longest: int
    configurations: int
    seconds: float
    violations: tuple[Key, ...] = ()
    undecided: tuple[Key, ...] = ()
    counterexample: str = field(default="", repr=False)

    @property
    def is_good(self) -> bool:
        return not self.violations and not self.undecided


def judge(
    arena: Arena,
    history: History,
    *,
    forgiving: bool = False,
    budget: int = BUDGET,
    explained: bool = True,
) -> Judgement:
    """Search each record's history for an order that the protocol allows.

    Parameters:
        budget: configurations after which the search of a record is given up.
        explained: with a counterexample, which may take longer to make small than to find.
        forgiving: the store may have lost its memory when ``arena.amnesias`` say so.
    """
    began = time.monotonic()
    histories = by_key(history.operations)
    if forgiving:
        histories = {key: [*_with_amnesia(arena, key, each)] for key, each in histories.items()}
    violations: list[Key] = []
    undecided: list[Key] = []
    configurations = 0
    for key, operations in histories.items():
        verdict = check(operations, arena.specification, budget=budget)
        configurations += verdict.configurations
        if verdict.linearizable is None:
            undecided.append(key)
        elif not verdict.linearizable:
            violations.append(key)
    judgement = Judgement(
        operations=len(history.operations),
        unknown=sum(not each.is_known for each in history.operations),
        keys=len(histories),
        longest=max(map(len, histories.values()), default=0),
        configurations=configurations,
        seconds=time.monotonic() - began,
        violations=tuple(violations),
        undecided=tuple(undecided),
    )
    if violations and explained:
        shortest = min(violations, key=lambda key: len(histories[key]))
        text = explain(histories[shortest], arena.specification)
        judgement = replace(judgement, counterexample=text)
    return judgement


def answers_lost(arena: Arena, operations: Sequence[Operation]) -> int:
    """How many changes were answered for that a replica which took over had not heard of."""
    return sum(
        each.is_known
        and not only_reads(each)
        and any(began < each.called and each.returned < ended for began, ended in arena.fallbacks)
        for each in operations
    )


def _with_amnesia(arena: Arena, key: Key, operations: Sequence[Operation]) -> Iterator[Operation]:
    yield from operations
    for began, ended in arena.amnesias:
        yield Operation("server", Amnesia(key), True, began, ended)


def tokens_that_went_back(operations: Sequence[Operation]) -> list[tuple[Operation, Operation]]:
    """Grants whose token is not above that of a grant of the record that ended before they began.

    Weaker than the search, and free of any specification: it also holds where a store forgot.
    """
    back = []
    for own in by_key(operations).values():
        first = _first_grants(own)
        highest: Operation | None = None
        ended = iter(sorted(first, key=lambda each: each.returned))
        waiting = next(ended, None)
        for grant in sorted(first, key=lambda each: each.called):
            while waiting is not None and waiting.returned < grant.called:
                if highest is None or _token(waiting) > _token(highest):
                    highest = waiting
                waiting = next(ended, None)
            if highest is not None and _token(grant) <= _token(highest):
                back.append((highest, grant))
    return back


def _first_grants(operations: Sequence[Operation]) -> list[Operation]:
    """Of each grant the answer that came first: a repeated claim is not another grant."""
    first: dict[tuple[int, str], Operation] = {}
    for each in sorted(operations, key=lambda each: each.returned):
        if isinstance(each.answer, (Success, TookOver, Exhausted)):
            assert isinstance(each.call, ClaimRequest)
            first.setdefault((_token(each), each.call.grant_id), each)
    return list(first.values())


def _token(operation: Operation) -> int:
    number: int = operation.answer.token.token
    return number
