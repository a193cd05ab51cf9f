"""What only the PostgreSQL store promises: servers that come and go, poolers, locks, schemas."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from celery_claims.errors import (
    ConfigurationError,
    InvalidArgument,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from celery_claims.native import monotonic
from celery_claims.protocol import (
    AlreadyClaimed,
    ClaimRequest,
    ClaimToken,
    Lost,
    Outcome,
    Renewal,
    Renewed,
    Settled,
    Settlement,
    Success,
)
from celery_claims.stores import View, open_store
from celery_claims.stores.postgres import PostgresStore
from celery_claims.stores.postgres_rows import key_of
from celery_claims.stores.postgres_schema import SCHEMA_VERSION, script
from celery_claims.stores.postgres_sessions import explain

from tests.process.proxy import Fault, Proxy
from tests.process.waiting import wait_until

from .calls import every_call
from .children import Child, error_of, in_child
from .lost_replies import assert_done_once_and_answered_again
from .postgres_harness import PostgresHarness
from .postgres_server import PgBouncer, PostgresServer, a_server

KEEP = 3_600_000

#: What a finished record may take on the disk with its indexes, in a small table.
MOST_BYTES = 135


@pytest.fixture
def harness() -> Iterator[PostgresHarness]:
    harness = PostgresHarness()
    yield harness
    harness.close()


@pytest.fixture
def server(harness: PostgresHarness) -> PostgresServer:
    return harness.server


@pytest.fixture
def store(harness: PostgresHarness) -> Iterator[PostgresStore]:
    with harness.open() as store:
        assert isinstance(store, PostgresStore)
        yield store


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that tests may stop and start again."""
    with a_server() as server:
        yield server


def request(task_id: str = "t", owner: str = "o", **changes: Any) -> ClaimRequest:
    facts = {"lease_ms": 60_000, "grant_id": os.urandom(8).hex(), "root_id": "root"}
    return ClaimRequest(queue="q", task_id=task_id, owner=owner, **{**facts, **changes})


def grant(store: PostgresStore, task_id: str = "t", **changes: Any) -> ClaimToken:
    answer = store.claim([request(task_id, **changes)])[0]
    assert isinstance(answer, Success)
    return answer.token


