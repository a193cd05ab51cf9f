"""The protected resource: a table that takes a write only under the highest token it has seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

__all__ = ["Ledger", "Write"]

SCHEMA = """
CREATE TABLE resource (task_id text PRIMARY KEY, token bigint NOT NULL);
CREATE TABLE writes (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id text NOT NULL, token bigint NOT NULL, started double precision NOT NULL,
    accepted boolean NOT NULL
);
"""

#: The comparison and the write are one statement; a lower token finds no row to change.
WRITE = """
WITH accepted AS (
    INSERT INTO resource VALUES (%(task_id)s, %(token)s)
    ON CONFLICT (task_id) DO UPDATE SET token = excluded.token
        WHERE resource.token <= excluded.token
    RETURNING 1
)
INSERT INTO writes (task_id, token, started, accepted)
VALUES (%(task_id)s, %(token)s, %(started)s, EXISTS (SELECT FROM accepted))
RETURNING accepted
"""


@dataclass(frozen=True, slots=True)
class Write:
    """A write that was tried.

    Parameters:
        task_id: whose.
        token: under which; 0 without claims, where nothing can tell a stale one.
        started: when its run began, in monotonic seconds.
        accepted: it was let through.
    """

    task_id: str
    token: int
    started: float
    accepted: bool


class Ledger:
    """The ledger, in one process and its children.

    Parameters:
        url: of a PostgreSQL database of its own.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None
        self._owner = 0

    def make(self) -> None:
        with self._connected() as connection:
            connection.execute(SCHEMA)

    def write(self, task_id: str, token: int, started: float) -> bool:
        """Write under a token; whether the ledger took it."""
        facts = {"task_id": task_id, "token": token, "started": started}
        with self._connected() as connection:
            row = connection.execute(WRITE, facts).fetchone()
        assert row is not None
        return bool(row[0])

    def writes(self) -> list[Write]:
        """Everything that was tried, in the order in which the ledger saw it."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT task_id, token, started, accepted FROM writes ORDER BY number"
            ).fetchall()
        return [Write(*row) for row in rows]

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        if self._connection is None or self._owner != os.getpid():
            # A connection of the parent is left to the parent.
            self._connection = psycopg.connect(self._url, autocommit=True)
            self._owner = os.getpid()
        yield self._connection
