"""Claims in this process's memory: for tests, and for one process with threads.

Read it as the specification: every answer is ``protocol.decide_*`` under the lock of its record.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import ConfigurationError
from ..native import across_forks, allocate_lock
from ..protocol import (
    ClaimAnswer,
    ClaimRequest,
    Expiry,
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
    next_token,
    turn_is_due,
)
from .arguments import (
    check_batch,
    check_duty,
    check_keep,
    check_keys,
    check_scan,
    decode_cursor,
    encode_cursor,
    split_url,
)
from .base import FORGET_BATCH, Census, Page, Store, View

__all__ = ["MemoryStore"]

Clock = Callable[[], int]

#: Parts of a queue, each with a lock of its own. Of threads that take turns in the interpreter one
#: is often stopped within a lock; those that want another part go on.
PARTS = 64


def host_clock() -> int:
    """The host's clock, in microseconds since the epoch."""
    return time.time_ns() // 1000


class MemoryStore(Store):
    """``memory://NAME``: stores of one name share one data set within the process.

    A claim costs O(1); a page of a scan costs O(claims of its view), which other stores do better.
    A forked child goes on with its own copy: nothing is shared between processes.

    Parameters:
        url: ``memory://`` with any name.
        clock: microseconds since the epoch.
        private: a data set of its own, whatever the name.
    """

    shared = False

    def __init__(self, url: str = "memory://", *, clock: Clock = host_clock, private: bool = False):
        parts = split_url(url)
        if not url.startswith("memory://") or parts.query or parts.fragment:
            raise ConfigurationError("claims_url", f"expected memory://NAME, got {url!r}")
        self.name = url
        self._clock = clock
        name = url.partition("://")[2].rstrip("/")
        self._data = _DataSet() if private else _data_sets.setdefault(name, _DataSet())

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        return [self._claim(request) for request in check_batch("requests", requests, ClaimRequest)]

    def _claim(self, request: ClaimRequest) -> ClaimAnswer:
        shard = self._data.shard(request.queue, request.task_id)
        with shard.lock:
            now_us = self._clock()
            token = next_token(shard.high_water, now_us)
            record = shard.find(request.task_id)
            transition = decide_claim(record, request, now_us // 1000, token)
            shard.keep(request.task_id, transition)
        return transition.answer

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        return [self._renew(renewal) for renewal in check_batch("renewals", renewals, Renewal)]

    def _renew(self, renewal: Renewal) -> RenewAnswer:
        token = renewal.token
        shard = self._data.shard(token.queue, token.task_id)
        with shard.lock:
            record = shard.find(token.task_id)
            transition = decide_renew(record, renewal, self._now(), shard.high_water)
            shard.keep(token.task_id, transition)
        return transition.answer

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        batch = check_batch("settlements", settlements, Settlement)
        return [self._settle(settlement) for settlement in batch]

    def _settle(self, settlement: Settlement) -> SettleAnswer:
        token = settlement.token
        shard = self._data.shard(token.queue, token.task_id)
        with shard.lock:
            record = shard.find(token.task_id)
            transition = decide_settle(record, settlement, self._now(), shard.high_water)
            shard.keep(token.task_id, transition)
        return transition.answer

    def lookup(self, keys: Sequence[tuple[str, str]]) -> list[Record | None]:
        return [self._lookup(queue, task_id) for queue, task_id in check_keys(keys)]

    def _lookup(self, queue: str, task_id: str) -> Record | None:
        shard = self._data.shard(queue, task_id)
        with shard.lock:
            return shard.find(task_id)

    def scan(
        self, view: View, *, queue: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page:
        check_scan(view, queue, limit)
        order = _by_expiry if view is View.ORPHANED else _by_key
        kinds = (int, str, str) if view is View.ORPHANED else (str, str)
        after = decode_cursor(cursor, view, queue, *kinds)
        with self._data.frozen(queue) as shards:
            now = self._now()
            found = [
                record
                for shard in shards
                for record in shard.show(view, now)
                if after is None or order(record) > after
            ]
            page = heapq.nsmallest(limit + 1, found, key=order)
        more = len(page) > limit
        shown = page[:limit]
        return Page(
            tuple(shown), encode_cursor(view, queue, *order(shown[-1])) if more else None, now
        )

    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        check_keep(keep_ms)
        batch = check_batch("expiries", expiries, Expiry)
        answers = [self._expire(expiry, keep_ms) for expiry in batch]
        self._forget()
        return answers

    def _expire(self, expiry: Expiry, keep_ms: int) -> bool:
        shard = self._data.shard(expiry.queue, expiry.task_id)
        with shard.lock:
            transition = decide_expire(shard.find(expiry.task_id), expiry, self._now(), keep_ms)
            shard.keep(expiry.task_id, transition)
        return transition.answer

    def _forget(self) -> None:
        room = FORGET_BATCH
        for shard in self._data.shards():
            with shard.lock:
                room -= shard.forget(self._now(), room)

    def census(self, queue: str | None = None) -> Census:
        check_scan(View.ALL, queue, 1)
        with self._data.frozen(queue) as shards:
            now = self._now()
            records = [record for shard in shards for record in shard.show(View.ALL, now)]
        return Census(
            live=sum(record.is_live(now) for record in records),
            orphaned=sum(record.is_orphan(now) for record in records),
            free=sum(record.state is State.FREE for record in records),
            finished=sum(record.state is State.FINISHED for record in records),
            now=now,
        )

    def elect(self, duty: str, interval_ms: int) -> bool:
        check_duty(duty, interval_ms)
        with self._data.lock:
            now = self._now()
            due = turn_is_due(self._data.turns.get(duty), interval_ms, now)
            if due:
                self._data.turns[duty] = now
        return due

    def _now(self) -> int:
        return self._clock() // 1000


class _Shard:
    """The records of a part of one queue. Every method wants ``lock`` held."""

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.high_water = 0
        self._claimed: dict[str, Record] = {}
        self._settled: dict[str, Record] = {}
        self._to_forget: list[tuple[int, str]] = []

    def find(self, task_id: str) -> Record | None:
        return self._claimed.get(task_id) or self._settled.get(task_id)

    def keep(self, task_id: str, transition: Transition[Any]) -> None:
        if not transition.changed:
            return
        self.high_water = max(self.high_water, transition.floor)
        self._claimed.pop(task_id, None)
        self._settled.pop(task_id, None)
        record = transition.record
        if record is None:
            return
        if record.state is State.CLAIMED:
            self._claimed[task_id] = record
        else:
            self._settled[task_id] = record
            heapq.heappush(self._to_forget, (record.forget_at, task_id))

    def show(self, view: View, now: int) -> Iterator[Record]:
        if view is View.ALL:
            yield from self._settled.values()
        for record in self._claimed.values():
            if view is View.ALL or record.is_live(now) is (view is View.LIVE):
                yield record

    def forget(self, now: int, most: int) -> int:
        forgotten = 0
        while forgotten < most and self._to_forget and self._to_forget[0][0] <= now:
            forget_at, task_id = heapq.heappop(self._to_forget)
            record = self._settled.get(task_id)
            # The record may have been claimed and settled again since: another entry is its own.
            if record is not None and record.forget_at == forget_at:
                del self._settled[task_id]
                forgotten += 1
        return forgotten


class _DataSet:
    """The shards of one name. ``lock`` guards the dictionary and the turns, not the records."""

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.turns: dict[str, int] = {}
        self._queues: dict[str, tuple[_Shard, ...]] = {}
        self._held: list[_Shard] = []
        across_forks(self)

    def shard(self, queue: str, task_id: str) -> _Shard:
        # A queue's shards never change: no lock where there are some.
        return (self._queues.get(queue) or self._new_queue(queue))[hash(task_id) % PARTS]

    def _new_queue(self, queue: str) -> tuple[_Shard, ...]:
        with self.lock:
            if queue not in self._queues:
                self._queues[queue] = tuple(_Shard() for _ in range(PARTS))
            return self._queues[queue]

    def shards(self, queue: str | None = None) -> list[_Shard]:
        """In the order in which several of them may be locked."""
        if queue is not None:
            return list(self._queues.get(queue) or self._new_queue(queue))
        with self.lock:
            return self._all()

    def _all(self) -> list[_Shard]:
        return [shard for queue in sorted(self._queues) for shard in self._queues[queue]]

    def clear(self) -> None:
        """Forget everything, tokens too, as a server does that lost its memory."""
        with self.lock:
            self._queues.clear()
            self.turns.clear()

    @contextmanager
    def frozen(self, queue: str | None) -> Iterator[list[_Shard]]:
        """Nothing changes in these shards meanwhile."""
        shards = self.shards(queue)
        with ExitStack() as stack:
            for shard in shards:
                stack.enter_context(shard.lock)
            yield shards

    def before_fork(self) -> None:
        self.lock.acquire()
        self._held = self._all()
        for shard in self._held:
            shard.lock.acquire()

    def after_fork_in_parent(self) -> None:
        for shard in self._held:
            shard.lock.release()
        self.lock.release()

    def after_fork_in_child(self) -> None:
        self.lock = allocate_lock()
        for shard in self._all():
            shard.lock = allocate_lock()


def _by_key(record: Record) -> tuple[str, str]:
    return (record.queue, record.task_id)


def _by_expiry(record: Record) -> tuple[int, str, str]:
    return (record.expires_at, record.queue, record.task_id)


_data_sets: dict[str, _DataSet] = {}
