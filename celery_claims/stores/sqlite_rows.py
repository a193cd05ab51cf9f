"""Rows of the SQLite store: records, and the places of scans between them.

A column takes values of any type from whoever writes the file, and SQLite orders them by type
first. Places keep the type, so that a scan passes over what this package did not write.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from ..checks import MAX_TOKEN
from ..errors import InvalidArgument
from ..protocol import Attempt, Delivery, Outcome, Record, State
from .arguments import decode_cursor, encode_cursor
from .base import Unreadable, View
from .reading import check_record
from .sqlite_file import SQL

__all__ = [
    "UnreadableRow",
    "as_row",
    "cursor_at",
    "find",
    "high_water",
    "pack",
    "place_of",
    "read_rows",
]

#: Comes before every value of every type.
_FIRST = float("-inf")

_BY_KEY = {"queue": "after_queue", "task_id": "after_task"}
#: The columns by which each view is ordered, and the parameters that say after which of them.
_ORDERS = {
    View.LIVE: _BY_KEY,
    View.ORPHANED: {"expires_at": "after_expiry", "id": "after_id"},
    View.ALL: _BY_KEY,
}


class UnreadableRow(Exception):
    """A row that this package did not write: ``what`` tells of it."""

    def __init__(self, what: Unreadable) -> None:
        super().__init__(what)
        self.what = what


def pack(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unpack(packed: bytes) -> str:
    return packed.decode("utf-8", "surrogatepass")


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a number, found {value!r:.100}")
    return value


def find(connection: sqlite3.Connection, queue: str, task_id: str) -> Record | None:
    """The record of a task.

    Raises:
        UnreadableRow.
    """
    key = {"queue": pack(queue), "task_id": pack(task_id)}
    row = connection.execute(SQL["find"], key).fetchone()
    return None if row is None else as_record(row)


def read_rows(
    rows: Iterable[sqlite3.Row],
) -> tuple[tuple[Record, ...], tuple[Unreadable, ...]]:
    """The records among rows, and the others."""
    records, others = [], []
    for row in rows:
        try:
            records.append(as_record(row))
        except UnreadableRow as error:
            others.append(error.what)
    return tuple(records), tuple(others)


def place_of(view: View, queue: str | None, cursor: str | None) -> dict[str, Any]:
    """The parameters of a scan's statement that say where it goes on.

    Raises:
        InvalidArgument: naming ``cursor``.
    """
    found = decode_cursor(cursor, view, queue, str, str)
    names = list(_ORDERS[view].values())
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
        number = str(row["id"])
        removal = SQL["remove"].replace(":id", number)
        raise UnreadableRow(Unreadable(f"row {number} of claims", str(error), removal)) from error


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
    return check_record(
        Record(
            queue=_unpack(row["queue"]),
            task_id=_unpack(row["task_id"]),
            owner=_unpack(row["owner"]),
            grant_id=_unpack(row["grant_id"]),
            token=_whole(row["token"]),
            root_id=_unpack(row["root_id"]),
            attempt=Attempt(_whole(row["nesting"]), _whole(row["retries"])),
            deaths=_whole(row["deaths"]),
            claimed_at=_whole(row["claimed_at"]),
            expires_at=_whole(row["expires_at"]),
            started=bool(_whole(row["started"])),
            deliveries=_whole(row["deliveries"]),
            state=State(row["state"]),
            outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
            settled_at=_whole(row["settled_at"]),
            forget_at=_whole(row["forget_at"]),
            delivery=Delivery(
                task=_unpack(row["task"]),
                tag=_unpack(row["tag"]),
                queue=_unpack(row["from_queue"]),
                priority=row["priority"],
            ),
        )
    )


def as_row(record: Record) -> dict[str, Any]:
    return {
        "queue": pack(record.queue),
        "task_id": pack(record.task_id),
        "owner": pack(record.owner),
        "grant_id": pack(record.grant_id),
        "token": record.token,
        "root_id": pack(record.root_id),
        "nesting": record.attempt.nesting,
        "retries": record.attempt.retries,
        "deaths": record.deaths,
        "claimed_at": record.claimed_at,
        "expires_at": record.expires_at,
        "started": record.started,
        "deliveries": record.deliveries,
        "state": record.state.value,
        "outcome": None if record.outcome is None else record.outcome.value,
        "settled_at": record.settled_at,
        "forget_at": record.forget_at,
        "task": pack(record.delivery.task),
        "tag": pack(record.delivery.tag),
        "from_queue": pack(record.delivery.queue),
        "priority": record.delivery.priority,
    }
