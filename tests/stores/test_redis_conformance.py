"""The Redis store keeps every rule, on the server's own clock."""

from __future__ import annotations

from celery_claims.testing import Harness, StoreConformance, store_machine
from hypothesis import settings

from .redis_harness import RedisHarness


class TestRedis(StoreConformance):
    def make_harness(self) -> Harness:
        return RedisHarness()


class TestRedisInSlots(StoreConformance):
    """A queue that is spread over several shards."""

    def make_harness(self) -> Harness:
        return RedisHarness(slots=3)


TestRedisAgainstTheModel = store_machine(RedisHarness).TestCase
usual = TestRedisAgainstTheModel.settings
# Of fifty steps each, every one of them many round trips: thousands of steps all the same.
TestRedisAgainstTheModel.settings = settings(usual, max_examples=usual.max_examples * 3 // 5)
