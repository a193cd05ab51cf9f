"""The Redis store on several servers, and what ``check`` says of a server."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery_claims import errors
from celery_claims.protocol import (
    ClaimRequest,
    ClaimToken,
    Finished,
    Lost,
    Outcome,
    Renewal,
    Renewed,
    Settlement,
    Success,
)
from celery_claims.stores import View, open_store
from celery_claims.stores.redis import RedisStore
from celery_claims.testing import Harness, StoreConformance
from redis.crc import key_slot

from tests.process.waiting import wait_until

from .calls import every_call
from .redis_harness import RedisHarness
from .redis_server import RedisCluster, RedisServer, Replicated, paused, shared_cluster

LEASE = 30_000
KEEP = 3_600_000

DOCS = Path(__file__).parents[2] / "docs" / "stores" / "redis.md"


def documented_permissions() -> list[str]:
    """What the documentation says that a user needs."""
    found = re.search(r"ACL SETUSER (?:\S+ ){3}(.*)", DOCS.read_text())
    assert found is not None
    return found.group(1).split()


def request(task_id: str = "t", queue: str = "q") -> ClaimRequest:
    grant = uuid.uuid4().hex
    return ClaimRequest(queue, task_id, f"owner-{grant}", LEASE, grant, "root")


def claim(store: Any, task_id: str = "t", queue: str = "q") -> ClaimToken:
    answer = store.claim([request(task_id, queue)])[0]
    assert isinstance(answer, Success), answer
    return answer.token


class TestCheck:
    """A store says when its server cannot keep the promises."""

    @pytest.fixture
    def server(self) -> Iterator[RedisServer]:
        with RedisServer("--appendonly", "yes") as running:
            yield running

    def test_safe_server_raises_no_concern(self, server: RedisServer) -> None:
        with RedisStore(server.url) as store:
            assert store.check() == []

    def test_eviction(self, server: RedisServer) -> None:
        server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        with RedisStore(server.url) as store:
            (concern,) = store.check()
        assert "allkeys-lru" in concern
        assert "noeviction" in concern

    def test_no_persistence(self, server: RedisServer) -> None:
        server.ask("CONFIG", "SET", "appendonly", "no")
        with RedisStore(server.url) as store:
            (concern,) = store.check()
            assert "neither AOF nor RDB" in concern
            server.ask("CONFIG", "SET", "save", "900 1")
            assert store.check() == []

    def test_user_without_config_and_info(self, server: RedisServer) -> None:
        """It works, and says what it could not find out."""
        server.ask("ACL", "SETUSER", "worker", "on", ">secret", *documented_permissions())
        with RedisStore(f"redis://worker:secret@127.0.0.1:{server.port}") as store:
            token = claim(store)
            assert isinstance(store.renew([Renewal(token, LEASE)])[0], Renewed)
            store.settle([Settlement(token, Outcome.SUCCESS, KEEP)])
            assert isinstance(store.claim([request()])[0], Finished)
            for view in View:
                store.scan(view)
            store.expire([], keep_ms=0)
            assert store.elect("duty", 1000)
            concerns = store.check()
        assert len(concerns) == 3
        assert all("could not be checked" in concern for concern in concerns)

    def test_user_without_the_keys(self, server: RedisServer) -> None:
        server.ask("ACL", "SETUSER", "other", "on", ">secret", "~other:*", "+@all")
        with (
            RedisStore(f"redis://other:secret@127.0.0.1:{server.port}") as store,
            pytest.raises(errors.StoreReadOnly) as caught,
        ):
            store.claim([request()])
        assert "commands and keys" in str(caught.value)


class TestReplicas:
    @pytest.fixture
    def pair(self) -> Iterator[Replicated]:
        with Replicated() as running:
            yield running

    def test_replicas_without_waiting_are_a_concern(self, pair: Replicated) -> None:
        pair.master.ask("CONFIG", "SET", "save", "900 1")
        with RedisStore(pair.master.url) as store:
            (concern,) = store.check()
        assert "wait_replicas" in concern
        with RedisStore(f"{pair.master.url}?wait_replicas=1") as store:
            assert store.check() == []

    def test_waiting_for_a_replica(self, pair: Replicated) -> None:
        """An answer means that the replica has the write; too few acknowledgements are an error."""
        with RedisStore(pair.master.url, wait_replicas=1, timeout=2.0) as store:
            token = claim(store)
            assert pair.replica.ask("HLEN", "claims:{q}.c") == 1
            asked = request("u")
            with paused(pair.replica), pytest.raises(errors.StoreUnavailable, match="0 of 1"):
                store.claim([asked])
            wait_until(lambda: pair.replica.ask("HLEN", "claims:{q}.c") == 2, what="replication")
            (again,) = store.claim([asked])
            assert isinstance(again, Success)
            assert isinstance(store.renew([Renewal(token, LEASE)])[0], Renewed)

    def test_failover_to_a_lagging_replica(self, pair: Replicated) -> None:
        """The last grants are lost with the master; no token is given out twice all the same."""
        with RedisStore(pair.master.url) as store:
            kept = claim(store, "kept")
            wait_until(lambda: pair.replica.ask("HLEN", "claims:{q}.c") == 1, what="replication")
            # From here on the replica follows nobody: what comes is not in it.
            pair.replica.ask("REPLICAOF", "NO", "ONE")
            lost = claim(store, "lost")
        pair.master.kill()
        with RedisStore(pair.replica.url) as store:
            assert store.lookup([("q", "lost")]) == [None]
            assert isinstance(store.renew([Renewal(kept, LEASE)])[0], Renewed)
            second = claim(store, "lost")
            assert second.token > lost.token
            assert isinstance(store.renew([Renewal(lost, LEASE)])[0], Lost)

    def test_owner_brings_back_what_a_failover_lost(self, pair: Replicated) -> None:
        with RedisStore(pair.master.url) as store:
            pair.replica.ask("REPLICAOF", "NO", "ONE")
            lost = claim(store, "lost")
        pair.master.kill()
        with RedisStore(pair.replica.url) as store:
            assert isinstance(store.renew([Renewal(lost, LEASE)])[0], Renewed)
            (record,) = store.lookup([("q", "lost")])
            assert record is not None
            assert record.token == lost.token


class TestSentinel:
    def test_failover(self) -> None:
        """The store finds the new master by itself, and tokens rise across it."""
        with Replicated(sentinels=3) as servers:
            store = open_store(f"{servers.url}?master_name=claims", timeout=1.0)
            with store:
                first = claim(store, "first")
                wait_until(
                    lambda: servers.replica.ask("HLEN", "claims:{q}.c") == 1, what="replication"
                )
                servers.master.kill()
                again = wait_until(lambda: self._claimed(store, "second"), what="a new master")
                assert again.token > first.token
                assert servers.replica.ask("HLEN", "claims:{q}.c") == 2
                assert isinstance(store.renew([Renewal(first, LEASE)])[0], Renewed)

    def _claimed(self, store: Any, task_id: str) -> ClaimToken | None:
        try:
            return claim(store, task_id)
        except errors.StoreError:
            return None

    def test_unreachable_sentinels(self) -> None:
        with RedisServer(sentinel=True) as sentinel:
            url = f"sentinel://127.0.0.1:{sentinel.port}/0?master_name=claims"
            with open_store(url, timeout=1.0) as store, pytest.raises(errors.StoreUnavailable):
                store.claim([request()])


def slots(server: RedisServer, numbers: Iterable[int] = ()) -> None:
    """Let a cluster of one node have these slots and no more, and no data."""
    server.ask("FLUSHALL")
    server.ask("CLUSTER", "FLUSHSLOTS")
    if numbers:
        server.ask("CLUSTER", "ADDSLOTS", *numbers)


class TestErrors:
    """Whatever the driver raises is one of ours, with its cause, from every verb."""

    LONE = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")

    @pytest.mark.parametrize(
        ("kind", "state"),
        [
            ("redis", "dead"),
            ("sentinel", "dead"),
            ("redis+cluster", "dead"),
            ("redis+cluster", "without slots"),
            ("redis+cluster", "without this slot"),
        ],
    )
    def test_every_verb_translates(self, kind: str, state: str) -> None:
        with RedisServer(*(self.LONE if kind == "redis+cluster" else ())) as server:
            if kind == "redis+cluster":
                slots(server, range(16_384))
                plain = f"redis+cluster://127.0.0.1:{server.port}"
            else:
                plain = server.url
            with open_store(plain, timeout=5.0) as store:
                token = wait_until(lambda: claimed_or_none(store), what="a claim")
            if state == "without slots":
                slots(server)
            elif state == "without this slot":
                slots(server, {0, 1} - {key_slot(b"claims:{q}")})
            else:
                server.kill()
            url = f"sentinel://127.0.0.1:{server.port}/0?master_name=claims"
            with open_store(url if kind == "sentinel" else plain, timeout=1.0) as store:
                for name, call in every_call(store, token):
                    with pytest.raises(errors.StoreUnavailable) as caught:
                        call()
                    assert caught.value.__cause__ is not None, name


def claimed_or_none(store: Any) -> ClaimToken | None:
    """A claim, unless the store is not up yet."""
    try:
        return claim(store, uuid.uuid4().hex)
    except errors.StoreError:
        return None


class ClusterHarness(RedisHarness):
    server: Any

    def __init__(self) -> None:
        super().__init__(shared_cluster())

    def lose_everything(self) -> None:
        for node in self.server.masters():
            for key in node.ask("KEYS", f"{self.prefix}*"):
                node.ask("DEL", key)


class TestRedisClusterConformance(StoreConformance):
    #: A race is as good with fewer turns where each takes longer.
    rounds = 50

    def make_harness(self) -> Harness:
        return ClusterHarness()


@pytest.fixture
def cluster() -> RedisCluster:
    return shared_cluster()


def moved_key_by_key(cluster: RedisCluster, slot: int) -> Iterator[None]:
    """Move a slot to another master; after each of its keys it is the caller's turn."""
    names = {node: node.ask("CLUSTER", "MYID") for node in cluster.masters()}
    source = cluster.holder(slot)
    target = next(node for node in names if node is not source)
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
    for key in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
        source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 30_000)
        yield
    for node in (target, source):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", names[target])


