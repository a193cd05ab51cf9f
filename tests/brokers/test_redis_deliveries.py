"""Unacknowledged messages of kombu's Redis transport, on a real server and with real consumers."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery_claims.brokers import Fate, InHand, open_deliveries
from celery_claims.brokers.redis import PAGE, RedisDeliveries
from celery_claims.errors import StoreUnavailable
from celery_claims.protocol import Attempt, Delivery, Record, State
from kombu.transport.redis import Channel

from tests.docs.pages import ROOT
from tests.process.proxy import Fault, Proxy
from tests.process.redis_broker import RedisBroker
from tests.stores.redis_server import paused

#: Seconds; no test waits so long, so what was touched in it is fresh.
STALE = 3600.0

DOCS = ROOT / "docs" / "brokers" / "redis.md"

OPTIONS = [
    pytest.param({}, id="defaults"),
    pytest.param(
        {
            "global_keyprefix": "ours:",
            "unacked_key": "u",
            "unacked_index_key": "i",
            "sep": "|",
            "priority_steps": [0, 5],
        },
        id="custom",
    ),
]


class Bench:
    """A broker, a worker's channel of it, and the deliveries."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.broker = RedisBroker(folder, options=options)
        self.connection = self.broker.connect()
        # Nothing of the worker's is put back when it is collected: it is as good as killed.
        self.channel = self.connection.channel()
        self.channel.do_restore = False
        found = open_deliveries(self.connection, timeout=30.0, stale_after=STALE)
        assert isinstance(found, RedisDeliveries)
        self.deliveries = found
        self.client = self.broker.client()

    def close(self) -> None:
        self.deliveries.close()
        self.client.close()
        self.connection.release()

    def publish(self, queue: kombu.Queue | str = "q", **options: Any) -> None:
        with self.broker.connect() as connection, connection.Producer() as producer:
            if isinstance(queue, str):
                producer.publish({"n": 1.5}, routing_key=queue, **options)
            else:
                producer.publish({"n": 1.5}, exchange=queue.exchange, declare=[queue], **options)

    def take(self, queue: str = "q") -> str:
        """Take a message as a worker does; its delivery tag."""
        message = self.channel.basic_get(queue)
        assert message is not None
        return str(message.delivery_tag)

    def taken(self, queue: str = "q", **options: Any) -> str:
        self.publish(queue, **options)
        return self.take(queue)

    def age(self, *tags: str, seconds: float = STALE + 60) -> None:
        """So long ago the worker touched them last."""
        then = time.time() - seconds
        self.client.zadd(self.index, dict.fromkeys(tags, then), xx=True)
        for member in self.touched():
            if json.loads(member)[0] in tags:
                self.client.zadd(self.touched_key, {member: then})

    @property
    def index(self) -> str:
        return self.broker.key(self.broker.options.get("unacked_index_key", "unacked_index"))

    @property
    def touched_key(self) -> str:
        return f"{self.index}.celery_claims"

    def touched(self) -> list[str]:
        return list(self.client.zrange(self.touched_key, 0, -1))

    def score(self, tag: str) -> float | None:
        score: float | None = self.client.zscore(self.index, tag)
        return score

    def waiting(self, queue: str = "q") -> list[dict[str, Any]]:
        """The messages of all lists of a queue, the next one last."""
        sep = self.broker.options.get("sep", Channel.sep)
        key = self.broker.key(queue)
        names = sorted(n for n in self.client.keys("*") if n == key or n.startswith(key + sep))
        return [json.loads(item) for name in names for item in self.client.lrange(name, 0, -1)]

    def give_back(self, *tags: str, queue: str = "q") -> list[Fate]:
        return self.deliveries.give_back([record(tag, queue) for tag in tags])


def record(tag: str, queue: str = "q") -> Record:
    """An expired claim on the message."""
    return Record(
        queue="q",
        task_id=f"id-{tag}",
        owner="w1",
        grant_id="g",
        token=1,
        root_id="r",
        attempt=Attempt(),
        deaths=0,
        claimed_at=0,
        expires_at=1,
        started=False,
        deliveries=0,
        state=State.CLAIMED,
        outcome=None,
        settled_at=0,
        forget_at=0,
        delivery=Delivery(tag=tag, queue=queue),
    )


@contextmanager
def a_bench(folder: Path, options: dict[str, Any]) -> Iterator[Bench]:
    bench = Bench(folder, options)
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture(params=[OPTIONS[0]])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with a_bench(tmp_path / "broker", dict(request.param)) as bench:
        yield bench


on_all_options = pytest.mark.parametrize("bench", OPTIONS, indirect=True)


