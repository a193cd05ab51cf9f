"""Every private name of Celery and kombu that this package touches.

Read in celery 5.7.0 and kombu 5.7.0; ``docs/internals.md`` has the table with the public seams too,
and ``tests/unit/test_seams.py`` a canary for each.
"""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable
from typing import Any

from celery.local import Proxy
from celery.worker import state
from celery.worker.request import Request
from kombu.transport import virtual

__all__ = [
    "actual",
    "announce_queue",
    "is_terminating",
    "let_go",
    "request_context",
    "stop_body",
    "was_cancelled",
]


def actual(proxy: Proxy) -> Any:
    """What a proxy stands for now."""
    return proxy._get_current_object()


def request_context(request: Request) -> Any:
    """The request as ``task.request`` shows it, with its callbacks and its chord."""
    return request._context


def was_cancelled(request: Request) -> bool:
    """Celery killed the body to run the message again: at a shutdown or a lost connection."""
    return bool(request._already_cancelled)


def is_terminating() -> bool:
    """A cold shutdown was asked for: the pool is cut off, or will be in a moment."""
    return state.should_terminate not in (None, False)


def stop_body(request: Request, pool: Any) -> None:
    """Kill the body of a request, and write nothing: its result is the next owner's."""
    if "emit_retry" in inspect.signature(request.cancel).parameters:
        request.cancel(pool, emit_retry=False)
        return
    # An older Celery writes RETRY whenever it cancels. This is the rest of what it does.
    request._already_cancelled = True
    if request.time_start:
        pool.terminate_job(request.worker_pid, signal.SIGTERM)
        state.task_ready(request)
    result = request._apply_result and request._apply_result()
    if result is not None:
        result.terminate(signal.SIGTERM)


def announce_queue(task_consumer: Any, announce: Callable[[Any], None]) -> None:
    """Call ``announce(queue)`` before each message that the consumer hands on.

    A Redis message does not say which queue it came from; only the subscription knows.
    """
    subscribe = task_consumer._basic_consume
    receive = task_consumer._receive_callback

    def basic_consume(queue: Any, *args: Any, **kwargs: Any) -> Any:
        def received(message: Any) -> Any:
            announce(queue)
            return receive(message)

        # The consumer gives this callback to the channel while it subscribes.
        task_consumer._receive_callback = received
        try:
            return subscribe(queue, *args, **kwargs)
        finally:
            task_consumer._receive_callback = receive

    task_consumer._basic_consume = basic_consume


def let_go(message: Any) -> bool:
    """Forget a message whose record at the broker is another worker's by now: it is neither put
    back when the channel is closed nor counted.

    Returns:
        False: this broker has no such record, and the message is only here.
    """
    channel = message.channel
    transport = getattr(channel, "connection", None)
    if getattr(transport, "driver_type", None) != "redis" or not channel.ack_emulation:
        return False
    # What Redis knows is changed by the subclass only.
    forget: Any = virtual.QoS.ack
    forget(channel.qos, message.delivery_tag)
    return True
