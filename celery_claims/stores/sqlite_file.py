"""A SQLite file: its connections, transactions, schema version and errors.

Connections and forks
    A child inherits SQLite's notes on which locks the process holds, but not the locks. A new
    connection in the child would join those notes and go on without any lock. So a fork waits
    for the calls that are under way and closes every connection: parent and child both open
    their own again when they next need one.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import quote

from ..errors import StoreCorrupt, StoreError, StoreFull, StoreReadOnly, StoreUnavailable
from ..native import across_forks, allocate_lock, monotonic, pause
from .sql import load_sql, split_statements

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "SQL", "SQLiteFile"]

T = TypeVar("T")

SQL = load_sql("celery_claims.stores", "sqlite.sql")

#: Marks our files ("CLMS"): another application's database is not written to.
APPLICATION_ID = 0x434C4D53

#: Of the schema in ``sqlite.sql``.
SCHEMA_VERSION = 1

#: Seconds that a fork waits for a call under way. A call waits for other processes outside of its
#: connection, so one that takes this long hangs in the disk, not in SQLite.
FORK_WAIT = 10.0

#: Seconds between two tries at a locked file: the first pause and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.0005, 0.02

#: Primary result codes; Python 3.10 gives only the text.
_BUSY_CODES = (5, 6, 15)
_BUSY_TEXTS = ("database is locked", "table is locked", "locking protocol")
_CANNOT_OPEN = 14
_KINDS: list[tuple[int, str, type[StoreError], str]] = [
    (8, "readonly", StoreReadOnly, "make the file and its folder writable"),
    (13, "is full", StoreFull, "no room is left: free some, then the call may be repeated"),
    (11, "malformed", StoreCorrupt, "move the file away, with its -wal and -shm files"),
    (26, "not a database", StoreCorrupt, "name another file"),
    (10, "disk I/O error", StoreUnavailable, "look at the disk, its quotas and limits"),
]


class SQLiteFile:
    """The transactions of one file, from any thread and on both sides of a fork.

    Parameters:
        path: absolute.
        name: the store in messages.
        synchronous: ``full`` or ``normal``.
        timeout: seconds that a transaction waits for other processes and threads.
    """

    def __init__(self, path: str, name: str, synchronous: str, timeout: float) -> None:
        self.path = path
        self.name = name
        self._synchronous = synchronous
        self._timeout = timeout
        self._writing = allocate_lock()
        self._connections = _Connections(self._connect)
        across_forks(self)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` on one snapshot; it takes no lock that writers wait for."""
        return self._until_free(lambda _: self._read_once(work))

    def write(self, work: Callable[[sqlite3.Connection], tuple[T, bool]]) -> T:
        """Run ``work`` alone among all writers; commit if it says that it changed something.

        ``work`` is run anew if the file was locked in between.
        """
        return self._until_free(lambda deadline: self._write_in_turn(work, deadline))

    def close(self) -> None:
        self._connections.close()

    def before_fork(self) -> None:
        self._connections.before_fork()

    def after_fork_in_parent(self) -> None:
        self._connections.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        self._writing = allocate_lock()
        self._connections.after_fork_in_child()

    def _until_free(self, attempt: Callable[[float], T]) -> T:
        deadline = monotonic() + self._timeout
        longest = FIRST_PAUSE
        while True:
            try:
                return attempt(deadline)
            except sqlite3.Error as error:
                if not _is_busy(error):
                    raise self._explain(error) from error
                left = deadline - monotonic()
                if left <= 0:
                    raise self._locked() from error
            pause(min(left, longest * random.uniform(0.5, 1)))  # noqa: S311 - spreads load
            longest = min(2 * longest, LONGEST_PAUSE)

    def _write_in_turn(
        self, work: Callable[[sqlite3.Connection], tuple[T, bool]], deadline: float
    ) -> T:
        # Threads take turns at a lock, which is cheaper than finding the file locked.
        if not self._writing.acquire(timeout=max(0.0, deadline - monotonic())):
            raise self._locked()
        try:
            with self._connections.one() as connection:
                return _transact(connection, "begin_write", work)
        finally:
            self._writing.release()

    def _read_once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._connections.one() as connection:
            return _transact(connection, "begin_read", lambda c: (work(c), False))

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(self.path))}?mode=rwc",
            uri=True,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.text_factory = _text
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute(SQL[f"synchronous_{self._synchronous}"])
        # In one snapshot: the first workers of a new file start at the same time.
        version = _transact(connection, "begin_read", lambda c: (self._version(c), False))
        connection.execute(SQL["use_wal"])
        if version == 0:
            _transact(connection, "begin_write", self._create)

    def _create(self, connection: sqlite3.Connection) -> tuple[None, bool]:
        # Another process may have been first, between the look and the lock.
        if self._version(connection) == SCHEMA_VERSION:
            return None, False
        for statement in split_statements(SQL["schema"]):
            connection.execute(statement)
        return None, True

    def _version(self, connection: sqlite3.Connection) -> int:
        """The schema version of the file, 0 for an empty one.

        Raises:
            StoreCorrupt: it belongs to somebody else, or to a newer version of this package.
        """
        application = _number(connection, "get_application")
        version = _number(connection, "get_version")
        if (application, version) == (0, 0) and not _number(connection, "count_tables"):
            return 0
        if application != APPLICATION_ID:
            raise StoreCorrupt(
                self.name, "the database belongs to another application: name another file"
            )
        if version > SCHEMA_VERSION:
            raise StoreCorrupt(
                self.name,
                f"a newer celery-claims wrote it (schema {version}, this version knows "
                f"{SCHEMA_VERSION}): upgrade celery-claims here too",
            )
        if version != SCHEMA_VERSION:
            raise StoreCorrupt(self.name, f"no version ever wrote schema {version}")
        return version

    def _locked(self) -> StoreUnavailable:
        return StoreUnavailable(
            self.name, f"the file stayed locked by another process for {self._timeout:g} s"
        )

    def _explain(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", -1) & 0xFF
        text = str(error)
        if code == _CANNOT_OPEN or "unable to open" in text:
            return self._explain_unopened()
        for kind, phrase, error_class, advice in _KINDS:
            if code == kind or phrase in text:
                return error_class(self.name, f"{text}: {advice}")
        if isinstance(error, sqlite3.OperationalError) and "no such" not in text:
            return StoreUnavailable(self.name, text)
        return StoreCorrupt(self.name, f"{text}: the schema is not the one that was created")

    def _explain_unopened(self) -> StoreError:
        folder = os.path.dirname(self.path)
        if not os.path.isdir(folder):
            return StoreUnavailable(self.name, f"the folder {folder} does not exist: create it")
        if os.path.isdir(self.path):
            return StoreUnavailable(self.name, f"{self.path} is a folder: name a file in it")
        if not os.access(folder, os.W_OK) or (
            os.path.exists(self.path) and not os.access(self.path, os.W_OK)
        ):
            return StoreReadOnly(
                self.name, f"nothing can be written in {folder}: make the file and folder writable"
            )
        return StoreUnavailable(
            self.name, f"{self.path} cannot be opened: look at its owner, the limits and the disk"
        )


class _Slot:
    """A place for a connection; ``in_use`` is held while one thread works with it."""

    def __init__(self) -> None:
        self.in_use = allocate_lock()
        self.connection: sqlite3.Connection | None = None


class _Connections:
    """As many connections as threads work at once; a fork finds none of them open."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._start_empty()

    def _start_empty(self) -> None:
        self._lock = allocate_lock()
        self._slots: list[_Slot] = []
        self._idle: list[_Slot] = []
        self._held: list[_Slot] = []

    @contextmanager
    def one(self) -> Iterator[sqlite3.Connection]:
        """A connection for this thread alone; it is closed if an error other than busy passes."""
        slot = self._take()
        try:
            if slot.connection is None:
                slot.connection = self._connect()
            yield slot.connection
        except BaseException as error:
            if slot.connection is not None and not _is_busy(error):
                _close(slot)
            raise
        finally:
            self._give(slot)

    def _take(self) -> _Slot:
        with self._lock:
            slot = self._idle.pop() if self._idle else _Slot()
            if slot not in self._slots:
                self._slots.append(slot)
            slot.in_use.acquire()
            return slot

    def _give(self, slot: _Slot) -> None:
        # In this order: a fork holds the list's lock while it waits for the slots.
        slot.in_use.release()
        with self._lock:
            if slot in self._slots:
                self._idle.append(slot)

    def close(self) -> None:
        with self._lock:
            for slot in self._slots:
                with slot.in_use:
                    _close(slot)
            self._slots.clear()
            self._idle.clear()

    def before_fork(self) -> None:
        self._lock.acquire()
        deadline = monotonic() + FORK_WAIT
        for slot in self._slots:
            if slot.in_use.acquire(timeout=max(0.0, deadline - monotonic())):
                _close(slot)
                self._held.append(slot)

    def after_fork_in_parent(self) -> None:
        for slot in self._held:
            slot.in_use.release()
        self._held.clear()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        _unusable.extend(slot.connection for slot in self._slots if slot.connection is not None)
        self._start_empty()


#: Connections of a parent that could not be closed before a fork: closing them here would end the
#: parent's transaction, so they are kept from being collected.
_unusable: list[sqlite3.Connection] = []


def _transact(
    connection: sqlite3.Connection,
    begin: str,
    work: Callable[[sqlite3.Connection], tuple[T, bool]],
) -> T:
    connection.execute(SQL[begin])
    try:
        answer, changed = work(connection)
        connection.execute(SQL["commit" if changed else "rollback"])
    except BaseException:
        # SQLite itself rolls back after some errors; the connection is closed after the others.
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute(SQL["rollback"])
        raise
    return answer


def _text(raw: bytes) -> str:
    """A text of ours, or of anybody: one that is not UTF-8 must not end a whole statement."""
    return raw.decode("utf-8", "surrogateescape")


def _number(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute(SQL[name]).fetchone()
    return int(row[0])


def _is_busy(error: BaseException) -> bool:
    if not isinstance(error, sqlite3.OperationalError):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _BUSY_CODES
    return any(text in str(error) for text in _BUSY_TEXTS)


def _close(slot: _Slot) -> None:
    connection, slot.connection = slot.connection, None
    if connection is not None:
        # What is broken enough not to close is of no more use either.
        with contextlib.suppress(sqlite3.Error):
            connection.close()
