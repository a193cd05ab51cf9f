"""Both stores that need no server keep every rule."""

from __future__ import annotations

from celery_claims.testing import Harness, StoreConformance, store_machine

from .harnesses import MemoryHarness, SQLiteHarness


class TestMemory(StoreConformance):
    def make_harness(self) -> Harness:
        return MemoryHarness()


class TestSQLite(StoreConformance):
    def make_harness(self) -> Harness:
        return SQLiteHarness()


TestMemoryAgainstTheModel = store_machine(MemoryHarness).TestCase
TestSQLiteAgainstTheModel = store_machine(SQLiteHarness).TestCase