def with_settings(url: str, **settings: str) -> str:
    """The URL, with settings of the server for its sessions."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return f"{url}&options={quote(options)}"


def sessions_of(server: PostgresServer, name: str = "celery-claims") -> list[int]:
    rows = server.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", name)
    return [row[0] for row in rows]


class TestServer:
    def test_claims_outlive_a_restart_and_the_first_call_after_it_works(
        self, own_server: PostgresServer
    ) -> None:
        with PostgresStore(f"{own_server.url}?schema=restart", timeout=30.0) as store:
            token = grant(store)
            own_server.stop()
            own_server.start()
            assert isinstance(store.renew([Renewal(token, 60_000)])[0], Renewed)
            assert isinstance(store.claim([request()])[0], AlreadyClaimed)

    def test_claims_outlive_a_crash_of_the_server(self, own_server: PostgresServer) -> None:
        with PostgresStore(f"{own_server.url}?schema=crash", timeout=30.0) as store:
            tokens = [grant(store, f"t{number}") for number in range(20)]
            own_server.stop(signal.SIGQUIT)
            own_server.start()
            answers = store.settle([Settlement(each, Outcome.SUCCESS, KEEP) for each in tokens])
            assert all(isinstance(answer, Settled) for answer in answers)

    def test_server_that_is_away_is_said_at_once_and_found_again(
        self, own_server: PostgresServer
    ) -> None:
        with PostgresStore(f"{own_server.url}?schema=away", timeout=30.0) as store:
            token = grant(store)
            own_server.stop()
            begun = monotonic()
            with pytest.raises(StoreUnavailable) as raised:
                store.renew([Renewal(token, 60_000)])
            assert isinstance(raised.value.__cause__, psycopg.OperationalError)
            assert monotonic() - begun < 15
            own_server.start()
            assert isinstance(store.renew([Renewal(token, 60_000)])[0], Renewed)

    def test_session_that_is_ended_under_a_call_is_unavailable(
        self, store: PostgresStore, harness: PostgresHarness
    ) -> None:
        token = grant(store)
        with closing(harness.server.connect(autocommit=False)) as other:
            other.execute(f"SELECT FROM {harness.schema}.claims FOR UPDATE")
            errors: list[list[str]] = []
            thread = threading.Thread(
                target=lambda: errors.append(
                    error_of(lambda: store.renew([Renewal(token, 60_000)]))
                )
            )
            thread.start()
            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            pids = wait_until(lambda: harness.server.execute(waiting))
            harness.server.execute("SELECT pg_terminate_backend(%s)", pids[0][0])
            thread.join()
        assert [error[0] for error in errors] == ["StoreUnavailable"]
        assert isinstance(store.renew([Renewal(token, 60_000)])[0], Renewed)

    def test_frozen_server_is_unavailable_within_the_timeout(
        self, own_server: PostgresServer
    ) -> None:
        with PostgresStore(f"{own_server.url}?schema=frozen", timeout=1.0) as store:
            grant(store)
            pid = sessions_of(own_server)[-1]
            os.kill(pid, signal.SIGSTOP)
            try:
                begun = monotonic()
                with pytest.raises(StoreUnavailable, match="in time"):
                    store.claim([request("other")])
                assert monotonic() - begun < 10
            finally:
                os.kill(pid, signal.SIGCONT)
            assert isinstance(store.claim([request("next")])[0], Success)

    @pytest.mark.parametrize("fault", [Fault.LOSE_REPLIES, Fault.CUT_ON_REPLY])
    def test_lost_reply_is_answered_again(
        self, server: PostgresServer, store: PostgresStore, fault: Fault
    ) -> None:
        """What was done is answered again, and not done twice, by every verb."""
        grant(store, "warm")
        with Proxy(server.port) as proxy:
            url = store.name.replace(str(server.port), str(proxy.port))
            with PostgresStore(url, timeout=2.0) as through:
                assert_done_once_and_answered_again(store, through, proxy, fault)


class TestIsolation:
    @pytest.mark.parametrize("level", ["serializable", "repeatable read"])
    def test_stricter_default_isolation_changes_nothing(self, level: str) -> None:
        harness = PostgresHarness()
        url = with_settings(harness.url, default_transaction_isolation=level.replace(" ", r"\ "))
        stores = [PostgresStore(url, timeout=30.0) for _ in range(4)]
        barrier = threading.Barrier(4)
        won: list[int] = []

        def race(number: int) -> None:
            for turn in range(30):
                barrier.wait(timeout=60)
                asked = request(f"t{turn}", f"o{number}")
                if isinstance(stores[number].claim([asked])[0], Success):
                    won.append(turn)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == list(range(30))
        token = stores[0].lookup([("q", "t0")])[0]
        assert token is not None
        assert isinstance(stores[1].renew([Renewal(token.as_token(), 60_000)])[0], Renewed)
        assert stores[0].expire([], keep_ms=0) == []
        assert stores[0].elect("duty", 1000)
        for store in stores:
            store.close()
        harness.close()

    def test_row_that_another_holds_is_unavailable_in_time(
        self, harness: PostgresHarness, store: PostgresStore
    ) -> None:
        token = grant(store)
        with (
            closing(harness.server.connect(autocommit=False)) as other,
            PostgresStore(harness.url, timeout=0.5) as hasty,
        ):
            other.execute(f"SELECT FROM {harness.schema}.claims FOR UPDATE")
            begun = monotonic()
            with pytest.raises(StoreUnavailable) as raised:
                hasty.renew([Renewal(token, 60_000)])
            assert isinstance(raised.value.__cause__, psycopg.errors.LockNotAvailable)
            assert monotonic() - begun < 5
            # Who is denied reads only: no lock is in the way.
            assert isinstance(hasty.claim([request()])[0], AlreadyClaimed)
        assert isinstance(store.renew([Renewal(token, 60_000)])[0], Renewed)


class TestProcesses:
    def test_one_winner_of_each_claim_that_processes_race(self, harness: PostgresHarness) -> None:
        names = [f"t{number}" for number in range(60)]
        start_reading, start_writing = os.pipe()

        def race() -> list[str]:
            os.close(start_writing)
            os.read(start_reading, 1)
            store = PostgresStore(harness.url, timeout=60.0)
            answers = [store.claim([request(name, f"pid-{os.getpid()}")])[0] for name in names]
            assert {type(answer) for answer in answers} <= {Success, AlreadyClaimed}
            return [
                name
                for name, answer in zip(names, answers, strict=True)
                if isinstance(answer, Success)
            ]

        # The schema too is made by whoever comes first.
        children = [Child(race) for _ in range(5)]
        os.close(start_reading)
        os.close(start_writing)
        assert sorted(name for child in children for name in child.result()) == sorted(names)

    def test_batches_in_opposite_orders_do_not_deadlock(
        self, harness: PostgresHarness, store: PostgresStore
    ) -> None:
        names = [f"t{number}" for number in range(80)]
        shared = [grant(store, f"shared-{name}") for name in names]
        before = _deadlocks(harness.server)

        def work(step: int) -> int:
            store = PostgresStore(harness.url, timeout=60.0)
            renewed = 0
            for _ in range(12):
                answers = store.claim([request(name) for name in names[::step]])
                tokens = [answer.token for answer in answers if isinstance(answer, Success)]
                # What is forgotten at once also raises the high-water of its shard.
                store.settle([Settlement(token, Outcome.SUCCESS, 0) for token in tokens])
                for _ in range(4):
                    kept = store.renew([Renewal(token, 60_000) for token in shared[::step]])
                    renewed += sum(isinstance(answer, Renewed) for answer in kept)
                store.expire([], keep_ms=0)
            return renewed

        children = [Child(lambda step=step: work(step)) for step in (1, -1, 1, -1)]
        assert [child.result() for child in children] == 4 * [12 * 4 * len(names)]
        assert _deadlocks(harness.server) == before

    def test_forked_child_opens_its_own_connections(
        self, harness: PostgresHarness, store: PostgresStore
    ) -> None:
        token = grant(store)
        mine = set(store_backends(store))

        def use_it() -> list[int]:
            assert isinstance(store.renew([Renewal(token, 60_000)])[0], Renewed)
            return store_backends(store)

        for _ in range(3):
            assert not mine & set(in_child(use_it))
        assert set(store_backends(store)) == mine

    def test_forks_beside_busy_threads(self, store: PostgresStore) -> None:
        token = grant(store)
        over = threading.Event()
        failures: list[list[str]] = []

        def keep_busy() -> None:
            while not over.is_set():
                failure = error_of(lambda: store.renew([Renewal(token, 60_000)]))
                if failure[0] != "nothing":
                    failures.append(failure)

        threads = [threading.Thread(target=keep_busy) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(15):
                assert in_child(lambda: store.census().live) == 1
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert failures == []

    def test_a_pool_that_is_used_up_is_waited_for(self, harness: PostgresHarness) -> None:
        with PostgresStore(f"{harness.url}&pool_size=2", timeout=30.0) as store:
            barrier = threading.Barrier(8)
            answers: list[object] = []

            def claim(number: int) -> None:
                barrier.wait(timeout=60)
                answers.extend(store.claim([request(f"t{number}-{turn}")])[0] for turn in range(10))

            threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [type(answer) for answer in answers] == [Success] * 80
            assert len(store_backends(store)) <= 2

    def test_green_threads_wait_without_stopping_the_others(self, harness: PostgresHarness) -> None:
        done = subprocess.run(
            [sys.executable, "-c", _GREEN, harness.url],
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["20", "True"]


#: 20 greenlets with room for 4 connections, beside a held row that one of them waits for.
_GREEN = """
import sys
from gevent import monkey
monkey.patch_all()
import gevent, psycopg
from celery_claims.protocol import ClaimRequest, Renewal, Success
from celery_claims.stores import open_store

