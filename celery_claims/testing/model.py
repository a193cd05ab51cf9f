"""A store as a dictionary: what the pure protocol says of each answer of a real one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..protocol import (
    ClaimAnswer,
    ClaimRequest,
    ClaimToken,
    Delivery,
    Expiry,
    Lost,
    Record,
    RenewAnswer,
    Renewal,
    SettleAnswer,
    Settlement,
    State,
    Transition,
    decide_claim,
    decide_expire,
    decide_renew,
    decide_settle,
)
from ..stores.base import FORGOTTEN, Census, View

__all__ = ["Model", "essence"]

Key = tuple[str, str]


def essence(record: Record | None) -> Record | None:
    """What every store keeps of a record: a finished one without what it may forget."""
    if record is None or record.state is not State.FINISHED:
        return record
    return replace(record, owner=FORGOTTEN, grant_id=FORGOTTEN, expires_at=0, delivery=Delivery())


class Model:
    """Takes each answer's own ``now``, so that it also follows a store on a real clock."""

    def __init__(self) -> None:
        self.records: dict[Key, Record] = {}
        #: the last token of each key, and of all
        self.granted: dict[Key, int] = {}
        self.highest = 0
        self._outdated: set[tuple[Key, int]] = set()
        self._settled_and_forgotten: set[tuple[Key, int]] = set()

    def is_outdated(self, token: ClaimToken) -> bool:
        """Its record was forgotten because its time was over: anything may be answered."""
        return ((token.queue, token.task_id), token.token) in self._outdated

    def claim(self, request: ClaimRequest, answer: ClaimAnswer) -> None:
        """Agree to an answer, or raise ``AssertionError``."""
        key = (request.queue, request.task_id)
        granted: ClaimToken | None = getattr(answer, "token", None)
        before = self.records.get(key)
        token = granted.token if granted else 0
        self._follow(key, decide_claim(before, request, answer.now, token), answer)
        repeated = (
            before is not None
            and before.state is State.CLAIMED
            and before.grant_id == request.grant_id
        )
        if granted and not repeated:
            assert token > self.granted.get(key, 0), "tokens of a claim must rise"
            self.granted[key] = token
            self.highest = max(self.highest, token)

    def renew(self, renewal: Renewal, answer: RenewAnswer) -> None:
        key = (renewal.token.queue, renewal.token.task_id)
        high_water = self._high_water(key, renewal.token, answer)
        self._follow(
            key, decide_renew(self.records.get(key), renewal, answer.now, high_water), answer
        )

    def settle(self, settlement: Settlement, answer: SettleAnswer) -> None:
        key = (settlement.token.queue, settlement.token.task_id)
        high_water = self._high_water(key, settlement.token, answer)
        transition = decide_settle(self.records.get(key), settlement, answer.now, high_water)
        self._follow(key, transition, answer)
        if transition.changed and transition.record is None:
            self._settled_and_forgotten.add((key, settlement.token.token))

    def expire(self, expiry: Expiry, keep_ms: int, answer: bool, now: int) -> None:
        key = (expiry.queue, expiry.task_id)
        self._follow(key, decide_expire(self.records.get(key), expiry, now, keep_ms), answer)

    def forget(self, now: int, keys: Iterable[Key] | None = None) -> None:
        """What a store forgets by itself."""
        for key in list(self.records if keys is None else keys):
            record = self.records.get(key)
            if record and record.state is not State.CLAIMED and record.forget_at <= now:
                self._outdated.add((key, record.token))
                del self.records[key]

    def shown(self, view: View, now: int, queue: str | None = None) -> set[Key]:
        """The keys of a view."""
        return {
            key
            for key, record in self.records.items()
            if (queue is None or record.queue == queue)
            and (
                view is View.ALL
                or (record.is_live(now) if view is View.LIVE else record.is_orphan(now))
            )
        }

    def agrees(self, census: Census, queue: str | None = None) -> bool:
        """Whether a store counted right what it counted."""
        expected = self._count(census.now, queue)
        if census.free is None:
            expected = replace(expected, free=None)
        if census.finished is None:
            expected = replace(expected, finished=None)
        return census == expected

    def _count(self, now: int, queue: str | None) -> Census:
        records = [record for record in self.records.values() if queue in (None, record.queue)]
        return Census(
            live=sum(record.is_live(now) for record in records),
            orphaned=sum(record.is_orphan(now) for record in records),
            free=sum(record.state is State.FREE for record in records),
            finished=sum(record.state is State.FINISHED for record in records),
            now=now,
        )

    def _follow(self, key: Key, transition: Transition[Any], answer: object) -> None:
        allowed = {transition.answer, _without_owner(self.records.get(key), transition.answer)}
        assert answer in allowed, f"expected {transition.answer}, got {answer}"
        if not transition.changed:
            return
        if transition.record is None:
            self.records.pop(key, None)
        else:
            self.records[key] = transition.record

    def _high_water(self, key: Key, token: ClaimToken, answer: object) -> int:
        """What the shard must remember, as far as it does not depend on how a store has shards."""
        ended = (key, token.token) in self._settled_and_forgotten
        if ended or self.granted[key] > token.token:
            return token.token + 1
        if token.token == self.highest:
            return token.token
        # Another key's grant may or may not share the shard: both answers are right.
        return token.token + 1 if isinstance(answer, Lost) else token.token


def _without_owner(before: Record | None, answer: object) -> object:
    """The answer of a store that forgot who had the finished record."""
    if isinstance(answer, Lost) and before is not None and before.state is State.FINISHED:
        return replace(answer, owner=FORGOTTEN)
    return answer
