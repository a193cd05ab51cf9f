"""Is there an order of a history's operations that the specification allows?

The search of Wing and Gong ("Testing and verifying concurrent objects", 1993) with what Lowe added
("Testing for linearizability", 2017): a configuration, that is the set of operations that took
effect and the state they led to, is looked at once, however many orders lead to it; and the history
of each record is searched by itself, which Herlihy and Wing's locality allows. An operation may
take effect next if no other one, that has not taken effect, returned before it was called.

Operations without an answer may take effect at any time after their call, or never. One that would
change nothing is left out: it is the same as if it never happened. Many of them at once are many
orders, so the search is done twice at most: first with those only whose grant some answer names,
for an order that does without the others is an order; and if there is none, with all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from celery_claims.protocol import AlreadyClaimed, ClaimRequest, Ended, Finished, Lost, Superseded

from .history import FAR, Look, Operation, Sight
from .specification import Known

__all__ = ["BUDGET", "Allows", "Step", "Verdict", "check", "only_reads"]

#: Configurations after which a search is given up: a minute, which no history of the runs needs.
BUDGET = 300_000


class Allows(Protocol):
    """What the search needs of a specification."""

    def orders(self, operation: Operation) -> int | None: ...

    def after(self, state: Known, operation: Operation, latest: int = FAR) -> list[Known]: ...


class _Configuration(NamedTuple):
    """Known operations before ``first`` took effect, and of those from it on the ones in ``more``.

    Parameters:
        unheard: which of the operations without an answer took effect, as bits.
    """

    first: int
    more: int
    unheard: int
    state: Known


class _Next(NamedTuple):
    """What may take effect next.

    Parameters:
        numbers: the known operations that may.
        horizon: until when, in nanoseconds, an operation must have been called to be before them.
        latest: what the store's clock may show at most, in milliseconds, before they return.
    """

    numbers: list[int]
    horizon: int
    latest: int


class Step(NamedTuple):
    """An operation that took effect, and the state after it."""

    operation: Operation
    state: Known


@dataclass(frozen=True)
class Verdict:
    """The result of a search.

    Parameters:
        linearizable: None if the search was given up.
        configurations: how many were looked at.
        steps: the order that was found, or the longest one that the specification allows.
        stuck: the operations one of which had to take effect after it, and could not.
    """

    linearizable: bool | None
    configurations: int
    steps: tuple[Step, ...]
    stuck: tuple[Operation, ...] = ()


def check(
    operations: Sequence[Operation],
    specification: Allows,
    *,
    state: Known | None = None,
    budget: int = BUDGET,
) -> Verdict:
    """Search for an order of the operations of one record.

    Parameters:
        operations: in any order.
        state: what the record was before.
        budget: the most configurations to look at.
    """
    start = state or Known()
    likely = _without_unnamed_claims(operations)
    verdict = _Search(likely, specification).run(start, budget)
    if verdict.linearizable or len(likely) == len(operations):
        return verdict
    return _Search(operations, specification).run(start, budget)


def _without_unnamed_claims(operations: Sequence[Operation]) -> list[Operation]:
    """Without unanswered claims that no answer speaks of."""
    named = {name for each in operations if each.is_known for name in _names(each.answer)}
    return [
        each
        for each in operations
        if each.is_known
        or not isinstance(each.call, ClaimRequest)
        or not named.isdisjoint((each.call.owner, each.call.grant_id))
    ]


def _names(answer: object) -> Iterator[object]:
    for name in ("owner", "grant_id", "previous_owner"):
        yield getattr(answer, name, None)
    token = getattr(answer, "token", None)
    yield getattr(token, "grant_id", None)


class _Search:
    def __init__(self, operations: Sequence[Operation], specification: Allows) -> None:
        inside = sorted(operations, key=lambda each: (each.called, each.returned))
        self._known = [each for each in inside if each.is_known]
        self._unheard = [each for each in inside if not each.is_known]
        place = {id(each): number for number, each in enumerate(self._known)}
        self._after = [place.get(id(each.after), -1) for each in self._known]
        self._orders = [specification.orders(each) for each in self._known]
        self._specification = specification

    def run(self, state: Known, budget: int) -> Verdict:
        start = _Configuration(0, 0, 0, state)
        came: dict[_Configuration, tuple[_Configuration, Operation] | None] = {start: None}
        to_do = [start]
        furthest, most = start, -1
        while to_do:
            here = to_do.pop()
            done = here.first + here.more.bit_count()
            if done > most:
                furthest, most = here, done
            if done == len(self._known):
                return Verdict(True, len(came), self._way(came, here))
            if len(came) > budget:
                return Verdict(None, len(came), self._way(came, furthest))
            # The stack gives out the last one first.
            for there, operation in reversed(list(self._following(here))):
                if there not in came:
                    came[there] = (here, operation)
                    to_do.append(there)
        stuck = tuple(self._known[number] for number in self._next(furthest).numbers)
        return Verdict(False, len(came), self._way(came, furthest), stuck)

    def _following(self, here: _Configuration) -> Iterator[tuple[_Configuration, Operation]]:
        numbers, horizon, latest = self._next(here)
        found = []
        for number in numbers:
            operation = self._known[number]
            first, more = _with(here, number)
            for state in self._specification.after(here.state, operation):
                there = _Configuration(first, more, here.unheard, state)
                if only_reads(operation) and state == here.state:
                    # Any order that has it later is as good with it here.
                    yield there, operation
                    return
                found.append((there, operation))
        yield from found
        for number, operation in enumerate(self._unheard):
            if operation.called > horizon:
                break
            if not here.unheard >> number & 1:
                unheard = here.unheard | 1 << number
                for state in self._specification.after(here.state, operation, latest):
                    yield _Configuration(here.first, here.more, unheard, state), operation

    def _next(self, here: _Configuration) -> _Next:
        waiting: list[int] = []
        horizon = self._known[here.first].returned
        latest = FAR
        for number in range(here.first, len(self._known)):
            if self._known[number].called > horizon:
                break
            if not here.more >> (number - here.first) & 1:
                waiting.append(number)
                horizon = min(horizon, self._known[number].returned)
                latest = min(latest, self._known[number].high)
        free = [
            number
            for number in waiting
            if self._known[number].called <= horizon and not self._waits(here, number)
        ]
        readings = [reading for n in waiting if (reading := self._orders[n]) is not None]
        least = min(readings, default=0)
        free = [n for n in free if (reading := self._orders[n]) is None or reading <= least]
        return _Next(sorted(free, key=self._promising), horizon, latest)

    def _waits(self, here: _Configuration, number: int) -> bool:
        """Whether the operation before it in its batch has yet to take effect."""
        before = self._after[number]
        return before >= here.first and not here.more >> (before - here.first) & 1

    def _promising(self, number: int) -> tuple[int, int]:
        operation = self._known[number]
        return (operation.now or operation.low, operation.returned)

    def _way(
        self,
        came: dict[_Configuration, tuple[_Configuration, Operation] | None],
        to: _Configuration,
    ) -> tuple[Step, ...]:
        steps = []
        while (before := came[to]) is not None:
            steps.append(Step(before[1], to.state))
            to = before[0]
        return tuple(reversed(steps))


def _with(here: _Configuration, number: int) -> tuple[int, int]:
    """``first`` and ``more`` once this operation took effect."""
    first, more = here.first, here.more | 1 << (number - here.first)
    while more & 1:
        first, more = first + 1, more >> 1
    return first, more


def only_reads(operation: Operation) -> bool:
    """Whether its answer says that it changed nothing, whatever it found."""
    if isinstance(operation.call, (Look, Sight)) or operation.answer is False:
        return True
    return isinstance(operation.answer, (AlreadyClaimed, Ended, Finished, Lost, Superseded))
