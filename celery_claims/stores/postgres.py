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
from .base import FORGET_BATCH, Census, Page, Store, Unreadable, View
from .packing import OUTCOMES, state_of
from .postgres_address import parse_address
from .postgres_arrays import only
from .postgres_rows import (
    FORGOTTEN_ANSWER,
    Row,
    UnreadableRow,
    as_record,
    claim_answer,
    claim_parameters,
    expire_parameters,
    key_of,
    key_parameters,
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

#: Columns of a scan's rows.
_EXPIRES_AT, _QUEUE, _KEY = 2, 13, 21

#: SQLSTATE classes of errors that one record's data can make.
_OF_A_RECORD = ("21", "22", "23")

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
        rows = self._write("claim", claim_parameters(batch), batch)
        return self._in_order(rows, lambda row: claim_answer(batch[row[0] - 1], row), batch)

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        batch = check_batch("renewals", renewals, Renewal)
        return self._judge("renew", batch, renew_parameters, renew_answer)

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        batch = check_batch("settlements", settlements, Settlement)
        return self._judge("settle", batch, settle_parameters, settle_answer)

    def lookup(self, keys: Sequence[tuple[str, str]]) -> list[Record | None]:
        pairs = check_keys(keys)
        parameters = key_parameters(pairs)
        found: list[Record | None] = [None] * len(pairs)
        for place, *row in self._run("lookup", parameters) if pairs else []:
            try:
                found[place - 1] = as_record(row)
            except UnreadableRow as error:
                key = key_of(*pairs[place - 1])
                raise self._corrupt(str(error.__cause__), key) from error.__cause__
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
        wanted = [row for row in rows if parameters["queue"] in (None, row[_QUEUE])]
        following: str | None = None
        if len(wanted) > limit:
            following = _cursor(view, queue, wanted[limit - 1])
        elif rows[-1][-1] == part:
            following = _cursor(view, queue, rows[-1])
        records, unreadable = self._read_rows(wanted[:limit])
        return Page(records, following, now, unreadable)

    def _read_rows(self, rows: Iterable[Row]) -> tuple[tuple[Record, ...], tuple[Unreadable, ...]]:
        """The records among the rows of a scan, and the others."""
        records, others = [], []
        for row in rows:
            try:
                records.append(as_record(row[1:]))
            except UnreadableRow as error:
                others.append(self._unreadable(str(error.__cause__), row[_KEY]))
        return tuple(records), tuple(others)

    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        check_keep(keep_ms)
        batch = check_batch("expiries", expiries, Expiry)
        parameters = {**expire_parameters(batch), "keep": keep_ms, "most": FORGET_BATCH}
        rows = self._write("expire", parameters, batch)
        return self._in_order(rows, lambda row: bool(row[1]), batch)

    def census(self, queue: str | None = None) -> Census:
        check_scan(View.ALL, queue, 1)
        parameters = {"queue": None if queue is None else pack(queue)}
        counts = {"live": 0, "orphaned": 0, "free": 0, "finished": 0}
        rows = self._run("census", self._with_clock(parameters))
        for _, code, ahead, number in rows:
            if code is None or not 0 <= code < len(OUTCOMES):
                continue
            kind = state_of(OUTCOMES[code]).value
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
        rows = {row[0]: row for row in self._write(verb, parameters(batch, whole=False), batch)}
        missing = _from_first_forgotten(batch, rows)
        if missing:
            again = [batch[place - 1] for place in missing]
            for row in self._write(verb, parameters(again, whole=True), again):
                place = missing[row[0] - 1]
                rows[place] = (place, *row[1:])
        return self._in_order(rows.values(), answer, batch)

    def _in_order(
        self, rows: Iterable[Row], answer: Callable[[Row], T], batch: Sequence[Any]
    ) -> list[T]:
        answers = []
        for row in sorted(rows, key=lambda row: int(row[0])):
            try:
                answers.append(answer(row))
            except UnreadableRow as error:
                key = _key_of(batch[row[0] - 1])
                raise self._corrupt(str(error.__cause__), key) from error.__cause__
        return answers

    def _write(
        self, verb: str, parameters: Mapping[str, Any], batch: Sequence[Any] = ()
    ) -> list[Row]:
        if len(batch) == 1:
            verb, parameters = f"{verb}_one", only(parameters)
        try:
            return self._run(verb, self._with_clock({**parameters, "wait": self._wait_ms}))
        except StoreCorrupt as error:
            state = getattr(error.__cause__, "sqlstate", None) or ""
            if len(batch) != 1 or state[:2] not in _OF_A_RECORD:
                raise
            raise self._corrupt(error.problem, _key_of(batch[0])) from error.__cause__

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

    def _unreadable(self, problem: str, key: UUID) -> Unreadable:
        statement = self._schema.statements["remove"].decode()
        removal = statement.replace("%(key)b::uuid", f"'{key}'")
        return Unreadable(f"record {key}", problem, removal)

    def _corrupt(self, problem: str, key: UUID) -> StoreCorrupt:
        what = self._unreadable(problem, key)
        return StoreCorrupt(self.name, f"{what}. Who else writes this table?")


def _key_of(each: ClaimRequest | Expiry | Renewal | Settlement) -> UUID:
    named = each if isinstance(each, (ClaimRequest, Expiry)) else each.token
    return key_of(named.queue, named.task_id)


def _from_first_forgotten(batch: Sequence[Any], rows: Mapping[Any, Row]) -> list[int]:
    """What to ask again: what comes after a forgotten grant of the same task waited for it."""
    forgotten: set[tuple[str, str]] = set()
    places = []
    for place, each in enumerate(batch, start=1):
        key = (each.token.queue, each.token.task_id)
        if rows[place][1] == FORGOTTEN_ANSWER:
            forgotten.add(key)
        if key in forgotten:
            places.append(place)
    return places


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


def _cursor(view: View, queue: str | None, row: Row) -> str:
    key = row[_KEY].hex
    if view is View.ALL:
        return encode_cursor(view, queue, key)
    return encode_cursor(view, queue, row[_EXPIRES_AT], key)
