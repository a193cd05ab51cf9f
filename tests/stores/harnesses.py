"""The harnesses of the stores that need no server."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from celery_claims.stores import Store
from celery_claims.stores.memory import MemoryStore, _data_sets
from celery_claims.stores.sqlite import SQLiteStore
from celery_claims.testing import FakeClock, Harness

_numbers = itertools.count()


class MemoryHarness(Harness):
    def __init__(self) -> None:
        self.clock = FakeClock()
        self._name = f"conformance-{next(_numbers)}"

    def open(self) -> Store:
        return MemoryStore(f"memory://{self._name}", clock=self.clock)

    def advance(self, ms: int) -> None:
        self.clock.advance(ms)

    def lose_everything(self) -> None:
        _data_sets[self._name].clear()

    def close(self) -> None:
        del _data_sets[self._name]


class SQLiteHarness(Harness):
    def __init__(self) -> None:
        self.clock = FakeClock()
        self._folder = tempfile.TemporaryDirectory(prefix="celery-claims-")
        self.path = Path(self._folder.name, "claims.db")

    def open(self) -> Store:
        return SQLiteStore(f"sqlite:///{self.path}", clock=self.clock, timeout=30.0)

    def advance(self, ms: int) -> None:
        self.clock.advance(ms)

    def lose_everything(self) -> None:
        # SQLite itself loses nothing; this stands for a file that was put back from a copy.
        with closing(sqlite3.connect(self.path)) as other, other:
            for table in ("claims", "turns"):
                other.execute(f"DELETE FROM {table}")
            other.execute("UPDATE high_water SET token = 0")

    def corrupt(self, task_id: str, queue: str = "q") -> None:
        with closing(sqlite3.connect(self.path)) as other, other:
            other.execute(
                "UPDATE claims SET deaths = 'x' WHERE queue = ? AND task_id = ?",
                (queue.encode(), task_id.encode()),
            )

    def close(self) -> None:
        self._folder.cleanup()
