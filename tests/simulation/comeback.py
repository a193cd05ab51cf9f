"""Promise 6 in numbers: what a killed worker had claimed is somebody else's within a lease and an
interval.

That is so while nothing else goes wrong. Whatever does lets the time begin anew, so that in the
end, when all is calm, each task of a killed worker has had it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .judge import Grant, Judge, Part
from .link import Service
from .plan import Plan
from .world import NEVER, Process, World

__all__ = ["Comebacks"]

#: Seconds for questions, answers, and what is gathered.
SLACK = 1.0
#: How far a host's seconds may be from the store's.
DRIFT = 0.05


@dataclass
class Comebacks:
    """Parameters:
    world, plan, judge, services: of this simulation; the services are the store and the broker.
    waits: whether a message of an attempt is in the queue, where it waits for room at a worker.
    is_there: whether the broker has one that it will give out, or that a sweep can find.
    is_full: whether a worker has no place for one more body.
    """

    world: World
    plan: Plan
    judge: Judge
    services: tuple[Service, ...]
    waits: Callable[[Part], bool]
    is_there: Callable[[Part], bool]
    is_full: Callable[[Grant], bool]
    #: when it was last not so that all workers lived and went on
    changed_at: float = NEVER
    #: seconds from the end of a lease to the next grant
    limit: float = field(init=False)
    #: the same, from what went wrong last
    trouble: float = field(init=False)
    #: seconds from a death to the end of what the worker touched last
    touched: float = field(init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        drift = DRIFT * (plan.sweep_every + plan.lease) if "drift" in plan.faults else 0.0
        if plan.broker == "redis":
            # A sweep finds it once it is not touched any more.
            self.limit, self.touched = plan.sweep_every + drift + SLACK, plan.lease
        else:
            # The broker gives the message to somebody who asks when the lease is over.
            self.limit, self.touched = drift + SLACK, 0.0
        # Who had no answer asks again after a pause, and who holds a copy, or the very message, may
        # have touched it just before it lost its connection.
        self.trouble = self.limit + self.judge.soon + self.touched

    def changed(self) -> None:
        """A worker has started, has ended or has been told to, or has lost its connection."""
        self.changed_at = self.world.now

    def killed(self, worker: Process) -> None:
        """What it had claimed is expected back."""
        self.changed()
        for part, grants in self.judge.grants.items():
            grant = grants[-1]
            if grant.worker is worker.fate and self._is_owed(part, grant):
                self._look_later(part, grant, self.world.now + self.touched)

    def left(self, worker: Process) -> None:
        """It has shut down: what it had claimed and not run is given back."""
        silent = max(service.silent_at for service in self.services)
        for part, grants in self.judge.grants.items():
            grant = grants[-1]
            hit = worker.fate.was_hit(grant.at) or silent >= grant.at
            if grant.worker is worker.fate and self._is_owed(part, grant) and not hit:
                self.judge.fail("back soon", f"{part} is not given back by {worker}")

    def _is_owed(self, part: Part, grant: Grant) -> bool:
        """It is neither at its end nor anybody else's."""
        early = self.plan.work[part[0]].kind == "sim.early"
        over = part in self.judge.finished or self.judge.is_superseded(part) or early
        return not (over or grant.settled or self.judge.tokens[part[0]] != grant.token)

    def _due(self, grant: Grant, since: float) -> float:
        expected = max(grant.expires_at, since) + self.limit
        return max(expected, self._disturbed_at() + self.trouble)

    def _look_later(self, part: Part, grant: Grant, since: float) -> None:
        """Parameters: ``since``: when it could be given out at the earliest."""
        self.world.at(self._due(grant, since), self._look, part, grant, since)

    def _look(self, part: Part, grant: Grant, since: float) -> None:
        if not self._is_owed(part, grant):
            self._expect_start(part)
            return
        if not self.is_there(part):
            return
        now = self.world.now
        if self.waits(part):
            self._look_later(part, grant, now)
        elif now < self._due(grant, since):
            self._look_later(part, grant, since)
        else:
            late = now - max(grant.expires_at, since)
            self.judge.fail("back soon", f"{part} is nobody's {late:.1f} s after its lease")

    def _expect_start(self, part: Part) -> None:
        grant = self.judge.grants[part][-1]
        if not self.plan.work[part[0]].countdown:
            self.world.after(self.limit, self._look_for_start, part, grant)

    def _look_for_start(self, part: Part, grant: Grant, *, again: bool = True) -> None:
        if grant.begun or grant.spent or not self._is_owed(part, grant) or grant.was_hit:
            return
        if self._disturbed_at() >= grant.at or self.is_full(grant):
            return
        if again:
            # The place may have become free this very moment.
            self.world.after(SLACK, partial(self._look_for_start, part, grant, again=False))
        else:
            self.judge.fail("back soon", f"{part} is granted again, and does not begin")

    def _disturbed_at(self) -> float:
        """When something last went wrong."""
        living = self.world.processes()
        bad = any(service.is_bad() for service in self.services)
        alone = all(process.parent is not None for process in living)
        if bad or alone or any(process.paused for process in living):
            return self.world.now
        last = max(fate.struck_at for fate in self.world.fates.values())
        silent = max(max(service.silent_at, service.healed_at) for service in self.services)
        return max(last, silent, self.changed_at)


def settle_in(simulation: Any) -> Comebacks:
    """The comebacks of a simulation."""
    broker, judge = simulation.broker, simulation.judge

    def waits(part: Part) -> bool:
        ending = {worker.process for worker in simulation.workers if worker.stopping}
        # Who drains its pool asks for nothing, and gives back what it holds when it ends.
        in_hand = (copy for copy in broker.unacked.values() if copy.holder in ending)
        return any(copy.part == part for copy in [*broker.queue, *in_hand])

    def is_there(part: Part) -> bool:
        found = [copy for copy in broker.unacked.values() if copy.part == part]
        return waits(part) or any(copy.known or not broker.is_redis for copy in found)

    def is_full(grant: Grant) -> bool:
        worker = next((w for w in simulation.workers if w.process.fate is grant.worker), None)
        return worker is None or worker.stopping or worker.pool.is_full()

    services = (simulation.store.service, broker.service)
    return Comebacks(simulation.world, simulation.plan, judge, services, waits, is_there, is_full)
