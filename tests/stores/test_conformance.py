"""Both stores that need no server keep every rule."""

from __future__ import annotations

from collections.abc import Callable
from unittest import TestCase

from celery_claims.testing import Harness, StoreConformance, store_machine
from hypothesis import settings

from .harnesses import MemoryHarness, SQLiteHarness


class TestMemory(StoreConformance):
    def make_harness(self) -> Harness:
        return MemoryHarness()


class TestSQLite(StoreConformance):
    def make_harness(self) -> Harness:
        return SQLiteHarness()


def against_the_model(make: Callable[[], Harness], times: int) -> type[TestCase]:
    """So many times the usual number of interleavings, of fifty steps each."""
    case: type[TestCase] = store_machine(make).TestCase
    usual = case.settings
    case.settings = settings(usual, max_examples=usual.max_examples * times)
    return case


# Cheap, so that they bear the most; `make proof` tries thousands on every store. In parts, which
# run side by side.
TestMemoryAgainstTheModel = against_the_model(MemoryHarness, 3)
TestMemoryAgainstTheModelOnceMore = against_the_model(MemoryHarness, 3)
TestSQLiteAgainstTheModel = against_the_model(SQLiteHarness, 1)
TestSQLiteAgainstTheModelOnceMore = against_the_model(SQLiteHarness, 1)
