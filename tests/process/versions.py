"""What differs between the versions of Celery and kombu that are supported.

A test whose outcome is Celery's own affair asserts what *this* version does, by these names. They
are read from the installed versions and not from the code, so that a change is noticed.
"""

from __future__ import annotations

import celery
import kombu

__all__ = [
    "ACKS_AT_ONCE",
    "CANCELS_SILENTLY",
    "CELERY",
    "COLD_SHUTDOWN_AT_ONCE",
    "CREDENTIAL_PROVIDERS",
    "DELAYED_DELIVERY",
    "ENDS_WITHOUT_REDIS",
    "FINDS_STORED_SUCCESS",
    "KEEPS_RUNNING_JOBS",
    "KOMBU",
    "NAMES_CHILDREN",
    "REQUEUES_UNACKED_TIMEOUTS",
    "SOLO_GOES_ON",
    "STORES_REJECTIONS",
    "TELLS_QOS",
    "TELLS_TIMEOUTS_TWICE",
]


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


CELERY = _minor(celery.__version__)
KOMBU = _minor(kombu.__version__)

#: An acknowledgement goes out at once. Before, with a broker without an event loop (those of these
#: tests), it waited for the next round of the consumer's loop, and the next message with it.
ACKS_AT_ONCE = CELERY >= (5, 7)

#: A cold shutdown begins in the signal's handler. Before, it began in the next round of the loop,
#: which waits for the body where it runs in the loop (solo) or where the pool is full.
COLD_SHUTDOWN_AT_ONCE = CELERY >= (5, 5)

#: With quorum queues, what is to be done later waits at RabbitMQ and not in a worker.
DELAYED_DELIVERY = CELERY >= (5, 5)

#: ``Request.cancel`` has ``emit_retry``.
CANCELS_SILENTLY = CELERY >= (5, 6)

#: A cold shutdown raises in the body that a solo worker runs, and then nothing shuts down: the same
#: error came out of the signal's handler too early.
SOLO_GOES_ON = (5, 5) <= CELERY < (5, 7)

#: A worker with room for more messages ends when a Redis broker is gone: kombu fails on a
#: connection that it could not make.
ENDS_WITHOUT_REDIS = KOMBU >= (5, 7)

#: A lost connection leaves what has begun in the books of a prefork pool.
KEEPS_RUNNING_JOBS = CELERY >= (5, 6)

#: A task that rejects its message for good fails. Before, it had no result for ever.
STORES_REJECTIONS = CELERY >= (5, 7)

#: The worker sends ``task_failure`` both for the timeout and for the lost child.
TELLS_TIMEOUTS_TWICE = CELERY >= (5, 7)

#: A timeout that ``acks_on_failure_or_timeout=False`` does not acknowledge runs again. Before, it
#: was rejected for good.
REQUEUES_UNACKED_TIMEOUTS = CELERY >= (5, 5)

#: A child that was lost after it had stored its result has succeeded. Before, its message was
#: requeued where the task has ``reject_on_worker_lost``.
FINDS_STORED_SUCCESS = CELERY >= (5, 7)

#: ``worker_process_init`` is sent with the host's name. Before, it had no sender.
NAMES_CHILDREN = CELERY >= (5, 7)

#: The consumer says whether its prefetch counts are of subscriptions.
TELLS_QOS = CELERY >= (5, 7)

#: kombu's Redis transport may be given a ``credential_provider``.
CREDENTIAL_PROVIDERS = KOMBU >= (5, 6)
