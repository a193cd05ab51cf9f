"""Faults of the network while tasks run: between workers and their store, and before the broker.

Each of four: everything is late; connections break and cannot be made; nothing passes; and what was
asked for is done but its reply is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery_claims.protocol import State

from tests.process.environment import CONF_VARIABLE
from tests.process.places import store_url
from tests.process.proxy import Fault, Proxy
from tests.process.redis_broker import RedisBroker
from tests.process.setup import ProcessSetup, Site, publish_copies
from tests.process.waiting import wait_until
from tests.stores.redis_server import RedisServer

from .rabbits import AMQP
from .steps import (
    assert_all_acknowledged,
    stored,
    wait_finished,
    wait_for_events,
    wait_for_record,
    workers,
)

#: Seconds that each piece of what is said waits, in both directions.
DELAY = 0.2

CONF: dict[str, Any] = {**AMQP, "worker_prefetch_multiplier": 1}
APP, TASKS = "tests.worker.apps.traps", {"tasks": ["traps.*"], "cleanup_every": 1}


def be_late(proxy: Proxy) -> None:
    proxy.delay = DELAY


def cut_off(proxy: Proxy) -> None:
    proxy.fault = Fault.REFUSE
    proxy.cut()


def say_nothing(proxy: Proxy) -> None:
    proxy.fault = Fault.SILENCE


def lose_replies(proxy: Proxy) -> None:
    proxy.fault = Fault.CUT_ON_REPLY


FAULTS = {
    "late": be_late,
    "cut": cut_off,
    "half-open": say_nothing,
    "reply-lost": lose_replies,
}


def heal(proxy: Proxy) -> None:
    """What is half-open breaks at last."""
    silent = proxy.fault is Fault.SILENCE
    proxy.delay, proxy.fault = 0.0, Fault.NONE
    if silent:
        proxy.cut()


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def port_of(url: str) -> int:
    """Of a URL with the address of this host."""
    digits = url.partition("127.0.0.1:")[2]
    return int(digits[: len(digits) - len(digits.lstrip("0123456789"))])


@pytest.fixture(params=[("redis", "redis"), ("rabbitmq", "postgresql")], ids="-".join)
def places(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A broker, and a store."""
    pair: tuple[str, str] = request.param
    return pair


class TestStore:
    """No lease runs out meanwhile; what is lost with one is told in ``test_store_outage.py``."""

    @pytest.fixture
    def url(self, places: tuple[str, str], tmp_path: Path) -> str:
        return store_url(places[1], tmp_path)

    @pytest.fixture
    def proxy(self, url: str) -> Iterator[Proxy]:
        with Proxy(port_of(url)) as proxy:
            yield proxy

    @pytest.fixture
    def site(
        self, places: tuple[str, str], url: str, proxy: Proxy, tmp_path: Path
    ) -> Iterator[Site]:
        through = url.replace(f":{port_of(url)}", f":{proxy.port}")
        claims = {**TASKS, "url": through, "lease": 60.0}
        site = Site(tmp_path / "site", app=APP, broker=places[0], conf=CONF, claims=claims)
        yield site
        site.teardown()

    @workers(2, concurrency=2)
    def test_deliveries_wait_and_ends_are_recorded_in_the_end(
        self, celery_setup: ProcessSetup, proxy: Proxy, fault: str
    ) -> None:
        """Nothing lost, nothing twice: of what runs, what is held, and what comes meanwhile."""
        setup = celery_setup
        late = setup.app.signature("traps.late")
        running = publish_copies(setup.app, late.clone(("end",)), 2)
        setup.journal.wait_for_runs(running.id)
        wait_for_events(setup.workers, "held", running.id)
        FAULTS[fault](proxy)
        new = publish_copies(setup.app, late, 2)
        if fault == "late":
            setup.journal.wait_for_runs(new.id)
        else:
            setup.wait_for_log("store_down: deliveries wait")
        assert (proxy.lost > 0) == (fault == "reply-lost")
        setup.gates.open("end")
        assert running.get(timeout=30)[1] == 0
        heal(proxy)
        assert new.get(timeout=60)[1] == 0
        for result in (running, new):
            wait_for_events(setup.workers, "skipped", result.id)
            assert len(setup.journal.runs(result.id)) == 1
            assert [state for _, state in stored(setup.site, result.id)] == ["SUCCESS"]
        records = wait_finished(setup.site, running.id, new.id)
        assert [record.deliveries for record in records] == [0, 0]
        assert_all_acknowledged(setup)


