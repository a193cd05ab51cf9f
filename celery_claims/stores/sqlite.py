"""Claims in a SQLite file: for the processes of one host."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl, unquote

from ..checks import shown
from ..errors import ConfigurationError, InvalidArgument, StoreCorrupt
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
    split_url,
)
from .base import FORGET_BATCH, Census, Page, Store, View
from .memory import Clock, host_clock
from .packing import OUTCOMES, state_of
from .sqlite_file import SQL, SQLiteFile
from .sqlite_rows import (
    UnreadableRow,
    as_row,
    cursor_at,
    find,
    find_place,
    high_water,
    pack,
    place_of,
    read_rows,
)

__all__ = ["SQLiteStore"]

T = TypeVar("T")

#: Filesystems whose locks or shared memory do not hold between hosts.
NETWORK_FILESYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "fuse.sshfs",
    "fuse.gluster",
    "9p",
    "afs",
    "ceph",
    "gluster",
    "lustre",
    "ocfs",
)

_SYNCHRONOUS_FULL = 2

#: How many records of all queues a page of one queue's records reads at most.
SCAN_PART = 1000


class SQLiteStore(Store):
    """``sqlite:///relative.db`` or ``sqlite:////absolute/path.db``.

    What was answered survives the death of the process and of the machine: write-ahead log with
    synchronous=FULL. ``?synchronous=normal`` is faster and survives only the process.

    Parameters:
        url: a relative path counts from the working directory of this moment.
        timeout: seconds that a call waits for a locked file before ``StoreUnavailable``.
        clock: microseconds since the epoch.
    """

    def __init__(self, url: str, *, timeout: float = 5.0, clock: Clock = host_clock) -> None:
        path, synchronous = _parse(url)
        if (
            isinstance(timeout, bool)
            or not isinstance(timeout, (int, float))
            or not (math.isfinite(timeout) and timeout > 0)
        ):
            raise InvalidArgument("timeout", f"expected seconds above 0, got {timeout!r}")
        self.name = url
        self.path = os.path.abspath(path)
        self._clock = clock
        self._file = SQLiteFile(self.path, url, synchronous, timeout)

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        batch = check_batch("requests", requests, ClaimRequest)
        return self._write(lambda change: [change.claim(request) for request in batch])

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        batch = check_batch("renewals", renewals, Renewal)
        return self._write(lambda change: [change.renew(renewal) for renewal in batch])

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        batch = check_batch("settlements", settlements, Settlement)
        return self._write(lambda change: [change.settle(settlement) for settlement in batch])

    def lookup(self, keys: Sequence[tuple[str, str]]) -> list[Record | None]:
        pairs = check_keys(keys)

        def find_all(connection: sqlite3.Connection) -> list[Record | None]:
            return [find(connection, queue, task_id) for queue, task_id in pairs]

        return self._guard(lambda: self._file.read(find_all))

    def scan(
        self, view: View, *, queue: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page:
        check_scan(view, queue, limit)
        parameters = place_of(view, queue, cursor)
        # Nothing has all records of a queue together: a page reads a part of all.
        most = limit + 1 if queue is None else max(limit + 1, SCAN_PART)

        def read_page(connection: sqlite3.Connection) -> Page:
            now = self._clock() // 1000
            parameters.update(now=now, most=most)
            rows = connection.execute(SQL[f"scan_{view.value}"], parameters).fetchall()
            wanted = [row for row in rows if queue is None or row["queue"] == parameters["queue"]]
            following: str | None = None
            if len(wanted) > limit:
                following = cursor_at(view, queue, wanted[limit - 1])
            elif len(rows) == most:
                following = cursor_at(view, queue, rows[-1])
            records, unreadable = read_rows(wanted[:limit])
            return Page(records, following, now, unreadable)

        return self._guard(lambda: self._file.read(read_page))

    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        check_keep(keep_ms)
        batch = check_batch("expiries", expiries, Expiry)

        def clean_up(change: _Change) -> list[bool]:
            answers = [change.expire(expiry, keep_ms) for expiry in batch]
            change.forget()
            return answers

        return self._write(clean_up)

    def census(self, queue: str | None = None) -> Census:
        check_scan(View.ALL, queue, 1)
        return self._guard(lambda: self._file.read(lambda c: self._count(c, queue)))

    def _count(self, connection: sqlite3.Connection, queue: str | None) -> Census:
        now = self._clock() // 1000
        statement = "census" if queue is None else "census_of_queue"
        parameters = {"now": now, "queue": pack(queue or "")}
        counts = {"live": 0, "orphaned": 0, "free": 0, "finished": 0}
        for row in connection.execute(SQL[statement], parameters):
            code = row["outcome"]
            if not isinstance(code, int) or not 0 <= code < len(OUTCOMES):
                continue
            kind = state_of(OUTCOMES[code]).value
            if kind == State.CLAIMED.value:
                kind = "live" if row["ahead"] else "orphaned"
            counts[kind] += row["number"]
        return Census(now=now, **counts)

    def elect(self, duty: str, interval_ms: int) -> bool:
        check_duty(duty, interval_ms)
        return self._write(lambda change: change.elect(duty, interval_ms))

    def check(self) -> list[str]:
        concerns = super().check()
        journal, synchronous = self._guard(lambda: self._file.read(_read_safety))
        if synchronous < _SYNCHRONOUS_FULL:
            concerns.append(
                "synchronous is not FULL: a claim may be forgotten when the machine loses power; "
                "leave synchronous=normal out of the URL"
            )
        if journal != "wal":
            concerns.append(
                f"the journal mode is {journal}, not wal: its filesystem has no shared memory; "
                "keep the file on a local disk"
            )
        filesystem = _filesystem_of(self.path)
        if filesystem.startswith(NETWORK_FILESYSTEMS):
            concerns.append(
                f"{self.path} is on {filesystem}, where the locks of two hosts may not see each "
                "other; keep it on a local disk, or use Redis or PostgreSQL for several hosts"
            )
        return concerns

    def close(self) -> None:
        self._file.close()

    def _write(self, work: Callable[[_Change], T]) -> T:
        def transact(connection: sqlite3.Connection) -> tuple[T, bool]:
            change = _Change(connection, self._clock())
            answer = work(change)
            change.finish()
            return answer, change.happened

        return self._guard(lambda: self._file.write(transact))

    def _guard(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except NoRoom as error:
            raise StoreCorrupt(
                self.name, "no place for the record: too many tasks have the hash of its id"
            ) from error
        except UnreadableRow as error:
            raise StoreCorrupt(
                self.name, f"{error.what}. Who else writes this file?"
            ) from error.__cause__


class NoRoom(Exception):
    """So many records have the hash of a task that its own has no place."""


class _Change:
    """One write transaction: the decisions of ``protocol`` on what it finds, in order.

    Parameters:
        now_us: one moment for the whole batch, read under the lock.
    """

    def __init__(self, connection: sqlite3.Connection, now_us: int) -> None:
        self.happened = False
        self._connection = connection
        self._now_us = now_us
        self._now = now_us // 1000
        self._stored_high_water: int | None = None
        self._floor = 0

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        place, record = find_place(self._connection, request.queue, request.task_id)
        last = self._high_water() if record is None else record.token
        token = next_token(last, self._now_us)
        return self._keep(place, record, decide_claim(record, request, self._now, token))

    def renew(self, renewal: Renewal) -> RenewAnswer:
        place, record = find_place(self._connection, renewal.token.queue, renewal.token.task_id)
        high_water = self._high_water() if record is None else 0
        return self._keep(place, record, decide_renew(record, renewal, self._now, high_water))

    def settle(self, settlement: Settlement) -> SettleAnswer:
        place, record = find_place(
            self._connection, settlement.token.queue, settlement.token.task_id
        )
        high_water = self._high_water() if record is None else 0
        return self._keep(place, record, decide_settle(record, settlement, self._now, high_water))

    def expire(self, expiry: Expiry, keep_ms: int) -> bool:
        place, record = find_place(self._connection, expiry.queue, expiry.task_id)
        return self._keep(place, record, decide_expire(record, expiry, self._now, keep_ms))

    def forget(self) -> None:
        parameters = {"now": self._now, "most": FORGET_BATCH}
        floor = self._connection.execute(SQL["get_floor_of_due"], parameters).fetchone()["token"]
        if floor is not None:
            self._floor = max(self._floor, floor)
            self._connection.execute(SQL["forget_due"], parameters)
            self.happened = True

    def elect(self, duty: str, interval_ms: int) -> bool:
        parameters = {"duty": pack(duty), "now": self._now}
        row = self._connection.execute(SQL["get_turn"], parameters).fetchone()
        last = row["last"] if row else None
        # A turn that cannot be read is taken: it may be taken once too often.
        due = turn_is_due(last if isinstance(last, int) else None, interval_ms, self._now)
        if due:
            self._connection.execute(SQL["take_turn"], parameters)
            self.happened = True
        return due

    def finish(self) -> None:
        if self._floor:
            self._connection.execute(SQL["raise_high_water"], {"token": self._floor})

    def _high_water(self) -> int:
        """What a record that is not there may have had: asked for only where there is none."""
        if self._stored_high_water is None:
            row = self._connection.execute(SQL["get_high_water"]).fetchone()
            self._stored_high_water = high_water(row)
        return max(self._stored_high_water, self._floor)

    def _keep(self, place: int | None, before: Record | None, transition: Transition[T]) -> T:
        if not transition.changed:
            return transition.answer
        if place is None:
            raise NoRoom
        self.happened = True
        after = transition.record
        if after is None:
            self._floor = max(self._floor, transition.floor)
            if before is not None:
                self._floor = max(self._floor, before.token)
                self._connection.execute(SQL["remove"], {"id": place})
        elif before is None:
            self._connection.execute(SQL["keep"], as_row(place, after))
        elif _only_prolongs(before, after):
            row = {"id": place, "expires_at": after.expires_at, "started": after.started}
            self._connection.execute(SQL["prolong"], row)
        else:
            self._connection.execute(SQL["change"], as_row(place, after))
        return transition.answer


def _only_prolongs(before: Record, after: Record) -> bool:
    return before.token == after.token and before.state is after.state is State.CLAIMED


def _parse(url: str) -> tuple[str, str]:
    """The path and the synchronous mode of a URL.

    Raises:
        ConfigurationError: naming ``claims_url``.
    """
    parts = split_url(url)
    path = unquote(parts.path[1:])
    if parts.scheme != "sqlite" or parts.netloc or not path or parts.fragment or "\0" in path:
        raise ConfigurationError(
            "claims_url",
            "expected sqlite:///relative/path.db or sqlite:////absolute/path.db (mind the number "
            f"of slashes), got {url!r}",
        )
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            "claims_url", f"no file can have the name {shown(path)}"
        ) from error
    if path == ":memory:":
        raise ConfigurationError("claims_url", "a SQLite database in memory: use memory:// instead")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "full").lower()
    if options:
        raise ConfigurationError(
            "claims_url", f"unknown option {min(options)!r}; known: synchronous"
        )
    if synchronous not in ("full", "normal"):
        raise ConfigurationError(
            "claims_url", f"synchronous must be full or normal, got {synchronous!r}"
        )
    return path, synchronous


def _read_safety(connection: sqlite3.Connection) -> tuple[str, int]:
    journal = connection.execute(SQL["get_journal"]).fetchone()[0]
    synchronous = connection.execute(SQL["get_synchronous"]).fetchone()[0]
    return str(journal).lower(), int(synchronous)


def _filesystem_of(path: str) -> str:
    """The type of the filesystem that a path is on, empty where it cannot be told."""
    path = os.path.realpath(path)
    found, kind = "", ""
    try:
        with open("/proc/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                _, point, this_kind = line.split(" ")[:3]
                point = point.encode().decode("unicode_escape")
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(found):
                    found, kind = point, this_kind
    except FileNotFoundError:
        return ""
    return kind
