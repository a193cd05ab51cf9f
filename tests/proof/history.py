"""What clients asked a store, when, and what they heard: written so that it outlives the client.

Each client appends to a file of its own: before a call what it asks, after it what it heard. A call
without an end (the client was killed, or ``StoreUnavailable``) is *unknown*: it may take effect at
any time after it began, or never. Each element of a batch is an operation of its own.

Two clocks are noted. CLOCK_MONOTONIC is one for all processes of a host and says which call ended
before which began. CLOCK_REALTIME is what a store on this host reads; it is asked by a system call
that a client's own wall clock, which the runs set wrong on purpose, does not go through.
"""

from __future__ import annotations

import os
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime_ns
from typing import Any, TypeVar

from celery_claims.errors import StoreCorrupt, StoreError
from celery_claims.protocol import (
    ClaimAnswer,
    ClaimRequest,
    Expiry,
    Record,
    RenewAnswer,
    Renewal,
    SettleAnswer,
    Settlement,
)
from celery_claims.stores import Store
from celery_claims.stores.base import Page, View

__all__ = [
    "FAR",
    "UNKNOWN",
    "Amnesia",
    "Call",
    "Cleanup",
    "Key",
    "Log",
    "Look",
    "Operation",
    "RecordedStore",
    "Sight",
    "by_key",
    "read_logs",
]

T = TypeVar("T")

Key = tuple[str, str]

#: Later than every time.
FAR = 1 << 62


@dataclass(frozen=True, slots=True)
class Cleanup:
    """One element of ``expire``."""

    expiry: Expiry
    keep_ms: int


@dataclass(frozen=True, slots=True)
class Look:
    """One element of ``lookup``."""

    key: Key


@dataclass(frozen=True, slots=True)
class Sight:
    """A record on a page of orphaned claims, read at ``now`` of the store's clock."""

    key: Key
    now: int


@dataclass(frozen=True, slots=True)
class Amnesia:
    """The store loses the record here, as one does that keeps nothing on a disk."""

    key: Key


Call = ClaimRequest | Renewal | Settlement | Cleanup | Look | Sight | Amnesia


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"

    def __reduce__(self) -> str:
        return "UNKNOWN"


#: The answer of a call that nobody heard of again.
UNKNOWN = _Unknown()


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One call on one record.

    Parameters:
        client: who called.
        call: what was asked.
        answer: what was heard, or ``UNKNOWN``.
        called, returned: nanoseconds of one monotonic clock; ``FAR`` for what did not return.
        low, high: milliseconds of the store's clock when the call began and ended, as far as known.
        after: the operation of the same batch and record that comes before this one.
    """

    client: str
    call: Call
    answer: Any
    called: int
    returned: int
    low: int = 0
    high: int = FAR
    after: Operation | None = None

    @property
    def key(self) -> Key:
        return key_of(self.call)

    @property
    def is_known(self) -> bool:
        return self.answer is not UNKNOWN

    @property
    def now(self) -> int | None:
        """The clock that the answer was given by, where it says so."""
        value: int | None = getattr(self.answer, "now", None)
        return value


def key_of(call: Call) -> Key:
    if isinstance(call, (Look, Sight, Amnesia)):
        return call.key
    if isinstance(call, ClaimRequest):
        return (call.queue, call.task_id)
    if isinstance(call, Cleanup):
        return (call.expiry.queue, call.expiry.task_id)
    return (call.token.queue, call.token.task_id)


class Log:
    """A client's file. What is written is whole when the client is killed, but for the last entry.

    Parameters:
        path: appended to.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls = 0
        #: operations that ``read_logs`` will find
        self.operations = 0

    def begin(self, calls: Sequence[Call]) -> int:
        self._calls += 1
        self._write((self._calls, *_times(), list(calls)))
        self.operations += len(calls)
        return self._calls

    def end(self, number: int, answers: Sequence[Any], *, seen: Sequence[Call] = ()) -> None:
        """Note the answers; ``seen`` are calls that are only known by what they showed."""
        self._write((number, *_times(), list(answers), list(seen)))
        self.operations += len(seen)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, entry: tuple[Any, ...]) -> None:
        data = pickle.dumps(entry, pickle.HIGHEST_PROTOCOL)
        os.write(self._file, data)