class TestTouch:
    @on_all_options
    def test_a_touched_message_is_not_put_back_by_kombu(self, bench: Bench) -> None:
        """Whatever the visibility timeout: its time starts anew."""
        tag, other = bench.taken(), bench.taken()
        bench.age(tag, other)
        bench.deliveries.touch([InHand(tag, "q")])
        bench.channel.qos.restore_visible()
        assert bench.broker.unacked() == [tag]
        assert len(bench.waiting()) == 1

    def test_an_acknowledged_message_is_left_alone(self, bench: Bench) -> None:
        tag = bench.taken()
        bench.deliveries.touch([InHand(tag, "q")])
        bench.channel.basic_ack(tag)
        bench.deliveries.touch([InHand(tag, "q")])
        assert bench.score(tag) is None
        assert bench.touched() == []

    def test_the_time_is_the_servers(self, bench: Bench) -> None:
        """A worker whose clock is ahead wrote a time at which it may be long dead."""
        tag = bench.taken()
        bench.age(tag, seconds=-7200)
        bench.deliveries.touch([InHand(tag, "q")])
        now, _ = bench.client.time()
        assert abs(bench.score(tag) - now) < 600

    def test_what_is_dropped_is_forgotten_once_it_is_acknowledged(self, bench: Bench) -> None:
        """What is not acknowledged may be nobody's, after a lost connection."""
        done, left = InHand(bench.taken(), "q"), InHand(bench.taken(), "q")
        bench.deliveries.touch([done, left])
        bench.channel.basic_ack(done.tag)
        bench.deliveries.touch([], [done, left])
        assert bench.touched() == [json.dumps(left)]

    def test_nothing_costs_nothing(self, bench: Bench) -> None:
        calls = bench.client.info("stats")["total_commands_processed"]
        bench.deliveries.touch([])
        assert bench.client.info("stats")["total_commands_processed"] == calls + 1

    def test_a_flushed_script_is_sent_again(self, bench: Bench) -> None:
        tag = bench.taken()
        bench.deliveries.touch([InHand(tag, "q")])
        bench.client.script_flush()
        bench.age(tag)
        bench.deliveries.touch([InHand(tag, "q")])
        assert bench.score(tag) > time.time() - STALE


