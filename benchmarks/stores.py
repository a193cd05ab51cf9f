"""What a verb costs in each store, beside the least that its medium can do."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from celery_claims import open_store
from celery_claims.protocol import (
    ClaimRequest,
    ClaimToken,
    Delivery,
    Outcome,
    Renewal,
    Settlement,
    decide_claim,
)
from celery_claims.stores import Store
from celery_claims.stores.sqlite_file import SQL as SQLITE
from celery_claims.stores.sqlite_rows import as_row

from .measuring import Measure, Point, Scale, Work, divide, percentile, ratios, seconds
from .servers import plain, postgres_server, redis_server

LEASE_MS = 30_000
KEEP_MS = 3_600_000
BATCH = 100
QUEUE = "bench"

#: The plot of a claim among many others.
GROWTH = "growth"

#: A store for the time of a run, and something of the same medium to compare it with.
Opened = contextlib.AbstractContextManager[tuple[Store, Any]]

_runs = itertools.count()


def request(number: int, lease_ms: int = LEASE_MS) -> ClaimRequest:
    """As a worker asks: ids of Celery's kind, a delivery that a sweeper could give back."""
    task_id = f"00000000-0000-4000-8000-{number:012x}"
    return ClaimRequest(
        queue=QUEUE,
        task_id=task_id,
        owner="celery@benchmark/4242/0123456789abcdef",
        lease_ms=lease_ms,
        grant_id=f"{number:024x}",
        root_id=task_id,
        delivery=Delivery(task="shop.bill", tag=task_id, queue=QUEUE),
    )


def claim(store: Store, numbers: Sequence[int], lease_ms: int = LEASE_MS) -> list[ClaimToken]:
    """Claim, and insist on it: a refusal would cost less."""
    return [a.token for a in store.claim([request(n, lease_ms) for n in numbers])]  # type: ignore[union-attr]


def finish(store: Store, tokens: Sequence[ClaimToken]) -> None:
    store.settle([Settlement(token, Outcome.SUCCESS, KEEP_MS) for token in tokens])


def numbers() -> Callable[[int], int]:
    """Ids that no other run of this process uses."""
    start = next(_runs) * 10_000_000
    return lambda number: start + number


# the stores


@contextlib.contextmanager
def redis() -> Iterator[tuple[Store, Any]]:
    with redis_server() as server, open_store(server.url) as store, plain(server) as client:
        yield store, client


@contextlib.contextmanager
def plain_redis() -> Iterator[Any]:
    with redis_server() as server, plain(server) as client:
        yield client


@contextlib.contextmanager
def postgres() -> Iterator[tuple[Store, Any]]:
    with (
        postgres_server() as server,
        open_store(server.url) as store,
        contextlib.closing(server.connect()) as connection,
    ):
        yield store, connection


@contextlib.contextmanager
def sqlite() -> Iterator[tuple[Store, Any]]:
    with (
        tempfile.TemporaryDirectory(prefix="claims-benchmark-") as folder,
        open_store(f"sqlite:///{folder}/claims.db") as store,
    ):
        yield store, Path(folder)


@contextlib.contextmanager
def memory() -> Iterator[tuple[Store, Any]]:
    with open_store(f"memory://benchmark-{next(_runs)}") as store:
        yield store, None


# the least that a medium can do


def ping(client: Any) -> Work:
    return lambda _: client.ping()


def postgres_upsert(connection: Any) -> Work:
    connection.execute("CREATE TABLE bare (id text PRIMARY KEY, token bigint NOT NULL)")
    statement = (
        "INSERT INTO bare VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET token = excluded.token"
    )
    return lambda number: connection.execute(statement, (f"bare-{number}", number), prepare=True)


