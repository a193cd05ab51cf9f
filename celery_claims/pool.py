"""The pool's callbacks, seen before Celery sees them: the one place that every ending passes.

Prefork, threads, solo and gevent all take a body with ``apply_async`` and report its start, its
result, its error and its time limit through callbacks that are methods of the request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from celery.worker.request import Request
from celery.worker.state import task_ready

from .case import Case
from .gate import Gate
from .keeper import Keeper
from .protocol import Outcome
from .seams import is_terminating, job_owner, keep_if_sent, unfinished_jobs, was_cancelled
from .settling import Ending
from .tracer import LostRun, NotRun, Recorded, Unsure, acks_on

__all__ = ["PoolWatch"]

#: What a child leaves behind that did not live to report.
DEADLY = (WorkerLostError, SystemExit, KeyboardInterrupt, MemoryError)
#: Ends of which Celery tells the result backend here, and not where the body ran.
TOLD_HERE = (Ending.WORKER_LOST, Ending.TIMED_OUT, Ending.TERMINATED, Ending.REJECTED)


class PoolWatch:
    """Stands between Celery's requests and one pool.

    Parameters:
        gate, keeper: the worker's.
        forks: bodies run in other processes.
    """

    def __init__(self, gate: Gate, keeper: Keeper, *, forks: bool) -> None:
        self._gate = gate
        self._keeper = keeper
        self._forks = forks

    def wrap(self, apply_async: Callable[..., Any]) -> Callable[..., Any]:
        """The pool's ``apply_async`` with this watch on claimed requests."""

        def watched(target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            request = getattr(options.get("callback"), "__self__", None)
            if not isinstance(request, Request) or (case := self._gate.submit(request)) is None:
                return apply_async(target, args, kwargs, **options)
            if not self._keeper.submitted(case):
                self._gate.come_back(case)
                # Celery gives the slot of a revoked request back.
                raise TaskRevokedError(request.id)
            watch = Watch(self._gate, self._keeper, case, request, options)
            options.update(
                accept_callback=watch.accepted,
                callback=watch.result,
                error_callback=watch.error,
                timeout_callback=watch.timeout,
            )
            body = target if self._forks else watch.in_process(target)
            return apply_async(body, args, kwargs, **options)

        return watched

    def wrap_flush(self, pool: Any) -> None:
        """Look after what the pool gives up when the connection is lost. Idempotent."""
        flush = getattr(pool, "flush", None)
        # Only processes have books of what they run; the flush of other pools does nothing.
        if self._forks and flush is not None and not isinstance(flush, Flush):
            pool.flush = Flush(pool, flush)


class Flush:
    """The pool's ``flush``, which gives up every body that is not known to have begun.

    Before Celery 5.6 it forgets those too that have begun, and nobody would hear of their end.
    Celery expects their messages to come again. But a body that was sent to a child runs there, and
    so its callbacks must stay; and of one that was not sent, the claim must not be kept.
    """

    def __init__(self, pool: Any, flush: Callable[[], Any]) -> None:
        self._pool = pool
        self._flush = flush

    def __call__(self) -> None:
        watches = {
            job: watch
            for job in unfinished_jobs(self._pool)
            if isinstance(watch := job_owner(job), Watch)
        }
        self._flush()
        for job, watch in watches.items():
            if not keep_if_sent(self._pool, job):
                watch.given_up()


class Watch:
    """The callbacks of one claimed request."""

    def __init__(
        self, gate: Gate, keeper: Keeper, case: Case, request: Request, options: dict[str, Any]
    ) -> None:
        self._gate = gate
        self._keeper = keeper
        self._case = case
        self._grant_id = case.grant_id
        self._request = request
        self._accept = options.get("accept_callback")
        self._result = options["callback"]
        self._error = options.get("error_callback")
        self._timeout = options.get("timeout_callback")

    def accepted(self, *args: Any, **kwargs: Any) -> None:
        self._keeper.accepted(self._case)
        if self._accept is not None:
            self._accept(*args, **kwargs)

    def given_up(self) -> None:
        """The pool will not run the body."""
        if self._case.grant_id == self._grant_id:
            self._keeper.unsubmitted(self._case)

    def result(self, result: Any, **kwargs: Any) -> None:
        if not isinstance(result, tuple):
            # Celery's in-process pools report a BaseException like this, and then fail on it.
            self._end(Ending.WORKER_LOST, False, self._result, result, **kwargs)
            return
        failed, value, runtime = result
        if not failed and runtime is None:
            # A green pool reports a killed body like this, and Celery would acknowledge it.
            self._end(Ending.TERMINATED, False, task_ready, self._request)
            return
        if isinstance(runtime, (LostRun, NotRun)):
            lost = isinstance(runtime, LostRun)
            self._come_back(started=lost, lost=lost, unsure=isinstance(runtime, Unsure))
            return
        ending = self._ending(value) if failed else Ending.SUCCESS
        plain = (failed, value, None if runtime is None else float(runtime))
        self._end(ending, isinstance(runtime, Recorded), self._result, plain, **kwargs)

    def error(self, einfo: Any, *args: Any, **kwargs: Any) -> None:
        ending = self._ending(einfo)
        if ending is Ending.WORKER_LOST and self._is_cut_off():
            self._end(Ending.TERMINATED, False, task_ready, self._request)
            return
        self._end(ending, False, self._error, einfo, *args, **kwargs)

    def timeout(self, soft: bool, timeout: float, *args: Any, **kwargs: Any) -> None:
        if soft:
            self._timeout(soft, timeout, *args, **kwargs)  # type: ignore[misc]
        else:
            self._end(Ending.TIMED_OUT, False, self._timeout, soft, timeout, *args, **kwargs)

    def in_process(self, target: Callable[..., Any]) -> Callable[..., Any]:
        """An exception that escapes the tracer reaches no callback of a thread or a greenlet."""

        def body(*args: Any, **kwargs: Any) -> Any:
            try:
                return target(*args, **kwargs)
            except Exception:
                self._end(Ending.WORKER_LOST, False, None)
                raise

        return body

    def _end(
        self,
        ending: Ending,
        recorded: bool,
        callback: Callable[..., Any] | None,
        *args: Any,
        **kw: Any,
    ) -> None:
        case = self._case
        if case.grant_id != self._grant_id:
            return
        if case.lost or (case.hung and ending in (Ending.TERMINATED, Ending.WORKER_LOST)):
            self._come_back(started=True)
            return
        if ending in TOLD_HERE and not recorded and not self._keeper.holds(case):
            self._come_back(started=True)
            return
        self._keeper.ended(case, ending, recorded=recorded)
        try:
            if callback is not None:
                callback(*args, **kw)
        finally:
            # It may be back at the gate already, for the claim was found lost at its end.
            if case.grant_id == self._grant_id:
                self._return()

    def _return(self) -> None:
        case = self._case
        cancelled = was_cancelled(self._request)
        outcome = self._keeper.returning(case, cancelled=cancelled)
        stays = not (cancelled or is_terminating())
        if outcome is Outcome.NACKED and case.incoming.late and stays:
            self._gate.come_back(case)
        else:
            self._gate.over(case)

    def _is_cut_off(self) -> bool:
        """A cold shutdown killed the child and Celery does not know: it would report a failure and
        acknowledge the message, although that goes back when the connection closes.

        Celery 5.5 began to cancel what it is about to kill.
        """
        late = self._case.incoming.late
        return late and is_terminating() and not was_cancelled(self._request)

    def _come_back(self, *, started: bool, lost: bool = False, unsure: bool = False) -> None:
        if self._case.grant_id != self._grant_id:
            return
        if lost:
            self._keeper.found_lost(self._case)
        if self._case.hung and not self._case.lost:
            self._keeper.stopped_hung(self._case)
        self._gate.come_back(self._case, started=started, unsure=unsure)

    def _ending(self, einfo: ExceptionInfo) -> Ending:
        exc = einfo.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, Terminated):
            return Ending.TERMINATED
        if isinstance(exc, TimeLimitExceeded):
            return Ending.TIMED_OUT
        if isinstance(exc, DEADLY):
            return Ending.WORKER_LOST
        if isinstance(exc, Reject):
            return Ending.REQUEUED if exc.requeue else Ending.REJECTED
        if isinstance(exc, Ignore):
            return Ending.IGNORED
        if isinstance(exc, Retry):
            return Ending.RETRY
        task = self._request.task
        dropped = task.acks_late and not acks_on(task, "failure")
        return Ending.REJECTED if dropped else Ending.FAILURE
