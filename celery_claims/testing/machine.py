"""Random interleavings of all verbs, compared with the model step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from ..protocol import (
    Attempt,
    ClaimRequest,
    ClaimToken,
    Exhausted,
    Expiry,
    Outcome,
    Record,
    Renewal,
    Settlement,
    Success,
    TookOver,
)
from ..stores.base import Store, View
from .harness import Harness
from .model import Model, essence

__all__ = ["store_machine"]

#: Few, so that steps meet on the same record.
QUEUES, TASKS, ROOTS = ("a", "b"), ("s", "t", "u"), ("run", "rerun")
ATTEMPTS = (Attempt(0, 0), Attempt(0, 1), Attempt(1, 0))
LEASES = (1000, 2000, 5000)
STEPS = (0, 500, 1000, 1500, 2000, 10_000)
KEEP_LONG = 3_600_000
ENDS = (Outcome.SUCCESS, Outcome.FAILURE, Outcome.RETRY, Outcome.REJECTED)


class Steps:
    """What the machine can do, without hypothesis: each step checks its answer."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.store: Store = harness.open()
        self.model = Model()
        self.requests: list[ClaimRequest] = []
        self.tokens: list[ClaimToken] = []
        self._numbers = itertools.count()

    def close(self) -> None:
        self.store.close()
        self.harness.close()

    def claim(self, requests: list[dict[str, Any]]) -> None:
        batch = []
        for request in requests:
            number = next(self._numbers)
            batch.append(
                ClaimRequest(owner=f"owner{number % 3}", grant_id=f"grant{number}", **request)
            )
        self._claim(batch)

    def claim_again(self, request: ClaimRequest) -> None:
        self._claim([request])

    def _claim(self, batch: list[ClaimRequest]) -> None:
        self.requests += batch
        answers = self.store.claim(batch)
        for request, answer in zip(batch, answers, strict=True):
            self.model.claim(request, answer)
            if isinstance(answer, (Success, TookOver, Exhausted)):
                self.tokens.append(answer.token)

    def renew(self, renewals: list[Renewal]) -> None:
        batch = [each for each in renewals if not self.model.is_outdated(each.token)]
        for renewal, answer in zip(batch, self.store.renew(batch), strict=True):
            self.model.renew(renewal, answer)

    def settle(self, settlements: list[Settlement]) -> None:
        batch = [each for each in settlements if not self.model.is_outdated(each.token)]
        for settlement, answer in zip(batch, self.store.settle(batch), strict=True):
            self.model.settle(settlement, answer)

    def clean_up(self, keep_ms: int, limit: int) -> None:
        page = self.store.scan(View.ORPHANED, limit=limit)
        expiries = [record.as_expiry() for record in page.records]
        answers = self.store.expire(expiries, keep_ms=keep_ms)
        for expiry, answer in zip(expiries, answers, strict=True):
            now = self._cleaned_at(expiry, page.now) if answer else page.now
            self.model.expire(expiry, keep_ms, answer, now)

    def expire_blindly(self, token: ClaimToken, keep_ms: int) -> None:
        record = self.store.lookup([(token.queue, token.task_id)])[0]
        if record is None:
            return
        before = self.now()
        answer = self.store.expire([record.as_expiry()], keep_ms=keep_ms)[0]
        # Where a real clock passed the end of the lease meanwhile, both answers are right.
        passed = record.is_orphan(before) is not record.is_orphan(self.now())
        now = before
        if answer:
            now = self._cleaned_at(record.as_expiry(), self.now() if passed else before)
        self.model.expire(record.as_expiry(), keep_ms, answer, now)

    def _cleaned_at(self, expiry: Expiry, asked_at: int) -> int:
        """When a claim was cleaned up, by its record: the answer does not tell."""
        record = self.store.lookup([(expiry.queue, expiry.task_id)])[0]
        if record is None:
            return asked_at
        assert record.settled_at <= self.now()
        return record.settled_at

    def move_clock(self, ms: int) -> None:
        self.harness.advance(ms)
        # Stores differ in when they forget by themselves: let all of them do it here.
        before = self.now()
        self.store.expire([], keep_ms=KEEP_LONG)
        self.model.forget(before)

    def reopen(self) -> None:
        self.store = self.harness.reopen(self.store)

    def now(self) -> int:
        return self.store.scan(View.LIVE, limit=1).now

    def list_view(self, view: View, queue: str | None, limit: int) -> None:
        shown: list[Record] = []
        cursor: str | None = None
        times = []
        while True:
            page = self.store.scan(view, queue=queue, cursor=cursor, limit=limit)
            shown += page.records
            times.append(page.now)
            cursor = page.cursor
            if cursor is None:
                break
        keys = [(record.queue, record.task_id) for record in shown]
        assert len(keys) == len(set(keys)), "a scan showed a record twice"
        if view is View.ORPHANED:
            assert [record.expires_at for record in shown] == sorted(
                record.expires_at for record in shown
            )
        expected = self.model.shown(view, times[0], queue)
        if expected == self.model.shown(view, times[-1], queue):
            assert set(keys) == expected
        for key, record in zip(keys, shown, strict=True):
            assert essence(record) == essence(self.model.records[key])

    def check_everything(self) -> None:
        keys = list(itertools.product(QUEUES, TASKS))
        found = self.store.lookup(keys)
        # A store may forget by itself what was kept long enough, at any time.
        gone = [key for key, record in zip(keys, found, strict=True) if record is None]
        self.model.forget(self.now(), gone)
        kept = [self.model.records.get(key) for key in keys]
        assert [essence(record) for record in found] == [essence(record) for record in kept]
        for queue in (None, *QUEUES):
            assert self.model.agrees(self.store.census(queue), queue)