class TestBroker:
    """Of one worker's connection; another has its own, and the claims are not behind it."""

    @pytest.fixture
    def site(self, places: tuple[str, str], tmp_path: Path) -> Iterator[Site]:
        claims = {**TASKS, "url": places[1], "lease": 3.0}
        site = Site(tmp_path, app=APP, broker=places[0], conf=CONF, claims=claims)
        yield site
        site.teardown()

    @pytest.fixture
    def proxy(self, site: Site) -> Iterator[Proxy]:
        with Proxy(port_of(site.conf["broker_url"])) as proxy:
            yield proxy

    def test_a_run_goes_on_and_is_the_only_one(
        self, site: Site, celery_setup_app: Celery, proxy: Proxy, fault: str
    ) -> None:
        """It ends while nothing or not all of what its worker says to the broker arrives."""
        url = site.conf["broker_url"]
        through = url.replace(f":{port_of(url)}", f":{proxy.port}")
        conf = {**site.conf, "broker_url": through, "broker_heartbeat": 2}
        one = site.start_worker(log_level="DEBUG", env={CONF_VARIABLE: json.dumps(conf)})
        late = celery_setup_app.signature("traps.late")
        result = late.clone(("end",)).apply_async()
        (run,) = site.journal.wait_for_runs(result.id)
        two = site.start_worker(log_level="DEBUG")
        FAULTS[fault](proxy)
        site.gates.open("end")
        assert result.get(timeout=30) == [run.pid, 0]
        if fault == "reply-lost":
            wait_until(lambda: proxy.lost, what="a reply")
        if fault == "cut":
            one.wait_for_log("Connection to broker lost")
        if fault == "half-open":
            assert not nothing_is_left(site)
        heal(proxy)
        following = [late.clone().apply_async() for _ in range(4)]
        for each in following:
            each.get(timeout=60)
        wait_until(lambda: nothing_is_left(site), timeout=60, what="the broker to be empty")
        for each in (result, *following):
            assert len(site.journal.runs(each.id)) == 1
            assert [state for _, state in stored(site, each.id)] == ["SUCCESS"]
        assert [one.container.status, two.container.status] == ["running"] * 2


class TestFlushedStore:
    """The store forgets everything at once; the broker does not."""

    @pytest.fixture
    def store(self) -> Iterator[RedisServer]:
        with RedisServer() as server:
            yield server

    @pytest.fixture(params=["redis", "rabbitmq"])
    def site(
        self, request: pytest.FixtureRequest, store: RedisServer, tmp_path: Path
    ) -> Iterator[Site]:
        claims = {**TASKS, "url": store.url, "lease": 3.0}
        site = Site(tmp_path, app=APP, broker=request.param, conf=CONF, claims=claims)
        yield site
        site.teardown()

    @workers(2)
    def test_running_tasks_bring_their_claims_back(
        self, celery_setup: ProcessSetup, store: RedisServer
    ) -> None:
        """With their next renewal, under the token that they had; a copy waits for them then."""
        setup = celery_setup
        late = setup.app.signature("traps.late")
        result = publish_copies(setup.app, late.clone(("end",)), 1)
        (run,) = setup.journal.wait_for_runs(result.id)
        store.ask("FLUSHALL")
        record = wait_for_record(setup.site, result.id, lambda record: record.token == run.token)
        assert record.state is State.CLAIMED
        publish_copies(setup.app, late.clone(("end",)), 1, task_id=result.id)
        wait_for_events(setup.workers, "held", result.id)
        setup.gates.open("end")
        assert result.get(timeout=30) == [run.pid, 0]
        wait_for_events(setup.workers, "skipped", result.id)
        # Of another task the token is higher, although the highest one was forgotten too.
        following = publish_copies(setup.app, late, 1)
        (later,) = setup.journal.wait_for_end(following.id)
        assert run.token is not None and later.token is not None
        assert later.token > run.token
        assert len(setup.journal.runs(result.id)) == 1
        assert_all_acknowledged(setup)


def nothing_is_left(site: Site) -> bool:
    """Every message was acknowledged."""
    unacked = site.broker.unacked() if isinstance(site.broker, RedisBroker) else []
    return not unacked and site.broker.left() == 0
