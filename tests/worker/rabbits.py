"""What the tests on RabbitMQ have in common."""

from __future__ import annotations

from typing import Any

import pytest

from .steps import traps

#: What a worker on RabbitMQ should be told; see docs/brokers/rabbitmq.md.
AMQP: dict[str, Any] = {"broker_channel_error_retry": True}
#: With quorum queues: then Celery limits what it takes by subscription.
QUORUM: dict[str, Any] = {
    **AMQP,
    "task_default_queue_type": "quorum",
    "worker_detect_quorum_queues": True,
}

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
