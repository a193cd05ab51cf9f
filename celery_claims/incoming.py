"""What a message says of itself, as far as the claim goes, in whatever form it comes."""

from __future__ import annotations

import logging
from typing import Any

from .case import Incoming
from .checks import MAX_TOKEN, check_name
from .config import TaskOptions
from .delivered import claim_of, fields_of
from .errors import InvalidArgument
from .headers import first_queue, read_identity
from .protocol import Delivery, check_delivery

__all__ = ["read_incoming"]

logger = logging.getLogger("celery_claims")


def read_incoming(
    message: Any, body: Any, task: Any, queue: str | None, options: TaskOptions, keep_free: float
) -> Incoming | None:
    """Read a message; None: it cannot be identified, but Celery can run it.

    Parameters:
        message: kombu's.
        body: of a protocol 1 message, None of others.
        task: Celery's task of the message's name.
        queue: where the message came from; None: unknown, so that it has to say it itself.
        options: how the task is claimed, filled in.
        keep_free: see ``Incoming``.
    Raises:
        InvalidTaskError, DecodeError, ContentDisallowed: see ``fields_of``.
    """
    fields, headers = fields_of(message, body), message.headers or {}
    info = message.delivery_info or {}
    queue = queue or info.get("routing_key") or task.app.conf.task_default_queue
    try:
        identity = read_identity(headers, fields)
        check_name("queue", queue)
        assert queue is not None
        delivery = _delivery(message, task.name, queue)
    except InvalidArgument as error:
        logger.warning("unclaimed, for its message cannot be identified: %s: %s", task.name, error)
        return None
    return Incoming(
        queue=first_queue({**headers, **claim_of(body)}, queue),
        task_id=identity.task_id,
        root_id=identity.root_id,
        attempt=identity.attempt,
        deaths=identity.deaths,
        late=bool(task.acks_late),
        options=options,
        keep_free=keep_free,
        delivery=delivery,
    )


def _delivery(message: Any, task: str, queue: str) -> Delivery:
    """Raises: InvalidArgument."""
    priority = (message.properties or {}).get("priority")
    if not isinstance(priority, int) or abs(priority) > MAX_TOKEN:
        priority = None
    tag = str(message.delivery_tag)
    delivery = Delivery(task, tag, queue, None if priority is None else int(priority))
    check_delivery("delivery", delivery)
    return delivery