class TestGiveBack:
    @on_all_options
    @pytest.mark.parametrize("priority", [0, 4, 9])
    def test_it_is_given_back_as_kombu_does_it(self, bench: Bench, priority: int) -> None:
        """The same message to the same list, and nothing of it is left behind."""
        expected_tag = bench.taken(priority=priority, headers={"a": 0.1, "b": 10**20})
        bench.channel.qos.restore_by_tag(expected_tag)
        (expected,) = bench.waiting()
        tag = bench.take()
        assert tag == expected_tag
        bench.age(tag)
        assert bench.give_back(tag) == [Fate.PUT_BACK]
        assert bench.waiting() == [expected]
        assert bench.broker.unacked() == []
        assert bench.score(tag) is None

    def test_it_is_the_next_to_be_consumed(self, bench: Bench) -> None:
        tag = bench.taken()
        bench.publish()
        bench.age(tag)
        bench.give_back(tag)
        assert bench.take() == tag

    def test_not_while_a_worker_touches_it(self, bench: Bench) -> None:
        """The claim may have expired because the store was down."""
        tag = bench.taken()
        bench.deliveries.touch([InHand(tag, "q")])
        assert bench.give_back(tag) == [Fate.IN_HAND]
        assert bench.broker.unacked() == [tag]
        assert bench.waiting() == []

    def test_one_that_is_nobodys_is_back(self, bench: Bench) -> None:
        """In its queue already, or acknowledged: its claim may go."""
        tag = bench.taken()
        bench.channel.basic_ack(tag)
        assert bench.give_back(tag, "never-was", "") == [Fate.NOBODYS] * 3
        assert bench.waiting() == []

    def test_each_goes_its_way(self, bench: Bench) -> None:
        dead, alive = bench.taken(), bench.taken("other")
        bench.age(dead)
        records = [record(alive, "other"), record(dead)]
        assert bench.deliveries.give_back(records) == [Fate.IN_HAND, Fate.PUT_BACK]

    def test_of_two_at_once_one_gives_it_back(self, bench: Bench) -> None:
        tags = [bench.taken() for _ in range(50)]
        bench.age(*tags)
        others = [
            open_deliveries(bench.connection, timeout=30.0, stale_after=STALE) for _ in range(4)
        ]
        barrier = threading.Barrier(4)

        def give_back(deliveries: Any) -> None:
            barrier.wait()
            deliveries.give_back([record(tag) for tag in tags])
            deliveries.close()

        threads = [threading.Thread(target=give_back, args=(other,)) for other in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(bench.waiting()) == 50
        assert bench.broker.unacked() == []

    def test_one_that_was_delivered_again_meanwhile_is_left(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Under the same tag: the message in the hash is not the one that was read."""
        tag = bench.taken()
        bench.age(tag)
        link = bench.deliveries._link
        ask = link.ask

        def asking(*command: Any) -> Any:
            answer = ask(*command)
            bench.channel.qos.restore_by_tag(tag)
            assert bench.take() == tag
            bench.age(tag)
            return answer

        monkeypatch.setattr(link, "ask", asking)
        assert bench.give_back(tag) == [Fate.IN_HAND]
        assert bench.broker.unacked() == [tag]
        assert bench.waiting() == []

    def test_a_topic_message_goes_back_to_all_its_queues(self, bench: Bench) -> None:
        """Its copies share one delivery tag, and the hash has one of them."""
        exchange = kombu.Exchange("news", "topic")
        queues = [kombu.Queue(name, exchange, "a.*") for name in ("one", "two")]
        with bench.broker.connect() as connection, connection.Producer() as producer:
            producer.publish({}, exchange=exchange, routing_key="a.b", declare=queues)
            producer.publish({}, exchange=exchange, routing_key="a.b")
        tags = {bench.take("one"), bench.take("two")}
        assert len(tags) == 1
        bench.age(*tags)
        assert bench.give_back(*tags, queue="one") == [Fate.PUT_BACK]
        assert [len(bench.waiting(queue)) for queue in ("one", "two")] == [2, 2]

    def test_what_cannot_be_read_hides_no_other(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        strange, fine = bench.taken(), bench.taken()
        bench.client.hset("unacked", strange, "[]")
        bench.age(strange, fine)
        assert bench.give_back(strange, fine) == [Fate.IN_HAND, Fate.PUT_BACK]
        assert bench.client.hget("unacked", strange) == "[]"
        assert strange in caplog.text

    def test_a_reply_that_is_lost_puts_nothing_back_twice(self, bench: Bench) -> None:
        """Whoever asked asks again."""
        tag = bench.taken()
        bench.age(tag)
        with Proxy(bench.broker.server.port) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}/{bench.broker.database}"
            other = open_deliveries(kombu.Connection(url), timeout=5.0, stale_after=STALE)
            assert isinstance(other, RedisDeliveries)
            # The server knows the script from now on: what is lost is the answer to its work.
            assert other.give_back([record("none")]) == [Fate.NOBODYS]
            run = other._link.run

            def losing(calls: Any) -> Any:
                proxy.fault = Fault.CUT_ON_REPLY
                return run(calls)

            other._link.run = losing  # type: ignore[assignment]
            with pytest.raises(StoreUnavailable):
                other.give_back([record(tag)])
            proxy.fault = Fault.NONE
            other._link.run = run  # type: ignore[method-assign]
            assert other.give_back([record(tag)]) == [Fate.NOBODYS]
            other.close()
        assert len(bench.waiting()) == 1


class TestGiveBackUntouched:
    def test_what_a_dead_worker_held(self, bench: Bench) -> None:
        """No claim tells of it."""
        tag = bench.taken()
        bench.deliveries.touch([InHand(tag, "q")])
        assert bench.deliveries.give_back_untouched() == 0
        bench.age(tag)
        assert bench.deliveries.give_back_untouched() == 1
        assert bench.deliveries.give_back_untouched() == 0
        assert bench.take() == tag
        assert bench.touched() == []

    def test_a_worker_with_a_longer_lease_is_believed_for_longer(self, bench: Bench) -> None:
        """Several apps may be on one broker; the one with the shortest lease sweeps as well."""
        tag = bench.taken()
        bench.deliveries.touch([InHand(tag, "q")])
        bench.client.zadd(bench.index, {tag: time.time() - 60})
        impatient = open_deliveries(bench.connection, timeout=30.0, stale_after=1.0)
        assert impatient is not None
        assert impatient.give_back([record(tag)]) == [Fate.IN_HAND]
        assert impatient.give_back_untouched() == 0
        impatient.close()

    def test_what_somebody_else_wrote_hides_nothing(self, bench: Bench) -> None:
        """Trap 13; more than a page of it."""
        tag = bench.taken()
        bench.deliveries.touch([InHand(tag, "q")])
        bench.age(tag)
        touched = bench.deliveries._names.key(bench.deliveries._names.touched)
        foreign = [b"\xff", b"{", b"5", b'["tag"]', b'["tag", 5]', b'{"a": "b"}', b"null"]
        foreign += [b"foreign-%d" % number for number in range(PAGE)]
        bench.client.zadd(touched, dict.fromkeys(foreign, 1.0))
        assert bench.deliveries.give_back_untouched() == 1
        assert bench.touched() == []

    @pytest.mark.parametrize(
        "entry",
        [b"", b"\xff", b"5", b"[1, 2, 3]", b'[{"properties": {}}, ["x"], 5]', b"[{}, 1, 2]"],
    )
    def test_an_entry_of_somebody_else_is_left_and_hides_nothing(
        self, bench: Bench, entry: bytes
    ) -> None:
        tag = bench.taken()
        unacked = bench.deliveries._names.key(bench.deliveries._names.unacked)
        bench.client.hset(unacked, "bad", entry)
        bench.age(tag)
        assert bench.give_back("bad", tag, "\ud800") == [
            Fate.IN_HAND,
            Fate.PUT_BACK,
            Fate.NOBODYS,
        ]
        assert bench.client.hstrlen(unacked, "bad") == len(entry)
        assert bench.client.hexists(unacked, "bad")

    def test_more_than_a_page(self, bench: Bench) -> None:
        held = [InHand(bench.taken(), "q") for _ in range(PAGE + 20)]
        bench.deliveries.touch(held)
        bench.age(*(each.tag for each in held))
        assert bench.deliveries.give_back_untouched() == PAGE + 20

    def test_one_that_came_to_another_worker_stays_known(self, bench: Bench) -> None:
        """Which has not touched it yet, and may be killed before it does."""
        mine, theirs = InHand(bench.taken(), "q"), InHand(bench.taken("other"), "other")
        bench.deliveries.touch([mine, theirs])
        bench.age(mine.tag, theirs.tag)
        bench.client.zadd(bench.index, {mine.tag: time.time()})
        assert bench.deliveries.give_back_untouched() == 1
        assert bench.touched() == [json.dumps(mine)]
        bench.age(mine.tag)
        assert bench.deliveries.give_back_untouched() == 1

    def test_one_that_was_acknowledged_is_forgotten(self, bench: Bench) -> None:
        tag = bench.taken()
        bench.deliveries.touch([InHand(tag, "q")])
        bench.channel.basic_ack(tag)
        bench.age(tag)
        assert bench.deliveries.give_back_untouched() == 0
        assert bench.touched() == []

    @on_all_options
    def test_a_queue_of_any_name(self, bench: Bench) -> None:
        name = 'q"\\ü {x}'
        tag = bench.taken(name, priority=9)
        bench.deliveries.touch([InHand(tag, name)])
        bench.age(tag)
        assert bench.deliveries.give_back_untouched() == 1
        assert bench.take(name) == tag


def test_a_broker_that_does_not_answer_is_told_of(bench: Bench) -> None:
    quick = open_deliveries(bench.connection, timeout=0.2, stale_after=STALE)
    assert quick is not None
    with paused(bench.broker.server), pytest.raises(StoreUnavailable):
        quick.touch([InHand("t", "q")])
    quick.touch([InHand("t", "q")])
    quick.close()


@pytest.mark.parametrize(("timeout", "every"), [(3600, 1200.0), (3, 1.0), (2.4, 0.8), (0.1, 0.1)])
def test_a_third_of_the_visibility_timeout(tmp_path: Path, timeout: float, every: float) -> None:
    with a_bench(tmp_path / "broker", {"visibility_timeout": timeout}) as bench:
        assert bench.deliveries.touch_every == pytest.approx(every)


def test_other_brokers_need_no_touch() -> None:
    connection = kombu.Connection("memory://")
    assert open_deliveries(connection, timeout=1.0, stale_after=STALE) is None


def test_the_documented_permissions_are_enough(bench: Bench) -> None:
    found = re.search(r"ACL SETUSER (?:\S+ ){4}(.*)", DOCS.read_text())
    assert found is not None
    allowed = found[1].split()
    bench.client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", *allowed)
    url = f"redis://reader:secret@127.0.0.1:{bench.broker.server.port}/{bench.broker.database}"
    limited = open_deliveries(kombu.Connection(url), timeout=30.0, stale_after=STALE)
    assert limited is not None
    exchange = kombu.Exchange("news", "topic")
    bench.publish(kombu.Queue("q", exchange, "#"), routing_key="a")
    tag = bench.take()
    limited.touch([InHand(tag, "q")])
    bench.age(tag)
    assert limited.give_back_untouched() == 1
    assert limited.give_back([record(tag)]) == [Fate.NOBODYS]
    limited.close()
