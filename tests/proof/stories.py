"""Histories for the tests of the search: made by hand, and made from a sequential run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from celery_claims.protocol import (
    Attempt,
    ClaimRequest,
    ClaimToken,
    Exhausted,
    Outcome,
    Renewal,
    Settlement,
    Success,
    TookOver,
)
from celery_claims.stores.memory import MemoryStore
from celery_claims.testing import FakeClock

from .history import FAR, UNKNOWN, Call, Cleanup, Look, Operation

__all__ = ["KEEP", "KEY", "LEASE", "Story", "Telling", "spread", "tell_at_random", "unheard"]

LEASE, KEEP = 1000, 3_600_000
KEY = ("q", "t")


@dataclass(frozen=True)
class Telling:
    """One operation of a sequential run: at which milliseconds it happened, and its answer."""

    call: Call
    answer: Any
    at: int


class Story:
    """A sequential run on one record of a memory store, whose clock stands still in a call."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock, private=True)
        self.told: list[Telling] = []
        self.requests: list[ClaimRequest] = []
        self.tokens: list[ClaimToken] = []

    @property
    def now(self) -> int:
        return self.clock.now_us // 1000

    def wait(self, ms: int) -> None:
        self.clock.advance(ms)

    def tell(self, call: Call) -> Any:
        answer = self.perform(call)
        self.told.append(Telling(call, answer, self.now))
        return answer

    def perform(self, call: Call) -> Any:
        if isinstance(call, ClaimRequest):
            self.requests.append(call)
            answer: Any = self.store.claim([call])[0]
            if isinstance(answer, (Success, TookOver, Exhausted)):
                self.tokens.append(answer.token)
            return answer
        if isinstance(call, Renewal):
            return self.store.renew([call])[0]
        if isinstance(call, Settlement):
            return self.store.settle([call])[0]
        if isinstance(call, Cleanup):
            return self.store.expire([call.expiry], keep_ms=call.keep_ms)[0]
        assert isinstance(call, Look)
        return self.store.lookup([call.key])[0]

    def request(self, **changes: Any) -> ClaimRequest:
        number = len(self.requests)
        facts: dict[str, Any] = {"lease_ms": LEASE, "root_id": "run", **changes}
        return ClaimRequest(*KEY, owner=f"o{number}", grant_id=f"g{number}", **facts)

    def claim(self, **changes: Any) -> Any:
        return self.tell(self.request(**changes))

    def renew(self, token: ClaimToken, lease_ms: int = LEASE, **changes: bool) -> Any:
        return self.tell(Renewal(token, lease_ms, **changes))

    def release(self, token: ClaimToken, outcome: Outcome = Outcome.SUCCESS) -> Any:
        return self.tell(Settlement(token, outcome, KEEP))

    def nack(self, token: ClaimToken, keep_ms: int = KEEP) -> Any:
        return self.tell(Settlement(token, Outcome.NACKED, keep_ms))

    def look(self) -> Any:
        return self.tell(Look(KEY))


def spread(told: Sequence[Telling], rng: random.Random, *, overlap: int = 3) -> list[Operation]:
    """The run as clients would have heard it: each call began before it happened and ended after.

    Parameters:
        overlap: how many steps earlier or later at most; 0 for one after the other.
    """
    operations = []
    for number, each in enumerate(told):
        moment = 1000 * number
        called = moment - rng.randint(1, 1000 * overlap + 499)
        returned = moment + rng.randint(1, 1000 * overlap + 499)
        window = _window(told, number, overlap)
        operations.append(
            Operation(f"c{number}", each.call, each.answer, called, returned, *window)
        )
    return operations


def _window(told: Sequence[Telling], number: int, overlap: int) -> tuple[int, int]:
    """What the clock showed when the call began and ended, at the widest."""
    first, last = max(0, number - overlap - 1), min(len(told) - 1, number + overlap + 1)
    return told[first].at, told[last].at


def unheard(operation: Operation) -> Operation:
    return replace(operation, answer=UNKNOWN, returned=FAR, high=FAR)


def tell_at_random(rng: random.Random, steps: int) -> Story:
    """A story of random calls with random waits between them."""
    story = Story()
    for _ in range(steps):
        story.wait(rng.choice((0, 0, 1, 100, 500, 1000, 2500)))
        story.tell(_any_call(story, rng))
    return story


def _any_call(story: Story, rng: random.Random) -> Call:
    kind = rng.choice(("claim", "claim", "claim", "again", "renew", "settle", "look", "clean"))
    if kind == "look":
        return Look(KEY)
    if not story.tokens or kind == "claim":
        return story.request(
            lease_ms=rng.choice((1, 500, 1000)),
            root_id=rng.choice(("run", "run", "rerun")),
            attempt=Attempt(0, rng.choice((0, 0, 1))),
            max_deliveries=rng.choice((1, 2)),
        )
    if kind == "again":
        return rng.choice(story.requests[-3:])
    token = rng.choice(story.tokens[-3:])
    if kind == "renew":
        extend, started = rng.random() < 0.3, rng.random() < 0.5
        return Renewal(token, rng.choice((1, 500, 1000)), extend=extend, started=started)
    if kind == "settle":
        outcome = rng.choice((Outcome.SUCCESS, Outcome.NACKED, Outcome.REJECTED))
        return Settlement(token, outcome, rng.choice((0, 300, KEEP)))
    record = story.store.lookup([KEY])[0]
    if record is None:
        return Look(KEY)
    return Cleanup(record.as_expiry(), rng.choice((0, 300, KEEP)))
