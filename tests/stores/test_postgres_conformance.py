"""The PostgreSQL store keeps every rule."""

from __future__ import annotations

from celery_claims.testing import Harness, StoreConformance, store_machine
from hypothesis import settings

from .postgres_harness import PostgresHarness


class TestPostgres(StoreConformance):
    def make_harness(self) -> Harness:
        return PostgresHarness()


TestPostgresAgainstTheModel = store_machine(PostgresHarness).TestCase
usual = TestPostgresAgainstTheModel.settings
# Of fifty steps each, every one of them many round trips: thousands of steps all the same.
TestPostgresAgainstTheModel.settings = settings(usual, max_examples=usual.max_examples * 3 // 5)
