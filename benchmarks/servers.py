"""Private servers for a run, and the settings of workers on them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.process.rabbit_server import need_rabbitmq, shared_server
from tests.stores.postgres_server import PostgresServer
from tests.stores.redis_server import RedisServer

from .workers import Setting

#: What a server in use is set to: every commit reaches the disk.
DURABLE = {"fsync": "on", "synchronous_commit": "on", "shared_buffers": "'256MB'"}


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    server = PostgresServer(**DURABLE)
    try:
        yield server
    finally:
        server.close()


def redis_and_redis(
    pool: str = "prefork", concurrency: int = 2
) -> contextlib.AbstractContextManager[Setting]:
    """Broker and claims on a Redis each."""

    @contextlib.contextmanager
    def setting() -> Iterator[Setting]:
        with redis_server() as broker, redis_server() as store:

            def empty() -> None:
                for server in (broker, store):
                    with server.client() as client:
                        client.flushall()

            conf = {"broker_url": broker.url, "worker_prefetch_multiplier": 32 // concurrency or 1}
            yield Setting(conf, store.url, empty, pool=pool, concurrency=concurrency)

    return setting()


def rabbitmq_and_redis() -> contextlib.AbstractContextManager[Setting]:
    @contextlib.contextmanager
    def setting() -> Iterator[Setting]:
        need_rabbitmq()
        broker = shared_server().new_host()
        try:
            with redis_server() as store:

                def empty() -> None:
                    with store.client() as client:
                        client.flushall()

                conf = {"broker_url": broker.url(), "worker_prefetch_multiplier": 16}
                yield Setting(conf, store.url, empty)
        finally:
            broker.delete()

    return setting()


def redis_and_postgres() -> contextlib.AbstractContextManager[Setting]:
    @contextlib.contextmanager
    def setting() -> Iterator[Setting]:
        with redis_server() as broker, postgres_server() as store:
            conf = {"broker_url": broker.url, "worker_prefetch_multiplier": 16}
            yield Setting(conf, store.url, lambda: _flush(broker))

    return setting()


def folder_and_sqlite() -> contextlib.AbstractContextManager[Setting]:
    """kombu's folder broker and a SQLite file, both on this machine's disk."""

    @contextlib.contextmanager
    def setting() -> Iterator[Setting]:
        with tempfile.TemporaryDirectory(prefix="claims-benchmark-") as name:
            folder = Path(name)
            for part in ("queue", "taken", "control"):
                folder.joinpath(part).mkdir()

            def empty() -> None:
                for path in folder.joinpath("queue").glob("*.msg"):
                    path.unlink()

            conf = {
                "broker_url": "filesystem://",
                "worker_prefetch_multiplier": 16,
                "broker_transport_options": {
                    "data_folder_in": str(folder / "queue"),
                    "data_folder_out": str(folder / "queue"),
                    "processed_folder": str(folder / "taken"),
                    "control_folder": str(folder / "control"),
                    "polling_interval": 0.01,
                },
            }
            store = f"sqlite:///{folder}/claims.db?synchronous=normal"
            yield Setting(conf, store, empty)

    return setting()


def _flush(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


def plain(server: RedisServer) -> redis.Redis:
    """A connection like the store's own: no retries, hiredis if it is there."""
    return server.client()  # type: ignore[no-any-return]
