"""One soak, from the first message to the verdict."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery
from celery_claims.protocol import Record

from tests.process.waiting import WaitTimeout, stays, wait_until

from .load import Load
from .processes import measure_process, processes_of
from .servers import read_records
from .verdict import Finding, Measure, Point, judge
from .world import Plan, World, made, sender

__all__ = ["Now", "Outcome", "run"]

#: Seconds that workers have to tell of their claims.
ANSWER = 2.0


@dataclass(frozen=True)
class Now:
    """How it stands, for somebody who watches.

    Parameters:
        seconds: since the beginning.
        sent: tasks.
        latest: what was measured last.
        happened: what was disturbed since the last time, in words.
    """

    seconds: float
    sent: int
    latest: Mapping[Measure, float]
    happened: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Parameters:
        findings: of all that was measured.
        sent: tasks.
        counts: what the workers told of their claims; empty without claims.
        left: messages that nobody took or acknowledged, after a rest.
        kept: records in the store that should have been forgotten by then.
        story: of what was left, each record and what the workers' logs have of its task.
    """

    findings: Sequence[Finding]
    sent: int
    counts: Mapping[str, int]
    left: int
    kept: int
    story: Sequence[str] = ()

    @property
    def complaints(self) -> list[str]:
        """What is not as it should be."""
        found = [f"{each.measure} grows" for each in self.findings if each.verdict == "growing"]
        if self.left:
            found.append(f"{self.left} messages are left at the broker")
        if self.kept:
            found.append(f"{self.kept} records are left in the store")
        return found


@dataclass
class Measuring:
    """What was measured so far.

    Parameters:
        world: where.
        app: to ask workers.
    """

    world: World
    app: Celery
    points: dict[Measure, list[Point]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._store = None if self.world.store is None else self.world.site.open_store()

    def measure(self) -> dict[Measure, float]:
        """Once all of it."""
        now = time.monotonic()
        latest = {**self._processes(), **self._servers(), **self._claims()}
        for measure, value in latest.items():
            self.points[measure].append((now, value))
        return latest

    def records(self) -> int:
        return len(self.all_records())

    def all_records(self) -> list[Record]:
        return [] if self._store is None else read_records(self._store)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
        self.app.close()

    def _processes(self) -> dict[Measure, float]:
        return {
            Measure(f"{worker.spec.name} {worker.spec.pool} {role} {pid}", what, what): value
            for worker in self.world.workers
            for role, pid in processes_of(worker.container.pid)
            for what, value in measure_process(pid).items()
        }

    def _servers(self) -> dict[Measure, float]:
        probes = {"broker": self.world.broker, "store": self.world.store}
        found = {
            Measure(name, what, kind): value
            for name, probe in probes.items()
            if probe is not None
            for (what, kind), value in probe().items()
        }
        if self._store is not None:
            found[Measure("store", "records", "count")] = self.records()
        return found

    def _claims(self) -> dict[Measure, float]:
        """The workers' own tables, as ``celery inspect claims`` shows them."""
        if self._store is None:
            return {}
        found = {}
        for node, told in self.ask().items():
            for table in ("active", "held"):
                name = node.partition("@")[0]
                found[Measure(f"{name} claims", table, "count")] = float(len(told[table]))
            self.counts[told["owner"]] = Counter(told["counts"])
        return found

    def ask(self) -> dict[str, Any]:
        replies = self.app.control.broadcast(
            "claims", reply=True, timeout=ANSWER, limit=len(self.world.workers)
        )
        return {node: told["ok"] for reply in replies or () for node, told in reply.items()}


Tell = Callable[[Now], None]


def run(plan: Plan, tell: Tell = lambda _: None) -> Outcome:
    """Keep workers busy, measure, and judge.

    Parameters:
        plan: what kind of run.
        tell: called after each measurement.
    """
    with (
        tempfile.TemporaryDirectory(prefix="claims-soak-") as folder,
        made(plan, Path(folder)) as world,
    ):
        app = sender(world)
        world.start_workers()
        measuring = Measuring(world, app)
        try:
            load = Load(app, random.Random(f"load {plan.seed}"), plan.rate)
            soak(world, load, measuring, tell)
            left, kept = rest(world, measuring)
            story = list(told_of(world, measuring)) if left or kept else []
        finally:
            measuring.close()
        counts = sum(measuring.counts.values(), Counter())
    return Outcome(judge(measuring.points, plan.warm_up), load.sent, counts, left, kept, story)


def soak(world: World, load: Load, measuring: Measuring, tell: Tell) -> None:
    """Send and measure until the time is over."""
    plan, began = world.plan, time.monotonic()
    rng = random.Random(f"disturb {plan.seed}")
    next_point, next_end = began, began + (plan.disturb or plan.seconds)
    happened: list[str] = []
    while (now := time.monotonic()) < began + plan.seconds:
        load.keep_up(now - began)
        world.replace_the_ended()
        if now >= next_end:
            happened.append(world.disturb(rng))
            next_end += plan.disturb
        if now >= next_point:
            tell(Now(now - began, load.sent, measuring.measure(), happened))
            happened = []
            next_point = now + plan.pause
        stays(lambda: True, 0.02)


def rest(world: World, measuring: Measuring) -> tuple[int, int]:
    """How many messages and records are left when nothing was sent for a while."""

    def is_empty() -> bool:
        world.replace_the_ended()
        return not world.left() and not measuring.records()

    try:
        wait_until(is_empty, world.plan.rest, interval=0.5)
    except WaitTimeout:
        return world.left(), measuring.records()
    return 0, 0


def told_of(world: World, measuring: Measuring) -> Iterator[str]:
    """What was left, and how it came to that."""
    for node, told in measuring.ask().items():
        yield f"{node}: {told}"
    logs = {name: log.splitlines() for name, log in world.site.logs().items()}
    for record in measuring.all_records():
        yield repr(record)
        for name, lines in logs.items():
            yield from (f"{name}: {line}" for line in lines if record.task_id in line)
