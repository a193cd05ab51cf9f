"""What happens to claims, for those who watch: one event type, and hooks that only observe.

Events: ``claimed``, ``taken_over``, ``held``, ``returned``, ``skipped``, ``exhausted``, ``lost``,
``released``, ``given_back``, ``unreadable``, ``store_down``, ``store_up``, ``swept``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from .checks import printable

__all__ = ["NAMES", "ClaimEvent", "Hook", "add_hook", "emit", "remove_hook"]

logger = logging.getLogger("celery_claims")

#: Every event name, with the level it is logged at.
NAMES = {
    "claimed": logging.DEBUG,
    "taken_over": logging.WARNING,
    "held": logging.INFO,
    "returned": logging.INFO,
    "skipped": logging.INFO,
    "exhausted": logging.ERROR,
    "lost": logging.WARNING,
    "released": logging.DEBUG,
    "given_back": logging.INFO,
    "unreadable": logging.ERROR,
    "store_down": logging.ERROR,
    "store_up": logging.INFO,
    "swept": logging.INFO,
}


@dataclass(frozen=True, slots=True)
class ClaimEvent:
    """One thing that happened.

    Parameters:
        name: one of ``NAMES``.
        detail: the rest of the log line.
        task: the task's name, empty for events of the worker.
        task_id, queue, token, attempt: the claim, empty for events of the worker.
    """

    name: str
    detail: str = ""
    task: str = ""
    task_id: str = ""
    queue: str = ""
    token: int = 0
    attempt: tuple[int, int] = (0, 0)


class Hook(Protocol):
    """Called with every event, in the thread where it happened; must not block."""

    def __call__(self, event: ClaimEvent, /) -> None: ...


def log(event: ClaimEvent) -> None:
    """The hook that is always there: a constant event name first, the facts in ``extra``."""
    level = NAMES[event.name]
    if not logger.isEnabledFor(level):
        return
    subject = f" task {event.task}[{printable(event.task_id)}]" if event.task_id else ""
    logger.log(
        level,
        "%s%s: %s",
        event.name,
        subject,
        event.detail,
        extra={"claims": event},
    )


_hooks: list[Hook] = [log]


def add_hook(hook: Hook) -> None:
    """Call ``hook`` with every event of this process from now on."""
    if hook not in _hooks:
        _hooks.append(hook)


def remove_hook(hook: Hook) -> None:
    """Undo ``add_hook``."""
    if hook in _hooks:
        _hooks.remove(hook)


def emit(event: ClaimEvent) -> None:
    """Tell every hook. A hook that fails is logged and the others are still told."""
    for hook in tuple(_hooks):
        try:
            hook(event)
        except Exception:
            logger.exception("a claims hook failed on %s: %r", event.name, hook)
