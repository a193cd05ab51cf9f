"""The harness of the Redis store: one server a test process, one prefix a test."""

from __future__ import annotations

import atexit
import functools
import itertools
from typing import Any

from celery_claims.stores import Store
from celery_claims.stores.redis import RedisStore
from celery_claims.testing import Harness

from .redis_server import RedisServer

_numbers = itertools.count()


@functools.cache
def shared_server() -> RedisServer:
    """Started for the first test that asks, stopped with the process."""
    server = RedisServer().start()
    atexit.register(server.stop)
    return server


class RedisHarness(Harness):
    """The server's own clock, with an offset that ``advance`` moves.

    Parameters:
        server: what has a URL; the shared one if None.
        options: more arguments of the store.
    """

    def __init__(self, server: Any = None, **options: object) -> None:
        self.server = server or shared_server()
        self.prefix = f"test-{next(_numbers)}:"
        self._options = options
        self._offset = 0

    def open(self) -> Store:
        return RedisStore(
            self.server.url,
            timeout=30.0,
            prefix=self.prefix,
            clock_offset=lambda: self._offset,
            **self._options,
        )

    def advance(self, ms: int) -> None:
        self._offset += ms

    def lose_everything(self) -> None:
        with self.server.client() as client:
            for key in client.scan_iter(f"{self.prefix}*", count=1000):
                client.delete(key)

    def corrupt(self, task_id: str, queue: str = "q") -> None:
        with self.server.client() as client:
            for key in client.scan_iter(f"{self.prefix}{{{queue}*", count=1000):
                is_hash = key.endswith(b".c") or b"}.f:" in key
                if is_hash and client.hexists(key, task_id):
                    packed = client.hget(key, task_id)
                    client.hset(key, task_id, packed[: len(packed) // 2])
                elif key.endswith(f":{task_id}".encode()):
                    packed = client.get(key)
                    client.set(key, packed[: len(packed) // 2], keepttl=True)

    def close(self) -> None:
        self.lose_everything()
