"""Connections to PostgreSQL: one per call under way, none shared across a fork, none without end.

Not psycopg_pool: it connects on threads of its own, which a fork loses; while the server is away
every call waits for its whole timeout and gets an error without the cause.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus

from ..errors import StoreCorrupt, StoreError, StoreFull, StoreReadOnly, StoreUnavailable
from ..native import across_forks, allocate_lock, monotonic
from .postgres_address import Address
from .postgres_arrays import register

__all__ = ["Session", "Sessions", "explain"]

T = TypeVar("T")

#: Seconds after which a connection that nobody needed is closed.
IDLE_LIMIT = 300.0

#: How often a statement is sent as text before it is prepared, where no pooler is in between.
PREPARE_AFTER = 1

#: Seconds that a call which is out of time spends on cancelling its statement at the server.
CANCEL_WAIT = 0.2

#: SQLSTATEs, or their classes, and what they mean. The first that fits counts.
_MEANINGS: tuple[tuple[tuple[str, ...], type[StoreError], str], ...] = (
    (("53100",), StoreFull, "no room is left: free some, then the call may be repeated"),
    (("25006",), StoreReadOnly, "name the primary, or a user that may write"),
    (("42501",), StoreReadOnly, "grant the user what docs/stores/postgresql.md lists"),
    (("55P03", "57014"), StoreUnavailable, "it took too long; the call may be repeated"),
    (("XX001", "XX002"), StoreCorrupt, "restore the database or rebuild its indexes"),
    (("08", "28", "3D", "40", "53", "55", "57", "58", "XX", "CL"), StoreUnavailable, ""),
    (("3F", "42"), StoreCorrupt, "the tables are not the ones that were created"),
    (("21", "22", "23"), StoreCorrupt, "a record cannot be read or kept: who else writes it?"),
)

#: SQLSTATEs of a schema that was dropped under the store: look at it again with the next call.
_GONE = ("3F000", "42P01", "42883")


class OutOfTime(psycopg.OperationalError):
    """The server did not answer in time."""


class Session(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose statements have a deadline, on the caller's monotonic clock."""

    deadline = math.inf
    idle_since = 0.0

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        return super().wait(self._bounded(gen), *args, **options)

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """What psycopg resumes with "nothing ready" a few times a second."""
        try:
            ready = yield next(gen)
            while True:
                if not ready and monotonic() > self.deadline:
                    raise OutOfTime("no answer in time")
                ready = yield gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result

    def is_alive(self) -> bool:
        """Whether the server has said nothing since, for all that it says to the idle is goodbye.

        Asks only this host: no round trip.
        """
        try:
            self.pgconn.consume_input()
            # The first may have read the goodbye, the second finds the end behind it.
            self.pgconn.consume_input()
        except psycopg.Error:
            return False
        return not self.closed

    def is_settled(self) -> bool:
        """Whether another call may use it."""
        return not self.closed and self.info.transaction_status is TransactionStatus.IDLE

    def backend(self) -> int:
        """The process that serves it, as the server itself says."""
        row = self.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        return int(row[0])

    def stop(self) -> None:
        """Cancel what the server still does for it, if that can be had quickly, and close."""
        if not self.closed and self.info.transaction_status is TransactionStatus.ACTIVE:
            with contextlib.suppress(psycopg.Error):
                if psycopg.capabilities.has_cancel_safe():
                    self.cancel_safe(timeout=CANCEL_WAIT)
        self.close()


class Sessions:
    """The connections of one store object.

    Parameters:
        address: where to.
        timeout: seconds for a call, connecting included.
        prepare: called once with the first connection of a process, before anything else.
    """

    def __init__(
        self, address: Address, timeout: float, prepare: Callable[[Session], None]
    ) -> None:
        self._address = address
        self._timeout = timeout
        self._prepare = prepare
        self._parameters = {
            "fallback_application_name": "celery-claims",
            # What is sent and not received by then will not be answered in time either.
            "tcp_user_timeout": max(1000, round(timeout * 1000)),
            # libpq takes whole seconds.
            "connect_timeout": max(1, math.ceil(timeout)),
            **address.connection,
        }
        self._start_empty()
        across_forks(self)

    def _start_empty(self) -> None:
        self._lock = allocate_lock()
        self._idle: list[Session] = []
        self._closed = False
        self._is_prepared = False
        self._is_direct = False
        # Not a native lock: a greenlet that waits here must let the others go on.
        self._room = threading.Semaphore(self._address.pool_size)

    @contextmanager
    def one(self) -> Iterator[Session]:
        """A connection for this caller alone, with what is left of the call's time.

        Raises:
            StoreError: for every error of the driver.
        """
        deadline = monotonic() + self._timeout
        if not self._room.acquire(timeout=self._timeout):
            raise StoreUnavailable(
                self._address.name,
                f"all {self._address.pool_size} connections stayed busy for {self._timeout:g} s",
            )
        session: Session | None = None
        try:
            session = self._take()
            session.deadline = deadline
            if not self._is_prepared:
                self._prepare(session)
                # A pooler gives its clients numbers of its own. A statement prepared through it
                # would be missing on the next server connection.
                self._is_direct = session.backend() == session.info.backend_pid
                self._is_prepared = True
            session.prepare_threshold = PREPARE_AFTER if self._is_direct else None
            yield session
        except psycopg.Error as error:
            if error.sqlstate in _GONE:
                self._is_prepared = False
            raise explain(self._address.name, error) from error
        finally:
            if session is not None:
                self._give(session)
            self._room.release()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        # Closing them here would say goodbye to the server in the parent's name.
        _unusable.extend(self._idle)
        self._start_empty()

    def _take(self) -> Session:
        while True:
            with self._lock:
                session = self._idle.pop() if self._idle else None
            if session is None:
                return self._connect()
            if session.is_alive():
                return session
            session.close()

    def _connect(self) -> Session:
        session = Session.connect(
            autocommit=True,
            prepare_threshold=None,
            **self._parameters,
        )
        register(session)
        # Where a transaction is begun: a stricter default would see what was before it waited.
        session.isolation_level = IsolationLevel.READ_COMMITTED
        return session

    def _give(self, session: Session) -> None:
        if not session.is_settled():
            session.stop()
            return
        session.idle_since = now = monotonic()
        unneeded: list[Session] = []
        with self._lock:
            if self._closed:
                unneeded.append(session)
            else:
                self._idle.append(session)
                # The last in is the first out: what nobody needs stays at the bottom.
                while now - self._idle[0].idle_since > IDLE_LIMIT:
                    unneeded.append(self._idle.pop(0))
        for each in unneeded:
            each.close()


#: Connections of a parent, kept from being collected.
_unusable: list[Session] = []


def explain(name: str, error: psycopg.Error) -> StoreError:
    """Our error for the driver's.

    Parameters:
        name: the store in messages.
    """
    state = error.sqlstate or ""
    text = (error.diag.message_primary or str(error)).strip()
    for states, kind, advice in _MEANINGS:
        if state.startswith(states):
            return kind(name, f"{text}: {advice}" if advice else text)
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return StoreUnavailable(name, text)
    return StoreCorrupt(name, f"{type(error).__name__}: {text}")
