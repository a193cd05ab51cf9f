"""What only the Redis store has to stand: its server's faults, its forms, its limits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from celery_claims import errors
from celery_claims.native import monotonic
from celery_claims.protocol import (
    AlreadyClaimed,
    ClaimAnswer,
    ClaimRequest,
    ClaimToken,
    Delivery,
    Finished,
    Lost,
    Outcome,
    Renewal,
    Renewed,
    Settled,
    Settlement,
    Success,
    TookOver,
)
from celery_claims.stores import View, open_store, redis_registry
from celery_claims.stores.redis import RedisStore
from redis.crc import key_slot

from tests.process.proxy import Fault, Proxy
from tests.process.waiting import wait_until

from .children import in_child
from .lost_replies import assert_done_once_and_answered_again
from .redis_server import RedisServer, paused

LEASE = 30_000
KEEP = 3_600_000

#: Seconds of the stores that are to give up soon.
SOON = 0.5


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    server.ask("FLUSHALL")
    with RedisStore(server.url, timeout=30.0) as opened:
        yield opened


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """For a test that kills or reconfigures it."""
    with RedisServer() as running:
        yield running


def request(task_id: str = "t", queue: str = "q", **changes: Any) -> ClaimRequest:
    grant = uuid.uuid4().hex
    facts = {"owner": f"owner-{grant}", "lease_ms": LEASE, "grant_id": grant, "root_id": "root"}
    return ClaimRequest(queue, task_id, **{**facts, **changes})


def granted(answer: ClaimAnswer) -> ClaimToken:
    assert isinstance(answer, (Success, TookOver)), answer
    return answer.token


def claim(store: Any, task_id: str = "t", queue: str = "q", **changes: Any) -> ClaimToken:
    return granted(store.claim([request(task_id, queue, **changes)])[0])


def renew(store: Any, token: ClaimToken) -> Any:
    return store.renew([Renewal(token, LEASE)])[0]


def release(store: Any, token: ClaimToken) -> Any:
    return store.settle([Settlement(token, Outcome.SUCCESS, KEEP)])[0]


def answers(store: Any) -> bool:
    """Whether the store's server answers now."""
    try:
        store.census("q")
    except errors.StoreUnavailable:
        return False
    return True