store = open_store(sys.argv[1] + "&pool_size=4", timeout=30.0)
def claim(name):
    return store.claim([ClaimRequest("q", name, "o", 60000, name, "r")])[0]
token = claim("held").token
other = psycopg.connect(sys.argv[1].partition("?")[0])
schema = sys.argv[1].partition("schema=")[2]
other.execute(f"SELECT FROM {schema}.claims FOR UPDATE")
waits = gevent.spawn(store.renew, [Renewal(token, 60000)])
work = [gevent.spawn(claim, f"t{number}") for number in range(20)]
gevent.joinall(work, timeout=20)
print(sum(isinstance(each.value, Success) for each in work), not waits.ready())
other.rollback()
waits.get(timeout=20)
"""


def store_backends(store: PostgresStore) -> list[int]:
    return [session.info.backend_pid for session in store._sessions._idle]


def _deadlocks(server: PostgresServer) -> int:
    rows = server.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'")
    number: int = rows[0][0]
    return number


class TestPooler:
    @pytest.fixture
    def pooler(self, server: PostgresServer) -> Iterator[PgBouncer]:
        pooler = PgBouncer(server)
        yield pooler
        pooler.close()

    def test_every_verb_works_in_transaction_mode(
        self, harness: PostgresHarness, pooler: PgBouncer
    ) -> None:
        url = f"{pooler.url}?schema={harness.schema}"
        stores = [PostgresStore(url, timeout=60.0) for _ in range(6)]
        barrier = threading.Barrier(6)
        wins: list[str] = []

        def live(number: int) -> None:
            store = stores[number]
            for turn in range(20):
                barrier.wait(timeout=60)
                answer = store.claim([request(f"t{turn}", f"o{number}")])[0]
                if isinstance(answer, Success):
                    wins.append(answer.token.task_id)
                    assert isinstance(store.renew([Renewal(answer.token, 60_000)])[0], Renewed)
                    store.settle([Settlement(answer.token, Outcome.SUCCESS, KEEP)])
                store.scan(View.ALL, limit=5)
                store.expire([], keep_ms=KEEP)

        threads = [threading.Thread(target=live, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(wins) == sorted(f"t{turn}" for turn in range(20))
        assert stores[0].census().finished == 20
        for store in stores:
            store.close()

    def test_statements_are_prepared_only_without_a_pooler(
        self, harness: PostgresHarness, store: PostgresStore, pooler: PgBouncer
    ) -> None:
        grant(store, "direct")
        assert _prepare_thresholds(store) == {1}
        with PostgresStore(f"{pooler.url}?schema={harness.schema}", timeout=30.0) as through:
            grant(through, "pooled")
            assert _prepare_thresholds(through) == {None}

    def test_server_settings_do_not_leak_into_other_sessions_of_the_pooler(
        self, harness: PostgresHarness, pooler: PgBouncer
    ) -> None:
        with PostgresStore(f"{pooler.url}?schema={harness.schema}", timeout=7.0) as store:
            grant(store)
            with closing(psycopg.connect(pooler.url, autocommit=True)) as other:
                for name in ("lock_timeout", "enable_seqscan", "default_transaction_isolation"):
                    row = other.execute(f"SHOW {name}").fetchone()
                    assert row in {("0",), ("on",), ("read committed",)}, name

    def test_a_statement_is_prepared_once_whatever_the_numbers_in_it(
        self, store: PostgresStore
    ) -> None:
        for number, size in enumerate((0, 1, 40_000, 3_000_000_000) * 3):
            grant(store, f"t{number}", deaths=size)
        session = store._sessions._idle[-1]
        found = session.execute(
            "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%claim_v1%'"
        )
        assert found.fetchone() == (1,)


def _prepare_thresholds(store: PostgresStore) -> set[int | None]:
    return {session.prepare_threshold for session in store._sessions._idle}


class TestSchema:
    def test_racing_first_starts_make_one_schema(self, harness: PostgresHarness) -> None:
        stores = [PostgresStore(harness.url, timeout=60.0) for _ in range(8)]
        barrier = threading.Barrier(8)
        counts: list[int] = []

        def start(store: PostgresStore) -> None:
            barrier.wait(timeout=60)
            counts.append(store.census().live)
            store.close()

        threads = [threading.Thread(target=start, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [0] * 8
        versions = harness.server.execute(f"SELECT number FROM {harness.schema}.version")
        assert versions == [(SCHEMA_VERSION,)]

    def test_newer_schema_is_refused(self, harness: PostgresHarness, store: PostgresStore) -> None:
        store.census()
        harness.server.execute(f"UPDATE {harness.schema}.version SET number = 99")
        with (
            PostgresStore(harness.url) as newer,
            pytest.raises(StoreCorrupt, match=r"schema 99.*upgrade"),
        ):
            newer.census()

    def test_failed_creation_leaves_nothing_and_is_made_up_for(
        self, harness: PostgresHarness, store: PostgresStore
    ) -> None:
        # A table in the way, as another application might have it.
        harness.server.execute(f"CREATE SCHEMA {harness.schema}")
        harness.server.execute(f"CREATE TABLE {harness.schema}.turns (x int)")
        with pytest.raises(StoreCorrupt, match="turns"):
            store.census()
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = %s"
        assert harness.server.execute(tables, harness.schema) == [(1,)]
        harness.server.execute(f"DROP TABLE {harness.schema}.turns")
        assert isinstance(store.claim([request()])[0], Success)

    def test_prefixes_keep_stores_of_one_schema_apart(self, harness: PostgresHarness) -> None:
        with (
            PostgresStore(f"{harness.url}&prefix=one_", timeout=30.0) as one,
            PostgresStore(f"{harness.url}&prefix=two_", timeout=30.0) as two,
            PostgresStore(harness.url, timeout=30.0) as none,
        ):
            for store in (one, two, none):
                assert isinstance(store.claim([request()])[0], Success)
                assert store.census().live == 1
                # By way of the functions' other branches, which name their own results.
                asked = request("again")
                assert isinstance(store.claim([asked, asked])[1], Success)

    def test_without_auto_create_nothing_is_made(self, harness: PostgresHarness) -> None:
        with PostgresStore(f"{harness.url}&auto_create=false", timeout=30.0) as store:
            with pytest.raises(StoreUnavailable, match="auto_create=false"):
                store.census()
            found = harness.server.execute(
                "SELECT count(*) FROM pg_namespace WHERE nspname = %s", harness.schema
            )
            assert found == [(0,)]
            harness.server.execute(script(harness.schema))
            assert isinstance(store.claim([request()])[0], Success)

    def test_script_is_printed_for_administrators(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "celery_claims.stores.postgres_schema", "mine", "p_"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == script("mine", "p_")
        assert '"mine"."p_claims"' in done.stdout
        assert "@" not in re.sub(r"(?m)^ *--.*$", "", done.stdout)

    def test_user_with_the_documented_rights_only_can_work(self, harness: PostgresHarness) -> None:
        with harness.open() as store:
            store.census()
        user, schema = f"u_{harness.schema}", harness.schema
        server = harness.server
        server.execute(f"CREATE ROLE {user} LOGIN")
        try:
            url = harness.url.replace("claims@", f"{user}@")
            with PostgresStore(url, timeout=30.0) as limited:
                with pytest.raises(StoreReadOnly, match="grant"):
                    limited.census()
                server.execute(f"GRANT USAGE ON SCHEMA {schema} TO {user}")
                server.execute(
                    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} "
                    f"TO {user}"
                )
                token = grant(limited)
                limited.settle([Settlement(token, Outcome.SUCCESS, 0)])
                limited.expire([], keep_ms=0)
                assert limited.elect("duty", 1000)
                assert limited.check() == store_concerns(server)
        finally:
            server.execute(f"DROP OWNED BY {user}")
            server.execute(f"DROP ROLE {user}")

    def test_tables_that_are_dropped_under_the_store_are_made_again(
        self, harness: PostgresHarness, store: PostgresStore
    ) -> None:
        grant(store)
        harness.server.execute(f"DROP SCHEMA {harness.schema} CASCADE")
        with pytest.raises(StoreCorrupt):
            store.claim([request()])
        assert isinstance(store.claim([request()])[0], Success)


def store_concerns(server: PostgresServer) -> list[str]:
    """What ``check`` says of any store on the tests' servers, which run without fsync."""
    with PostgresStore(f"{server.url}?schema=concerns", timeout=30.0) as store:
        concerns = store.check()
    assert [concern.split()[0] for concern in concerns] == ["fsync"]
    return concerns


