"""Deliveries, desks and stores for the tests of the decisions. No clock, no threads."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from celery_claims.brokers import Fate, InHand
from celery_claims.case import Action, Case, Do, Incoming
from celery_claims.config import TaskOptions
from celery_claims.desk import Desk
from celery_claims.errors import StoreCorrupt, StoreUnavailable
from celery_claims.protocol import (
    AlreadyClaimed,
    Attempt,
    ClaimToken,
    Delivery,
    Record,
    Success,
    TookOver,
)
from celery_claims.stores import Census, Page, Store, Unreadable, View

LEASE = 30.0

OPTIONS = TaskOptions(
    lease=LEASE, strict=False, keep_finished=7200.0, max_deliveries=20, max_hold=None
)


def options(**given: Any) -> TaskOptions:
    """Options of a task, filled in."""
    filled = {name: getattr(OPTIONS, name) for name in TaskOptions.__slots__}
    return TaskOptions(**{**filled, **given})


def incoming(task_id: str = "id-1", **given: Any) -> Incoming:
    """A message of a late-acking task; option names go to its options."""
    of_task = {name: given.pop(name) for name in TaskOptions.__slots__ if name in given}
    fields: dict[str, Any] = {
        "queue": "celery",
        "task_id": task_id,
        "root_id": task_id,
        "attempt": Attempt(),
        "deaths": 0,
        "late": True,
        "options": options(**of_task),
        "keep_free": 7200.0,
        "delivery": Delivery(task="proj.add", tag="tag-1", queue="celery"),
    }
    return Incoming(**{**fields, **given})


def make_desk(**given: Any) -> Desk:
    """A desk with counted grant ids and the same jitter in every run."""
    numbers = itertools.count(1)
    return Desk(
        owner=given.pop("owner", "w1"),
        new_grant=given.pop("new_grant", lambda: f"grant-{next(numbers)}"),
        rng=random.Random(7),
        **given,
    )


def token_of(case: Case, number: int = 100, owner: str = "w1") -> ClaimToken:
    """A grant for this case, as a store would give it."""
    message = case.incoming
    return ClaimToken(
        queue=message.queue,
        task_id=message.task_id,
        owner=owner,
        token=number,
        attempt=message.attempt,
        created_at=1_000,
        expires_at=31_000,
        grant_id=case.grant_id,
        root_id=message.root_id,
        deaths=message.deaths,
        delivery=message.delivery,
    )


def success(
    case: Case, *, deliveries: int = 0, orphaned: bool = False, number: int = 100
) -> Success:
    return Success(token_of(case, number), 1_000, deliveries, orphaned)


def took_over(
    case: Case, *, deliveries: int = 0, number: int = 100, previous: Delivery | None = None
) -> TookOver:
    last = previous or case.incoming.delivery
    return TookOver("w2", token_of(case, number), 1_000, deliveries, last)


def denied(remaining_ms: int = 30_000) -> AlreadyClaimed:
    """Somebody else's, for that much longer."""
    return AlreadyClaimed("w2", 1_000 + remaining_ms, 1_000)


def claimed_case(desk: Desk, message: Incoming | None = None, now: float = 0.0) -> Case:
    """A delivery that was granted at ``now``."""
    case, actions = desk.receive(message or incoming(), now)
    assert kinds(actions) == [Do.ASK]
    assert kinds(desk.answered(case, success(case), now, now)) == [Do.RUN]
    return case


def running_case(desk: Desk, message: Incoming | None = None, now: float = 0.0) -> Case:
    """A delivery whose body began at ``now``."""
    case = claimed_case(desk, message, now)
    assert desk.submitted(case)
    desk.accepted(case, now)
    return case


def held_case(desk: Desk, message: Incoming | None = None, now: float = 0.0) -> Case:
    """A delivery that another worker's claim keeps waiting."""
    case, _ = desk.receive(message or incoming(), now)
    assert kinds(desk.answered(case, denied(), now, now)) == [Do.HOLD]
    return case


def kinds(actions: Sequence[Action]) -> list[Do]:
    return [action.do for action in actions]


def moment(seconds: float) -> Any:
    """Equal to within a millisecond; clocks count in billions, where ``approx`` is generous."""
    return pytest.approx(seconds, rel=0, abs=0.001)


Effect = Callable[..., Any]


