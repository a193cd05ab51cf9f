"""Claims in a PostgreSQL database.

Each write verb is one statement that calls one function of the schema, which reads, decides and
writes on the server: no lock ever waits for a client. The functions say what ``protocol.decide_*``
says, in SQL; the conformance suite and the model hold them to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from ..errors import InvalidArgument, StoreCorrupt
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
)
from .arguments import (
    check_batch,
    check_duty,
    check_keep,
    check_keys,
    check_scan,
    decode_cursor,
    encode_cursor,
)
from .base import FORGET_BATCH, Census, Page, Store, View
from .postgres_address import parse_address
from .postgres_arrays import Texts
from .postgres_rows import (
    FORGOTTEN_ANSWER,
    Row,
    UnreadableRow,
    as_record,
    claim_answer,
    claim_parameters,
    expire_parameters,
    key_range,
    pack,
    renew_answer,
    renew_parameters,
    settle_answer,
    settle_parameters,
)
from .postgres_schema import Schema
from .postgres_sessions import Session, Sessions

__all__ = ["PostgresStore"]

T = TypeVar("T")
B = TypeVar("B")

#: How much of its index a page of one queue's claims reads at most, in rows.
SCAN_PART = 1000

_NO_KEY = UUID(int=0)

#: SQLSTATE of our functions in a transaction that is not READ COMMITTED.
_WRONG_ISOLATION = "CLM01"

#: The part of a call's time that one wait for a row's lock may take.
_LOCK_SHARE = 0.8


def as_it_is() -> int:
    """No offset."""
    return 0


class PostgresStore(Store):
    """``postgresql://user:password@host:port/database``, with libpq's parameters.

    Ours are ``schema`` (``celery_claims``), ``prefix`` of the names in it (none), ``auto_create``
    (true) and ``pool_size`` (8).

    Parameters:
        url: its own options are taken out, the rest is libpq's.
        timeout: seconds that a call may take before ``StoreUnavailable``.
        clock_offset: milliseconds to add to the server's clock; tests move it.
    """

    def __init__(
        self, url: str, *, timeout: float = 5.0, clock_offset: Callable[[], int] = as_it_is
    ) -> None:
        if (
            isinstance(timeout, bool)
            or not isinstance(timeout, (int, float))
            or not (math.isfinite(timeout) and timeout > 0)
        ):
            raise InvalidArgument("timeout", f"expected seconds above 0, got {timeout!r}")
        address = parse_address(url)
        self.name = address.name
        self._clock_offset = clock_offset
        self._wait_ms = max(1, round(timeout * 1000 * _LOCK_SHARE))
        self._schema = Schema(address, timeout * _LOCK_SHARE)
        self._sessions = Sessions(address, timeout, self._schema.ensure)
        #: The database's default isolation is a stricter one than ours.
        self._in_transactions = False

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        batch = check_batch("requests", requests, ClaimRequest)
        if not batch:
            return []
        rows = self._write("claim", claim_parameters(batch))
        return self._in_order(rows, lambda row: claim_answer(batch[row[0] - 1], row))

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        batch = check_batch("renewals", renewals, Renewal)
        return self._judge("renew", batch, renew_parameters, renew_answer)

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        batch = check_batch("settlements", settlements, Settlement)
        return self._judge("settle", batch, settle_parameters, settle_answer)

    def lookup(self, keys: Sequence[tuple[str, str]]) -> list[Record | None]:
        pairs = check_keys(keys)
        parameters = {
            "queues": Texts(pack(queue) for queue, _ in pairs),
            "task_ids": Texts(pack(task_id) for _, task_id in pairs),
        }
        found: list[Record | None] = [None] * len(pairs)
        for place, *row in self._run("lookup", parameters) if pairs else []:
            found[place - 1] = self._read(as_record, row)
        return found

    def scan(
        self, view: View, *, queue: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page:
        check_scan(view, queue, limit)
        after, after_key = _position(view, queue, cursor)
        part = limit + 1 if queue is None else max(limit + 1, SCAN_PART)
        parameters = {
            "after": after,
            "after_key": after_key,
            "last_key": key_range(queue)[1],
            "queue": None if queue is None else pack(queue),
            "part": part,
        }
        rows = self._run(f"scan_{view.value}", self._with_clock(parameters))
        now = rows[0][0]
        if rows[0][1] is None:
            return Page((), None, now)
        read = [(row[1], self._read(as_record, row[1:])) for row in rows]
        wanted = [each for each in read if queue in (None, each[1].queue)]
        following: str | None = None
        if len(wanted) > limit:
            following = _cursor(view, queue, *wanted[limit - 1])
        elif rows[-1][-1] == part:
            following = _cursor(view, queue, *read[-1])
        return Page(tuple(record for _, record in wanted[:limit]), following, now)

    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        check_keep(keep_ms)
        batch = check_batch("expiries", expiries, Expiry)
        parameters = {**expire_parameters(batch), "keep": keep_ms, "most": FORGET_BATCH}
        return self._in_order(self._write("expire", parameters), lambda row: bool(row[1]))

    def census(self, queue: str | None = None) -> Census:
        check_scan(View.ALL, queue, 1)
        first, last = key_range(queue)
        parameters = {
            "after_key": first,
            "last_key": last,
            "queue": None if queue is None else pack(queue),
        }
        counts = {"live": 0, "orphaned": 0, "free": 0, "finished": 0}
        rows = self._run("census", self._with_clock(parameters))
        for _, state, ahead, number in rows:
            if state is None:
                continue
            kind = state
            if kind == State.CLAIMED.value:
                kind = "live" if ahead else "orphaned"
            counts[kind] += number
        return Census(now=rows[0][0], **counts)

    def elect(self, duty: str, interval_ms: int) -> bool:
        check_duty(duty, interval_ms)
        rows = self._write("elect", {"duty": pack(duty), "interval": interval_ms})
        return bool(rows[0][0])

    def check(self) -> list[str]:
        standby, synchronous, fsync, unlogged = self._run("get_safety", {})[0]
        concerns = []
        if standby:
            concerns.append(
                "the server is a standby and takes no claims: name the primary, or list all hosts "
                "with target_session_attrs=read-write"
            )
        if synchronous == "off":
            concerns.append(
                "synchronous_commit is off: claims and ends of the last moments may be forgotten "
                "when the server crashes; set it to on for this user or database"
            )
        if fsync == "off":
            concerns.append(
                "fsync is off: all claims may be lost when the server's machine loses power"
            )
        if unlogged:
            concerns.append(
                "a table of the store is not logged: it is emptied when the server crashes; "
                "ALTER TABLE ... SET LOGGED"
            )
        return concerns

    def close(self) -> None:
        self._sessions.close()

    def _judge(
        self,
        verb: str,
        batch: list[B],
        parameters: Callable[..., dict[str, Any]],
        answer: Callable[[Row], T],
    ) -> list[T]:
        """Ask with what tokens say in short, and again with all of it where nothing was found."""
        if not batch:
            return []
        rows = {row[0]: row for row in self._write(verb, parameters(batch, whole=False))}
        missing = [place for place, row in rows.items() if row[1] == FORGOTTEN_ANSWER]
        if missing:
            # In their order: there may be duplicates.
            missing.sort()
            again = [batch[place - 1] for place in missing]
            for row in self._write(verb, parameters(again, whole=True)):
                place = missing[row[0] - 1]
                rows[place] = (place, *row[1:])
        return self._in_order(rows.values(), answer)

    def _in_order(self, rows: Iterable[Row], answer: Callable[[Row], T]) -> list[T]:
        return [self._read(answer, row) for row in sorted(rows, key=lambda row: int(row[0]))]

    def _write(self, verb: str, parameters: Mapping[str, Any]) -> list[Row]:
        return self._run(verb, self._with_clock({**parameters, "wait": self._wait_ms}))

    def _with_clock(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {**parameters, "shift": 1000 * self._clock_offset()}

    def _run(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        with self._sessions.one() as session:
            if not self._in_transactions:
                try:
                    return self._execute(session, statement, parameters)
                except psycopg.Error as error:
                    if error.sqlstate != _WRONG_ISOLATION:
                        raise
                self._in_transactions = True
            with session.transaction():
                return self._execute(session, statement, parameters)

    def _execute(
        self, session: Session, statement: str, parameters: Mapping[str, Any]
    ) -> list[Row]:
        text = self._schema.statements[statement]
        return list(session.execute(text, parameters, binary=True).fetchall())

    def _read(self, read: Callable[[Row], T], row: Row) -> T:
        try:
            return read(row)
        except UnreadableRow as error:
            raise StoreCorrupt(
                self.name,
                f"a record cannot be read ({error.__cause__}): who else writes this table?",
            ) from error.__cause__


def _position(view: View, queue: str | None, cursor: str | None) -> tuple[int, UUID]:
    """After which expiry and key to go on."""
    if view is View.ORPHANED or view is View.LIVE:
        after = decode_cursor(cursor, view, queue, int, str)
        return (-1, _NO_KEY) if after is None else (int(after[0]), _key(str(after[1])))
    after = decode_cursor(cursor, view, queue, str)
    return (-1, key_range(queue)[0] if after is None else _key(str(after[0])))


def _key(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise InvalidArgument("cursor", f"not a cursor of this store: {text!r}") from error


def _cursor(view: View, queue: str | None, key: UUID, record: Record) -> str:
    if view is View.ALL:
        return encode_cursor(view, queue, key.hex)
    return encode_cursor(view, queue, record.expires_at, key.hex)
