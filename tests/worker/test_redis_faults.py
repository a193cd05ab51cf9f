"""What goes wrong on a Redis broker: a tag that two workers have, connections, servers, stores of
another kind."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from tests.process.environment import CONF_VARIABLE
from tests.process.nodes import ProcessWorker
from tests.process.proxy import Fault, Proxy
from tests.process.redis_broker import RedisBroker, shared_server
from tests.process.setup import ProcessSetup, Site, publish_copies
from tests.process.versions import ENDS_WITHOUT_REDIS
from tests.process.waiting import stays, wait_until
from tests.stores.redis_server import RedisServer, Replicated, free_port

from .redis_steps import SOON_BACK, finishes, in_hand, kill, on_redis, redis_of, wait_for_nothing
from .steps import (
    LEASE,
    POOLS,
    end_warm,
    events,
    freeze,
    stored,
    traps,
    wait_claimed_by,
    wait_for_events,
    where,
    workers,
)

APP = "tests.worker.apps.traps"


@dataclass(frozen=True)
class Shared:
    """A task that two workers have under one delivery tag."""

    result: AsyncResult[Any]
    tag: str
    old: ProcessWorker
    new: ProcessWorker


def start(
    setup: ProcessSetup, gate: str = "end"
) -> tuple[AsyncResult[Any], ProcessWorker, ProcessWorker, str]:
    """A running task, its worker, the other worker, and its delivery tag."""
    result = setup.app.signature("traps.late", (gate,)).apply_async()
    (run,) = setup.journal.wait_for_runs(result.id)
    first, second = where(setup.workers, run.pid)
    (tag,) = in_hand(redis_of(setup), result.id)
    return result, first, second, tag


def taken_over(setup: ProcessSetup) -> Shared:
    """Freeze the worker until its message was given back and the other one runs it."""
    result, old, new, tag = start(setup)
    freeze(setup.site, old)
    first, second = setup.journal.wait_for_runs(result.id, 2)
    assert first.token is not None and second.token is not None
    assert second.token > first.token
    wait_claimed_by(setup.site, new, result.id)
    assert in_hand(redis_of(setup), result.id) == [tag]
    return Shared(result, tag, old, new)


def woken(setup: ProcessSetup) -> Shared:
    """As ``taken_over``, and the old worker has been told."""
    case = taken_over(setup)
    case.old.resume()
    wait_for_events(case.old, "lost", case.result.id)
    wait_for_events(case.old, "held", case.result.id)
    setup.journal.note_dead(setup.journal.runs(case.result.id)[0].pid)
    return case


def assert_finished_once(setup: ProcessSetup, result: AsyncResult[Any]) -> None:
    result.get(timeout=30)
    wait_for_nothing(redis_of(setup))
    assert finishes(setup, result.id) == 1
    assert [state for _, state in stored(setup.site, result.id)] == ["SUCCESS"]


def a_site(
    folder: Path, broker: RedisBroker, conf: Mapping[str, Any] | None = None, **claims: Any
) -> Iterator[Site]:
    """A site on a broker of the test's own."""
    site = Site(
        folder,
        app=APP,
        broker=broker,
        claims={"tasks": ["traps.*"], "lease": 3.0, "cleanup_every": 1, **claims},
        conf={"worker_prefetch_multiplier": 1, **(conf or {})},
    )
    try:
        yield site
    finally:
        site.teardown()


