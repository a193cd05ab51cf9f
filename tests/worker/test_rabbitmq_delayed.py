"""Native delayed delivery, with quorum queues: what is to be done later waits at RabbitMQ."""

from __future__ import annotations

import pytest
from celery_claims.protocol import State

from tests.process.rabbit_broker import RabbitBroker
from tests.process.setup import ProcessSetup, publish_copies
from tests.process.versions import DELAYED_DELIVERY
from tests.process.waiting import wait_until

from .apps import celery_tasks
from .rabbits import QUORUM, lose_connections
from .steps import (
    assert_all_acknowledged,
    events,
    record_of,
    stored,
    traps,
    wait_finished,
    wait_for_events,
    workers,
)

pytestmark = [
    pytest.mark.skipif(not DELAYED_DELIVERY, reason="this Celery has no native delayed delivery"),
    pytest.mark.brokers("rabbitmq"),
]

CONF = {
    **QUORUM,
    # Nothing is delayed behind a direct exchange.
    "task_default_exchange": "tasks",
    "task_default_exchange_type": "topic",
    # Of the 28 queues that a message may wait in; they start sooner.
    "broker_native_delayed_delivery_queue_type": "classic",
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "imports": [celery_tasks.MODULE],
}

delayed = traps(CONF, tasks=["*"], url="redis", lease=30.0)

#: Seconds, and the queue in which a message waits for so long first.
LATER, ROOM = 4, "celery_delayed_2"


@delayed
@workers(2)
def test_copies_that_waited_at_the_broker_run_once(celery_setup: ProcessSetup) -> None:
    """Nothing is claimed while it waits; the claim is on the queue in which it arrives at last,
    and not on what its routing key has become."""
    setup, broker = celery_setup, celery_setup.site.broker
    assert isinstance(broker, RabbitBroker)
    late = setup.app.signature("traps.late", ("end",))
    result = publish_copies(setup.app, late, 2, countdown=LATER)
    wait_until(lambda: broker.host.ready(ROOM) == 2, what="both to wait")
    assert record_of(setup.site, result.id) is None
    (run,) = setup.journal.wait_for_runs(result.id)
    wait_for_events(setup.workers, "held", result.id)
    record = record_of(setup.site, result.id)
    assert record is not None
    assert (record.queue, record.state) == ("celery", State.CLAIMED)
    lose_connections(setup)
    wait_for_events(setup.workers, "held", result.id, 3)
    # One that does not wait meets the same record.
    publish_copies(setup.app, late, 1, task_id=result.id)
    wait_for_events(setup.workers, "held", result.id, 4)
    setup.gates.open("end")
    assert result.get(timeout=30) == [run.pid, 0]
    wait_for_events(setup.workers, "skipped", result.id, 3)
    assert len(setup.journal.runs(result.id)) == 1
    assert stored(setup.site, result.id) == [(run.pid, "SUCCESS")]
    assert_all_acknowledged(setup)


@delayed
@workers(2)
def test_each_retry_that_waited_at_the_broker_is_an_attempt(celery_setup: ProcessSetup) -> None:
    """It runs once, under a claim of its own on the same record; the first one's copy does not."""
    setup = celery_setup
    retrying = setup.app.signature("c.retrying", (2,), {"countdown": 1})
    result = publish_copies(setup.app, retrying, 2)
    assert result.get(timeout=30) == 2
    wait_for_events(setup.workers, "skipped", result.id)
    publish_copies(setup.app, retrying, 1, task_id=result.id, countdown=1)
    wait_for_events(setup.workers, "skipped", result.id, 2)
    runs = setup.journal.runs(result.id)
    assert [run.retries for run in runs] == [0, 1, 2]
    tokens = [run.token or 0 for run in runs]
    assert tokens == sorted(set(tokens))
    (record,) = wait_finished(setup.site, result.id)
    assert record.attempt.retries == 2
    assert_all_acknowledged(setup)


@delayed
@workers(2)
def test_a_copy_that_waited_at_the_broker_is_no_replay(celery_setup: ProcessSetup) -> None:
    """It has an ``x-death`` for each queue that it waited in, but nobody rejected it."""
    setup = celery_setup
    rejects = setup.app.signature("c.rejects", kwargs={"requeue": False})
    result = publish_copies(setup.app, rejects, 1)
    wait_finished(setup.site, result.id)
    publish_copies(setup.app, rejects, 1, task_id=result.id, countdown=1)
    wait_until(
        lambda: events(setup.workers, "skipped", result.id) or len(setup.journal.runs()) > 1,
        what="the copy",
    )
    assert len(setup.journal.runs(result.id)) == 1
    assert_all_acknowledged(setup)
