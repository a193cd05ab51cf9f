"""The PostgreSQL store on a private server."""

from __future__ import annotations

import itertools
import os

from celery_claims.stores import Store
from celery_claims.stores.postgres import PostgresStore
from celery_claims.testing import Harness

from .postgres_server import PostgresServer, shared_server

_numbers = itertools.count()


class PostgresHarness(Harness):
    """A schema of its own; the clock is the server's with an offset."""

    def __init__(self, server: PostgresServer | None = None) -> None:
        self.server = server or shared_server()
        self.schema = f"test_{os.getpid()}_{next(_numbers)}"
        self._offset = 0

    @property
    def url(self) -> str:
        return f"{self.server.url}?schema={self.schema}"

    def open(self) -> Store:
        return PostgresStore(self.url, timeout=30.0, clock_offset=lambda: self._offset)

    def advance(self, ms: int) -> None:
        self._offset += ms

    def lose_everything(self) -> None:
        tables = ", ".join(f"{self.schema}.{name}" for name in ("claims", "forgotten", "turns"))
        self.server.execute(f"TRUNCATE {tables}")

    def corrupt(self, task_id: str, queue: str = "q") -> None:
        self.server.execute(
            f"UPDATE {self.schema}.claims SET owner = '\\xff', "
            "outcome = CASE outcome WHEN 0 THEN 0 ELSE 99 END "
            f"WHERE queue = '{queue}' AND task_id = '{task_id}'"
        )

    def close(self) -> None:
        self.server.execute(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")
