"""A worker whose loop does not turn: it connects anew to a broker that is down, or drains its pool.

What runs there is stopped all the same when its claim is lost, by the heartbeat's own thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from celery import Celery
from celery.result import AsyncResult
from celery_claims.protocol import ClaimRequest, TookOver

from tests.process.environment import CONF_VARIABLE
from tests.process.journal import Run
from tests.process.nodes import ProcessWorker
from tests.process.proxy import Fault, Proxy
from tests.process.setup import Site
from tests.process.waiting import wait_until
from tests.stores.redis_server import RedisServer

from .rabbits import AMQP
from .steps import ENDLESS, SOON, events, record_of, stored, wait_for_events
from .test_faults import cut_off, port_of

#: Seconds.
LEASE_HERE = 1.5


@pytest.fixture
def store() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def to_store(store: RedisServer) -> Iterator[Proxy]:
    with Proxy(store.port) as proxy:
        yield proxy


@pytest.fixture(params=["redis", "rabbitmq"])
def site(request: pytest.FixtureRequest, to_store: Proxy, tmp_path: Path) -> Iterator[Site]:
    site = Site(
        tmp_path,
        app="tests.worker.apps.traps",
        broker=request.param,
        conf={**AMQP, "worker_prefetch_multiplier": 1},
        claims={
            "tasks": ["traps.*"],
            "url": f"redis://127.0.0.1:{to_store.port}/0",
            "lease": LEASE_HERE,
            "store_timeout": 0.3,
            "cleanup_every": 1,
            "strict": True,
        },
    )
    yield site
    site.teardown()


@pytest.fixture
def to_broker(site: Site) -> Iterator[Proxy]:
    with Proxy(port_of(site.conf["broker_url"])) as proxy:
        yield proxy


def start(site: Site, app: Celery, to_broker: Proxy) -> tuple[ProcessWorker, AsyncResult, Run]:
    """A worker that reaches its broker through a proxy, and runs a task that does not end."""
    url = site.conf["broker_url"]
    through = url.replace(f":{port_of(url)}", f":{to_broker.port}")
    conf = json.dumps({**site.conf, "broker_url": through})
    worker = site.start_worker(log_level="DEBUG", env={CONF_VARIABLE: conf})
    result = app.signature("traps.late", ("end",)).apply_async()
    (run,) = site.journal.wait_for_runs(result.id)
    return worker, result, run


def lose_broker(worker: ProcessWorker, to_broker: Proxy) -> None:
    cut_off(to_broker)
    worker.wait_for_log("Cannot connect to")


def take_over(site: Site, worker: ProcessWorker, task_id: str) -> None:
    """Freeze a worker until somebody else was granted its task, and let it go on."""
    worker.pause(children=True)
    with site.open_store() as store:

        def taken() -> bool:
            record = record_of(site, task_id)
            assert record is not None
            request = ClaimRequest(
                queue="celery",
                task_id=task_id,
                owner="another",
                lease_ms=round(ENDLESS * 1000),
                grant_id="another",
                root_id=record.root_id,
                attempt=record.attempt,
                deaths=0,
                max_deliveries=20,
                delivery=record.delivery,
            )
            return isinstance(store.claim([request])[0], TookOver)

        wait_until(taken, what="the end of the lease")
    worker.resume()


def wait_dead(run: Run) -> None:
    """The process is gone, but perhaps not waited for yet."""

    def dead() -> bool:
        try:
            return psutil.Process(run.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(dead, LEASE_HERE + SOON, what="the end of the body")


def test_a_lost_run_is_stopped_while_the_broker_is_down(
    site: Site, celery_setup_app: Celery, to_broker: Proxy
) -> None:
    """Promise 7: nobody waits for the broker before a body is stopped whose task is another's."""
    worker, result, run = start(site, celery_setup_app, to_broker)
    lose_broker(worker, to_broker)
    take_over(site, worker, result.id)
    wait_dead(run)
    assert to_broker.fault is Fault.REFUSE
    wait_for_events(worker, "lost", result.id)
    site.journal.note_dead(run.pid)
    to_broker.fault = Fault.NONE
    # The pool has another child.
    following = celery_setup_app.signature("traps.late").apply_async()
    assert following.get(timeout=30)[0] != run.pid
    assert events(worker, "lost", result.id) == 1
    assert stored(site, result.id) == []


def test_a_strict_body_is_stopped_while_the_broker_is_down(
    site: Site, celery_setup_app: Celery, to_broker: Proxy, to_store: Proxy
) -> None:
    """Promise 7, by its own clock: neither broker nor store has said a word."""
    worker, result, run = start(site, celery_setup_app, to_broker)
    lose_broker(worker, to_broker)
    cut_off(to_store)
    wait_dead(run)
    assert to_broker.fault is Fault.REFUSE
    site.journal.note_dead(run.pid)
    to_store.fault = to_broker.fault = Fault.NONE
    site.gates.open("end")
    assert result.get(timeout=30)[0] != run.pid
    assert [state for _, state in stored(site, result.id)] == ["SUCCESS"]


def test_a_lost_run_is_stopped_while_its_worker_shuts_down(
    site: Site, celery_setup_app: Celery, to_broker: Proxy
) -> None:
    """A warm shutdown waits for the body that is stopped, and no longer."""
    worker, result, run = start(site, celery_setup_app, to_broker)
    worker.kill("SIGTERM")
    worker.wait_for_log("Warm shutdown")
    take_over(site, worker, result.id)
    assert worker.wait() == 0
    wait_dead(run)
    site.journal.note_dead(run.pid)
    assert events(worker, "lost", result.id) == 1
    assert stored(site, result.id) == []