def sqlite_upsert(folder: Path) -> Work:
    """With the journal and the durability of the store."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = full")
    connection.execute("CREATE TABLE bare (id BLOB PRIMARY KEY, token INTEGER) WITHOUT ROWID")
    statement = "INSERT INTO bare VALUES (?, ?) ON CONFLICT DO UPDATE SET token = excluded.token"
    return lambda number: connection.execute(statement, (b"%d" % number, number))


def lock_and_dict(_: object) -> Work:
    """An uncontended lock, an insert and a delete."""
    lock, records = threading.Lock(), dict[str, int]()

    def work(number: int) -> None:
        key = f"bare-{number}"
        with lock:
            records[key] = number
        with lock:
            del records[key]

    return work


# what is measured


def one_claim(
    name: str, target: float, opened: Callable[[], Opened], base: Callable[[Any], Work], calls: int
) -> Measure:
    def pairs(scale: Scale) -> Iterator[float]:
        with opened() as (store, other):
            number = numbers()
            yield from ratios(
                lambda n: claim(store, [number(n)]),
                base(other),
                scale,
                calls=scale.of(calls, calls // 10),
            )

    return at_most(name, target, pairs)


def one_release(name: str, target: float, opened: Callable[[], Opened], calls: int) -> Measure:
    def pairs(scale: Scale) -> Iterator[float]:
        with opened() as (store, client):
            number, each = numbers(), scale.of(calls, calls // 10)
            tokens = claim(store, [number(n) for n in range(scale.pairs * each)])
            yield from ratios(lambda n: finish(store, [tokens[n]]), ping(client), scale, calls=each)

    return at_most(name, target, pairs)


def idle_script(name: str) -> Measure:
    """A script that does nothing with the keys and arguments of a claim: what a claim that takes
    one script call cannot be cheaper than."""

    def pairs(scale: Scale) -> Iterator[float]:
        with plain_redis() as client:
            script = client.script_load("return 1")
            keys, arguments = [b"k" * 20] * 4, [b"a" * 40] * 5

            def call(_: int) -> None:
                client.evalsha(script, len(keys), *keys, *arguments)

            yield from ratios(call, ping(client), scale, calls=scale.of(2000, 200))

    return floor(name, pairs)


def sqlite_statements(name: str) -> Measure:
    """What a claim makes SQLite do, with rows that lie ready: nothing is checked or decided."""

    def pairs(scale: Scale) -> Iterator[float]:
        with sqlite() as (store, folder):
            each, number = scale.of(300, 30), numbers()
            claim(store, [number(0)])
            rows = [sqlite_row(number(n)) for n in range(1, scale.pairs * each + 1)]
            with contextlib.closing(
                sqlite3.connect(folder / "claims.db", isolation_level=None)
            ) as connection:
                connection.execute(SQLITE["synchronous_full"])

                def work(n: int) -> None:
                    connection.execute(SQLITE["begin_write"])
                    place = rows[n][0]
                    connection.execute(SQLITE["find"], (place, place + 7)).fetchall()
                    connection.execute(SQLITE["get_high_water"]).fetchone()
                    connection.execute(SQLITE["keep"], rows[n])
                    connection.execute(SQLITE["commit"])

                yield from ratios(work, sqlite_upsert(folder), scale, calls=each)

    return floor(name, pairs)


def sqlite_row(number: int) -> tuple[Any, ...]:
    """A claimed record under an id that is spread as the store's are."""
    now = time.time_ns() // 1000
    record = decide_claim(None, request(number), now // 1000, now).record
    assert record is not None
    digest = hashlib.sha256(record.task_id.encode()).digest()
    return as_row(int.from_bytes(digest[:6], "big") & ~7, record)


def upsert_by_function(name: str) -> Measure:
    """The bare upsert in a function that takes as much as a claim does: nothing is decided."""

    def pairs(scale: Scale) -> Iterator[float]:
        with postgres_server() as server, contextlib.closing(server.connect()) as connection:
            base = postgres_upsert(connection)
            texts, counts = 9, 6
            takes = [f"t{n} bytea[]" for n in range(texts)] + [
                f"c{n} bigint[]" for n in range(counts)
            ]
            connection.execute(
                f"""CREATE FUNCTION upsert(name text, number bigint, {", ".join(takes)})
                RETURNS TABLE (place bigint, answer text, now bigint) LANGUAGE plpgsql AS $$ BEGIN
                    INSERT INTO bare AS b VALUES (name, number)
                    ON CONFLICT (id) DO UPDATE SET token = excluded.token;
                    place := 1; answer := 'success'; now := number; RETURN NEXT;
                END $$"""
            )
            given = ["ARRAY[%s::bytea]"] * texts + ["ARRAY[%s::bigint]"] * counts
            statement = f"SELECT * FROM upsert(%s, %s, {', '.join(given)})"
            rest = [b"x" * 16] * texts + [1] * counts

            def work(number: int) -> None:
                values = [f"function-{number}", number, *rest]
                connection.execute(statement, values, prepare=True, binary=True).fetchall()

            yield from ratios(work, base, scale, calls=scale.of(300, 30))

    return floor(name, pairs)


def words_of_a_claim(name: str) -> Measure:
    """Making, and checking, only what a claim and a release are told with."""

    def pairs(scale: Scale) -> Iterator[float]:
        with memory() as (store, _):
            number = numbers()
            (token,) = claim(store, [number(0)])

            def make(n: int) -> None:
                request(number(n))
                Settlement(token, Outcome.SUCCESS, KEEP_MS)

            yield from ratios(make, lock_and_dict(None), scale, calls=scale.of(3000, 300))

    return floor(name, pairs)


def floor(name: str, pairs: Callable[[Scale], Iterator[float]]) -> Measure:
    """What cannot be saved of the line above it."""
    return Measure(name, "", lambda _: True, pairs)


def claim_and_release(name: str, target: float) -> Measure:
    def pairs(scale: Scale) -> Iterator[float]:
        with memory() as (store, _):
            number = numbers()
            yield from ratios(
                lambda n: finish(store, claim(store, [number(n)])),
                lock_and_dict(None),
                scale,
                calls=scale.of(3000, 300),
            )

    return at_most(name, target, pairs)


def many_threads(name: str, target: float) -> Measure:
    """The time that 8 threads need for what one thread does, together."""

    def pairs(scale: Scale) -> Iterator[float]:
        with memory() as (store, _):
            number, each = numbers(), scale.of(800, 80)

            def work(first: int, count: int) -> None:
                for n in range(first, first + count):
                    finish(store, claim(store, [number(n)]))

            def threaded(first: int) -> float:
                threads = [
                    threading.Thread(target=work, args=(first + place * each, each))
                    for place in range(8)
                ]
                began = time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                return time.perf_counter() - began

            for pair in range(scale.pairs):
                first = pair * 16 * each
                yield divide(
                    [
                        lambda first=first: threaded(first),  # type: ignore[misc]
                        lambda first=first: seconds(  # type: ignore[misc]
                            lambda _: work(first + 8 * each, 8 * each), 0, 1
                        ),
                    ],
                    first=pair % 2,
                )

    return at_most(name, target, pairs)


def batch(name: str, target: float, opened: Callable[[], Opened], calls: int) -> Measure:
    """A batch over as many single claims."""

    def pairs(scale: Scale) -> Iterator[float]:
        with opened() as (store, _):
            together, alone = numbers(), numbers()
            yield from ratios(
                lambda n: claim(store, [together(n * BATCH + part) for part in range(BATCH)]),
                lambda n: claim(store, [alone(n)]),
                scale,
                calls=scale.of(calls, 1),
                per_call=BATCH,
            )

    return at_most(name, target, pairs)


def growth(name: str, target: float, opened: Callable[[], Opened], calls: int) -> Iterator[Measure]:
    """A claim among many live ones over one among a thousand, for ever more of them."""
    for most, shown in ((10_000, "10,000"), (100_000, "100,000"), (1_000_000, "1 M")):
        measure = at_most(
            f"{name}: a claim among {shown} / among 1,000",
            target,
            partial(_grown, opened, most, calls),
        )
        yield replace(measure, point=Point(GROWTH, name, most))


def _grown(opened: Callable[[], Opened], most: int, calls: int, scale: Scale) -> Iterator[float]:
    many = scale.of(most, most // 200)
    with opened() as (small, _), opened() as (large, _):
        number = numbers()
        hour = 3_600_000
        for store, live in ((small, 1000), (large, many)):
            for first in range(0, live, 1000):
                claim(store, [number(first + part) for part in range(1000)], hour)
        yield from ratios(
            lambda n: claim(large, [number(many + n)]),
            lambda n: claim(small, [number(many + n)]),
            scale,
            calls=scale.of(calls, calls // 10),
        )


def cleanup(name: str, target: float, opened: Callable[[], Opened], calls: int) -> Measure:
    """The 99th percentile of claims while expired ones are cleaned up, over that without."""

    def pairs(scale: Scale) -> Iterator[float]:
        expired = scale.of(100_000, 2_000) // scale.pairs
        each = scale.of(calls, calls // 5)
        with opened() as (store, _):
            for _ in range(scale.pairs):
                old = numbers()
                for first in range(0, expired, 1000):
                    ids = range(first, min(first + 1000, expired))
                    claim(store, [old(n) for n in ids], 1)
                alone = latencies(store, each, lambda: False)
                yield percentile(while_sweeping(store, each), 99) / percentile(alone, 99)

    return at_most(name, target, pairs)


def while_sweeping(store: Store, calls: int) -> list[float]:
    """In a process of its own, as another worker's sweep is: a thread would take turns with us."""
    command = [sys.executable, "-m", "benchmarks.sweeping", store.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sweeper:
        assert sweeper.stdin is not None and sweeper.stdout is not None
        # It is ready, and begins when it is told to.
        sweeper.stdout.readline()
        sweeper.stdin.close()
        found = latencies(store, calls, lambda: sweeper.poll() is not None)
    if sweeper.returncode:
        raise RuntimeError("the sweeper failed: its error stands above")
    return found


def latencies(store: Store, calls: int, over: Callable[[], bool]) -> list[float]:
    number, found = numbers(), []
    for n in range(calls):
        found.append(seconds_of(lambda n=n: claim(store, [number(n)])))  # type: ignore[misc]
        if over():
            break
    return found


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def renewal_share(name: str, target: float) -> Measure:
    """The share of one core that renewing 10,000 claims takes, three times in 30 seconds."""

    def pairs(scale: Scale) -> Iterator[float]:
        held = scale.of(10_000, 1_000)
        with redis() as (store, _):
            number = numbers()
            tokens = [
                token
                for first in range(0, held, 1000)
                for token in claim(store, [number(first + n) for n in range(1000)])
            ]
            for _ in range(scale.pairs):
                began = time.process_time()
                for first in range(0, held, 1000):
                    store.renew([Renewal(t, LEASE_MS) for t in tokens[first : first + 1000]])
                yield 100 * (time.process_time() - began) * 3 / (LEASE_MS / 1000)

    return Measure(name, f"at most {target} %", lambda found: found <= target, pairs, "%")


def redis_bytes(name: str, target: float, *, finished: bool) -> Measure:
    """Bytes of the server's memory for each record."""

    def pairs(scale: Scale) -> Iterator[float]:
        count = scale.of(50_000, 2_000)
        for _ in range(scale.pairs):
            with redis() as (store, client):
                number = numbers()
                claim(store, [number(count)])
                before = client.info("memory")["used_memory"]
                for first in range(0, count, 1000):
                    tokens = claim(store, [number(first + n) for n in range(1000)])
                    if finished:
                        finish(store, tokens)
                yield (client.info("memory")["used_memory"] - before) / count

    return Measure(name, f"at most {target} B", lambda found: found <= target, pairs, "B")


def row_bytes(
    name: str, target: float, opened: Callable[[], Opened], size: Callable[[Any], int]
) -> Measure:
    """Bytes on the disk for each finished record, its index included."""

    def pairs(scale: Scale) -> Iterator[float]:
        count = scale.of(50_000, 2_000)
        for _ in range(scale.pairs):
            with opened() as (store, other):
                number = numbers()
                finish(store, claim(store, [number(count)]))
                before = size(other)
                for first in range(0, count, 1000):
                    finish(store, claim(store, [number(first + n) for n in range(1000)]))
                yield (size(other) - before) / count

    return Measure(name, f"at most {target} B", lambda found: found <= target, pairs, "B")


def postgres_size(connection: Any) -> int:
    connection.execute("VACUUM FULL")
    (size,) = connection.execute(
        "SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables"
    ).fetchone()
    return int(size)


def sqlite_size(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "claims.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder.joinpath("claims.db").stat().st_size


def at_most(name: str, target: float, pairs: Callable[[Scale], Iterator[float]]) -> Measure:
    return Measure(name, f"at most {target}", lambda found: found <= target, pairs)