def _times() -> tuple[int, int]:
    return clock_gettime_ns(CLOCK_MONOTONIC), clock_gettime_ns(CLOCK_REALTIME) // 1_000_000


def read_logs(paths: Iterable[Path]) -> Iterator[Operation]:
    """All operations of some clients, by the files' names."""
    for path in sorted(paths):
        yield from _read(path)


def _read(path: Path) -> Iterator[Operation]:
    begun: dict[int, tuple[int, int, list[Call]]] = {}
    for number, moment, wall, *rest in _entries(path):
        if number not in begun:
            begun[number] = (moment, wall, rest[0])
            continue
        called, low, calls = begun.pop(number)
        answers, seen = rest
        if seen:
            calls = seen
        yield from _batch(path.stem, calls, answers, called, moment, low, wall)
    for called, low, calls in begun.values():
        yield from _batch(path.stem, calls, [UNKNOWN] * len(calls), called, FAR, low, FAR)


def _entries(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        while True:
            try:
                yield pickle.load(file)
            except EOFError:
                return
            except pickle.UnpicklingError:
                # The client was killed in the middle of a write: it was its last.
                return


def _batch(
    client: str,
    calls: Sequence[Call],
    answers: Sequence[Any],
    called: int,
    returned: int,
    low: int,
    high: int,
) -> Iterator[Operation]:
    last: dict[Key, Operation] = {}
    for call, answer in zip(calls, answers, strict=True):
        known = answer is not UNKNOWN
        operation = Operation(
            client,
            call,
            answer,
            called,
            returned if known else FAR,
            low,
            high if known else FAR,
            last.get(key_of(call)) if known else None,
        )
        last[operation.key] = operation
        yield operation


def by_key(operations: Iterable[Operation]) -> dict[Key, list[Operation]]:
    """The history of each record: linearizability is local, so each may be judged by itself."""
    histories: dict[Key, list[Operation]] = defaultdict(list)
    for operation in operations:
        histories[operation.key].append(operation)
    return dict(histories)


class RecordedStore:
    """The verbs of a store that act on single records, with a log.

    Each raises ``StoreError`` as the store did, once that is noted.
    """

    def __init__(self, store: Store, log: Log) -> None:
        self.store = store
        self._log = log

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        return self._record(requests, lambda: self.store.claim(requests))

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        return self._record(renewals, lambda: self.store.renew(renewals))

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        return self._record(settlements, lambda: self.store.settle(settlements))

    def lookup(self, keys: Sequence[Key]) -> list[Record | None]:
        return self._record([Look(key) for key in keys], lambda: self.store.lookup(keys))

    def expire(self, expiries: Sequence[Expiry], keep_ms: int) -> list[bool]:
        calls = [Cleanup(expiry, keep_ms) for expiry in expiries]
        return self._record(calls, lambda: self.store.expire(expiries, keep_ms=keep_ms))

    def orphans(self, queue: str, limit: int) -> Page:
        """A page of orphaned claims; each record on it is noted as seen."""
        number = self._log.begin([])
        try:
            page = self.store.scan(View.ORPHANED, queue=queue, limit=limit)
        except StoreError:
            self._log.end(number, [])
            raise
        seen = [Sight((each.queue, each.task_id), page.now) for each in page.records]
        self._log.end(number, page.records, seen=seen)
        return page

    def _record(self, calls: Sequence[Call], work: Any) -> Any:
        number = self._log.begin(calls)
        try:
            answers = work()
        except StoreCorrupt:
            raise
        except StoreError:
            self._log.end(number, [UNKNOWN] * len(calls))
            raise
        self._log.end(number, answers)
        return answers