class TestCheck:
    def test_it_warns_of_what_may_forget_claims(self, harness: PostgresHarness) -> None:
        url = with_settings(harness.url, synchronous_commit="off")
        with PostgresStore(url, timeout=30.0) as store:
            assert [concern.split()[0] for concern in store.check()] == [
                "synchronous_commit",
                "fsync",
            ]
            harness.server.execute(f"ALTER TABLE {harness.schema}.claims SET UNLOGGED")
            assert any("not logged" in concern for concern in store.check())

    def test_it_warns_of_a_standby(self, own_server: PostgresServer) -> None:
        with PostgresStore(f"{own_server.url}?schema=standby", timeout=30.0) as store:
            grant(store)
            own_server.stop()
            own_server.become_standby()
            try:
                assert any("standby" in concern for concern in store.check())
                assert store.census().live == 1
                with pytest.raises(StoreReadOnly, match="name the primary"):
                    store.claim([request("other")])
            finally:
                own_server.promote()
            assert isinstance(store.claim([request("other")])[0], Success)


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (psycopg.errors.DiskFull, StoreFull),
            (psycopg.errors.ReadOnlySqlTransaction, StoreReadOnly),
            (psycopg.errors.InsufficientPrivilege, StoreReadOnly),
            (psycopg.errors.AdminShutdown, StoreUnavailable),
            (psycopg.errors.TooManyConnections, StoreUnavailable),
            (psycopg.errors.DeadlockDetected, StoreUnavailable),
            (psycopg.errors.SerializationFailure, StoreUnavailable),
            (psycopg.errors.QueryCanceled, StoreUnavailable),
            (psycopg.errors.IoError, StoreUnavailable),
            (psycopg.errors.DataCorrupted, StoreCorrupt),
            (psycopg.errors.UndefinedColumn, StoreCorrupt),
            (psycopg.errors.CheckViolation, StoreCorrupt),
            (psycopg.OperationalError, StoreUnavailable),
            (psycopg.InterfaceError, StoreUnavailable),
        ],
    )
    def test_driver_errors_become_ours(
        self, error: type[psycopg.Error], kind: type[Exception]
    ) -> None:
        assert type(explain("postgresql://host/db", error("told"))) is kind

    def test_records_that_cannot_be_read_are_corrupt(
        self, harness: PostgresHarness, store: PostgresStore
    ) -> None:
        grant(store)
        for change in (
            "owner = '\\xff'",
            "outcome = 99",
            "outcome = 4",
            "outcome = 4, forget_at = 5, keep = 0.5",
            "expires_at = -1",
            "task_id = '\\xc3'",
        ):
            harness.server.execute(f"UPDATE {harness.schema}.claims SET {change}")
            page = store.scan(View.ALL)
            assert page.records == () and page.cursor is None
            (unreadable,) = page.unreadable
            if not change.startswith("task_id"):
                with pytest.raises(StoreCorrupt) as raised:
                    store.lookup([("q", "t")])
                assert unreadable.removal in str(raised.value)
        harness.server.execute(unreadable.removal)
        assert store.scan(View.ALL).unreadable == ()

    @pytest.mark.parametrize("token", [2**63 - 1, 2**60, 2**53])
    def test_a_token_too_high_to_go_on_from_is_corrupt(
        self, harness: PostgresHarness, store: PostgresStore, token: int
    ) -> None:
        """A claim with a token that no later call takes would break the calls of others."""
        store.settle([Settlement(grant(store), Outcome.NACKED, KEEP)])
        harness.server.execute(f"UPDATE {harness.schema}.claims SET token = {token}")
        with pytest.raises(StoreCorrupt, match="DELETE FROM"):
            store.claim([request()])

    def test_password_is_told_to_nobody(self) -> None:
        url = "postgresql://me:secret-word@127.0.0.1:1/db?sslpassword=secret-word"
        with PostgresStore(url, timeout=1.0) as store:
            error = error_of(store.census)
            assert error[0] == "StoreUnavailable"
            assert "secret-word" not in store.name + repr(store) + error[1]
            assert "me:***@127.0.0.1" in store.name

    def test_nobody_there(self, store: PostgresStore) -> None:
        """Each call opens a connection if there is none, and tells if it cannot."""
        answer = store.claim([request()])[0]
        assert isinstance(answer, Success)
        with PostgresStore("postgresql://me@127.0.0.1:1/db", timeout=1.0) as nowhere:
            for verb, call in every_call(nowhere, answer.token):
                name, text, cause = error_of(call)
                assert (name, cause) == ("StoreUnavailable", "OperationalError"), verb
                assert "refused" in text

    @pytest.mark.parametrize(
        ("query", "naming"),
        [
            ("schema=Claims", "schema"),
            ("schema=a%22b", "schema"),
            ("schema=pg_mine", "schema"),
            ("schema=" + "x" * 64, "schema"),
            ("prefix=1", "prefix"),
            ("prefix=" + "x" * 41, "prefix"),
            ("auto_create=maybe", "auto_create"),
            ("pool_size=0", "pool_size"),
            ("pool_size=many", "pool_size"),
            ("schem=x", "schem"),
        ],
    )
    def test_bad_urls(self, query: str, naming: str) -> None:
        with pytest.raises(ConfigurationError, match=naming) as raised:
            open_store(f"postgresql://me:secret-word@host/db?{query}")
        assert raised.value.setting == "claims_url"
        assert "secret-word" not in str(raised.value)

    def test_bad_timeouts(self) -> None:
        for timeout in (0, -1, float("nan"), True, "1"):
            with pytest.raises(InvalidArgument, match="timeout"):
                PostgresStore("postgresql://host/db", timeout=timeout)  # type: ignore[arg-type]


