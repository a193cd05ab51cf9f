"""What one seed decides before it begins: who works on what, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

__all__ = ["FAULTS", "Plan", "Work", "crowd", "plan_of"]

#: What can go wrong, by name.
FAULTS = (
    "crash",  # a worker is killed, between any two steps of it or after one
    "child",  # a process of its pool is
    "pause",  # a worker or a process of its pool stands still, and goes on
    "restart",  # a worker is shut down warmly
    "store down",  # for seconds
    "store slow",  # for seconds, with answers after their timeout
    "store lost",  # questions, or answers whose effect is there; some questions arrive late
    "disconnect",  # a worker loses its connection to the broker
    "broker down",  # all do, for seconds
    "duplicate",  # the broker has another copy of a message
    "drift",  # clocks run at other rates
)


@dataclass(frozen=True)
class Work:
    """What a task does.

    Parameters:
        kind: the name of its task.
        length: seconds of its body.
        copies: messages that are sent of it.
        retries: how often it retries.
        ending: of its last attempt: ``success``, ``failure``, ``reject``.
        requeues: how often it is rejected to be delivered again.
        deadly: its body takes its ``child`` or its whole ``worker`` with it, always.
        checks: it asks whether its claim is held.
        sent_at, countdown: seconds.
    """

    kind: str = "sim.late"
    length: float = 1.0
    copies: int = 1
    retries: int = 0
    ending: str = "success"
    requeues: int = 0
    deadly: str = ""
    checks: bool = False
    sent_at: float = 0.0
    countdown: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Parameters:
    broker: ``amqp`` or ``redis``.
    pool: ``prefork`` or ``threads``.
    concurrency, prefetch: of each worker.
    lease, sweep_every, visibility, max_wait, timeout: seconds.
    max_deliveries: see the settings.
    faults: names of what goes wrong.
    until: seconds for which it does.
    every: seconds between two faults, on the average.
    clears_timers: a lost connection clears the worker's timers, as before Celery 5.7.
    work: by task id.
    """

    seed: int
    broker: str = "amqp"
    pool: str = "prefork"
    workers: int = 3
    concurrency: int = 2
    prefetch: int = 4
    lease: float = 10.0
    sweep_every: float = 5.0
    visibility: float = 3600.0
    max_wait: float | None = None
    timeout: float = 1.0
    max_deliveries: int = 3
    faults: frozenset[str] = frozenset()
    until: float = 60.0
    every: float = 5.0
    clears_timers: bool = False
    work: dict[str, Work] = field(default_factory=dict)

    def __str__(self) -> str:
        faults = ", ".join(name for name in FAULTS if name in self.faults) or "nothing"
        return (
            f"seed {self.seed}: {self.workers} {self.pool} workers of {self.concurrency}, "
            f"{self.broker}, {len(self.work)} tasks, lease {self.lease:g} s; "
            f"what goes wrong: {faults}"
        )

    @property
    def is_lossy(self) -> bool:
        """Whether workers or their children may be lost, and what they have with them."""
        fatal = any(work.deadly == "worker" for work in self.work.values())
        return fatal or bool(self.faults - {"duplicate", "drift"})

    @property
    def bound(self) -> float:
        """Seconds after the last fault within which everything is finished."""
        attempts = sum(
            (work.length + work.countdown + self.lease) * (1 + work.retries + work.requeues)
            + bool(work.deadly) * self.max_deliveries * (self.lease + self.sweep_every)
            for work in self.work.values()
        )
        places = self.workers * self.concurrency
        longest = max((w.length + w.countdown for w in self.work.values()), default=0.0)
        # Whoever loses its worker to another task waits for its lease as well, and begins anew.
        killers = sum(work.deadly == "worker" for work in self.work.values())
        each = 4 * self.lease + self.sweep_every + longest
        attempts += places * killers * (self.max_deliveries + 1) * each
        # A second lease, for what was taken over in the last moment, and what is held asks then.
        return 4 * (self.lease + self.sweep_every) + 20 + 3 * attempts / places + 3 * longest


