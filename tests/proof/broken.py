"""Stores with a bug each, in front of any real one: the proof must find them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from celery_claims.protocol import (
    AlreadyClaimed,
    ClaimAnswer,
    ClaimRequest,
    ClaimToken,
    Expiry,
    Outcome,
    Record,
    RenewAnswer,
    Renewal,
    SettleAnswer,
    Settled,
    Settlement,
    Success,
    TookOver,
)
from celery_claims.stores import Census, Page, Store, View

__all__ = [
    "BUGS",
    "BackwardTokens",
    "ClientClock",
    "EagerCleanup",
    "LostRelease",
    "RacyClaim",
    "Unfenced",
]

#: Milliseconds that a record is kept which is about to be claimed again.
KEEP = 3_600_000

#: Milliseconds from an answer to what a client does about it, at most; clocks are wrong by more.
GRACE = 300


class _Passing(Store):
    """Passes everything on; its subclasses do one thing wrong."""

    def __init__(self, store: Store) -> None:
        self.name = store.name
        self.store = store

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        return self.store.claim(requests)

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        return self.store.renew(renewals)

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        return self.store.settle(settlements)

    def lookup(self, keys: Sequence[tuple[str, str]]) -> list[Record | None]:
        return self.store.lookup(keys)

    def scan(self, view: View, **options: Any) -> Page:
        return self.store.scan(view, **options)

    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        return self.store.expire(expiries, keep_ms=keep_ms)

    def census(self, queue: str | None = None) -> Census:
        return self.store.census(queue)

    def elect(self, duty: str, interval_ms: int) -> bool:
        return self.store.elect(duty, interval_ms)

    def close(self) -> None:
        self.store.close()


class Unfenced(_Passing):
    """Renewals and settlements count for whoever has the claim now: no token is compared."""

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        return self.store.renew([replace(each, token=self._last(each.token)) for each in renewals])

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        return self.store.settle(
            [replace(each, token=self._last(each.token)) for each in settlements]
        )

    def _last(self, token: ClaimToken) -> ClaimToken:
        record = self.store.lookup([(token.queue, token.task_id)])[0]
        return token if record is None else replace(token, token=record.token)


class RacyClaim(_Passing):
    """A claim is read and then written, and what came between is written over."""

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        seen = self.store.lookup([(each.queue, each.task_id) for each in requests])
        # Time for another client.
        threading.Event().wait(0.002)
        answers = self.store.claim(requests)
        return [
            self._write_over(request) if record is None and _is_denied(answer) else answer
            for request, record, answer in zip(requests, seen, answers, strict=True)
        ]

    def _write_over(self, request: ClaimRequest) -> ClaimAnswer:
        record = self.store.lookup([(request.queue, request.task_id)])[0]
        if record is not None:
            self.store.settle([Settlement(record.as_token(), Outcome.NACKED, 0)])
        return self.store.claim([request])[0]


class BackwardTokens(_Passing):
    """Every tenth grant has a token from long ago, as of a store that restarted its counter."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._grants = 0

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        return [self._lower(answer) for answer in self.store.claim(requests)]

    def _lower(self, answer: Any) -> Any:
        if not hasattr(answer, "token"):
            return answer
        self._grants += 1
        if self._grants % 10:
            return answer
        token = replace(answer.token, token=answer.token.token - 10_000_000)
        return replace(answer, token=token)


class LostRelease(_Passing):
    """Every tenth release is answered before it is written, and then never is."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._settled = 0

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        self._settled += 1
        if self._settled % 10:
            return self.store.settle(settlements)
        now = self.store.scan(View.LIVE, limit=1).now
        return [Settled(now) for _ in settlements]


class EagerCleanup(_Passing):
    """What a sweeper read as expired is removed, though it was renewed since."""

    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        records = self.store.lookup([(each.queue, each.task_id) for each in expiries])
        answers = []
        for expiry, record in zip(expiries, records, strict=True):
            if record is not None and record.token == expiry.token:
                self.store.settle([Settlement(record.as_token(), Outcome.NACKED, keep_ms)])
                answers.append(True)
            else:
                answers.append(False)
        return answers


class ClientClock(_Passing):
    """A lease has run out when the client's own wall clock says so, and not the store's.

    The grace lets a clock that is right do no harm, so that it is wrong ones that are found.
    """

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        return [
            self._take_over(request) if self._is_over(answer) else answer
            for request, answer in zip(requests, self.store.claim(requests), strict=True)
        ]

    def _is_over(self, answer: ClaimAnswer) -> bool:
        return (
            isinstance(answer, AlreadyClaimed) and answer.expires_at + GRACE <= time.time() * 1000
        )

    def _take_over(self, request: ClaimRequest) -> ClaimAnswer:
        record = self.store.lookup([(request.queue, request.task_id)])[0]
        if record is None:
            return self.store.claim([request])[0]
        given_back = Settlement(record.as_token(), Outcome.NACKED, KEEP, counted=record.started)
        self.store.settle([given_back])
        answer = self.store.claim([request])[0]
        if isinstance(answer, Success):
            return TookOver(record.owner, answer.token, answer.now, answer.deliveries)
        return answer


def _is_denied(answer: ClaimAnswer) -> bool:
    return isinstance(answer, AlreadyClaimed)


BUGS = (Unfenced, RacyClaim, BackwardTokens, LostRelease, EagerCleanup)