class TestRows:
    @pytest.mark.parametrize(
        ("task_id", "kept"),
        [
            ("0f1e2d3c-0000-4000-8000-00000000cafe", 17),
            (32 * "0", 17),
            ("a name", 6),
            ("\u00e4", 2),
            ("ABCDEF" + 30 * "-", 36),
        ],
    )
    def test_an_id_is_packed_and_can_be_read(
        self, harness: PostgresHarness, store: PostgresStore, task_id: str, kept: int
    ) -> None:
        token = grant(store, task_id)
        schema = harness.schema
        row = f"SELECT length(task_id), {schema}.text_v1(task_id) FROM {schema}.claims"
        assert harness.server.execute(row) == [(kept, task_id)]
        for _ in range(2):
            assert [each.task_id for each in store.scan(View.ALL).records] == [task_id]
            found = store.lookup([("q", task_id), ("r", task_id), ("q", task_id + "0")])
            assert [each and each.task_id for each in found] == [task_id, None, None]
            store.settle([Settlement(token, Outcome.SUCCESS, KEEP)])

    @pytest.mark.parametrize("queue", ["q", "\u00e4\ud800", 300 * "q"])
    def test_the_key_is_the_same_on_both_sides(
        self, harness: PostgresHarness, store: PostgresStore, queue: str
    ) -> None:
        for task_id in (str(uuid.uuid4()), "t\x00", "\udfff"):
            answer = store.claim([replace(request(task_id), queue=queue)])[0]
            assert isinstance(answer, Success)
            key = f"SELECT {harness.schema}.key_v1(queue, task_id) FROM {harness.schema}.claims"
            assert (key_of(queue, task_id),) in harness.server.execute(key)

    def test_a_uuid_has_a_record_in_each_queue(self, store: PostgresStore) -> None:
        task_id = str(uuid.UUID(int=0))
        for queue in ("q", "r", "s"):
            answer = store.claim([replace(request(task_id), queue=queue)])[0]
            assert isinstance(answer, Success)
            store.settle([Settlement(answer.token, Outcome.SUCCESS, KEEP)])
        found = store.lookup([(queue, task_id) for queue in ("q", "r", "s", "t")])
        assert [record and record.queue for record in found] == ["q", "r", "s", None]

    def test_row_that_no_call_finds_is_told_of(
        self, harness: PostgresHarness, store: PostgresStore
    ) -> None:
        """A UUID that is kept as it is written."""
        grant(store)
        change = f"UPDATE {harness.schema}.claims SET task_id = '{uuid.uuid4()}'"
        harness.server.execute(change)
        (unreadable,) = store.scan(View.ALL).unreadable
        assert "no call finds it" in unreadable.problem
        harness.server.execute(unreadable.removal)
        assert store.scan(View.ALL).unreadable == ()

    def test_free_record_without_its_times_is_not_granted(
        self, harness: PostgresHarness, store: PostgresStore
    ) -> None:
        token = grant(store)
        store.settle([Settlement(token, Outcome.NACKED, KEEP)])
        harness.server.execute(f"UPDATE {harness.schema}.claims SET keep = NULL")
        with pytest.raises(StoreCorrupt, match=r"do not go together.*DELETE FROM"):
            store.claim([request()])

    def test_what_only_a_claim_needs_is_not_kept_of_a_finished_one(
        self, harness: PostgresHarness, store: PostgresStore
    ) -> None:
        tokens = [grant(store, name) for name in ("free", "finished")]
        store.settle([Settlement(tokens[0], Outcome.NACKED, KEEP)])
        store.settle([Settlement(tokens[1], Outcome.SUCCESS, KEEP)])
        columns = "expires_at, owner, grant_id, task, tag, from_queue, priority"
        rows = f"SELECT num_nulls({columns}) FROM {harness.schema}.claims ORDER BY outcome"
        assert harness.server.execute(rows) == [(1,), (7,)]

    def test_it_can_be_published(self, harness: PostgresHarness, store: PostgresStore) -> None:
        """Updates of a table with no key fail where it is in a publication, if it does not say."""
        token = grant(store)
        harness.server.execute(f"CREATE PUBLICATION claims FOR TABLE {harness.schema}.claims")
        try:
            assert isinstance(store.renew([Renewal(token, 60_000)])[0], Renewed)
            assert store.settle([Settlement(token, Outcome.SUCCESS, 0)])
        finally:
            harness.server.execute("DROP PUBLICATION claims")

    def test_a_finished_record_takes_little(
        self, harness: PostgresHarness, store: PostgresStore
    ) -> None:
        count = 8000
        for _ in range(count // 1000):
            names = [str(uuid.uuid4()) for _ in range(1000)]
            asked = [replace(request(name), queue="celery", root_id=name) for name in names]
            tokens = [each.token for each in store.claim(asked) if isinstance(each, Success)]
            store.settle([Settlement(token, Outcome.SUCCESS, 2 * KEEP) for token in tokens])
        harness.server.execute(f"VACUUM FULL {harness.schema}.claims")
        size = f"SELECT pg_total_relation_size('{harness.schema}.claims')"
        assert harness.server.execute(size)[0][0] / count <= MOST_BYTES


@pytest.fixture(scope="module")
def full() -> Iterator[PostgresHarness]:
    """Live, orphaned, finished and forgettable records, 210,000 in all."""
    harness = PostgresHarness()
    with harness.open() as store:
        store.census()
    harness.server.execute(_FILL.format(schema=harness.schema))
    harness.server.execute(f"VACUUM ANALYZE {harness.schema}.claims")
    yield harness
    harness.close()


class TestPlans:
    """At 100,000 finished records and as many claims no verb reads a table."""

    def test_every_verb_but_the_census_goes_by_an_index(self, full: PostgresHarness) -> None:
        plans: list[str] = []
        explained = {
            "session_preload_libraries": "auto_explain",
            "auto_explain.log_min_duration": "0",
            "auto_explain.log_nested_statements": "on",
            "auto_explain.log_analyze": "on",
            "client_min_messages": "log",
        }
        url = with_settings(full.url, **explained)
        with PostgresStore(url, timeout=60.0) as store:
            store.elect("warm", 1000)
            session = store._sessions._idle[-1]
            session.add_notice_handler(lambda told: plans.append(told.message_primary or ""))
            token = grant(store, "new")
            store.claim([request("live-5")])
            store.renew([Renewal(token, 60_000)])
            store.settle([Settlement(token, Outcome.SUCCESS, 0)])
            orphans = store.scan(View.ORPHANED, limit=50)
            assert len(orphans.records) == 50
            store.expire([each.as_expiry() for each in orphans.records], keep_ms=KEEP)
            for queue in (None, "q"):
                for view in View:
                    store.scan(view, queue=queue, limit=50)
            store.lookup([("q", f"live-{number}") for number in range(100)])
        text = "\n".join(plans)
        for index in ("claims_by_key", "claims_by_expiry", "claims_by_end"):
            assert f"using {index}" in text
        assert "Seq Scan on claims" not in text
        read = [int(number) for number in re.findall(r"on claims .*actual .*rows=(\d+)", text)]
        assert read
        assert max(read) <= 1001

    def test_stale_claim_is_answered_while_a_sweep_goes_on(self, full: PostgresHarness) -> None:
        with full.open() as store:
            page = store.scan(View.ORPHANED, limit=1000)
            expiries = [record.as_expiry() for record in page.records]
            assert all(store.expire(expiries, keep_ms=KEEP))
            first = page.records[0].as_token()
            taken = store.claim([request(first.task_id)])[0]
            assert isinstance(taken, Success)
            assert taken.orphaned
            assert isinstance(store.renew([Renewal(first, 60_000)])[0], Lost)


_FILL = r"""
INSERT INTO {schema}.claims (
    token, expires_at, forget_at, outcome, keep, queue, task_id, root_id, owner, grant_id, task,
    tag, from_queue
)
SELECT now * 1000, expires, forget, outcome, CASE WHEN forget > 0 THEN 1000 END, 'q', id, 'root',
    part, part, part, part, part
FROM generate_series(1, 100000) AS number,
    LATERAL (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now) AS t,
    LATERAL (VALUES
        ('live-', 0, now + 600000 + number, NULL),
        ('over-', 0, now - 600000 + number, NULL),
        ('kept-', 4, NULL, now + 600000 + number),
        ('past-', 4, NULL, now - 600000 + number)
    ) AS kind (name, outcome, expires, forget),
    LATERAL (SELECT convert_to(name || number, 'UTF8') AS id) AS named,
    LATERAL (SELECT CASE outcome WHEN 0 THEN 'x'::bytea END AS part) AS claimed
WHERE number <= CASE WHEN name IN ('over-', 'past-') THEN 5000 ELSE 100000 END
"""
