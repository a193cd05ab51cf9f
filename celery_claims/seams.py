"""Every private name of Celery and kombu that this package touches.

Read in celery 5.7.0 and kombu 5.7.0; ``docs/internals.md`` has the table with the public seams too,
and ``tests/unit/test_seams.py`` a canary for each.
"""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable
from typing import Any

from celery.concurrency import asynpool
from celery.local import Proxy
from celery.worker import state
from celery.worker.request import Request
from kombu.transport import virtual

__all__ = [
    "actual",
    "announce_queue",
    "has_fixed_prefetch",
    "is_terminating",
    "job_owner",
    "keep_if_sent",
    "kill_child",
    "let_go",
    "request_context",
    "resubscribe",
    "stop_body",
    "unfinished_jobs",
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


def kill_child(request: Request, pool: Any) -> bool:
    """Kill the process of a prefork pool that has the body of a request, if it has no other.

    For other threads than the loop's, while that hands no body to any child, and takes none's end:
    what is read here does not change then, and what is written the loop only reads.

    Returns:
        False: there is none, or it cannot be told what it does.
    """
    job = request._apply_result and request._apply_result()
    workers = getattr(pool, "_pool", None)
    if job is None or job.ready() or workers is None:
        return False
    child = _child_of(job)
    # Only a fair pool gives a child one body at a time. Of others the books do not tell which one
    # it has got to; and they may name a child that has been replaced.
    fair = getattr(workers, "sched_strategy", None) == asynpool.SCHED_STRATEGY_FAIR
    others = [each for each in list(workers._cache.values()) if each is not job]
    if child is None or not fair or any(_child_of(each) == child for each in others):
        return False
    # If it is dead before the loop knows that it had begun: it must not begin in another child.
    job.terminate(signal.SIGTERM)
    pool.terminate_job(child, signal.SIGTERM)
    return True


def _child_of(job: Any) -> int | None:
    """The pid of the process that has a job, as far as is known."""
    if job.ready():
        return None
    if job._worker_pid is not None:
        pid: int = job._worker_pid
        return pid
    return job._write_to.pid if job._write_to is not None else None


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


def has_fixed_prefetch(consumer: Any) -> bool:
    """Whether a prefetch count that is sent now is for later subscriptions only."""
    if consumer.connection.transport.driver_type != "amqp":
        # Kombu's own transports have one count for a channel, whatever they are asked for.
        return False
    if getattr(consumer, "qos_global", None) is not None:
        return consumer.qos_global is False
    queues = consumer.app.amqp.queues.values()
    return bool(consumer.app.conf.get("worker_detect_quorum_queues")) and any(
        (queue.queue_arguments or {}).get("x-queue-type") == "quorum" for queue in queues
    )


def resubscribe(
    task_consumer: Any, queue: Any, prefetch_count: int, usual: int, begin: Callable[[], None]
) -> None:
    """End a subscription and begin another with fresh credit; what it delivered stays here.

    Parameters:
        task_consumer: kombu's consumer of the worker's queues.
        queue: one of them, bound to the channel.
        prefetch_count: of the new subscription.
        usual: of those that Celery begins later.
        begin: called between the two.
    """
    tag = task_consumer._active_tags.pop(queue.name, None)
    if tag is None:
        # ``celery control cancel_consumer`` was here first.
        return
    channel = task_consumer.channel
    channel.basic_cancel(tag)
    begin()
    channel.basic_qos(0, prefetch_count, False)
    task_consumer._basic_consume(queue, nowait=False)
    channel.basic_qos(0, usual, False)


def unfinished_jobs(pool: Any) -> list[Any]:
    """What a prefork pool with an event loop has taken, and not heard the end of."""
    return list(pool._pool._cache.values())


def job_owner(job: Any) -> object:
    """Whose method the pool calls with the result."""
    return getattr(job._callback, "__self__", None)


def keep_if_sent(pool: Any, job: Any) -> bool:
    """Take a job that the pool gave up back into its books, if it began or a living child got it.

    One that began is given up by Celery before 5.6; if its child is dead, the pool will find that.

    Returns:
        whether its callbacks will be called.
    """
    books = pool._pool._cache
    if job.ready() or job._job in books:
        return True
    child = job._write_to
    if not job.accepted() and (child is None or not child._is_alive()):
        return False
    books[job._job] = job
    return True
