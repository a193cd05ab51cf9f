"""What the tests with real workers have in common."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery_claims.heartbeat import TURNS
from celery_claims.protocol import Record, State
from celery_claims.stores import Store
from celery_claims.sweep import DUTY

from tests.process.journal import Run
from tests.process.nodes import FolderBroker, ProcessWorker, SiteBroker
from tests.process.setup import ProcessSetup, Site
from tests.process.waiting import wait_until

POOLS = ("prefork", "threads", "solo", "gevent")

#: Seconds: a short lease for what must run out, and one that no test could wait for.
LEASE, ENDLESS = 1.0, 600.0
#: Seconds that a takeover may take beyond the lease: kombu's embedded loop and a loaded machine.
SOON = 6.0
#: What ``assert_back_soon`` measures: ten leases are 15 seconds, and so are ten turns at sweeping,
#: each of which is half an interval.
TIMED: dict[str, Any] = {"lease": 1.5, "cleanup_every": 3}
#: Seconds that a loaded machine may take beyond what is promised, still below those 15.
SLACK = 9.0


def traps(conf: dict[str, Any] | None = None, **claims: Any) -> pytest.MarkDecorator:
    """The site of a trap test: each worker takes as many late tasks as it can run."""
    return pytest.mark.site(
        app="tests.worker.apps.traps",
        conf={"worker_prefetch_multiplier": 1, **(conf or {})},
        claims={"tasks": ["tests.*", "traps.*"], "lease": LEASE, **claims},
    )


def workers(count: int, **spec: Any) -> pytest.MarkDecorator:
    """So many workers that log every event."""
    return pytest.mark.workers(count, log_level="DEBUG", **spec)


def in_pools(*pools: str, count: int = 1, **spec: Any) -> pytest.MarkDecorator:
    """Run the test once with workers of each pool."""
    marked = [pytest.param(p, id=p, marks=workers(count, pool=p, **spec)) for p in pools]
    return pytest.mark.parametrize("pool", marked)


def store_of(site: Site) -> Store:
    """The store that the workers use."""
    return site.open_store()


def claims_file(site: Site) -> str:
    """The file of the default store beside a folder broker."""
    assert isinstance(site.broker, FolderBroker)
    return site.broker.config()["transport_options"]["control_folder"] + "/claims.sqlite"


def record_of(site: Site, task_id: str) -> Record | None:
    """What the store knows of a task of the default queue."""
    store = store_of(site)
    try:
        return store.lookup([("celery", task_id)])[0]
    finally:
        store.close()


def wait_for_record(site: Site, task_id: str, holds: Callable[[Record], object]) -> Record:
    """Wait until the record of a task is as it shall be."""

    def found() -> Record | None:
        record = record_of(site, task_id)
        return record if record is not None and holds(record) else None

    return wait_until(found, what=lambda: f"not so: {record_of(site, task_id)}")


def wait_finished(site: Site, *task_ids: str) -> list[Record]:
    return [
        wait_for_record(site, task_id, lambda record: record.state is State.FINISHED)
        for task_id in task_ids
    ]


def wait_claimed_by(site: Site, worker: ProcessWorker, task_id: str) -> Record:
    owner = f"{worker.hostname()}/"
    return wait_for_record(
        site, task_id, lambda r: r.state is State.CLAIMED and r.owner.startswith(owner)
    )


def wait_started(site: Site, task_id: str) -> Record:
    """Wait until the store knows that the body was started: from then on its death counts."""
    return wait_for_record(site, task_id, lambda record: record.started)


def wait_accepted(site: Site, worker: ProcessWorker, task_id: str) -> None:
    """Wait until Celery knows of a body which its pool has begun: a cold shutdown stops no other,
    and then waits for it, with claims or without."""
    site.journal.wait_for_runs(task_id)
    worker.wait_for_log(f"accepted: {task_id}")


def wait_expired(site: Site, task_id: str) -> Record:
    """Wait until the lease of a dead worker is over."""
    return wait_for_record(site, task_id, lambda record: record.expires_at < time.time() * 1000)


def take_the_turn(site: Site) -> None:
    """Take the turn at sweeping, as a worker that is killed right after it: now it is longest until
    the next sweep, and ten times as long if workers sweep ten times more rarely."""
    ten_turns = round(TIMED["cleanup_every"] * 10_000 / TURNS)
    with site.open_store() as store:
        # Redis forgets a turn of the workers once it is over, and this one when ten are.
        wait_until(lambda: store.elect(DUTY, ten_turns), what="a moment in which it is free")


def assert_back_soon(killed_at: float, again: Run) -> None:
    """Promise 6, in seconds; a lease or an interval ten times as long would not keep it.

    Parameters:
        killed_at: seconds, on the journal's clock.
        again: the run that follows the killed one.
    """
    promised = TIMED["lease"] + TIMED["cleanup_every"]
    assert again.started - killed_at < promised + SLACK


def events(workers: ProcessWorker | tuple[ProcessWorker, ...], name: str, task_id: str) -> int:
    """How often the workers logged an event of a task."""
    several = workers if isinstance(workers, tuple) else (workers,)
    lines = [line for worker in several for line in worker.logs().splitlines()]
    return sum(f" {name} task " in line and f"[{task_id}]:" in line for line in lines)


def wait_for_events(
    workers: ProcessWorker | tuple[ProcessWorker, ...], name: str, task_id: str, count: int = 1
) -> None:
    wait_until(
        lambda: events(workers, name, task_id) >= count,
        what=lambda: f"{count} times {name!r}, found {events(workers, name, task_id)}",
    )


def end_warm(*workers: ProcessWorker) -> None:
    """SIGTERM, and wait for a clean exit."""
    for worker in workers:
        worker.kill("SIGTERM")
    assert [worker.wait() for worker in workers] == [0] * len(workers)


def freeze(site: Site, worker: ProcessWorker) -> None:
    """SIGSTOP all of a worker, at a moment when it does not hold the lock of the claims file.

    One that does keeps every other worker waiting until it goes on, which SQLite cannot help. A
    server has no such lock.
    """
    if not isinstance(site.broker, FolderBroker):
        worker.pause(children=True)
        return

    def frozen_outside_of_a_transaction() -> bool:
        worker.pause(children=True)
        if is_free(claims_file(site)):
            return True
        worker.resume()
        return False

    wait_until(frozen_outside_of_a_transaction, what="the lock of the claims file")


def is_free(file: str) -> bool:
    """Whether a transaction could write to the file now."""
    connection = sqlite3.connect(file, timeout=0.2, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


@contextmanager
def locked(site: Site) -> Iterator[None]:
    """Keep every worker from writing to the claims file: the store is down."""
    connection = sqlite3.connect(claims_file(site), timeout=30, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.close()


def insides(setup: ProcessSetup, worker: ProcessWorker) -> dict[str, int]:
    """What a worker keeps in mind of its claims; see ``trap_tasks``."""
    name = worker.hostname()
    (reply,) = setup.app.control.broadcast(
        "claims_insides", reply=True, destination=[name], timeout=20, limit=1
    )
    answer: dict[str, int] = reply[name]
    return answer


def assert_all_acknowledged(setup: ProcessSetup, *workers: ProcessWorker) -> None:
    """What a worker has not acknowledged goes back to its queue when it ends: there is nothing."""
    end_warm(*(workers or setup.workers))
    assert setup.site.broker.left() == 0


def waiting(broker: SiteBroker, queue: str = "celery") -> int:
    return broker.waiting(queue)


def stored(site: Site, task_id: str) -> list[tuple[int, str]]:
    """Every result of a task that reached the backend: by which process, and the state."""
    lines = [line for line in site.journal.lines() if line["event"] == "stored"]
    return [(line["pid"], line["state"]) for line in lines if line["of"] == task_id]


def pids(worker: ProcessWorker) -> set[int]:
    """The processes that may run a body of this worker."""
    return {worker.container.pid, *worker.children()}


def where(workers: tuple[ProcessWorker, ...], pid: int) -> tuple[ProcessWorker, ProcessWorker]:
    """Of two workers, the one with this process first."""
    first, second = workers
    return (first, second) if pid in pids(first) else (second, first)
