"""What one record may answer: ``protocol.decide_*``, and all that a client cannot know.

A history is judged by the pure functions of ``celery_claims.protocol``. They want the clock, the
token and the high-water as arguments, which a client sees only in answers, so the specification
is *nondeterministic*: from one state an operation may lead to several, or to none.

The clock
    An answer says by which reading of the store's clock it was given (``now``). It is taken from
    there, so whether a lease was over is decided exactly, by the same milliseconds that the store
    used. What may be doubted is the reading itself, and three things are demanded of it:

    - It lies between the beginning and the end of its call, as a clock on the same host saw them,
      to within ``accuracy_ms`` (the store may be on another host, or count in other units).
    - With ``monotone``, readings rise in the order in which operations take effect: true of stores
      that read the clock within their atomic step (memory, SQLite, Redis). PostgreSQL reads it
      before it waits for a row's lock, so there two readings may be in the other order; each
      decision is still made by its own reading, and the row is compared again when it is written.
    - A token in microseconds is not below the reading that its grant was given by.

    ``expire`` answers only yes or no. Yes means: there is a reading within the call, and not
    before the end of the lease. No, of a claim that matches, means: there is one before the end of
    the lease. The earliest possible one is taken, because whatever follows is then possible as
    well; when the record was settled is known within bounds only, until a later answer tells.

What nobody heard of
    An operation without an answer may have happened at any later time, or never. If it did, its
    times and its token are unknown: they are *loose*, with the least value that is possible, until
    an answer shows them. Then that value is believed if it is within bounds, and from there on the
    answer must be exactly what the protocol says.

Forgetting
    A store may forget what is settled from ``forget_at`` on, early by ``accuracy_ms``, and need
    never do it.

The high-water
    It belongs to a shard, and how records share shards is the store's matter. Of one record it is
    known to be at least ``floor``; whether it is above the token of a grant whose record is gone
    is known only if ``floor`` is. So such a grant may come back or be refused, unless ``floor``
    forbids it. This is what lets every record be judged by itself.

Memory
    At ``Amnesia`` the store loses the record and its floor, but tokens still must not go back:
    ``highest`` stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from celery_claims.protocol import (
    AlreadyClaimed,
    ClaimRequest,
    Finished,
    Lost,
    Record,
    Renewal,
    Renewed,
    Settlement,
    State,
    Transition,
    decide_claim,
    decide_expire,
    decide_renew,
    decide_settle,
)
from celery_claims.stores.base import FORGOTTEN
from celery_claims.testing.model import essence

from .history import FAR, Amnesia, Cleanup, Look, Operation, Sight

__all__ = ["Known", "Loose", "Specification"]

TOKEN = ("token",)
CLAIMED = ("claimed_at", "expires_at")
EXPIRY = ("expires_at",)
SETTLED = ("settled_at", "forget_at")


@dataclass(frozen=True, slots=True)
class Loose:
    """Fields that are as much higher than they seem as one reading of the clock was later.

    Parameters:
        fields: of the record; they move together.
        earliest, latest: bounds of that reading, in milliseconds.
    """

    fields: tuple[str, ...]
    earliest: int = 0
    latest: int = FAR


@dataclass(frozen=True, slots=True)
class Known:
    """A state that the record may be in.

    Parameters:
        record: with the least possible values of what is loose.
        loose: what is known within bounds only.
        highest: no token at or below it may be granted.
        floor: no grant below it may come back once its record is gone.
        clock: no reading may be below it.
    """

    record: Record | None = None
    loose: tuple[Loose, ...] = ()
    highest: int = 0
    floor: int = 0
    clock: int = 0


@dataclass(frozen=True, slots=True)
class Specification:
    """What leads where.

    Parameters:
        monotone: readings of the clock rise in the order of effects.
        accuracy_ms: how far the store's clock may be from the recorder's, and its forgetting from
            its clock.
    """

    monotone: bool = True
    accuracy_ms: int = 0

    def orders(self, operation: Operation) -> int | None:
        """The reading by which the operation must be in order with others, if it must."""
        return operation.now if self.monotone else None

    def after(self, state: Known, operation: Operation, latest: int = FAR) -> list[Known]:
        """The states that the operation may lead to from this one, none if it is impossible.

        Parameters:
            latest: by which reading of the clock, at most, something without an answer happened.
        """
        if isinstance(operation.call, Amnesia):
            return [replace(state, record=None, loose=(), floor=0)]
        if not operation.is_known:
            latest += self.accuracy_ms
            return [each for each in self._unheard(state, operation, latest) if each != state]
        bounds = self._bounds(state, operation)
        if bounds is None:
            return []
        low, high = bounds
        found: list[Known] = []
        for before in self._forgetting(state, high):
            told = _believe(before, operation, high)
            if told is not None:
                found += self._heard(told, operation, low, high)
        return list(dict.fromkeys(found))

    def _bounds(self, state: Known, operation: Operation) -> tuple[int, int] | None:
        low = operation.low - self.accuracy_ms
        high = operation.high + self.accuracy_ms
        now = operation.now
        if now is not None:
            if not low <= now <= high or (self.monotone and now < state.clock):
                return None
            return now, now
        if self.monotone:
            low = max(low, state.clock)
        return (low, high) if low <= high else None

    def _forgetting(self, state: Known, high: int) -> Iterator[Known]:
        yield state
        record = state.record
        if record is None or record.state is State.CLAIMED:
            return
        if record.forget_at - self.accuracy_ms <= high:
            yield replace(state, record=None, loose=())

    def _heard(self, state: Known, operation: Operation, low: int, high: int) -> Iterator[Known]:
        call = operation.call
        if isinstance(call, (Look, Sight)):
            if _is_shown(state.record, operation):
                yield state
        elif isinstance(call, Cleanup):
            yield from self._cleaned(state, call, bool(operation.answer), low, high)
        elif isinstance(call, ClaimRequest):
            yield from self._claimed(state, call, operation.answer)
        else:
            assert isinstance(call, (Renewal, Settlement))
            for transition in _of_grant(state, call, low):
                if _agrees(state.record, transition.answer, operation.answer):
                    exact = SETTLED if isinstance(call, Settlement) else (*EXPIRY, *SETTLED)
                    yield self._next(state, transition, exact, low)

    def _claimed(self, state: Known, request: ClaimRequest, answer: Any) -> Iterator[Known]:
        granted = getattr(answer, "token", None)
        token = granted.token if granted else 0
        is_new = granted is not None and not _is_repeated(state.record, request)
        if is_new and (token <= state.highest or token // 1000 < answer.now):
            return
        transition = decide_claim(state.record, request, answer.now, token)
        if transition.answer == answer:
            yield self._next(state, transition, (*TOKEN, *CLAIMED, *SETTLED), answer.now)

    def _cleaned(
        self, state: Known, call: Cleanup, answer: bool, low: int, high: int
    ) -> Iterator[Known]:
        now = max(low, state.record.expires_at) if state.record and answer else low
        transition = decide_expire(state.record, call.expiry, now, call.keep_ms)
        if now > high or transition.answer is not answer:
            return
        after = self._next(state, transition, SETTLED, now)
        if answer and after.record:
            after = replace(after, loose=(*after.loose, Loose(SETTLED, now, high)))
        yield after

    def _unheard(self, state: Known, operation: Operation, latest: int) -> Iterator[Known]:
        """What the operation may have done, at the earliest time at which it could."""
        call = operation.call
        if isinstance(call, (Look, Sight)):
            return
        low = max(operation.low - self.accuracy_ms, state.clock if self.monotone else 0, 0)
        for before in self._forgetting(state, latest):
            now = low
            if before is not state and state.record is not None:
                now = max(low, state.record.forget_at - self.accuracy_ms)
            if now > latest:
                continue
            if isinstance(call, ClaimRequest):
                yield from self._unheard_claim(before, call, now, latest)
            elif isinstance(call, Cleanup):
                told = _believe(before, operation, latest)
                if told is not None:
                    yield from self._cleaned(told, call, True, now, latest)
            else:
                assert isinstance(call, (Renewal, Settlement))
                told = _believe(before, operation, latest)
                if told is not None:
                    yield from self._unheard_grant(told, call, now)

    def _unheard_claim(
        self, state: Known, request: ClaimRequest, low: int, latest: int
    ) -> Iterator[Known]:
        record = state.record
        repeated = _is_repeated(record, request)
        now = low
        if record is not None and record.state is State.CLAIMED and not repeated:
            now = max(low, record.expires_at)
        if now > latest:
            return
        token = max(state.highest + 1, state.floor + 1, now * 1000)
        transition = decide_claim(record, request, now, token)
        if not transition.changed:
            return
        assert transition.record is not None
        if repeated:
            after = self._next(state, transition, EXPIRY, now)
            earliest = _reading(state, transition.record.expires_at - request.lease_ms)
            yield replace(after, loose=(*after.loose, Loose(EXPIRY, earliest, latest)))
        else:
            after = self._next(state, transition, (*TOKEN, *CLAIMED, *SETTLED), now)
            yield replace(after, loose=(Loose(TOKEN), Loose(CLAIMED, now, latest)))

    def _unheard_grant(self, state: Known, call: Renewal | Settlement, now: int) -> Iterator[Known]:
        for transition in _of_grant(state, call, now):
            if not transition.changed:
                continue
            if isinstance(call, Settlement):
                after = self._next(state, transition, SETTLED, now)
                loose = Loose(SETTLED, now)
            else:
                after = self._next(state, transition, (*EXPIRY, *SETTLED), now)
                assert after.record is not None
                earliest = _reading(state, after.record.expires_at - call.lease_ms)
                loose = Loose(EXPIRY, earliest)
            yield replace(after, loose=(*after.loose, loose)) if after.record else after

    def _next(
        self, state: Known, transition: Transition[Any], exact: tuple[str, ...], now: int
    ) -> Known:
        clock = max(state.clock, now) if self.monotone else state.clock
        if not transition.changed:
            return replace(state, clock=clock)
        record = transition.record
        loose = _without(state.loose, exact) if record is not None else ()
        highest = max(state.highest, transition.floor)
        return Known(record, loose, highest, max(state.floor, transition.floor), clock)


def _of_grant(state: Known, call: Renewal | Settlement, now: int) -> Iterator[Transition[Any]]:
    """By each high-water that the shard may have."""
    decide: Any = decide_settle if isinstance(call, Settlement) else decide_renew
    high_waters = [state.floor]
    if state.record is None and state.floor <= call.token.token:
        high_waters.append(call.token.token + 1)
    for high_water in high_waters:
        yield decide(state.record, call, now, high_water)


def _is_repeated(record: Record | None, request: ClaimRequest) -> bool:
    return (
        record is not None and record.state is State.CLAIMED and record.grant_id == request.grant_id
    )


def _is_shown(record: Record | None, operation: Operation) -> bool:
    call = operation.call
    if isinstance(call, Sight) and (record is None or not record.is_orphan(call.now)):
        return False
    return essence(record) == essence(operation.answer)


def _agrees(before: Record | None, expected: object, answer: object) -> bool:
    if expected == answer:
        return True
    # Of what is finished a store may have forgotten the owner.
    forgets = before is not None and before.state is State.FINISHED
    return forgets and isinstance(expected, Lost) and replace(expected, owner=FORGOTTEN) == answer


def _reading(before: Known, earliest: int) -> int:
    """By which reading, at least, a lease was lengthened; one that was loose has no such bound."""
    return 0 if any("expires_at" in each.fields for each in before.loose) else earliest


def _without(loose: tuple[Loose, ...], exact: tuple[str, ...]) -> tuple[Loose, ...]:
    kept = []
    for each in loose:
        fields = tuple(name for name in each.fields if name not in exact)
        if fields:
            kept.append(replace(each, fields=fields))
    return tuple(kept)


def _believe(state: Known, operation: Operation, high: int) -> Known | None:
    """The state once the answer told what was loose; None if that is out of bounds."""
    if not state.loose or state.record is None:
        return state
    for name, value in _evidence(state.record, operation):
        for each in state.loose:
            if name in each.fields:
                told = _pinned(state, each, name, value, high)
                if told is None:
                    return None
                state = told
    return state


def _pinned(state: Known, loose: Loose, name: str, value: int, high: int) -> Known | None:
    assert state.record is not None
    later = value - getattr(state.record, name)
    if later < 0:
        return None
    # Tokens have no such bound. What is not later may be so by an older lease, not by the clock.
    if later and loose.fields != TOKEN and loose.earliest + later > min(loose.latest, high):
        return None
    moved: dict[str, Any] = {field: getattr(state.record, field) + later for field in loose.fields}
    rest = tuple(each for each in state.loose if each is not loose)
    after = replace(state, record=replace(state.record, **moved), loose=rest)
    if loose.fields == TOKEN:
        after = replace(after, highest=max(state.highest, value), floor=max(state.floor, value))
    return after


def _evidence(record: Record, operation: Operation) -> Iterator[tuple[str, int]]:
    """What a question and its answer say of the record's own times and token."""
    call, answer = operation.call, operation.answer
    if isinstance(call, (Look, Sight)):
        yield from _of_look(record, answer)
    elif isinstance(call, Cleanup):
        if answer:
            yield "token", call.expiry.token
            yield "expires_at", call.expiry.expires_at
    elif isinstance(call, ClaimRequest):
        yield from _of_claim(record, call, answer)
    else:
        yield from _of_token(record, call)
        if isinstance(answer, Renewed):
            assert isinstance(call, Renewal)
            if answer.expires_at > answer.now + call.lease_ms:
                yield "expires_at", answer.expires_at - (call.lease_ms if call.extend else 0)


def _of_look(record: Record, shown: Record | None) -> Iterator[tuple[str, int]]:
    if shown is None or shown.state is not record.state:
        return
    for name in (*TOKEN, *CLAIMED, *SETTLED):
        # A store need not keep the lease of what is finished.
        if shown.state is not State.FINISHED or name != "expires_at":
            yield name, getattr(shown, name)


def _of_claim(record: Record, request: ClaimRequest, answer: Any) -> Iterator[tuple[str, int]]:
    if isinstance(answer, AlreadyClaimed):
        yield "expires_at", answer.expires_at
    elif isinstance(answer, Finished):
        yield "settled_at", answer.finished_at
    elif _is_repeated(record, request):
        granted = getattr(answer, "token", None)
        if granted is not None:
            yield "token", granted.token
            yield "claimed_at", granted.created_at
            if granted.expires_at > answer.now + request.lease_ms:
                yield "expires_at", granted.expires_at


def _of_token(record: Record, call: Renewal | Settlement) -> Iterator[tuple[str, int]]:
    """Who names a token has heard of it; a lower one is of an earlier grant of this grant id."""
    if call.token.grant_id == record.grant_id and call.token.token >= record.token:
        yield "token", call.token.token
        yield "claimed_at", call.token.created_at
