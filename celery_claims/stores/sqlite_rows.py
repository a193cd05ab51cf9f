"""Rows of the SQLite store: records, and the places of scans between them.

A column takes values of any type from whoever writes the file, and SQLite orders them by type
first. Places keep the type, so that a scan passes over what this package did not write.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from ..checks import MAX_TOKEN
from ..errors import InvalidArgument
from ..protocol import Attempt, Delivery, Record, State
from .arguments import decode_cursor, encode_cursor
from .base import FORGOTTEN, Unreadable, View
from .packing import CODES, OUTCOMES, pack_text, state_of, unpack_text
from .reading import check_record
from .sqlite_file import SQL

__all__ = [
    "UnreadableRow",
    "as_row",
    "cursor_at",
    "find",
    "find_place",
    "high_water",
    "pack",
    "place_of",
    "read_rows",
]

#: Comes before every value of every type.
_FIRST = float("-inf")

_BY_EXPIRY = {"expires_at": "after_expiry", "id": "after_id"}
#: The columns by which each view is ordered, and the parameters that say after which of them.
_ORDERS = {View.LIVE: _BY_EXPIRY, View.ORPHANED: _BY_EXPIRY, View.ALL: {"id": "after_id"}}

#: Of an id, from the hash: with the rest it stays a positive number of six bytes.
_HASH_BITS = 44
#: The rest: so many records may have the same hash. Of a thousand million records no three have.
_ROOM_BITS = 3
_ROOM = 1 << _ROOM_BITS


class UnreadableRow(Exception):
    """A row that this package did not write: ``what`` tells of it."""

    def __init__(self, what: Unreadable) -> None:
        super().__init__(what)
        self.what = what


def pack(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unpack(packed: bytes) -> str:
    return packed.decode("utf-8", "surrogatepass")


@lru_cache(maxsize=1024)
def _known(text: str) -> bytes:
    """Queues, owners and names of tasks: few, and packed again and again."""
    return pack(text)


@lru_cache(maxsize=1024)
def _digest_of(queue: bytes) -> bytes:
    return hashlib.sha256(queue).digest()


def _first_place(queue: bytes, task_id: bytes) -> int:
    """The first of the ids that a record may have."""
    digest = hashlib.sha256(_digest_of(queue) + task_id).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _HASH_BITS) << _ROOM_BITS


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a number, found {value!r:.100}")
    return value


def find(connection: sqlite3.Connection, queue: str, task_id: str) -> Record | None:
    """The record of a task.

    Raises:
        UnreadableRow.
    """
    return find_place(connection, queue, task_id)[1]


def find_place(
    connection: sqlite3.Connection, queue: str, task_id: str
) -> tuple[int | None, Record | None]:
    """The id and the record of a task; of one that has none, a free id, None if there is none.

    Raises:
        UnreadableRow.
    """
    key = (_known(queue), pack_text(task_id))
    first = _first_place(*key)
    places = range(first, first + _ROOM)
    rows = connection.execute(SQL["find"], (first, places[-1])).fetchall()
    if not rows:
        return first, None
    for row in rows:
        if (row["queue"], row["task_id"]) == key:
            return row["id"], as_record(row)
    taken = {row["id"] for row in rows}
    return next((place for place in places if place not in taken), None), None


def read_rows(
    rows: Iterable[sqlite3.Row],
) -> tuple[tuple[Record, ...], tuple[Unreadable, ...]]:
    """The records among rows, and the others."""
    records, others = [], []
    for row in rows:
        try:
            record = as_record(row)
            if not 0 <= row["id"] - _first_place(row["queue"], row["task_id"]) < _ROOM:
                raise _unreadable(row, ValueError("no call finds it, by its id"))
            records.append(record)
        except UnreadableRow as error:
            others.append(error.what)
    return tuple(records), tuple(others)


def place_of(view: View, queue: str | None, cursor: str | None) -> dict[str, Any]:
    """The parameters of a scan's statement that say where it goes on.

    Raises:
        InvalidArgument: naming ``cursor``.
    """
    names = list(_ORDERS[view].values())
    found = decode_cursor(cursor, view, queue, *(str for _ in names))
    if found is None:
        return {"queue": pack(queue or ""), **dict.fromkeys(names, _FIRST)}
    try:
        after = [_value(str(part)) for part in found]
    except ValueError as error:
        raise InvalidArgument("cursor", f"not a cursor of this store: {cursor!r}") from error
    return {"queue": pack(queue or ""), **dict(zip(names, after, strict=True))}


def cursor_at(view: View, queue: str | None, last: sqlite3.Row) -> str:
    """After this row."""
    return encode_cursor(view, queue, *(_text(last[name]) for name in _ORDERS[view]))


def _text(value: bytes | str | float) -> str:
    """A value with its type."""
    if isinstance(value, bytes):
        return f"b{value.hex()}"
    if isinstance(value, str):
        try:
            return f"s{value.encode().hex()}"
        except UnicodeEncodeError:
            # Cannot be asked for again: on to what comes after all texts.
            return "b"
    return f"n{value!r}"


def _value(text: str) -> bytes | str | float:
    kind, rest = text[:1], text[1:]
    if kind == "b":
        return bytes.fromhex(rest)
    if kind == "s":
        return bytes.fromhex(rest).decode()
    if kind != "n":
        raise ValueError(f"no type begins with {kind!r}")
    try:
        return int(rest)
    except ValueError:
        return float(rest)


def as_record(row: sqlite3.Row) -> Record:
    """A row of the table.

    Raises:
        UnreadableRow.
    """
    try:
        return _read(row)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise _unreadable(row, error) from error


def _unreadable(row: sqlite3.Row, problem: Exception) -> UnreadableRow:
    number = str(row["id"])
    removal = SQL["remove"].replace(":id", number)
    return UnreadableRow(Unreadable(f"row {number} of claims", str(problem), removal))


def high_water(row: sqlite3.Row | None) -> int:
    """The highest token that was given out.

    Raises:
        UnreadableRow.
    """
    value = None if row is None else row["token"]
    if isinstance(value, int) and 0 <= value < MAX_TOKEN:
        return value
    raise UnreadableRow(
        Unreadable("the highest token", f"found {value!r:.100}", SQL["restart_high_water"])
    )


def _read(row: sqlite3.Row) -> Record:
    code, token = _whole(row["outcome"]), _whole(row["token"])
    if not 0 <= code < len(OUTCOMES):
        raise ValueError(f"no outcome has the code {code}")
    outcome = OUTCOMES[code]
    state = state_of(outcome)
    claimed_at, expires_at, settled_at, forget_at = token // 1000, 0, 0, 0
    owner = grant_id = FORGOTTEN
    delivery = Delivery()
    if row["claimed_at"] is not None:
        claimed_at = _whole(row["claimed_at"])
    if state is not State.CLAIMED:
        settled_at, forget_at = _whole(row["settled_at"]), _whole(row["forget_at"])
    if state is not State.FINISHED:
        expires_at = _whole(row["expires_at"])
        owner, grant_id = _unpack(row["owner"]), _unpack(row["grant_id"])
        delivery = Delivery(
            task=_unpack(row["task"]),
            tag=_unpack(row["tag"]),
            queue=_unpack(row["from_queue"]),
            priority=row["priority"],
        )
    task_id = unpack_text(row["task_id"])
    return check_record(
        Record(
            queue=_unpack(row["queue"]),
            task_id=task_id,
            owner=owner,
            grant_id=grant_id,
            token=token,
            root_id=task_id if row["root_id"] is None else unpack_text(row["root_id"]),
            attempt=Attempt(_whole(row["nesting"]), _whole(row["retries"])),
            deaths=_whole(row["deaths"]),
            claimed_at=claimed_at,
            expires_at=expires_at,
            started=bool(_whole(row["started"])),
            deliveries=_whole(row["deliveries"]),
            state=state,
            outcome=outcome,
            settled_at=settled_at,
            forget_at=forget_at,
            delivery=delivery,
        )
    )


def as_row(place: int, record: Record) -> tuple[Any, ...]:
    """The parameters that keep a record under an id, in the order of the columns."""
    settled = record.state is not State.CLAIMED
    finished = record.state is State.FINISHED
    delivery = record.delivery
    of_a_claim: tuple[Any, ...] = (None,) * 5
    if not finished:
        of_a_claim = (
            _known(record.owner),
            pack(record.grant_id),
            _known(delivery.task),
            pack(delivery.tag),
            _known(delivery.queue),
        )
    return (
        place,
        record.token,
        CODES[record.outcome],
        record.attempt.nesting,
        record.attempt.retries,
        record.deaths,
        record.deliveries,
        record.started,
        record.claimed_at if record.claimed_at != record.token // 1000 else None,
        None if finished else record.expires_at,
        record.settled_at if settled else None,
        record.forget_at if settled else None,
        None if finished else delivery.priority,
        _known(record.queue),
        pack_text(record.task_id),
        pack_text(record.root_id) if record.root_id != record.task_id else None,
        *of_a_claim,
    )