class TestCluster:
    def test_batch_over_many_slots(self, cluster: RedisCluster) -> None:
        with open_store(cluster.url, timeout=30.0) as store:
            requests = [request(f"t{number}", f"queue-{number % 20}") for number in range(200)]
            answers = store.claim(requests)
            tokens = [answer.token for answer in answers if isinstance(answer, Success)]
            assert len(tokens) == 200
            assert [token.task_id for token in tokens] == [each.task_id for each in requests]
            holding = [node for node in cluster.masters() if node.ask("DBSIZE") > 3]
            assert len(holding) == 3
            for node in cluster.nodes:
                node.ask("SCRIPT", "FLUSH")
            renewed = store.renew([Renewal(token, LEASE) for token in tokens])
            assert all(isinstance(answer, Renewed) for answer in renewed)
            assert store.census().live >= 200

    def test_moved_slot_is_followed(self, cluster: RedisCluster) -> None:
        """A client that knew the slot elsewhere finds it."""
        with open_store(cluster.url, timeout=30.0, prefix="moved:") as store:
            token = claim(store)
            for _ in moved_key_by_key(cluster, key_slot(b"moved:{q}")):
                pass
            assert isinstance(store.renew([Renewal(token, LEASE)])[0], Renewed)

    def test_finished_tasks_are_not_granted_while_their_slot_moves(
        self, cluster: RedisCluster
    ) -> None:
        """Nor afterwards; whichever of its keys has moved already."""
        requests = [request(f"t{number}") for number in range(30)]
        with open_store(cluster.url, timeout=30.0, prefix="moving:") as store:
            answers = store.claim(requests)
            tokens = [answer.token for answer in answers if isinstance(answer, Success)]
            store.settle([Settlement(token, Outcome.SUCCESS, KEEP) for token in tokens])
            again = [replace(each, grant_id=uuid.uuid4().hex) for each in requests]
            steps = 0
            for _ in moved_key_by_key(cluster, key_slot(b"moving:{q}")):
                steps += 1
                with suppress(errors.StoreUnavailable):
                    assert isinstance(store.claim(again[:1])[0], Finished)
            assert steps > 5
            assert {type(answer) for answer in store.claim(again)} == {Finished}

    def test_single_url_of_a_cluster_says_what_to_use(self, cluster: RedisCluster) -> None:
        messages = []
        for number in range(20):
            node = cluster.nodes[0]
            with RedisStore(node.url, prefix=f"single-{number}:") as store:
                try:
                    claim(store, "t", f"queue-{number}")
                except errors.StoreUnavailable as error:
                    messages.append(str(error))
        assert any("redis+cluster://" in message for message in messages)

    def test_check_asks_every_master(self, cluster: RedisCluster) -> None:
        with open_store(cluster.url, timeout=30.0) as store:
            concerns = store.check()
        assert len({concern.split(": ")[0] for concern in concerns}) == 3

    def test_waiting_for_replicas(self, cluster: RedisCluster) -> None:
        with open_store(f"{cluster.url}?wait_replicas=1", timeout=5.0, prefix="wait:") as store:
            answers = store.claim([request("t", f"queue-{number}") for number in range(9)])
            assert all(isinstance(answer, Success) for answer in answers)
        with (
            open_store(f"{cluster.url}?wait_replicas=2", timeout=1.0, prefix="wait:") as store,
            pytest.raises(errors.StoreUnavailable, match="1 of 2"),
        ):
            store.claim([request("u")])

    def test_master_that_dies_is_replaced(self) -> None:
        """In a cluster of its own: the replica takes over, and tokens rise."""
        with RedisCluster() as own, open_store(own.url, timeout=1.0) as store:
            first = claim(store)
            own.holder(key_slot(b"claims:{q}")).kill()

            def claimed() -> ClaimToken | None:
                try:
                    return claim(store, "second")
                except errors.StoreError:
                    return None

            assert wait_until(claimed, what="a new master").token > first.token
