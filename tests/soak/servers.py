"""What a broker and a store keep, each asked in its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from celery_claims.protocol import Record
from celery_claims.stores import Store, View

from tests.process.rabbit_broker import RabbitBroker
from tests.process.redis_broker import RedisBroker
from tests.stores.postgres_server import PostgresServer
from tests.stores.redis_server import RedisServer

__all__ = ["Probe", "read_records", "probe_broker", "probe_store"]

#: Answers values by what they are and their kind, of ``verdict.TOLERATED``.
Probe = Callable[[], Mapping[tuple[str, str], float]]

QUEUE = "celery"


def probe_broker(broker: RedisBroker | RabbitBroker) -> Probe:
    if isinstance(broker, RabbitBroker):
        host = broker.host
        return lambda: {
            ("waiting", "count"): host.ready(QUEUE),
            ("unacknowledged", "count"): host.unacknowledged(QUEUE),
            ("connections", "sockets"): host.connections(),
        }
    client = broker.client()
    return lambda: {
        ("waiting", "count"): broker.waiting(),
        ("unacknowledged", "count"): client.hlen("unacked"),
        ("index of these", "count"): client.zcard("unacked_index"),
        ("touched", "count"): client.zcard("unacked_index.celery_claims"),
        **_redis(client),
    }


def probe_store(server: RedisServer | PostgresServer | Path) -> Probe:
    """Parameters: server: or the file of SQLite."""
    if isinstance(server, RedisServer):
        client = server.client()
        return lambda: _redis(client)
    if isinstance(server, Path):
        return lambda: {
            ("file", "size"): server.stat().st_size,
            ("write-ahead log", "size"): _size(server.with_name(f"{server.name}-wal")),
        }
    connection = server.connect()

    def ask(query: str) -> float:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
        assert row is not None
        return float(row[0])

    return lambda: {
        ("tables", "size"): ask(TABLES),
        ("connections", "sockets"): ask("SELECT count(*) FROM pg_stat_activity"),
    }


#: With their indexes, and with rows that wait for the vacuum.
TABLES = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname = 'celery_claims'
"""


def _redis(client: Any) -> dict[tuple[str, str], float]:
    told = client.info()
    return {
        ("memory", "size"): told["used_memory"],
        ("keys", "count"): client.dbsize(),
        ("clients", "sockets"): told["connected_clients"],
    }


def _size(file: Path) -> int:
    # The last one that closes a database removes its log.
    return file.stat().st_size if file.exists() else 0


def read_records(store: Store) -> list[Record]:
    """All records that there are; the cost is theirs."""
    records, cursor = list[Record](), None
    while True:
        page = store.scan(View.ALL, cursor=cursor, limit=1000)
        records += page.records
        cursor = page.cursor
        if cursor is None:
            return records
