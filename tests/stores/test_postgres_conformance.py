"""The PostgreSQL store keeps every rule."""

from __future__ import annotations

from celery_claims.testing import Harness, StoreConformance, store_machine

from .postgres_harness import PostgresHarness


class TestPostgres(StoreConformance):
    def make_harness(self) -> Harness:
        return PostgresHarness()


TestPostgresAgainstTheModel = store_machine(PostgresHarness).TestCase
