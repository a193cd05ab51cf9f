"""What a claim costs in each embedded store, beside the least that its medium can do.

Every figure is a ratio of two things measured in turn in this process; a line is the median of the
pairs. Nothing absolute is printed, for no two machines agree on it.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from celery_claims import open_store
from celery_claims.protocol import ClaimRequest, Outcome, Settlement, Success
from celery_claims.stores import Store

LEASE_MS = 30_000
KEEP_MS = 3_600_000
BATCH = 100

Work = Callable[[int], None]


def seconds(work: Work, first: int, rounds: int) -> float:
    """How long ``rounds`` calls take, numbered from ``first``."""
    began = time.perf_counter()
    for number in range(first, first + rounds):
        work(number)
    return time.perf_counter() - began


def ratio(ours: Work, base: Work, *, pairs: int, rounds: int, share: int = 1) -> float:
    """The median of ``ours`` over ``base``, in alternating runs.

    Parameters:
        share: how many calls of ``base`` one call of ours stands for.
    """
    found = []
    for pair in range(pairs):
        first = pair * rounds * share
        mine = seconds(ours, pair * rounds, rounds)
        found.append(mine / seconds(base, first, rounds * share))
    return statistics.median(found)


def request(number: int, kind: str) -> ClaimRequest:
    return ClaimRequest("bench", f"{kind}-{number}", "w", LEASE_MS, f"{kind}-{number}", "root")


def claim_one(store: Store, kind: str) -> Work:
    return lambda number: consume(store.claim([request(number, kind)]))


def claim_batch(store: Store, kind: str) -> Work:
    return lambda number: consume(
        store.claim([request(number * BATCH + part, kind) for part in range(BATCH)])
    )


def claim_and_release(store: Store, kind: str) -> Work:
    def work(number: int) -> None:
        (answer,) = store.claim([request(number, kind)])
        assert isinstance(answer, Success)
        store.settle([Settlement(answer.token, Outcome.SUCCESS, KEEP_MS)])

    return work


def consume(answers: list[object]) -> None:
    """Insist that everything was granted: a refused claim would cost less."""
    assert all(isinstance(answer, Success) for answer in answers)


def bare_upsert(path: Path) -> Work:
    """One row in a table of its own, with the journal and the durability of the store."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = full")
    connection.execute("CREATE TABLE bare (id BLOB PRIMARY KEY, token INTEGER) WITHOUT ROWID")
    statement = "INSERT INTO bare VALUES (?, ?) ON CONFLICT DO UPDATE SET token = excluded.token"
    return lambda number: connection.execute(statement, (b"%d" % number, number)) and None


def bare_lock() -> Work:
    """An uncontended lock around an insert and a delete."""
    lock, records = threading.Lock(), dict[str, int]()

    def work(number: int) -> None:
        key = f"bare-{number}"
        with lock:
            records[key] = number
        with lock:
            del records[key]

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="pairs per line")
    parser.add_argument("--rounds", type=int, default=300, help="calls per run")
    options = parser.parse_args()
    pairs, rounds = options.pairs, options.rounds
    with tempfile.TemporaryDirectory() as folder:
        sqlite = open_store(f"sqlite:///{folder}/claims.db")
        memory = open_store("memory://bench")
        lines = [
            (
                "sqlite: one claim / one bare upsert, both synchronous=FULL",
                lambda: ratio(
                    claim_one(sqlite, "one"),
                    bare_upsert(Path(folder, "bare.db")),
                    pairs=pairs,
                    rounds=rounds,
                ),
            ),
            (
                f"sqlite: a batch of {BATCH} / {BATCH} single claims",
                lambda: ratio(
                    claim_batch(sqlite, "batch"),
                    claim_one(sqlite, "single"),
                    pairs=pairs,
                    rounds=max(1, rounds // BATCH),
                    share=BATCH,
                ),
            ),
            (
                "memory: claim and release / lock, insert and delete",
                lambda: ratio(
                    claim_and_release(memory, "both"), bare_lock(), pairs=pairs, rounds=rounds
                ),
            ),
        ]
        for name, measure in lines:
            print(f"{measure():6.2f}  {name}", flush=True)
        sqlite.close()


if __name__ == "__main__":
    main()
