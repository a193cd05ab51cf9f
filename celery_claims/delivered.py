"""A message at the gate, and the way that Celery wants it handled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery import signals
from celery.exceptions import InvalidTaskError
from celery.worker.request import Request
from celery.worker.strategy import hybrid_to_proto2, proto1_to_proto2

from .case import Case
from .checks import shown
from .headers import HEADER
from .seams import request_context

__all__ = ["Delivered", "claim_of", "fail", "fields_of", "set_header"]


#: Of the body of a protocol 2 message: args, kwargs, embed.
BODY_PARTS = 3


class Delivered:
    """A message and the way that Celery wants it handled."""

    __slots__ = (
        "_acknowledge",
        "_reject",
        "answered",
        "body",
        "callbacks",
        "case",
        "directly",
        "let_go",
        "message",
        "pending",
        "request",
        "roomy",
        "stopped",
        "strategy",
    )

    def __init__(
        self, message: Any, body: Any, acknowledge: Any, reject: Any, callbacks: Any, strategy: Any
    ) -> None:
        self.message = message
        self.body = body
        self._acknowledge = acknowledge
        self._reject = reject
        self.callbacks = callbacks
        self.strategy = strategy
        self.case: Case
        #: the broker has been told; an early acknowledgement comes before the end of the body
        self.answered = False
        #: the request, once Celery has handed it to the pool
        self.request: Request | None = None
        #: the prefetch count was raised for it
        self.roomy = False
        #: its body has been stopped, or is about to be, and that was told
        self.stopped = False
        #: the connection does not count it any more; see ``seams.let_go``
        self.let_go = False
        #: an acknowledgement or rejection that waits for the store
        self.pending: Callable[[], None] | None = None
        #: the loop has ended, through which Celery's own way leads
        self.directly = False

    def acknowledge(self, log: Any, errors: Any) -> None:
        """Tell the broker, unless it has been told: twice would end the worker."""
        if not self.answered:
            self.answered = True
            (self.message.ack_log_error if self.directly else self._acknowledge)(log, errors)

    def reject(self, log: Any, errors: Any, requeue: bool = False) -> None:
        """Tell the broker, unless it has been told."""
        if not self.answered:
            self.answered = True
            (self.message.reject_log_error if self.directly else self._reject)(log, errors, requeue)


def fields_of(message: Any, body: Any) -> Mapping[str, Any]:
    """Where the task's own fields are, as Celery's strategy finds them.

    Parameters:
        body: of a protocol 1 message, None of others.
    Raises:
        InvalidTaskError: naming what is wrong; on what is refused here Celery's strategy fails
            with an error that would end the worker, and again wherever the message comes next.
        DecodeError, ContentDisallowed: by kombu.
    """
    for name in ("headers", "delivery_info", "properties"):
        if not isinstance(getattr(message, name), (Mapping, type(None))):
            raise InvalidTaskError(f"{name} of a message must be a mapping")
    payload = message.payload
    fields: Mapping[str, Any] = body
    if isinstance(payload, Mapping) and "args" in payload:
        fields = {**payload, **message.headers}
    elif body is None:
        if not isinstance(payload, (list, tuple)) or len(payload) != BODY_PARTS:
            raise InvalidTaskError("body: expected a list of args, kwargs and the rest")
        fields = message.headers
    if not isinstance(fields.get("id", ()), (str, bytes, int, float, type(None))):
        raise InvalidTaskError(f"id: expected text, got {shown(fields.get('id'))}")
    return fields


def claim_of(body: Any) -> dict[str, Any]:
    """The header of a protocol 1 message, which has it in the body."""
    return {HEADER: body[HEADER]} if isinstance(body, dict) and HEADER in body else {}


def set_header(delivered: Delivered, header: dict[str, Any] | None) -> None:
    """Replace the claim in a message, wherever the request will look for it."""
    places = [delivered.message.headers]
    if isinstance(delivered.body, dict):
        places.append(delivered.body)
    for place in places:
        if header is not None:
            place[HEADER] = header
        elif place:
            place.pop(HEADER, None)


def fail(consumer: Any, delivered: Delivered, error: Exception) -> None:
    """Record a FAILURE for a message that will not run, with its errbacks, signal and event."""
    request = _make_request(consumer, delivered)
    request.task.backend.mark_as_failure(
        request.id,
        error,
        request=request_context(request),
        store_result=request.store_errors,
    )
    signals.task_failure.send(
        sender=request.task,
        task_id=request.id,
        exception=error,
        args=request.args,
        kwargs=request.kwargs,
        traceback=None,
        einfo=None,
    )
    request.send_event("task-failed", exception=repr(error), traceback="")


def _make_request(consumer: Any, delivered: Delivered) -> Request:
    """The request that Celery's own strategy would make of the message."""
    message = delivered.message
    body, headers, decoded, utc = message.body, message.headers, False, True
    if delivered.body is not None:
        body, headers, decoded, utc = proto1_to_proto2(message, delivered.body)
    elif "args" in message.payload:
        body, headers, decoded, utc = hybrid_to_proto2(message, message.payload)
    return Request(
        message,
        app=consumer.app,
        hostname=consumer.hostname,
        eventer=consumer.event_dispatcher,
        task=consumer.app.tasks[delivered.case.incoming.delivery.task],
        connection_errors=consumer.connection_errors,
        body=body,
        headers=headers,
        decoded=decoded,
        utc=utc,
    )
