"""The Redis store keeps every rule, on the server's own clock."""

from __future__ import annotations

from celery_claims.testing import Harness, StoreConformance, store_machine

from .redis_harness import RedisHarness


class TestRedis(StoreConformance):
    def make_harness(self) -> Harness:
        return RedisHarness()


class TestRedisInSlots(StoreConformance):
    """A queue that is spread over several shards."""

    def make_harness(self) -> Harness:
        return RedisHarness(slots=3)


TestRedisAgainstTheModel = store_machine(RedisHarness).TestCase
