"""Records with anything in them: every verb answers or says what cannot be read, and scans end."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from celery_claims.errors import StoreCorrupt, StoreError
from celery_claims.parts import ask_in_parts
from celery_claims.protocol import (
    ClaimRequest,
    ClaimToken,
    Outcome,
    Renewal,
    Settlement,
    Success,
)
from celery_claims.stores import Store, View
from celery_claims.sweep import Sweeper
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from .harnesses import SQLiteHarness
from .postgres_harness import PostgresHarness
from .redis_harness import RedisHarness

LEASE = 30_000
#: Most pages that a scan of three records may take.
MANY = 50
_numbers = iter(range(10**9))

#: Whole numbers that a record should not hold, and some that it may.
NUMBERS = st.sampled_from([0, 1, -1, 2**31, 2**53 - 1, 2**53, 2**60, 2**63 - 1, -(2**63)])


def request(task_id: str) -> ClaimRequest:
    number = next(_numbers)
    return ClaimRequest("q", task_id, f"owner-{number}", LEASE, f"grant-{number}", "root")


def fill(store: Store) -> ClaimToken:
    """Three claims; the grant of the middle one, whose record is about to be damaged."""
    answers = store.claim([request(f"t{number}") for number in range(3)])
    granted = [answer.token for answer in answers if isinstance(answer, Success)]
    assert len(granted) == 3
    return granted[1]


def scan_all(store: Store, view: View, limit: int) -> set[str]:
    shown: set[str] = set()
    cursor = None
    for _ in range(MANY):
        page = store.scan(view, cursor=cursor, limit=limit)
        shown |= {record.task_id for record in page.records}
        assert all(each.removal for each in page.unreadable)
        cursor = page.cursor
        if cursor is None:
            return shown
    raise AssertionError("the scan does not end")


def hold_to_the_promises(store: Store, token: ClaimToken, advance: Callable[[int], None]) -> None:
    """Whatever the record of ``token`` holds: only it may be refused, with our own error."""
    for view in (View.LIVE, View.ALL):
        for limit in (1, 100):
            assert {"t0", "t2"} <= scan_all(store, view, limit)
    store.census()
    (found,) = ask_in_parts(store.lookup, [("q", "t1")])
    readable = not isinstance(found, StoreError)
    for verb, element in (
        (store.claim, request("t1")),
        (store.renew, Renewal(token, LEASE)),
        (store.settle, Settlement(token, Outcome.NACKED, LEASE)),
    ):
        (answer,) = ask_in_parts(verb, [element])  # type: ignore[arg-type, var-annotated]
        assert not isinstance(answer, StoreError) or isinstance(answer, StoreCorrupt), answer
        if isinstance(answer, Success):
            # What is granted can be given back: its numbers are such as calls take.
            Settlement(answer.token, Outcome.SUCCESS, LEASE)
            assert readable
    for _ in range(2):
        (other,) = store.claim([request(f"new-{next(_numbers)}")])
        assert isinstance(other, Success)
    advance(LEASE + 1000)
    sweep = Sweeper(store, LEASE).run_once()
    assert sweep.cleaned >= 2
    for number in (0, 2):
        (record,) = store.lookup([("q", f"t{number}")])
        assert record is not None and record.outcome is Outcome.EXPIRED


@contextmanager
def opened(harness: Any) -> Iterator[Any]:
    store = harness.open()
    try:
        yield store
    finally:
        store.close()
        harness.close()


#: Columns that have something in them whatever the record is.
ALWAYS = ("token", "outcome", "nesting", "retries", "deaths", "deliveries", "started")
TEXTS = ("queue", "task_id", "owner", "grant_id", "root_id", "task", "tag", "from_queue")
COUNTS = (
    *("token", "nesting", "retries", "deaths", "claimed_at", "expires_at", "started"),
    *("deliveries", "settled_at", "forget_at", "priority"),
)
VALUES = (
    NUMBERS
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "x", "a\x00b"])
    | st.sampled_from([b"", b"\xff", b"\xed\xa0\x80", b"x" * 20_000])
)


@settings(max_examples=60, deadline=None)
@given(
    column=st.sampled_from((*TEXTS, *COUNTS, "outcome")),
    value=VALUES | st.integers(-1, 12) | st.none(),
)
def test_sqlite_with_anything_in_a_column(column: str, value: Any) -> None:
    assume(value is not None or column not in (*ALWAYS, "queue", "task_id"))
    harness = SQLiteHarness()
    with opened(harness) as store:
        token = fill(store)
        with closing(sqlite3.connect(harness.path)) as other, other:
            other.execute("PRAGMA ignore_check_constraints = on")
            other.execute(f"UPDATE claims SET {column} = ? WHERE task_id = x'7431'", (value,))
        hold_to_the_promises(store, token, harness.advance)


@pytest.mark.parametrize("column", ["owner", "queue", "task_id", "outcome", "expires_at"])
def test_sqlite_with_a_text_that_is_not_utf_8(column: str) -> None:
    """The driver itself fails on it, unless it is told not to."""
    harness = SQLiteHarness()
    with opened(harness) as store:
        token = fill(store)
        with closing(sqlite3.connect(harness.path)) as other, other:
            other.execute("PRAGMA ignore_check_constraints = on")
            change = f"UPDATE claims SET {column} = CAST(x'ff' AS TEXT) WHERE task_id = x'7431'"
            other.execute(change)
        hold_to_the_promises(store, token, harness.advance)


@pytest.mark.parametrize("value", ["'x'", "1.5", "-1", "9223372036854775807", "x'ff'", None])
def test_sqlite_with_a_highest_token_that_is_none_gives_nothing_out(value: str | None) -> None:
    harness = SQLiteHarness()
    with opened(harness) as store:
        fill(store)
        with closing(sqlite3.connect(harness.path)) as other, other:
            change = "DELETE FROM high_water" if value is None else "UPDATE high_water SET token = "
            other.execute(change + (value or ""))
        with pytest.raises(StoreCorrupt, match="highest token") as raised:
            store.claim([request("new")])
        assert scan_all(store, View.LIVE, 2) == {"t0", "t1", "t2"}
        statement = str(raised.value).partition("to delete it: ")[2].partition(". Who")[0]
        with closing(sqlite3.connect(harness.path)) as other, other:
            other.execute(statement)
        (answer,) = store.claim([request("new")])
        assert isinstance(answer, Success)


def test_sqlite_with_a_turn_that_is_no_time_is_swept() -> None:
    harness = SQLiteHarness()
    with opened(harness) as store:
        assert store.elect("sweep", 1000)
        with closing(sqlite3.connect(harness.path)) as other, other:
            other.execute("UPDATE turns SET last = 'x'")
        assert store.elect("sweep", 1000)
        assert not store.elect("sweep", 1000)


@settings(max_examples=60, deadline=None)
@given(
    cut=st.integers(0, 60),
    tail=st.binary(max_size=12),
    at=st.integers(0, 60),
    byte=st.integers(0, 255),
)
def test_redis_with_a_packed_row_cut_off_or_changed(
    cut: int, tail: bytes, at: int, byte: int
) -> None:
    """Truncated rows, future codes, numbers of other kinds, somebody else's bytes."""
    harness = RedisHarness()
    with opened(harness) as store, harness.server.client() as client:
        token = fill(store)
        key = f"{harness.prefix}{{q}}.c"
        packed = bytearray(client.hget(key, "t1"))
        packed[at % len(packed)] = byte
        client.hset(key, "t1", bytes(packed[:cut]) + tail if cut < 60 else bytes(packed))
        hold_to_the_promises(store, token, harness.advance)