class FlakyStore(Store):
    """A store whose next calls of a verb fail as they were told to.

    ``fail(verb)`` loses the question, ``fail(verb, after=True)`` the reply: the effect is there.
    A batch with a task of ``unreadable`` is refused, after what comes before that task is done.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = store.name
        self.calls: list[tuple[str, Any]] = []
        self.closed = 0
        self._failures: dict[str, list[tuple[bool, Exception]]] = {}
        #: verb -> what to do before a call of it
        self.before: dict[str, Effect] = {}
        #: ids of tasks whose record this store cannot read
        self.unreadable: set[str] = set()

    def fail(
        self, *verbs: str, times: int = 1, after: bool = False, error: Exception | None = None
    ) -> None:
        for verb in verbs:
            failure = (after, error or StoreUnavailable(self.name, "out of reach"))
            self._failures.setdefault(verb, []).extend([failure] * times)

    def count(self, verb: str) -> int:
        return sum(name == verb for name, _ in self.calls)

    def _do(self, verb: str, argument: Any, effect: Effect) -> Any:
        self.calls.append((verb, argument))
        if verb in self.before:
            self.before[verb]()
        failures = self._failures.get(verb)
        after, error = failures.pop(0) if failures else (False, None)
        if error is not None and not after:
            raise error
        answer = effect()
        if error is not None:
            raise error
        return answer

    def _each(self, verb: Effect, batch: Any, task_id: Callable[[Any], str]) -> Any:
        for place, each in enumerate(batch):
            if task_id(each) in self.unreadable:
                verb(batch[:place])
                raise StoreCorrupt(self.name, f"the record of {task_id(each)} cannot be read")
        return verb(batch)

    def claim(self, requests: Any) -> Any:
        effect = partial(self._each, self.store.claim, requests, lambda each: each.task_id)
        return self._do("claim", requests, effect)

    def renew(self, renewals: Any) -> Any:
        effect = partial(self._each, self.store.renew, renewals, lambda each: each.token.task_id)
        return self._do("renew", renewals, effect)

    def settle(self, settlements: Any) -> Any:
        effect = partial(
            self._each, self.store.settle, settlements, lambda each: each.token.task_id
        )
        return self._do("settle", settlements, effect)

    def lookup(self, keys: Any) -> Any:
        return self._do(
            "lookup", keys, partial(self._each, self.store.lookup, keys, lambda key: key[1])
        )

    def scan(
        self, view: View, *, queue: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page:
        page: Page = self._do(
            "scan", view, lambda: self.store.scan(view, queue=queue, cursor=cursor, limit=limit)
        )
        bad = [record for record in page.records if record.task_id in self.unreadable]
        return replace(
            page,
            records=tuple(record for record in page.records if record not in bad),
            unreadable=tuple(Unreadable(r.task_id, "damaged", f"rm {r.task_id}") for r in bad),
        )

    def expire(self, expiries: Any, *, keep_ms: int) -> Any:
        verb = partial(self.store.expire, keep_ms=keep_ms)
        effect = partial(self._each, verb, expiries, lambda each: each.task_id)
        return self._do("expire", expiries, effect)

    def census(self, queue: str | None = None) -> Census:
        census: Census = self._do("census", queue, lambda: self.store.census(queue))
        return census

    def elect(self, duty: str, interval_ms: int) -> bool:
        return bool(self._do("elect", duty, lambda: self.store.elect(duty, interval_ms)))

    def close(self) -> None:
        self.closed += 1
        self.store.close()


class FakeDeliveries:
    """A broker's unacknowledged messages.

    Parameters:
        is_back: of each record whether its message is in nobody's hands.
    """

    touch_every = 1200.0

    def __init__(self, is_back: Callable[[Record], bool] = lambda _: True) -> None:
        self.is_back = is_back
        #: whether the broker answers
        self.up = True
        self.touches: list[tuple[list[InHand], list[InHand]]] = []
        self.untouched = 0
        self.closed = False

    def touch(self, mine: Sequence[InHand], dropped: Sequence[InHand] = ()) -> None:
        self._answer()
        self.touches.append((list(mine), list(dropped)))

    def give_back(self, records: Sequence[Record]) -> list[Fate]:
        self._answer()
        return [Fate.PUT_BACK if self.is_back(r) else Fate.IN_HAND for r in records]

    def give_back_untouched(self) -> int:
        self._answer()
        self.untouched += 1
        return 0

    def close(self) -> None:
        self.closed = True

    def _answer(self) -> None:
        if not self.up:
            raise StoreUnavailable("redis://broker", "no answer")
