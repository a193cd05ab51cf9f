"""Which tasks are claimed, and how: the decorator, and the settings where there is none."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from celery.app.task import Task
from celery.local import Proxy

from .config import Settings, TaskOptions, check_lease, read_options
from .seams import actual

__all__ = ["CLEANUP_TASK", "claimed", "options_of"]

#: The beat task; it works on claims and is never claimed itself.
CLEANUP_TASK = "celery_claims.cleanup"
#: Where the decorator leaves its options, on a function, a task or a task class.
ATTRIBUTE = "claims_options"

T = TypeVar("T")

#: Decorated proxies of tasks that are not made yet; making them here would finalize the app.
_unmade: list[tuple[Proxy, TaskOptions]] = []


@overload
def claimed(task: T, /) -> T: ...
@overload
def claimed(
    *,
    lease: float | None = None,
    strict: bool | None = None,
    keep_finished: float | None = None,
    max_deliveries: int | None = None,
    max_hold: float | None = None,
) -> Callable[[T], T]: ...
def claimed(task: Any = None, /, **given: Any) -> Any:
    """Claim this task's messages. Goes above or below ``@app.task`` or ``@shared_task``.

    Parameters:
        lease: seconds that a claim is valid without renewal.
        strict: stop a run as soon as its lease cannot be trusted, even if only the store is down.
        keep_finished: seconds that a finished attempt is remembered; 0 forgets it at once.
        max_deliveries: count of started runs that may die before the task fails for good.
        max_hold: seconds that one run may take before it is stopped and given back.
    Raises:
        ConfigurationError: naming the option.
    """
    options = read_options(given)
    if task is None:
        return lambda decorated: _decorate(decorated, options)
    return _decorate(task, options)


def _decorate(task: T, options: TaskOptions) -> T:
    if isinstance(task, type):
        setattr(task, ATTRIBUTE, options)
    elif issubclass(type(task), Proxy):
        _unmade.append((task, options))
    else:
        setattr(task, ATTRIBUTE, options)
    return task


def options_of(task: Task, settings: Settings) -> TaskOptions | None:
    """How a task of a finalized app is claimed, filled in; None: not at all.

    Raises:
        ConfigurationError: naming the setting that this task's options do not fit.
    """
    if task.name == CLEANUP_TASK:
        return None
    _settle_proxies()
    options = _declared(task)
    if options is None and not settings.claims(task.name):
        return None
    filled = settings.for_task(options or TaskOptions())
    assert filled.lease is not None
    check_lease(settings, task.name, filled.lease)
    return filled


def _declared(task: Task) -> TaskOptions | None:
    found = getattr(task, ATTRIBUTE, None)
    if found is None:
        found = getattr(_function(task), ATTRIBUTE, None)
    return found if isinstance(found, TaskOptions) else None


def _settle_proxies() -> None:
    """Give the options to the tasks, which exist by now."""
    while _unmade:
        proxy, options = _unmade.pop()
        task = actual(proxy)
        # A shared task is one of several apps: what they have in common is the function.
        shared = type(proxy) is Proxy
        setattr(_function(task) if shared else task, ATTRIBUTE, options)


def _function(task: Task) -> Any:
    body = inspect.unwrap(task.run)
    return getattr(body, "__func__", body)
