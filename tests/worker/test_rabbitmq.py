"""Claims on RabbitMQ, with classic and with quorum queues."""

from __future__ import annotations

import pytest
from kombu import Queue

from tests.process.setup import ProcessSetup, publish_copies
from tests.process.waiting import wait_until

from .apps import celery_tasks
from .rabbits import AMQP, on_rabbitmq
from .redis_steps import kill
from .steps import (
    assert_all_acknowledged,
    stored,
    traps,
    wait_for_events,
    wait_started,
    where,
    workers,
)


@on_rabbitmq()
@workers(2, concurrency=2)
def test_the_same_message_twenty_times_runs_once(celery_setup: ProcessSetup) -> None:
    """Not twice while alive, not again when finished; nothing is left at the broker."""
    signature = celery_setup.app.signature("traps.late", ("end",))
    result = publish_copies(celery_setup.app, signature, 20)
    wait_for_events(celery_setup.workers, "held", result.id, 19)
    celery_setup.gates.open("end")
    wait_for_events(celery_setup.workers, "skipped", result.id, 19)
    (run,) = celery_setup.journal.runs(result.id)
    assert result.get(timeout=5) == [run.pid, 0]
    assert stored(celery_setup.site, result.id) == [(run.pid, "SUCCESS")]
    assert_all_acknowledged(celery_setup)


@on_rabbitmq()
@workers(2)
def test_fifty_held_copies_eat_no_prefetch(celery_setup: ProcessSetup) -> None:
    """A worker that may take one message, and holds fifty copies, runs an unrelated task."""
    signature = celery_setup.app.signature("traps.late", ("end",))
    result = publish_copies(celery_setup.app, signature, 51)
    wait_for_events(celery_setup.workers, "held", result.id, 50)
    other = celery_setup.app.signature("traps.late").apply_async()
    celery_setup.journal.wait_for_end(other.id)
    assert len(celery_setup.journal.runs(result.id)) == 1
    celery_setup.gates.open("end")
    wait_for_events(celery_setup.workers, "skipped", result.id, 50)
    # What was granted is taken back: of two tasks only one is begun, and the other waits.
    signature = celery_setup.app.signature("traps.late", ("later",))
    results = [signature.apply_async() for _ in range(4)]
    for each in results[:2]:
        celery_setup.journal.wait_for_runs(each.id)
    celery_setup.gates.open("later")
    for each in results:
        each.get(timeout=20)
    assert_all_acknowledged(celery_setup)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(url, marks=traps(AMQP, url=url), id=url)
        for url in ("redis", "cluster", "postgresql")
    ],
)
@pytest.mark.brokers("rabbitmq")
@workers(2)
def test_claims_in_another_servers_store(celery_setup: ProcessSetup, url: str) -> None:
    """RabbitMQ with a store of another kind; the other tests here have the embedded one.

    Not twice while alive, and back soon.
    """
    setup = celery_setup
    result = publish_copies(setup.app, setup.app.signature("traps.late", ("end",)), 3)
    wait_for_events(setup.workers, "held", result.id, 2)
    # Copies are held as soon as one is claimed, before its body begins.
    (run,) = setup.journal.wait_for_runs(result.id)
    wait_started(setup.site, result.id)
    killed, other = where(setup.workers, run.pid)
    kill(setup, killed)
    _, again = setup.journal.wait_for_runs(result.id, 2)
    setup.gates.open("end")
    assert result.get(timeout=30) == [again.pid, 1]
    wait_for_events(other, "skipped", result.id, 2)
    assert len(setup.journal.runs(result.id)) == 2
    assert_all_acknowledged(setup, other)


TOPICS = {
    "celery": {
        "queue_arguments": {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "dead",
        }
    },
    "some": {"exchange": "topics", "exchange_type": "topic", "routing_key": "a.*"},
    "all": {"exchange": "topics", "exchange_type": "topic", "routing_key": "#"},
    "news": {"exchange": "news", "exchange_type": "fanout", "routing_key": ""},
}


@pytest.mark.brokers("rabbitmq")
@traps({**AMQP, "task_queues": TOPICS, "imports": [celery_tasks.MODULE]}, tasks=["*"])
@workers(1, queues="celery,some,all,news")
class TestExchanges:
    def test_a_message_in_two_queues_runs_for_both_and_a_broadcast_is_not_claimed(
        self, celery_setup: ProcessSetup
    ) -> None:
        """Two queues are two claims; a fanout exchange means every worker."""
        setup = celery_setup
        twice = setup.app.signature("traps.late").apply_async(queue="some", routing_key="a.b")
        runs = setup.journal.wait_for_end(twice.id, 2)
        assert len({run.token for run in runs}) == 2
        told = setup.app.signature("traps.late").apply_async(queue="news")
        (run,) = setup.journal.wait_for_end(told.id)
        assert run.token is None

    def test_a_rejected_message_runs_again_when_it_is_replayed(
        self, celery_setup: ProcessSetup
    ) -> None:
        """Copies of what was rejected are skipped; one with a newer x-death is a new try."""
        setup = celery_setup
        with setup.site.broker.connect() as connection:
            dead = Queue("dead")(connection.default_channel)
            dead.declare()
            signature = setup.app.signature("c.rejects", kwargs={"requeue": False})
            result = publish_copies(setup.app, signature, 2)
            wait_for_events(setup.worker, "skipped", result.id)
            message = wait_until(dead.get, what="the message in the dead-letter queue")
            assert len(setup.journal.runs(result.id)) == 1
            with connection.Producer() as producer:
                producer.publish(
                    message.body,
                    routing_key="celery",
                    headers=message.headers,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    correlation_id=result.id,
                )
            message.ack()
        assert len(setup.journal.wait_for_end(result.id, 2)) == 2