@pytest.mark.parametrize("code", [12, 99, 127])
def test_redis_with_an_outcome_of_a_later_version_grants_nothing(code: int) -> None:
    harness = RedisHarness()
    with opened(harness) as store, harness.server.client() as client:
        token = fill(store)
        store.settle([Settlement(token, Outcome.SUCCESS, LEASE)])
        (bucket,) = client.keys(f"{harness.prefix}{{q}}.f:*")
        kept = client.hget(bucket, "t1")
        # As that version would seal it.
        packed = bytes([code]) + kept[7:]
        client.hset(bucket, "t1", kept[:4] + hashlib.sha1(packed).digest()[:2] + packed)
        with pytest.raises(StoreCorrupt, match=f"code {code}.*HDEL"):
            store.claim([request("t1")])
        (unreadable,) = store.scan(View.ALL, cursor=store.scan(View.ALL).cursor).unreadable
        assert unreadable.removal == f'HDEL "{bucket.decode()}" "t1"'


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 30), byte=st.integers(0, 255), tail=st.binary(max_size=3))
def test_redis_grants_no_finished_record_that_cannot_be_read(
    at: int, byte: int, tail: bytes
) -> None:
    harness = RedisHarness()
    with opened(harness) as store, harness.server.client() as client:
        store.settle([Settlement(fill(store), Outcome.SUCCESS, LEASE)])
        (bucket,) = client.keys(f"{harness.prefix}{{q}}.f:*")
        packed = bytearray(client.hget(bucket, "t1"))
        packed[at % len(packed)] = byte
        client.hset(bucket, "t1", bytes(packed) + tail)
        try:
            store.lookup([("q", "t1")])
        except StoreCorrupt:
            with pytest.raises(StoreCorrupt):
                store.claim([request("t1")])