class TestForgettingServers:
    """A server that lost its scripts or its data goes on, and its tokens do not go back."""

    def test_flushed_scripts_are_sent_again(self, server: RedisServer, store: RedisStore) -> None:
        token = claim(store)
        server.ask("SCRIPT", "FLUSH")
        assert isinstance(renew(store, token), Renewed)
        server.ask("SCRIPT", "FLUSH")
        requests = [request("t", f"q{number}") for number in range(5)]
        assert all(isinstance(answer, Success) for answer in store.claim(requests))

    def test_flush_under_live_claims(self, server: RedisServer, store: RedisStore) -> None:
        """The owner's renewal brings its claim back, also to scans, and no token is given twice."""
        tokens = [claim(store, f"t{number}") for number in range(3)]
        server.ask("FLUSHALL")
        assert all(isinstance(renew(store, token), Renewed) for token in tokens)
        shown = store.scan(View.LIVE).records
        assert {record.as_token().token for record in shown} == {token.token for token in tokens}
        assert isinstance(store.claim([request("t0")])[0], AlreadyClaimed)
        server.ask("FLUSHALL")
        assert claim(store, "new").token > max(token.token for token in tokens)

    def test_renewals_of_what_was_flushed_are_answered_in_order(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        kept, lost = claim(store, "kept", "a"), claim(store, "lost", "b")
        server.ask("DEL", "claims:{b}", "claims:{b}.c", "claims:{b}.e")
        answers = store.renew([Renewal(token, LEASE) for token in (lost, kept, lost)])
        assert all(isinstance(answer, Renewed) for answer in answers)

    def test_claim_that_was_granted_anew_after_a_flush_is_not_brought_back(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        stale = claim(store)
        server.ask("FLUSHALL")
        current = claim(store)
        assert current.token > stale.token
        assert isinstance(renew(store, stale), Lost)
        assert isinstance(release(store, stale), Lost)

    def test_restart_without_persistence(self, own_server: RedisServer) -> None:
        """Nothing is saved: the owner finishes all the same, and tokens rise."""
        with RedisStore(own_server.url, timeout=30.0) as store:
            running, done = claim(store, "running"), claim(store, "done")
            release(store, done)
            own_server.kill()
            own_server.start()
            wait_until(lambda: answers(store), what="the store is back")
            assert isinstance(release(store, running), Settled)
            assert claim(store, "done").token > max(running.token, done.token)

    def test_evicted_index_is_healed_by_the_next_renewal(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        token = claim(store)
        server.ask("DEL", "claims:{q}.e")
        assert isinstance(renew(store, token), Renewed)
        assert [record.as_token().token for record in store.scan(View.LIVE).records] == [
            token.token
        ]

    def test_evicted_claims_do_not_hide_what_the_index_shows(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        store.claim([request(f"t{number}") for number in range(10)])
        names = [record.task_id for record in store.scan(View.LIVE, limit=4).records]
        server.ask("HDEL", "claims:{q}.c", *names)
        left = store.scan(View.LIVE, limit=4).records
        assert len(left) == 4
        assert not {record.task_id for record in left} & set(names)
        assert store.census().live == 6


class TestMixedBatches:
    """What a script does at once and what it does one by one are answered in their order."""

    def test_new_tasks_beside_known_ones(self, store: RedisStore) -> None:
        held = claim(store, "held")
        finish_many(store, 1, prefix="done")
        free = claim(store, "free")
        store.settle([Settlement(free, Outcome.NACKED, KEEP)])
        first, second = request("twice"), request("twice")
        batch = [request("held"), first, request("done0"), request("free"), second, request("new")]
        answers = store.claim([*batch, first])
        assert [type(answer) for answer in answers] == [
            *(AlreadyClaimed, Success, Finished, Success, AlreadyClaimed, Success, Success)
        ]
        twice, new = granted(answers[1]), granted(answers[5])
        assert granted(answers[6]).token == twice.token
        assert answers[4].owner == first.owner  # type: ignore[union-attr]
        tokens = [held.token, free.token, twice.token, new.token, granted(answers[3]).token]
        assert len(set(tokens)) == 5
        assert claim(store, "later").token > max(tokens)
        live = {record.task_id for record in store.scan(View.LIVE).records}
        assert live == {"held", "twice", "free", "new", "later"}

    def test_ends_of_one_task_in_their_order(self, store: RedisStore) -> None:
        finish_many(store, 50)
        one, other = claim(store, "one"), claim(store, "other")
        stale = replace(one, token=one.token - 1)
        given_back = Settlement(other, Outcome.NACKED, KEEP)
        answers = store.settle(
            [
                Settlement(stale, Outcome.SUCCESS, KEEP),
                Settlement(one, Outcome.FAILURE, KEEP),
                Settlement(one, Outcome.SUCCESS, KEEP),
                given_back,
                Settlement(other, Outcome.SUCCESS, KEEP),
            ]
        )
        assert [type(answer) for answer in answers] == [Lost, Settled, Settled, Settled, Lost]
        assert answers[0].owner == one.owner  # type: ignore[union-attr]
        found = store.lookup([("q", "one"), ("q", "other")])
        assert [record and record.outcome for record in found] == [
            *(Outcome.FAILURE, Outcome.NACKED)
        ]

    def test_claims_shown_twice_are_cleaned_up_once(self, store: RedisStore) -> None:
        claim(store, "t", lease_ms=1)
        claim(store, "u")
        wait_until(lambda: store.census("q").orphaned == 1, what="the lease is over")
        (record,) = store.scan(View.ORPHANED).records
        again = replace(record.as_expiry(), expires_at=record.expires_at - 1)
        expiries = [again, record.as_expiry(), record.as_expiry()]
        assert store.expire(expiries, keep_ms=KEEP) == [False, True, False]
        assert store.expire(expiries, keep_ms=KEEP) == [False, False, False]


class TestFaults:
    """Every error is one of ours, in time, with its cause."""

    def test_dead_server(self) -> None:
        server = RedisServer()
        try:
            with RedisStore(server.url, timeout=SOON) as store:
                with pytest.raises(errors.StoreUnavailable) as caught:
                    store.claim([request()])
                assert caught.value.__cause__ is not None
                server.start()
                claim(store)
        finally:
            server.stop()

    def test_paused_server_is_given_up_in_time(self, server: RedisServer) -> None:
        with RedisStore(server.url, timeout=SOON, prefix="paused:") as store:
            token = claim(store)
            with paused(server):
                calls = (
                    lambda: store.claim([request("u")]),
                    lambda: renew(store, token),
                    lambda: release(store, token),
                    lambda: store.lookup([("q", "t")]),
                    lambda: store.scan(View.LIVE),
                    store.census,
                    lambda: store.expire([], keep_ms=0) or store.elect("duty", 1000),
                )
                for call in calls:
                    began = monotonic()
                    with pytest.raises(errors.StoreUnavailable):
                        call()
                    # A connection and an answer each, and what a loaded machine adds.
                    assert monotonic() - began < 2 * SOON + 5
            assert isinstance(renew(store, token), Renewed)

    @pytest.mark.parametrize("fault", [Fault.LOSE_REPLIES, Fault.CUT_ON_REPLY])
    def test_reply_lost_after_commit(
        self, server: RedisServer, store: RedisStore, fault: Fault
    ) -> None:
        """What was done is answered again, and not done twice, by every verb."""
        with (
            Proxy(server.port) as proxy,
            RedisStore(f"redis://127.0.0.1:{proxy.port}", timeout=SOON) as remote,
        ):
            assert_done_once_and_answered_again(store, remote, proxy, fault)

    def test_cut_connections_are_made_anew(self, server: RedisServer, store: RedisStore) -> None:
        with (
            Proxy(server.port) as proxy,
            RedisStore(f"redis://127.0.0.1:{proxy.port}", timeout=SOON) as remote,
        ):
            token = claim(remote)
            proxy.fault = Fault.REFUSE
            proxy.cut()
            with pytest.raises(errors.StoreUnavailable):
                renew(remote, token)
            proxy.fault = Fault.NONE
            assert isinstance(renew(remote, token), Renewed)

    def test_half_open_connection_is_given_up(self, server: RedisServer, store: RedisStore) -> None:
        with (
            Proxy(server.port) as proxy,
            RedisStore(f"redis://127.0.0.1:{proxy.port}", timeout=SOON) as remote,
        ):
            token = claim(remote)
            proxy.fault = Fault.SILENCE
            with pytest.raises(errors.StoreUnavailable):
                renew(remote, token)

    def test_full_server(self, own_server: RedisServer) -> None:
        """Nothing is changed, and the store works again once there is room."""
        with RedisStore(own_server.url, timeout=30.0) as store:
            token = claim(store)
            before = store.lookup([("q", "t")])
            own_server.ask("CONFIG", "SET", "maxmemory", "1")
            for call in (
                lambda: claim(store, "u"),
                lambda: release(store, token),
                lambda: renew(store, token),
            ):
                with pytest.raises(errors.StoreFull):
                    call()
            assert store.lookup([("q", "t"), ("q", "u")]) == [*before, None]
            own_server.ask("CONFIG", "SET", "maxmemory", "0")
            assert isinstance(release(store, token), Settled)

    def test_replica_refuses_writes(self, own_server: RedisServer) -> None:
        with (
            RedisServer("--replicaof", "127.0.0.1", str(own_server.port)) as replica,
            RedisStore(replica.url, timeout=30.0) as store,
        ):
            wait_until(lambda: replica.ask("ROLE")[3] == b"connected", what="replication")
            with pytest.raises(errors.StoreReadOnly):
                store.claim([request()])

    def test_wrong_password(self) -> None:
        server = RedisServer("--requirepass", "right")
        try:
            server.start(password="right")
            with RedisStore(f"redis://:right@127.0.0.1:{server.port}") as store:
                claim(store)
                assert "right" not in store.name
            for url in (server.url, f"redis://:wrong@127.0.0.1:{server.port}/0"):
                with RedisStore(url) as store:
                    with pytest.raises(errors.StoreUnavailable, match="password") as caught:
                        store.claim([request()])
                    assert "wrong" not in str(caught.value)
            with RedisStore(server.url, password="right") as store:
                claim(store, "argument")
        finally:
            server.stop()

    def test_foreign_data_is_told_and_left_alone(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        claim(store)
        for value in (b"", b"\xc1", b"\x00" * 9, b"hello", b"\x04\x01\xa1\x00\x00\x00\x00\xa0"):
            server.ask("HSET", "claims:{q}.c", "t", value)
            for call in (
                lambda: store.claim([request()]),
                lambda: store.lookup([("q", "t")]),
            ):
                with pytest.raises(errors.StoreCorrupt, match=r'HDEL "claims:{q}.c" "t"'):
                    call()
            (unreadable,) = store.scan(View.LIVE).unreadable
            assert unreadable.removal == 'HDEL "claims:{q}.c" "t"'
            assert server.ask("HGET", "claims:{q}.c", "t") == value

    @pytest.mark.parametrize("key", ["claims:{q}", "claims:{q}.c", "claims:{q}.e"])
    def test_keys_of_another_type_are_told_and_cost_no_other_queue(
        self, server: RedisServer, store: RedisStore, key: str
    ) -> None:
        claim(store)
        claim(store, queue="another")
        server.ask("DEL", key)
        server.ask("LPUSH", key, "somebody's")
        with pytest.raises(errors.StoreCorrupt, match=f'DEL "{key}"'):
            store.claim([request()])
        for view in (View.LIVE, View.ALL):
            page = store.scan(view)
            assert [record.queue for record in page.records] == ["another"]
            assert [each.removal for each in page.unreadable] == [f'DEL "{key}"']
        assert store.census().live >= 1
        assert store.check() is not None
        server.ask("DEL", key)
        claim(store, "new")

    @pytest.mark.parametrize("expires", [False, True])
    def test_a_key_of_another_type_where_a_free_record_should_be_is_told_and_stays(
        self, server: RedisServer, store: RedisStore, expires: bool
    ) -> None:
        """And what is cleaned up beside it is."""
        tokens = [claim(store, f"t{number}", lease_ms=1) for number in range(3)]
        server.ask("LPUSH", "claims:{q}:t1", "somebody's")
        wait_until(lambda: store.census("q").orphaned == 3, what="the leases are over")
        expiries = [record.as_expiry() for record in store.scan(View.ORPHANED).records]
        nacks = [Settlement(token, Outcome.NACKED, KEEP) for token in tokens[:2]]
        with pytest.raises(errors.StoreCorrupt, match="another type"):
            store.expire(expiries, keep_ms=KEEP) if expires else store.settle(nacks)
        assert server.ask("LLEN", "claims:{q}:t1") == 1
        states = [record and record.outcome for record in store.lookup([("q", "t0"), ("q", "t1")])]
        assert states == [Outcome.EXPIRED if expires else Outcome.NACKED, None]

    @pytest.mark.parametrize("value", ["", "x", "inf", "nan", "1e300", "-5", "1.5"])
    def test_a_highest_token_that_is_none_gives_nothing_out(
        self, server: RedisServer, store: RedisStore, value: str
    ) -> None:
        token = claim(store)
        server.ask("SET", "claims:{q}", value)
        with pytest.raises(errors.StoreCorrupt, match=r'highest token.*DEL "claims:{q}"'):
            store.claim([request("other")])
        assert [record.task_id for record in store.scan(View.LIVE).records] == ["t"]
        server.ask("DEL", "claims:{q}")
        assert claim(store, "other").token > token.token

    @pytest.mark.parametrize("end", ["inf", "-inf", "1.5", "-5", "1e300", "1700000000000.5"])
    def test_ends_of_leases_that_are_no_times_end_no_scan(
        self, server: RedisServer, store: RedisStore, end: str
    ) -> None:
        """Nor are they granted over: who knows whose lease it is."""
        for number in range(3):
            claim(store, f"t{number}")
        server.ask("ZADD", "claims:{q}.e", end, "t1")
        for view in View:
            seen: list[str] = []
            cursor = None
            for _ in range(10):
                page = store.scan(view, cursor=cursor, limit=1)
                seen += [record.task_id for record in page.records]
                cursor = page.cursor
                if cursor is None:
                    break
            assert cursor is None
            if view is not View.ORPHANED:
                assert {"t0", "t2"} <= set(seen)
        with pytest.raises(errors.StoreCorrupt, match="HDEL"):
            store.claim([request("t1")])


class TestForms:
    """Every URL and option does what it says."""

    def test_schemes_are_known(self, server: RedisServer) -> None:
        for url in (
            f"redis://127.0.0.1:{server.port}/1",
            f"valkey://127.0.0.1:{server.port}/1",
            f"redis+socket://{server.socket}?db=1",
            f"redis+socket://{server.socket}?virtual_host=1",
        ):
            with open_store(url, timeout=30.0) as store:
                claim(store, url)
        with server.client(db=1) as client:
            assert client.hlen("claims:{q}.c") == 4
            client.flushdb()

    def test_prefixes_and_databases_are_apart(self, server: RedisServer, store: RedisStore) -> None:
        token = claim(store)
        with RedisStore(server.url, prefix="other:") as other:
            assert claim(other).token
        with RedisStore(f"{server.url}?prefix=third:") as third:
            assert claim(third).token
        with RedisStore(server.url, global_keyprefix="app:") as fourth:
            claim(fourth)
            assert len(fourth.scan(View.ALL).records) == 1
        assert server.ask("EXISTS", "app:claims:{q}.c") == 1
        assert store.lookup([("q", "t")])[0].token == token.token  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("url", "options", "setting"),
        [
            ("redis://h/x", {}, "claims_url"),
            ("redis://h/0?nonsense=1", {}, "claims_url"),
            ("redis://h:port/0", {}, "claims_url"),
            ("redis+socket://h/path", {}, "claims_url"),
            ("redis+socket://", {}, "claims_url"),
            ("sentinel://h/0", {}, "claims_url"),
            ("redis+cluster://h/1", {}, "claims_url"),
            ("redis://h", {"prefix": "{a}"}, "prefix"),
            ("redis://h", {"prefix": ""}, "prefix"),
            ("redis://h", {"slots": 0}, "slots"),
            ("redis://h?slots=x", {}, "slots"),
            ("redis://h", {"wait_replicas": -1}, "wait_replicas"),
            ("redis://h", {"timeout": 0}, "timeout"),
            ("redis://h", {"max_connections": 5}, "max_connections"),
        ],
    )
    def test_bad_forms_are_named(self, url: str, options: dict[str, Any], setting: str) -> None:
        with pytest.raises(errors.ConfigurationError) as caught:
            open_store(url, **options)
        assert caught.value.setting == setting

    def test_passwords_are_not_told(self) -> None:
        store = open_store("rediss://user:se%40cret@host:7000/2?ssl_cert_reqs=CERT_NONE")
        assert store.name == "rediss://user@host:7000"
        assert "cret" not in repr(store)

    def test_keys_of_a_shard_share_a_slot_whatever_the_queue(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        for queue in ("{x}", "}", "{", "a}b", "%7D", "#", "a#1", "{}"):
            release(store, claim(store, "t", queue))
            claim(store, "u", queue)
        keys = [key for key in server.ask("KEYS", "*") if key != b"claims:shards"]
        slots: dict[bytes, set[int]] = {}
        for key in keys:
            tag = key[key.index(b"{") + 1 : key.index(b"}")]
            slots.setdefault(tag, set()).add(key_slot(key))
        assert len(slots) == 8
        assert all(len(found) == 1 for found in slots.values())
        assert len({next(iter(found)) for found in slots.values()}) == 8

    def test_slots_spread_a_queue(self, server: RedisServer, store: RedisStore) -> None:
        with RedisStore(server.url, slots=4, prefix="spread:") as spread:
            spread.claim([request(f"t{number}") for number in range(100)])
            sizes = [server.ask("HLEN", f"spread:{{q#{slot}}}.c") for slot in range(4)]
            assert sum(sizes) == 100
            assert all(sizes)
            assert spread.census("q").live == 100
            assert len(spread.scan(View.LIVE, queue="q", limit=1000).records) == 100

    def test_redis_forgets_finished_records_by_itself(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        token = claim(store)
        store.settle([Settlement(token, Outcome.SUCCESS, 50)])
        wait_until(lambda: server.ask("KEYS", "claims:{q}.f*") == [], what="Redis forgets")
        assert store.lookup([("q", "t")]) == [None]
        assert claim(store).token > token.token


def finish_many(store: Any, number: int, keep_ms: int = KEEP, prefix: str = "t") -> list[str]:
    """So many tasks, claimed and finished; their ids."""
    ids = [f"{prefix}{count}" for count in range(number)]
    for first in range(0, number, 500):
        answers = store.claim([request(task_id) for task_id in ids[first : first + 500]])
        store.settle([Settlement(granted(a), Outcome.SUCCESS, keep_ms) for a in answers])
    return ids


def buckets(server: RedisServer) -> dict[bytes, int]:
    """Of queue q: how many finished records each has."""
    return {key: server.ask("HLEN", key) for key in server.ask("KEYS", "claims:{q}.f:*")}


class TestBuckets:
    """Finished records share small hashes."""

    def test_they_stay_small_and_are_found_on_every_level(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        ids = finish_many(store, 3000)
        sizes = buckets(server)
        assert sum(sizes.values()) == 3000
        levels = {key.split(b":")[-2] for key in sizes}
        assert len(levels) > 1
        assert max(sizes.values()) <= 120
        assert {server.ask("OBJECT", "ENCODING", key) for key in sizes} <= {b"listpack", b"ziplist"}
        found = store.lookup([("q", task_id) for task_id in ids])
        assert [record.task_id for record in found if record is not None] == ids
        assert {type(a) for a in store.claim([request(task_id) for task_id in ids])} == {Finished}

    def test_a_scan_shows_each_once_and_no_page_more_than_asked(self, store: RedisStore) -> None:
        ids = finish_many(store, 1000)
        claim(store, "claimed")
        shown: list[str] = []
        cursor: str | None = None
        while True:
            page = store.scan(View.ALL, queue="q", cursor=cursor, limit=30)
            assert len(page.records) <= 30
            shown += [record.task_id for record in page.records]
            cursor = page.cursor
            if cursor is None:
                break
        assert sorted(shown) == sorted([*ids, "claimed"])

    def test_what_is_over_makes_room(self, server: RedisServer, store: RedisStore) -> None:
        """One that is kept for long keeps its bucket, and those beside it go all the same."""
        kept = finish_many(store, 50, prefix="kept")
        for turn in range(20):
            finish_many(store, 200, keep_ms=1, prefix=f"{turn}-")
        assert sum(buckets(server).values()) < 1000
        assert all(store.lookup([("q", task_id) for task_id in kept]))

    def test_a_shorter_time_does_not_shorten_that_of_others(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        kept = finish_many(store, 100, prefix="kept")
        finish_many(store, 100, keep_ms=30, prefix="short")
        left = [server.ask("PTTL", key) for key in buckets(server)]
        assert min(left) > KEEP / 2
        assert server.ask("PTTL", "claims:{q}.f") > KEEP / 2
        assert {type(a) for a in store.claim([request(task_id) for task_id in kept])} == {Finished}

    def test_the_next_run_takes_a_finished_record_out(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        finish_many(store, 1)
        token = claim(store, "t0", root_id="another")
        assert buckets(server) == {}
        release(store, token)
        assert list(buckets(server).values()) == [1]

    @pytest.mark.parametrize("facts", [{"task_id": "i" * 65}, {"root_id": "r" * 60}])
    def test_a_long_one_has_a_key_of_its_own(
        self, server: RedisServer, store: RedisStore, facts: dict[str, str]
    ) -> None:
        first = request(**facts)
        release(store, granted(store.claim([first])[0]))
        assert buckets(server) == {}
        again = replace(first, grant_id="another")
        assert isinstance(store.claim([again])[0], Finished)
        (record,) = store.scan(View.ALL, cursor=store.scan(View.ALL).cursor).records
        assert record.task_id == first.task_id

    def test_one_of_another_type_is_told(self, server: RedisServer, store: RedisStore) -> None:
        finish_many(store, 1)
        (bucket,) = buckets(server)
        server.ask("DEL", bucket)
        server.ask("SET", bucket, "somebody's")
        removal = f'DEL "{bucket.decode()}"'
        with pytest.raises(errors.StoreCorrupt, match=removal):
            store.claim([request("t0")])
        (unreadable,) = store.scan(View.ALL, cursor=store.scan(View.ALL).cursor).unreadable
        assert unreadable.removal == removal
        server.ask("DEL", bucket)
        claim(store, "t0")

    def test_levels_that_are_none_are_passed_over(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        server.ask("SET", "claims:{q}.f", "x 99:1e9 -1:5 3: :7 26:9999999999999999")
        ids = finish_many(store, 3)
        assert all(store.lookup([("q", task_id) for task_id in ids]))


class TestTogether:
    """Forks and threads."""

    def test_child_has_connections_of_its_own(self, server: RedisServer, store: RedisStore) -> None:
        token = claim(store)

        def in_the_child() -> list[Any]:
            return [claim(store, "child").token, type(renew(store, token)).__name__, os.getpid()]

        number, answer, pid = in_child(in_the_child)
        assert (answer, pid != os.getpid()) == ("Renewed", True)
        assert store.lookup([("q", "child")])[0].token == number  # type: ignore[union-attr]
        assert isinstance(renew(store, token), Renewed)

    def test_forks_beside_busy_threads(self, server: RedisServer, store: RedisStore) -> None:
        stop = threading.Event()
        failed: list[BaseException] = []

        def work(number: int) -> None:
            try:
                while not stop.is_set():
                    release(store, claim(store, f"{number}-{uuid.uuid4()}"))
            except BaseException as error:  # noqa: BLE001 - told below
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(10):
                assert in_child(lambda turn=turn: claim(store, f"fork-{turn}").token) > 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failed == []

    def test_greenlets(self, server: RedisServer) -> None:
        """A hundred greenlets of one patched process wait for their answers side by side."""
        program = f"""
from gevent import monkey
monkey.patch_all()
from gevent.pool import Pool
from celery_claims.protocol import ClaimRequest, Outcome, Settlement, Success
from celery_claims.stores.redis import RedisStore
store = RedisStore("{server.url}", timeout=30.0, prefix="green:")
def work(number):
    name = str(number)
    answer = store.claim([ClaimRequest("q", name, "owner", 30_000, name, "root")])[0]
    assert isinstance(answer, Success), answer
    store.settle([Settlement(answer.token, Outcome.SUCCESS, 1000)])
    return number
assert sorted(Pool(100).map(work, range(500))) == list(range(500))
print("done")
"""
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == "done\n", done.stderr


class TestLimits:
    """Sizes and costs that must not grow."""

    def _realistic(self) -> ClaimRequest:
        task_id = str(uuid.uuid4())
        return request(
            task_id,
            "celery",
            owner="celery@worker-1/12345/0123456789abcdef",
            grant_id=uuid.uuid4().hex[:24],
            root_id=task_id,
            delivery=Delivery("proj.tasks.add", str(uuid.uuid4()), "", 0),
        )

    def test_memory_of_a_live_and_of_a_finished_record(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        """With UUIDs and names of usual length; what an allocator adds differs by its build."""
        number = 2000
        answers = store.claim([self._realistic() for _ in range(number)])
        tokens = [granted(answer) for answer in answers]
        usage = [
            server.ask("MEMORY", "USAGE", f"claims:{{celery}}.{kind}", "SAMPLES", 0)
            for kind in ("c", "e")
        ]
        assert sum(usage) / number <= 340
        store.settle([Settlement(token, Outcome.SUCCESS, KEEP) for token in tokens])
        assert server.ask("EXISTS", "claims:{celery}.c", "claims:{celery}.e") == 0
        assert server.ask("KEYS", "claims:{celery}:*") == []
        keys = server.ask("KEYS", "claims:{celery}.f*")
        usage = [server.ask("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys]
        assert sum(usage) / number <= 80

    def test_no_verb_does_more_with_more_claims(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        """By the commands that the server counts, with 10 live claims and with 3000."""

        def commands_of_one_round() -> dict[str, int]:
            server.ask("CONFIG", "RESETSTAT")
            token = claim(store, "one")
            renew(store, token)
            store.scan(View.ORPHANED, limit=10)
            store.expire([], keep_ms=KEEP)
            release(store, token)
            with server.client() as client:
                found = client.info("commandstats")
            server.ask("DEL", *server.ask("KEYS", "claims:{q}.f*"))
            ignored = ("cmdstat_info", "cmdstat_config", "cmdstat_hello", "cmdstat_client")
            return {
                name: facts["calls"]
                for name, facts in found.items()
                if not name.startswith(ignored)
            }

        store.claim([request(f"t{number}") for number in range(10)])
        commands_of_one_round()
        few = commands_of_one_round()
        store.claim([request(f"u{number}") for number in range(3000)])
        assert commands_of_one_round() == few
        assert "cmdstat_keys" not in few
        assert "cmdstat_hgetall" not in few

    def _commands(self, server: RedisServer, work: Any) -> dict[str, int]:
        """How often a script's commands are called while something is done."""
        server.ask("CONFIG", "RESETSTAT")
        work()
        with server.client() as client:
            found = client.info("commandstats")
        names = {name.removeprefix("cmdstat_"): facts["calls"] for name, facts in found.items()}
        ignored = ("evalsha", "info", "config", "hello", "client")
        return {name: calls for name, calls in names.items() if not name.startswith(ignored)}

    def test_the_usual_case_of_each_verb_takes_few_commands(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        """Each is some microseconds; a claim of many writes what they share once."""
        # So that the scripts are known and there is a bucket for what comes.
        finish_many(store, 200)
        renew(store, claim(store, "warm"))
        requests = [request(f"new-{number}") for number in range(50)]
        tokens: list[ClaimToken] = []
        claims = dict.fromkeys(("time", "mget", "hexists", "hsetnx", "set", "zadd"), 1)
        renewals = dict.fromkeys(("time", "mget", "hget", "zscore", "zadd"), 1)
        ends = dict.fromkeys(("time", "mget", "hget", "hlen", "pttl", "hset", "hdel", "zrem"), 1)
        for work, expected in (
            (lambda: tokens.append(claim(store, "one")), claims),
            (lambda: store.claim(requests), {**claims, "hexists": 50, "hsetnx": 50}),
            (lambda: renew(store, tokens[0]), renewals),
            (lambda: release(store, tokens[0]), ends),
        ):
            assert self._commands(server, work) == expected

    def test_batch_takes_one_call_a_shard(self, server: RedisServer, store: RedisStore) -> None:
        claim(store, "warm", "a")
        claim(store, "warm", "b")
        server.ask("CONFIG", "RESETSTAT")
        store.claim([request(f"t{number}", "ab"[number % 2]) for number in range(100)])
        with server.client() as client:
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 2

    def test_scan_of_a_foreign_crowd_is_bounded(
        self, server: RedisServer, store: RedisStore
    ) -> None:
        """Pages may be empty, none looks at all keys, and nothing is left out."""
        with server.client() as client:
            client.mset({f"foreign-{number}": b"" for number in range(30_000)})
        store.settle(
            [Settlement(claim(store, f"t{number}"), Outcome.SUCCESS, KEEP) for number in range(30)]
        )
        seen, pages, cursor = [], 0, None
        while True:
            page = store.scan(View.ALL, cursor=cursor, limit=7)
            pages += 1
            assert len(page.records) <= 7
            seen += [record.task_id for record in page.records]
            cursor = page.cursor
            if cursor is None:
                break
        assert sorted(seen) == sorted(f"t{number}" for number in range(30))
        assert pages > 3
        assert isinstance(store.claim([request("t1")])[0], Finished)


class TestShards:
    """Which shards a scan asks: a queue for each customer must not make every sweep slower."""

    DAY = 86_400_000

    @pytest.fixture
    def times(self) -> list[int]:
        return [0]

    @pytest.fixture
    def store(self, server: RedisServer, times: list[int]) -> Iterator[RedisStore]:
        with open_store(server.url, clock_offset=lambda: times[0], prefix="shards:") as store:
            assert isinstance(store, RedisStore)
            yield store
        for key in server.ask("KEYS", "shards:*"):
            server.ask("DEL", key)

    def known(self, server: RedisServer) -> set[str]:
        return {tag.decode() for tag in server.ask("ZRANGE", "shards:shards", 0, -1)}

    def sweep(self, server: RedisServer, times: list[int]) -> None:
        """As a worker does that has just started."""
        with open_store(server.url, clock_offset=lambda: times[0], prefix="shards:") as other:
            other.expire([], keep_ms=1000)

    def test_one_that_is_empty_and_unused_for_a_day_is_forgotten(
        self, server: RedisServer, store: RedisStore, times: list[int]
    ) -> None:
        release(store, claim(store, "t", "gone"))
        times[0] = self.DAY - 1000
        self.sweep(server, times)
        assert self.known(server) == {"gone"}
        times[0] = self.DAY + 1000
        self.sweep(server, times)
        assert self.known(server) == set()

    def test_one_in_which_something_is_claimed_stays_and_hides_no_other(
        self, server: RedisServer, store: RedisStore, times: list[int], monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(redis_registry, "RETIRE_AT_ONCE", 1)
        claim(store, "t", "a")
        release(store, claim(store, "t", "b"))
        times[0] = self.DAY + 1000
        self.sweep(server, times)
        assert self.known(server) == {"a", "b"}
        self.sweep(server, times)
        assert self.known(server) == {"a"}
        assert [r.task_id for r in store.scan(View.ORPHANED).records] == ["t"]

    def test_one_that_is_used_again_meanwhile_stays(
        self, server: RedisServer, store: RedisStore, times: list[int], monkeypatch: Any
    ) -> None:
        """Whoever writes in it has noted it before: between the two looks of a sweep as well."""
        release(store, claim(store, "t", "again"))
        times[0] = self.DAY + 1000
        empty = redis_registry.Registry._is_empty

        def claimed_since(registry: redis_registry.Registry, shard: Any) -> bool:
            found = empty(registry, shard)
            with open_store(server.url, clock_offset=lambda: times[0], prefix="shards:") as other:
                claim(other, "u", "again")
            return found

        monkeypatch.setattr(redis_registry.Registry, "_is_empty", claimed_since)
        self.sweep(server, times)
        assert self.known(server) == {"again"}

    def test_one_that_is_forgotten_is_noted_before_it_is_written_in(
        self, server: RedisServer, store: RedisStore, times: list[int], monkeypatch: Any
    ) -> None:
        release(store, claim(store, "t", "back"))
        times[0] = self.DAY + 1000
        self.sweep(server, times)
        monkeypatch.setattr(redis_registry, "REGISTER_EVERY", 0.0)
        claim(store, "u", "back")
        assert self.known(server) == {"back"}
        assert [r.task_id for r in store.scan(View.LIVE).records] == ["u"]

    def test_somebody_elses_key_in_its_place_stays_to_be_told(
        self, server: RedisServer, store: RedisStore, times: list[int]
    ) -> None:
        release(store, claim(store, "t", "theirs"))
        server.ask("SET", "shards:{theirs}.c", "no hash")
        times[0] = self.DAY + 1000
        self.sweep(server, times)
        assert self.known(server) == {"theirs"}
