"""What the tests on RabbitMQ have in common."""

from __future__ import annotations

from typing import Any

import pytest

from tests.process.rabbit_broker import RabbitBroker
from tests.process.setup import ProcessSetup
from tests.process.waiting import wait_until

from .steps import traps

#: What a worker on RabbitMQ should be told; see docs/brokers/rabbitmq.md.
AMQP: dict[str, Any] = {"broker_channel_error_retry": True}
#: With quorum queues: then Celery limits what it takes by subscription.
QUORUM: dict[str, Any] = {
    **AMQP,
    "task_default_queue_type": "quorum",
    "worker_detect_quorum_queues": True,
}

RECONNECTED = "Connected to amqp"
#: The loop goes round. Celery does not notice a connection that is lost in the tenth of a second
#: before, in which it reads what is there already.
BEATING = "heartbeat_tick"

KINDS = {"classic": AMQP, "quorum": QUORUM}


def on_rabbitmq(
    *kinds: str, conf: dict[str, Any] | None = None, **claims: Any
) -> pytest.MarkDecorator:
    """Run a trap test once with each kind of queue; both if none is named.

    Parameters:
        kinds: of ``KINDS``.
        conf: Celery settings.
        claims: settings of ``install``.
    """
    marked = [
        pytest.param("rabbitmq", id=kind, marks=traps({**KINDS[kind], **(conf or {})}, **claims))
        for kind in kinds or KINDS
    ]
    return pytest.mark.parametrize("broker_kind", marked)


def lose_connections(setup: ProcessSetup) -> None:
    """Close the connections of all workers, and wait until they have others."""
    # A worker that has only just connected does not hear of the end of its connection.
    wait_until_all_beat(setup)
    before = setup.count_in_logs(RECONNECTED)
    broker = setup.site.broker
    assert isinstance(broker, RabbitBroker)
    broker.host.close_connections()
    setup.wait_for_log(RECONNECTED, before + len(setup.workers))
    wait_until_all_beat(setup)


def wait_until_all_beat(setup: ProcessSetup) -> None:
    for worker in setup.workers:
        wait_until(lambda w=worker: BEATING in w.logs().rpartition(RECONNECTED)[2], what=BEATING)
