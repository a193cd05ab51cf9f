"""The claim around a task's body: checked before it, around it, and recorded after it.

Celery's tracer stores the result and sends callbacks out; ours calls it and adds, in the same
process, what must come before and after. How it went reaches the worker as the type of the
runtime that Celery's tracer returns, for that is the one value that every pool hands back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import Celery, states
from celery.app.task import Task
from celery.app.trace import build_tracer, trace_ok_t

from .headers import HEADER, Passport
from .protocol import Outcome
from .run import ClaimLost, Run, enter, leave, run_of

__all__ = ["LostRun", "NotRun", "Recorded", "Unsure", "acks_on", "guard", "wrap_tracer"]

#: Methods of a task that publish a continuation of it.
CONTINUATIONS = ("retry", "replace")

_OUTCOMES = {
    states.SUCCESS: Outcome.SUCCESS,
    states.RETRY: Outcome.RETRY,
    states.IGNORED: Outcome.IGNORED,
}


class Recorded(float):
    """A runtime, in seconds, of a run whose end the store knows."""


class LostRun(float):
    """A runtime of a run that lost its claim: nothing of it may go on."""


class NotRun(float):
    """In place of a runtime: the body was not started, for its claim is gone."""


class Unsure(NotRun):
    """The body was not started, for the store did not say whether its claim is held."""


def guard(task: Task) -> None:
    """Let a run that lost its claim neither return, fail, retry nor replace. Idempotent."""
    if getattr(task.run, "claims_guard", False):
        return
    task.run = _guarded_body(task, task.run)
    for name in CONTINUATIONS:
        setattr(task, name, _guarded_call(task, getattr(task, name)))


def _guarded_body(task: Task, body: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        current = run_of(task)
        if current is None:
            return body(*args, **kwargs)
        try:
            result = body(*args, **kwargs)
        except ClaimLost:
            raise
        except Exception:
            current.ensure()
            raise
        current.ensure()
        return result

    run.claims_guard = True  # type: ignore[attr-defined]
    return run


def _guarded_call(task: Task, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        current = run_of(task)
        if current is not None:
            current.ensure()
        return method(*args, **kwargs)

    return call


def wrap_tracer(
    app: Celery, task: Task, new_run: Callable[[Passport], Run], hostname: str | None
) -> None:
    """Give a task a tracer that minds its claim. Idempotent.

    Parameters:
        app: the task's app.
        task: a claimed task.
        new_run: makes the run of a request.
        hostname: the worker's node name.
    """
    guard(task)
    trace = build_tracer(task.name, task, app.loader, hostname, app=app)

    def trace_claimed(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        header = request.get(HEADER) if request else None
        if header is None or "token" not in header:
            return trace(uuid, args, kwargs, request)
        run = new_run(Passport.from_header(header))
        if not run.begin():
            why = NotRun() if run.lost else Unsure()
            return trace_ok_t(None, None, why, None)
        mark = enter(run)
        try:
            traced = trace(uuid, args, kwargs, request)
        finally:
            leave(mark)
        return _record(task, run, traced)

    task.__trace__ = trace_claimed


def _record(task: Task, run: Run, traced: Any) -> Any:
    """Tell the store how the run ended, before anything can reach the broker."""
    if traced.info is not None and isinstance(traced.info.retval, ClaimLost):
        return traced._replace(runtime=LostRun())
    if traced.info is None and traced.runtime is None:
        # Celery deduplicated it; without a runtime it would look like a killed greenlet.
        traced = traced._replace(runtime=0.0)
    outcome = _outcome(task, traced.info)
    if outcome is None or not run.passport.keep_finished:
        # What is forgotten at once would look lost to the worker's next renewal: it does it.
        return traced
    recorded = run.finish(outcome)
    if recorded is None:
        return traced._replace(runtime=LostRun())
    return traced._replace(runtime=Recorded(traced.runtime or 0.0)) if recorded else traced


def _outcome(task: Task, info: Any) -> Outcome | None:
    """None: the message will be given back, which only the worker can do."""
    if info is None:
        return Outcome.SUCCESS
    if info.state == states.REJECTED:
        return None if info.retval.requeue else Outcome.REJECTED
    if info.state == states.FAILURE:
        dropped = task.acks_late and not acks_on(task, "failure")
        return Outcome.REJECTED if dropped else Outcome.FAILURE
    return _OUTCOMES[info.state]


def acks_on(task: Task, event: str) -> bool:
    """Whether a late acknowledgement also follows a ``failure`` or a ``timeout``.

    Celery 5.7 has a setting for each; before, one served both.
    """
    both = task.acks_on_failure_or_timeout
    one = getattr(task, f"acks_on_{event}", None)
    return bool(both if one is None else one)
