"""Tasks that tell the journal what they do."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task

from . import gates, journal


@shared_task(bind=True, name="tests.work")
def work(self: Task, answer: Any = None, *, gate: str | None = None) -> Any:
    """Wait at a gate, if one is named, and answer."""
    with journal().run(self.request):
        if gate is not None:
            gates().wait(gate)
    return answer


@shared_task(bind=True, name="tests.late", acks_late=True)
def late(self: Task, answer: Any = None, *, gate: str | None = None) -> Any:
    """As ``work``, acknowledged when it has ended."""
    with journal().run(self.request):
        if gate is not None:
            gates().wait(gate)
    return answer


@shared_task(bind=True, name="tests.fail")
def fail(self: Task, message: str = "on purpose") -> None:
    """Raise a ValueError."""
    with journal().run(self.request):
        raise ValueError(message)