class TLSServer(RedisServer):
    """A server that speaks TLS only to clients with a certificate, and wants a password.

    Parameters:
        folder: for the keys.
    """

    def __init__(self, folder: Path) -> None:
        self.tls_port = free_port()
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
        )
        self.client_options = {
            "ssl_cert_reqs": "required",
            "ssl_ca_certs": str(certificate),
            "ssl_certfile": str(certificate),
            "ssl_keyfile": str(key),
        }
        super().__init__(
            *("--tls-port", str(self.tls_port), "--requirepass", "secret"),
            *("--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
            *("--tls-ca-cert-file", str(certificate)),
        )

    def __enter__(self) -> TLSServer:
        self.start("secret")
        return self


@on_redis
@traps(lease=3.0, cleanup_every=1)
@workers(2, concurrency=1)
def test_a_message_whose_claim_was_taken_over_comes_back(celery_setup: ProcessSetup) -> None:
    """Killed before it was touched, so that only the record told of it, until a copy took over."""
    setup = celery_setup
    result = publish_copies(setup.app, setup.app.signature("traps.late", ("end",)), 2)
    (run,) = setup.journal.wait_for_runs(result.id)
    first, second = where(setup.workers, run.pid)
    wait_for_events(second, "held", result.id)
    kill(setup, first)
    wait_for_events(second, "taken_over", result.id)
    setup.gates.open("end")
    assert_finished_once(setup, result)


class TestOneTagTwoWorkers:
    """Trap 1: kombu restores a message under the delivery tag that it had."""

    @on_redis
    @traps(**SOON_BACK)
    @workers(2)
    def test_the_old_owner_leaves_and_takes_nothing_along(self, celery_setup: ProcessSetup) -> None:
        """Fenced; told; and nothing is put back by its shutdown: the message is another's."""
        setup, case = celery_setup, woken(celery_setup)
        end_warm(case.old)
        assert redis_of(setup).unacked() == [case.tag]
        assert redis_of(setup).waiting() == 0
        assert events(case.new, "held", case.result.id) == 0
        setup.gates.open("end")
        assert_finished_once(setup, case.result)

    @on_redis
    @traps(**SOON_BACK)
    @workers(2)
    def test_the_new_owner_is_killed(self, celery_setup: ProcessSetup) -> None:
        """The old one still has the message, and takes it over in turn."""
        setup, case = celery_setup, woken(celery_setup)
        kill(setup, case.new)
        setup.journal.wait_for_runs(case.result.id, 3)
        setup.gates.open("end")
        assert_finished_once(setup, case.result)

    @on_redis
    @traps(**SOON_BACK)
    @workers(2)
    def test_the_old_owner_is_killed(self, celery_setup: ProcessSetup) -> None:
        setup, case = celery_setup, taken_over(celery_setup)
        kill(setup, case.old)
        # Its claim is over and its message another's: no sweep may give it back.
        assert stays(lambda: redis_of(setup).unacked() == [case.tag], 2 * LEASE)
        setup.gates.open("end")
        assert_finished_once(setup, case.result)
        assert len(setup.journal.runs(case.result.id)) == 2

    @on_redis
    @traps(lease=30.0)
    @workers(2)
    def test_one_that_was_put_back_under_a_living_worker_waits(
        self, celery_setup: ProcessSetup
    ) -> None:
        """By somebody without claims and with another visibility timeout."""
        setup = celery_setup
        result, _, other, _ = start(setup)
        assert redis_of(setup).redeliver(result.id) == 1
        wait_for_events(other, "held", result.id)
        setup.gates.open("end")
        wait_for_events(other, "skipped", result.id)
        assert_finished_once(setup, result)

    @on_redis
    @traps(**SOON_BACK)
    @workers(2)
    @pytest.mark.parametrize("victim", ["runner", "holder"])
    def test_either_side_is_killed_while_the_other_holds_it(
        self, celery_setup: ProcessSetup, victim: str
    ) -> None:
        setup = celery_setup
        result, runner, holder, tag = start(setup)
        redis_of(setup).redeliver(result.id)
        wait_for_events(holder, "held", result.id)
        kill(setup, runner if victim == "runner" else holder)
        if victim == "runner":
            setup.journal.wait_for_runs(result.id, 2)
        else:
            assert stays(lambda: redis_of(setup).unacked() == [tag], 2 * LEASE)
        setup.gates.open("end")
        assert_finished_once(setup, result)


class TestConnections:
    """Faults of the broker's connection; the store's is another."""

    @pytest.fixture
    def proxy(self) -> Iterator[Proxy]:
        with Proxy(shared_server().port) as proxy:
            yield proxy

    @pytest.fixture
    def site(self, tmp_path: Path, proxy: Proxy) -> Iterator[Site]:
        broker = RedisBroker(tmp_path / "broker", port=proxy.port)
        # A worker that waits for no other message notices nothing with some pools.
        yield from a_site(tmp_path, broker, {"worker_prefetch_multiplier": 2}, url="redis")

    @pytest.mark.parametrize(
        "pool",
        [
            pytest.param("prefork", marks=[workers(1), pytest.mark.oldest]),
            *(pytest.param(pool, marks=workers(1, pool=pool)) for pool in POOLS[1:]),
        ],
    )
    def test_a_connection_that_breaks_in_mid_task(
        self, celery_setup: ProcessSetup, proxy: Proxy, pool: str
    ) -> None:
        """Kombu puts the message back when it lets go of the connection, and it is held.

        A solo worker sees no more of its connection than of all else while its body runs.
        """
        setup = celery_setup
        # With greenlets it answers on a connection of its own, which must not break in the making.
        wait_until(lambda: setup.app.control.ping(timeout=1), what="an answer to a ping")
        result = setup.app.signature("traps.late", ("end",)).apply_async()
        setup.journal.wait_for_runs(result.id)
        proxy.cut()
        if pool != "solo":
            setup.worker.wait_for_log("Connection to broker lost")
            wait_for_events(setup.worker, "held", result.id)
        setup.gates.open("end")
        assert_finished_once(setup, result)
        end_warm(setup.worker)
        assert redis_of(setup).left() == 0
        assert len(setup.journal.runs(result.id)) == 1

    def test_a_connection_that_breaks_and_takes_its_task_along(
        self, site: Site, celery_setup_app: Celery, proxy: Proxy
    ) -> None:
        """With ``worker_cancel_long_running_tasks_on_connection_loss`` Celery stops the body."""
        site.conf["worker_cancel_long_running_tasks_on_connection_loss"] = True
        worker = site.start_worker(log_level="DEBUG")
        result = celery_setup_app.signature("traps.late", ("end",)).apply_async()
        (cut_off,) = site.journal.wait_for_runs(result.id)
        proxy.cut()
        site.journal.wait_for_runs(result.id, 2)
        wait_until(lambda: cut_off.pid not in worker.children(), what="the end of the first")
        site.gates.open("end")
        assert result.get(timeout=30)[1] == 0
        wait_for_nothing(redis_of(site))
        assert finishes(site, result.id) == 1

    @workers(1)
    def test_a_connection_on_which_nothing_passes(
        self, celery_setup: ProcessSetup, site: Site, proxy: Proxy
    ) -> None:
        """Others take the worker for dead and get its message, but its claim is renewed."""
        setup, broker = celery_setup, redis_of(site)
        result = setup.app.signature("traps.late", ("end",)).apply_async()
        setup.journal.wait_for_runs(result.id)
        wait_until(lambda: broker.touched() == 1, what="the first touch")
        proxy.fault = Fault.SILENCE
        setup.worker.wait_for_log("the broker may give this worker's messages away")
        direct = f"redis://127.0.0.1:{broker.server.port}/{broker.database}"
        conf = json.dumps({**site.conf, "broker_url": direct})
        other = setup.start_worker(log_level="DEBUG", env={CONF_VARIABLE: conf})
        wait_for_events(other, "held", result.id)
        proxy.fault = Fault.NONE
        proxy.cut()
        setup.worker.wait_for_log("the broker knows of this worker's messages again")
        setup.gates.open("end")
        wait_for_events(other, "skipped", result.id)
        assert_finished_once(setup, result)
        assert len(setup.journal.runs(result.id)) == 1


class TestServers:
    @pytest.fixture
    def server(self) -> Iterator[RedisServer]:
        with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
            yield server

    @pytest.fixture
    def site(self, tmp_path: Path, server: RedisServer) -> Iterator[Site]:
        yield from a_site(tmp_path, RedisBroker(tmp_path / "broker", server))

    @workers(1)
    def test_a_server_that_is_killed_and_comes_back(
        self, celery_setup: ProcessSetup, server: RedisServer
    ) -> None:
        """With what it had saved, and without our scripts."""
        setup = celery_setup
        result = setup.app.signature("traps.late", ("end",)).apply_async()
        setup.journal.wait_for_runs(result.id)
        server.ask("SCRIPT", "FLUSH")
        server.kill()
        setup.worker.wait_for_log("Connection to broker lost")
        server.start()
        wait_until(lambda: setup.worker.logs().count("Connected to redis") == 2, what="the broker")
        setup.gates.open("end")
        assert_finished_once(setup, result)
        assert len(setup.journal.runs(result.id)) == 1
        server.ask("SCRIPT", "FLUSH")
        assert setup.app.signature("traps.late").apply_async().get(timeout=30)


class TestBrokerAlone:
    """The claims are elsewhere, so that they do not go with the broker."""

    @pytest.fixture
    def server(self) -> Iterator[RedisServer]:
        with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
            yield server

    @pytest.fixture
    def site(self, tmp_path: Path, server: RedisServer) -> Iterator[Site]:
        broker = RedisBroker(tmp_path / "broker", server)
        conf = {"worker_prefetch_multiplier": 4}
        yield from a_site(tmp_path, broker, conf, url="redis", lease=6.0)

    @workers(1)
    def test_what_was_claimed_since_the_last_touch_comes_back(
        self, celery_setup: ProcessSetup, server: RedisServer
    ) -> None:
        """Kombu cannot put it back: the worker ends before it has connected anew."""
        setup, first = celery_setup, celery_setup.worker
        running = setup.app.signature("traps.late", ("end",)).apply_async()
        setup.journal.wait_for_runs(running.id)
        (tag,) = in_hand(redis_of(setup), running.id)
        before = server.ask("ZSCORE", "unacked_index", tag)
        wait_until(lambda: server.ask("ZSCORE", "unacked_index", tag) != before, what="a touch")
        reserved = setup.app.signature("traps.late").apply_async()
        wait_for_events(first, "claimed", reserved.id)
        server.kill()
        setup.gates.open("end")
        if not ENDS_WITHOUT_REDIS:
            wait_until(lambda: "Cannot connect to" in first.logs(), what="a lost connection")
            first.kill("SIGKILL")
        assert first.container.has_exited()
        server.start()
        second = setup.start_worker(log_level="DEBUG")
        assert reserved.get(timeout=60)[0] in second.children()
        wait_for_nothing(redis_of(setup))
        assert len(setup.journal.runs(running.id)) == len(setup.journal.runs(reserved.id)) == 1


def is_master(server: RedisServer) -> bool:
    try:
        return bool(server.ask("ROLE")[0] == b"master")
    except redis.ConnectionError:
        # A replica closes its connections when it becomes one.
        return False


class TestSentinels:
    @pytest.fixture
    def servers(self) -> Iterator[Replicated]:
        with Replicated(sentinels=3) as servers:
            yield servers

    @pytest.fixture
    def site(self, tmp_path: Path, servers: Replicated) -> Iterator[Site]:
        broker = RedisBroker(
            tmp_path / "broker",
            servers.replica,
            url=servers.url,
            options={"master_name": "claims", "global_keyprefix": "ours-"},
        )
        yield from a_site(tmp_path, broker)

    @workers(2)
    def test_a_failover_in_mid_task(self, celery_setup: ProcessSetup, servers: Replicated) -> None:
        """The claims are where the broker is, before and after; and so is what a sweep finds."""
        setup = celery_setup
        result, *_ = start(setup)
        with servers.replica.client() as client:
            wait_until(lambda: client.keys("ours-claims:*"), what="the claim on the replica")
        servers.master.kill()
        wait_until(lambda: is_master(servers.replica), what="a failover")
        setup.gates.open("end")
        # It could not be acknowledged where it came from: it comes again, and is skipped.
        assert_finished_once(setup, result)
        assert len(setup.journal.runs(result.id)) == 1

        again, killed, _, _ = start(setup, gate="later")
        kill(setup, killed)
        setup.gates.open("later")
        assert_finished_once(setup, again)


class TestSocket:
    @pytest.fixture
    def site(self, tmp_path: Path) -> Iterator[Site]:
        with RedisServer() as server:
            url = f"redis+socket://{server.socket}?virtual_host=0"
            yield from a_site(
                tmp_path, RedisBroker(tmp_path / "broker", server, url=url), lease=1.0
            )

    @workers(2)
    def test_claims_go_where_the_broker_is(self, celery_setup: ProcessSetup) -> None:
        setup = celery_setup
        result, killed, *_ = start(setup)
        with redis_of(setup).client() as client:
            assert client.hlen("claims:{celery}.c") == 1
        kill(setup, killed)
        setup.gates.open("end")
        assert_finished_once(setup, result)


class TestTLS:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[TLSServer]:
        with TLSServer(tmp_path) as server:
            yield server

    @pytest.fixture(params=["url", "setting"])
    def site(
        self, request: pytest.FixtureRequest, tmp_path: Path, server: TLSServer
    ) -> Iterator[Site]:
        """What TLS needs is in the broker's URL, or in ``broker_use_ssl``."""
        query = "&".join(f"{name}={value}" for name, value in server.client_options.items())
        in_url = request.param == "url"
        url = f"rediss://:secret@127.0.0.1:{server.tls_port}/0"
        broker = RedisBroker(tmp_path / "broker", server, url=f"{url}?{query}" if in_url else url)
        conf = {} if in_url else {"broker_use_ssl": server.client_options}
        yield from a_site(tmp_path / "site", broker, conf)

    def test_claims_go_where_the_broker_is(
        self, site: Site, celery_setup_app: Celery, server: TLSServer
    ) -> None:
        worker = site.start_worker(log_level="DEBUG")
        killed = celery_setup_app.signature("traps.late", ("end",)).apply_async()
        site.journal.wait_for_runs(killed.id)
        kill(site, worker)
        site.gates.open("end")
        site.start_worker(log_level="DEBUG")
        assert killed.get(timeout=30)
        assert finishes(site, killed.id) == 1


@on_redis
@pytest.mark.parametrize(
    "store",
    [
        pytest.param("postgresql", marks=traps(url="postgresql", **SOON_BACK)),
        pytest.param("sqlite", marks=traps(url="sqlite", allow_local_store=True, **SOON_BACK)),
    ],
)
@workers(2)
def test_a_store_of_another_kind(celery_setup: ProcessSetup, store: str) -> None:
    """Not twice while alive, and back soon."""
    setup = celery_setup
    result, killed, other, _ = start(setup)
    redis_of(setup).redeliver(result.id)
    wait_for_events(other, "held", result.id)
    kill(setup, killed)
    setup.journal.wait_for_runs(result.id, 2)
    setup.gates.open("end")
    assert_finished_once(setup, result)
