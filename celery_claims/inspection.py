"""What a worker shows of its claims: ``celery inspect claims`` and Celery events."""

from __future__ import annotations

from time import monotonic
from typing import Any

from celery.worker.control import inspect_command

from .case import Case
from .claims import claims_of
from .events import ClaimEvent
from .keeper import Keeper

__all__ = ["EVENT_GROUP", "EVENT_PREFIX", "SENT", "claims", "event_fields"]

#: Celery's monitors read the part before the dash as the kind of object; this one is ours.
EVENT_GROUP = "claim"
EVENT_PREFIX = f"{EVENT_GROUP}-"
#: The events that go to monitors: the others happen for every task, or concern none.
SENT = frozenset({"claimed", "held", "skipped", "taken_over", "lost", "exhausted"})


@inspect_command(default_timeout=5.0)  # type: ignore[untyped-decorator]
def claims(state: Any, **_: Any) -> dict[str, Any]:
    """Claims of each worker: what it holds, what waits, and what happened so far."""
    installed = claims_of(state.app)
    if installed is None or installed.keeper is None:
        return {"error": "install(app) was not called in this worker"}
    return {"ok": report(installed.keeper)}


def report(keeper: Keeper) -> dict[str, Any]:
    """A worker's claims as plain data; durations in seconds."""
    now = monotonic()
    active, held = keeper.snapshot()
    return {
        "owner": keeper.desk.owner,
        "store": keeper.store.name,
        "store_up": not keeper.is_down,
        "active": [_describe(case, now) for case in active],
        "held": [_describe(case, now) for case in held],
        "counts": dict(keeper.counts),
    }


def _describe(case: Case, now: float) -> dict[str, Any]:
    incoming = case.incoming
    return {
        "task": incoming.delivery.task,
        "id": incoming.task_id,
        "queue": incoming.queue,
        "attempt": list(incoming.attempt),
        "phase": case.phase.value,
        "token": case.token.token if case.token else None,
        "trusted_for": round(max(0.0, case.trusted_until - now), 3),
    }


def event_fields(event: ClaimEvent) -> dict[str, Any]:
    """The fields of a Celery event."""
    return {
        "uuid": event.task_id,
        "name": event.task,
        "queue": event.queue,
        "token": event.token,
        "attempt": list(event.attempt),
        "detail": event.detail,
    }