def store_machine(make_harness: Callable[[], Harness]) -> Any:
    """A hypothesis state machine for a store; its ``TestCase`` is run by pytest or unittest.

    Parameters:
        make_harness: one empty data set for each run of the machine.
    """
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

    requests = st.fixed_dictionaries(
        {
            "queue": st.sampled_from(QUEUES),
            "task_id": st.sampled_from(TASKS),
            "lease_ms": st.sampled_from(LEASES),
            "root_id": st.sampled_from(ROOTS),
            "attempt": st.sampled_from(ATTEMPTS),
            "deaths": st.integers(0, 1),
            "max_deliveries": st.integers(1, 2),
        }
    )
    # Recent grants are the interesting ones; hypothesis shrinks towards the last.
    ages = st.lists(st.integers(0, 7), min_size=1, max_size=3)
    keeps = st.sampled_from((KEEP_LONG, KEEP_LONG, 0))

    class StoreMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.steps = Steps(make_harness())

        def teardown(self) -> None:
            self.steps.close()

        def some(self, ages: list[int]) -> list[ClaimToken]:
            tokens = self.steps.tokens
            return [tokens[-1 - age % len(tokens)] for age in ages]

        def has_tokens(self) -> bool:
            return bool(self.steps.tokens)

        @rule(batch=st.lists(requests, min_size=1, max_size=3))
        def claim(self, batch: list[dict[str, Any]]) -> None:
            self.steps.claim(batch)

        @precondition(has_tokens)
        @rule(age=st.integers(0, 7))
        def claim_again(self, age: int) -> None:
            requests = self.steps.requests
            self.steps.claim_again(requests[-1 - age % len(requests)])

        @precondition(has_tokens)
        @rule(ages=ages, lease=st.sampled_from(LEASES), extend=st.booleans(), start=st.booleans())
        def renew(self, ages: list[int], lease: int, extend: bool, start: bool) -> None:
            self.steps.renew(
                [Renewal(token, lease, extend=extend, started=start) for token in self.some(ages)]
            )

        @precondition(has_tokens)
        @rule(ages=ages, outcome=st.sampled_from(ENDS), keep=keeps)
        def release(self, ages: list[int], outcome: Outcome, keep: int) -> None:
            self.steps.settle([Settlement(token, outcome, keep) for token in self.some(ages)])

        @precondition(has_tokens)
        @rule(ages=ages, counted=st.booleans(), keep=keeps)
        def nack(self, ages: list[int], counted: bool, keep: int) -> None:
            self.steps.settle(
                [
                    Settlement(token, Outcome.NACKED, keep, counted=counted)
                    for token in self.some(ages)
                ]
            )

        @rule(keep=keeps, limit=st.integers(1, 3))
        def clean_up(self, keep: int, limit: int) -> None:
            self.steps.clean_up(keep, limit)

        @precondition(has_tokens)
        @rule(age=st.integers(0, 7), keep=keeps)
        def expire_blindly(self, age: int, keep: int) -> None:
            self.steps.expire_blindly(self.some([age])[0], keep)

        @rule(ms=st.sampled_from((*STEPS, KEEP_LONG)))
        def advance(self, ms: int) -> None:
            self.steps.move_clock(ms)

        @precondition(lambda self: self.steps.harness.can_step_back)
        @rule(ms=st.sampled_from(STEPS))
        def step_back(self, ms: int) -> None:
            self.steps.move_clock(-ms)

        @rule()
        def reopen(self) -> None:
            self.steps.reopen()

        @rule(
            view=st.sampled_from(View),
            queue=st.sampled_from((None, *QUEUES)),
            limit=st.integers(1, 4),
        )
        def list_view(self, view: View, queue: str | None, limit: int) -> None:
            self.steps.list_view(view, queue, limit)

        @invariant()
        def agrees_with_the_model(self) -> None:
            self.steps.check_everything()

    return StoreMachine
