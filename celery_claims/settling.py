"""What the end of a run means for its claim. Pure: no I/O, no clock, no Celery.

A run ends in up to three steps that Celery takes one after another, and each may be the last one
that a worker lives to see: the *ending* (what the pool reports), the *acknowledgement* or rejection
of the message, and the *return* of the pool's callback. The first step at which Celery's intent is
certain settles the claim, always before the broker hears of it.

==================  =====================  ==========================================
step                late acknowledgement   early acknowledgement
==================  =====================  ==========================================
acknowledged        finished               nothing while it runs: the body goes on
rejected, requeue   given back             given back
rejected, drop      finished as rejected   finished as rejected
returned, neither   given back             finished, or given back if it was cancelled
==================  =====================  ==========================================

A body that never began and is acknowledged was revoked, expired or swallowed by a custom strategy.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from .protocol import Outcome

__all__ = ["Decision", "Ending", "on_acknowledged", "on_rejected", "on_returned", "outcome_of"]


class Ending(str, Enum):
    """How the pool says that a body ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    RETRY = "retry"
    IGNORED = "ignored"
    REJECTED = "rejected"
    #: rejected by the task with ``requeue=True``
    REQUEUED = "requeued"
    TIMED_OUT = "timed out"
    WORKER_LOST = "worker lost"
    #: killed by ``revoke(terminate=True)``, a shutdown or the loss of the connection
    TERMINATED = "terminated"


class Decision(NamedTuple):
    """How to settle a claim; ``counted``: as a delivery whose worker died."""

    outcome: Outcome
    counted: bool = False


_OUTCOMES = {
    Ending.SUCCESS: Outcome.SUCCESS,
    Ending.FAILURE: Outcome.FAILURE,
    Ending.RETRY: Outcome.RETRY,
    Ending.IGNORED: Outcome.IGNORED,
    Ending.REJECTED: Outcome.REJECTED,
    Ending.REQUEUED: Outcome.NACKED,
    Ending.TIMED_OUT: Outcome.TIMED_OUT,
    Ending.WORKER_LOST: Outcome.WORKER_LOST,
    Ending.TERMINATED: Outcome.REVOKED,
}

#: Endings that took the process with them: what a poisonous task leaves behind.
_DEADLY = frozenset({Ending.WORKER_LOST, Ending.TIMED_OUT})


def outcome_of(ending: Ending) -> Outcome:
    """What is recorded for an ending whose message is acknowledged."""
    return _OUTCOMES[ending]


def on_acknowledged(*, late: bool, running: bool, ending: Ending | None) -> Decision | None:
    """The message is about to be acknowledged; None: that says nothing about the claim.

    Parameters:
        late: the task acknowledges late.
        running: the pool has accepted the body.
        ending: what the pool reported, None before the end.
    """
    if ending is not None:
        return Decision(_OUTCOMES[ending])
    if running and not late:
        return None
    return Decision(Outcome.REVOKED)


def on_rejected(*, requeue: bool, ending: Ending | None) -> Decision:
    """The message is about to be rejected."""
    if requeue:
        return Decision(Outcome.NACKED, counted=ending in _DEADLY)
    return Decision(Outcome.REJECTED)


def on_returned(*, late: bool, ending: Ending, cancelled: bool) -> Decision:
    """The pool's callback returned and the message was neither acknowledged nor rejected by it.

    Parameters:
        late: the task acknowledges late, so its message is still at the broker.
        cancelled: Celery killed the body to run the message again.
    """
    if late or cancelled or ending is Ending.REQUEUED:
        return Decision(Outcome.NACKED, counted=ending is Ending.WORKER_LOST)
    return Decision(_OUTCOMES[ending])