def plan_of(seed: int) -> Plan:
    """The plan of a seed."""
    rng = Random(f"plan {seed}")
    lease = rng.choice([3.0, 10.0, 30.0])
    broker = rng.choice(["amqp", "redis"])
    faults = _faults(rng)
    plan = Plan(
        seed,
        broker=broker,
        pool=rng.choice(["prefork", "prefork", "threads"]),
        workers=rng.randint(1, 4),
        concurrency=rng.randint(1, 3),
        prefetch=rng.choice([1, 2, 4]),
        lease=lease,
        sweep_every=rng.choice([1.0, 5.0, 10.0]),
        visibility=rng.choice([0.0, 0.0, 3 * lease]),
        max_wait=rng.choice([None, None, 2 * lease]) if broker == "amqp" else None,
        timeout=min(2.0, lease / 3),
        max_deliveries=rng.randint(1, 4),
        faults=faults,
        until=rng.choice([4, 10]) * lease,
        every=rng.choice([0.1, 0.4, 1.0]) * lease,
        clears_timers=rng.random() < 0.5,
    )
    plan = replace(plan, work=dict(_work(rng, plan)))
    # Long enough for nothing that is late to be put down to it.
    return plan if plan.visibility else replace(plan, visibility=2 * plan.bound)


def _faults(rng: Random) -> frozenset[str]:
    if rng.random() < 0.15:
        return frozenset({"duplicate"}) if rng.random() < 0.7 else frozenset()
    chosen = rng.sample(FAULTS, rng.randint(1, 5))
    return frozenset(chosen)


def _work(rng: Random, plan: Plan) -> Iterator[tuple[str, Work]]:
    for number in range(rng.choice([2, 5, 12])):
        kind = rng.choices(["sim.late", "sim.strict", "sim.early", "sim.kept"], [6, 2, 1, 2])[0]
        drawn = rng.random()
        deadly = "worker" if drawn < 0.03 else "child" if drawn < 0.08 else ""
        # What is acknowledged early cannot come again.
        late = kind != "sim.early"
        yield (
            f"t{number}",
            Work(
                kind=kind,
                length=rng.choice([0.01, 0.5, plan.lease / 2, 2.5 * plan.lease]),
                copies=rng.choices([1, 2, 5], [5, 3, 1])[0],
                retries=rng.choices([0, 1, 3], [6, 2, 1])[0],
                ending=rng.choices(["success", "failure", "reject"], [6, 1, 1])[0],
                requeues=late * rng.choices([0, 2], [8, 1])[0],
                deadly=deadly if late else "",
                checks=rng.random() < 0.3,
                sent_at=rng.choice([0.0, rng.uniform(0, plan.until)]),
                countdown=rng.choice([0.0, 0.0, 1.5 * plan.lease]),
            ),
        )


def crowd(seed: int, workers: int, tasks: int) -> Plan:
    """Many workers and tasks, with a little of everything that can go wrong."""
    rng = Random(f"crowd {seed}")
    seconds = max(60.0, tasks / workers / 2)
    plan = Plan(
        seed,
        broker="redis",
        workers=workers,
        concurrency=2,
        prefetch=4,
        lease=30.0,
        sweep_every=10.0,
        timeout=2.0,
        max_deliveries=20,
        faults=frozenset(FAULTS),
        until=seconds,
        # Of a thousand workers one is struck every half second.
        every=500.0 / workers,
    )
    work = {
        f"t{number}": Work(
            length=rng.choice([0.1, 1.0, 3.0]),
            copies=rng.choices([1, 2], [9, 1])[0],
            retries=rng.choices([0, 1], [9, 1])[0],
            ending=rng.choices(["success", "failure"], [9, 1])[0],
            sent_at=rng.uniform(0, seconds),
        )
        for number in range(tasks)
    }
    return replace(plan, work=work)