@settings(max_examples=20, deadline=None)
@given(
    column=st.sampled_from((*TEXTS[2:], *COUNTS[:-3], "forget_at", "priority", "keep", "outcome")),
    number=NUMBERS | st.integers(0, 12) | st.sampled_from(["0.5", "'NaN'", "NULL"]),
    text=st.sampled_from([b"", b"\xff", b"x" * 20_000]),
)
def test_postgres_with_anything_in_a_column(column: str, number: object, text: bytes) -> None:
    harness = PostgresHarness()
    with opened(harness) as store:
        token = fill(store)
        value = f"'\\x{text.hex()}'" if column in TEXTS and number != "NULL" else str(number)
        if column == "started":
            value = "true"
        change = f"UPDATE {harness.schema}.claims SET {column} = {value} WHERE task_id = 't1'"
        # The table itself refuses some of it.
        with suppress(psycopg.IntegrityError, psycopg.DataError):
            harness.server.execute(change)
        hold_to_the_promises(store, token, harness.advance)


@pytest.mark.parametrize(
    "change",
    [
        *("outcome = 1", "outcome = 4", "outcome = 99", "outcome = -1", "keep = 5"),
        *("outcome = 1, forget_at = 5, keep = 'NaN'", "outcome = 4, forget_at = 5, keep = 1"),
        *("owner = NULL", "grant_id = NULL", "expires_at = NULL", "tag = NULL"),
        *(r"queue = '\xff'", r"task_id = '\xff'", "queue = 'other'", "task_id = 'other'"),
    ],
)
def test_postgres_with_a_row_of_another_state_or_under_another_key(change: str) -> None:
    harness = PostgresHarness()
    with opened(harness) as store:
        token = fill(store)
        table = f"{harness.schema}.claims"
        harness.server.execute(f"UPDATE {table} SET {change} WHERE task_id = 't1'")
        hold_to_the_promises(store, token, harness.advance)


@pytest.mark.parametrize(
    "change",
    [
        *("outcome = 0", "outcome = 1", "outcome = 2", "outcome = 12", "outcome = -1"),
        *("forget_at = NULL", "keep = NULL", "keep = 0.5", "keep = 'NaN'", "keep = -1"),
        *("keep = forget_at + 1", "owner = 'x'", "tag = 'x'", "expires_at = 1"),
    ],
)
def test_postgres_grants_no_finished_record_that_cannot_be_read(change: str) -> None:
    harness = PostgresHarness()
    with opened(harness) as store:
        token = fill(store)
        store.settle([Settlement(token, Outcome.SUCCESS, LEASE)])
        table = f"{harness.schema}.claims"
        harness.server.execute(f"UPDATE {table} SET {change} WHERE task_id = 't1'")
        (unreadable,) = store.scan(View.ALL).unreadable
        for ask in (
            lambda: store.claim([request("t1")]),
            lambda: store.claim([replace(request("t1"), root_id="another")]),
            lambda: store.renew([Renewal(token, LEASE)]),
            lambda: store.settle([Settlement(token, Outcome.SUCCESS, LEASE)]),
            lambda: store.lookup([("q", "t1")]),
        ):
            with pytest.raises(StoreCorrupt, match="DELETE FROM") as raised:
                ask()
            assert unreadable.removal in str(raised.value)
        harness.server.execute(unreadable.removal)
        assert isinstance(store.claim([request("t1")])[0], Success)


@pytest.mark.parametrize("token", [2**63 - 1, 2**53 - 1, 0, -1])
def test_postgres_with_a_settled_row_whose_token_is_none(token: int) -> None:
    """It is told of and stays; the others are forgotten, and its shard has tokens left."""
    harness = PostgresHarness()
    with opened(harness) as store:
        settled = [
            Settlement(answer.token, Outcome.SUCCESS, LEASE)
            for answer in store.claim([request(f"t{number}") for number in range(3)])
            if isinstance(answer, Success)
        ]
        store.settle(settled)
        change = f"UPDATE {harness.schema}.claims SET token = {token} WHERE task_id = 't1'"
        harness.server.execute(change)
        harness.advance(LEASE + 1000)
        store.expire([], keep_ms=LEASE)
        page = store.scan(View.ALL)
        assert page.records == ()
        (unreadable,) = page.unreadable
        assert "token" in unreadable.problem
        harness.server.execute(unreadable.removal)
        answers = store.claim([request(f"t{number}") for number in range(3)])
        assert all(isinstance(answer, Success) for answer in answers)
