"""Tasks that use what Celery offers, and tell the journal; in a worker, its signals too."""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import Task, chain, group, shared_task, signals, signature
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from tests.process.environment import FOLDER_VARIABLE

from . import gates, journal

#: For the setting ``imports`` of a worker.
MODULE = __name__

SIGNALS = (
    signals.task_received,
    signals.task_prerun,
    signals.task_success,
    signals.task_failure,
    signals.task_retry,
    signals.task_postrun,
    signals.task_revoked,
    signals.task_internal_error,
)


def note_signal(sender: Any = None, **facts: Any) -> None:
    """Write down which signal was sent for which task and attempt, and a state if it has one."""
    request = facts.get("request") or getattr(sender, "request", None)
    journal().write(
        "signal",
        name=facts["signal"].name,
        task=getattr(sender, "name", None),
        task_id=facts.get("task_id") or getattr(request, "id", None),
        attempt=[
            getattr(request, "replaced_task_nesting", 0) or 0,
            getattr(request, "retries", 0) or 0,
        ],
        state=facts.get("state"),
    )


if FOLDER_VARIABLE in os.environ:
    for one in SIGNALS:
        one.connect(note_signal, weak=False)


def note(task: Task, **facts: Any) -> None:
    """Tell the test something about the running task."""
    journal().write("note", task_id=task.request.id, retries=task.request.retries, **facts)


@shared_task(bind=True, name="c.add")
def add(self: Task, x: int, y: int) -> int:
    with journal().run(self.request):
        return x + y


@shared_task(bind=True, name="c.total")
def total(self: Task, numbers: list[int]) -> int:
    with journal().run(self.request):
        return sum(numbers)


@shared_task(bind=True, name="c.errback")
def errback(self: Task, *args: Any) -> None:
    with journal().run(self.request):
        note(self, errback_of=str(args[0]) if args else None)


@shared_task(bind=True, name="c.retrying", max_retries=5)
def retrying(self: Task, times: int, **options: Any) -> int:
    """Retry so many times, with these options of ``retry``."""
    with journal().run(self.request):
        headers = dict(self.request.headers or {})
        headers.pop("celery_claims", None)
        # RabbitMQ's own, with times that are no JSON.
        headers.pop("x-death", None)
        note(self, headers=headers)
        if self.request.retries < times:
            raise self.retry(**{"countdown": 0, **options})
        return self.request.retries


@shared_task(
    bind=True,
    name="c.autoretried",
    autoretry_for=(ValueError,),
    max_retries=2,
    default_retry_delay=0,
)
def autoretried(self: Task, failures: int) -> int:
    """Fail so many times."""
    with journal().run(self.request):
        if self.request.retries < failures:
            raise ValueError(f"failure {self.request.retries}")
        return self.request.retries


@shared_task(bind=True, name="c.goes_on", acks_late=True)
def goes_on(self: Task, gate: str) -> int:
    """Publish the retry, and go on running after it until the gate opens."""
    with journal().run(self.request):
        if self.request.retries == 0:
            self.retry(countdown=0, throw=False)
            note(self, published=True)
            gates().wait(gate)
        return self.request.retries


@shared_task(bind=True, name="c.waits_in_retry", acks_late=True)
def waits_in_retry(self: Task, gate: str) -> int:
    """Retry once, and wait in the second attempt."""
    with journal().run(self.request):
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        gates().wait(gate)
        return self.request.retries


@shared_task(bind=True, name="c.replaced")
def replaced(self: Task, levels: int, *, retry: bool = False) -> Any:
    """Replace itself so many times, with a retry before each if told so; then answer."""
    with journal().run(self.request):
        note(self, nesting=self.request.replaced_task_nesting)
        if retry and self.request.retries == 0:
            raise self.retry(countdown=0)
        if levels:
            raise self.replace(replaced.s(levels - 1, retry=retry))
        return "replaced"


@shared_task(bind=True, name="c.replaced_by_chain")
def replaced_by_chain(self: Task, number: int) -> Any:
    with journal().run(self.request):
        raise self.replace(chain(add.s(number, 1), add.s(10)))


@shared_task(bind=True, name="c.replaced_by_group")
def replaced_by_group(self: Task, number: int) -> Any:
    with journal().run(self.request):
        raise self.replace(group(add.s(number, n) for n in range(3)))


@shared_task(bind=True, name="c.starts")
def starts(self: Task, what: Any) -> str:
    """Publish a signature from inside of a task."""
    with journal().run(self.request):
        result: str = signature(what, app=self.app).apply_async().id
        return result


@shared_task(bind=True, name="c.soft", acks_late=True)
def soft(self: Task, *, catch: bool, gate: str = "never") -> str:
    with journal().run(self.request):
        try:
            gates().wait(gate)
        except SoftTimeLimitExceeded:
            if not catch:
                raise
        return "cleaned up"


def _reject(task: Task, *, requeue: bool) -> str:
    first = sum(run.task_id == task.request.id for run in journal().runs()) == 1
    if first or not requeue:
        raise Reject("on purpose", requeue=requeue)
    return "second time"


@shared_task(bind=True, name="c.rejects", acks_late=True)
def rejects(self: Task, *, requeue: bool, gate: str | None = None) -> str:
    """Reject the message; the second time, after a requeue, answer."""
    with journal().run(self.request):
        if gate is not None:
            gates().wait(gate)
        return _reject(self, requeue=requeue)


@shared_task(bind=True, name="c.custom_state")
def custom_state(self: Task) -> None:
    with journal().run(self.request):
        self.update_state(state="HALFWAY", meta={"done": 50})
        raise Ignore


@shared_task(bind=True, name="c.progress", track_started=True)
def progress(self: Task, gate: str) -> str:
    """Tell of its progress, and wait."""
    with journal().run(self.request):
        gates().wait(gate)
        self.update_state(state="PROGRESS", meta={"done": 1})
        gates().wait(f"{gate}-end")
        return "done"


@shared_task(bind=True, name="c.quiet", ignore_result=True)
def quiet(self: Task) -> str:
    with journal().run(self.request):
        return "nobody asks"


@shared_task(bind=True, name="c.limited", rate_limit="4/s")
def limited(self: Task) -> float:
    with journal().run(self.request):
        return 1.0


def _fail_late(task: Task, gate: str | None) -> None:
    with journal().run(task.request):
        if gate is not None:
            gates().wait(gate)
        raise ValueError("on purpose")


@shared_task(bind=True, name="c.late_failure", acks_late=True)
def late_failure(self: Task, *, gate: str | None = None) -> None:
    _fail_late(self, gate)


@shared_task(bind=True, name="c.unacked_failure", acks_late=True, acks_on_failure_or_timeout=False)
def unacked_failure(self: Task, *, gate: str | None = None) -> None:
    _fail_late(self, gate)


def _hang_once(task: Task) -> str:
    with journal().run(task.request):
        if len(journal().runs(task.request.id)) == 1:
            gates().wait("never")
        return "second time"


@shared_task(bind=True, name="c.hangs_once", acks_late=True)
def hangs_once(self: Task) -> str:
    return _hang_once(self)


@shared_task(
    bind=True, name="c.hangs_once_unacked", acks_late=True, acks_on_failure_or_timeout=False
)
def hangs_once_unacked(self: Task) -> str:
    return _hang_once(self)


# Since Celery 5.7 each has a setting of its own; an older one knows no such options.
NEW_OPTIONS = hasattr(Task, "acks_on_timeout") and hasattr(Task, "retry_on_worker_lost")


@shared_task(bind=True, name="c.hangs_once_untimed", acks_late=True, acks_on_timeout=False)
def hangs_once_untimed(self: Task) -> str:
    return _hang_once(self)


@shared_task(bind=True, name="c.unacked_failure_only", acks_late=True, acks_on_failure=False)
def unacked_failure_only(self: Task) -> None:
    _fail_late(self, None)


@shared_task(
    bind=True,
    name="c.dies_once",
    acks_late=True,
    retry_on_worker_lost=True,
    max_retries=2,
    default_retry_delay=0,
)
def dies_once(self: Task) -> int:
    """Kill its process in the first attempt."""
    with journal().run(self.request):
        if self.request.retries == 0:
            journal().note_dead(os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)
        return self.request.retries


@shared_task(bind=True, name="c.claim", max_retries=3)
def claim(self: Task, times: int = 0) -> None:
    """Tell what the claim says, in each of so many retries."""
    from celery_claims import current_claim

    with journal().run(self.request):
        held = current_claim()
        if held is None:
            note(self, claim=None)
            return
        held.check()
        note(
            self,
            claim={
                "queue": held.queue,
                "task_id": held.task_id,
                "token": held.token,
                "attempt": list(held.attempt),
                "deliveries": held.deliveries,
                "remaining": held.remaining,
            },
        )
        if self.request.retries < times:
            raise self.retry(countdown=0)


@shared_task(bind=True, name="c.extends")
def extends(self: Task) -> None:
    """Extend the lease as often as it goes."""
    from celery_claims import current_claim
    from celery_claims.errors import ExtensionLimit

    with journal().run(self.request):
        held = current_claim()
        assert held is not None
        before, count = held.remaining, 0
        while True:
            try:
                held.extend(60_000)
            except ExtensionLimit as error:
                note(self, before=before, after=held.remaining, count=count, error=str(error))
                return
            count += 1


@shared_task(bind=True, name="c.loses", autoretry_for=(Exception,), max_retries=3, acks_late=True)
def loses(self: Task, gate: str) -> str:
    """Find the claim lost once the gate is open, as a run of a stale owner does."""
    from celery_claims import current_claim

    with journal().run(self.request):
        gates().wait(gate)
        held = current_claim()
        if held is not None:
            held.check()
        return "still held"


def _tell_header(task: Task) -> None:
    with journal().run(task.request):
        note(task, header=(task.request.headers or {}).get("celery_claims"))


@shared_task(bind=True, name="c.header")
def header(self: Task) -> None:
    """Tell what came in the header of the claim."""
    _tell_header(self)


@shared_task(bind=True, name="c.unclaimed_header")
def unclaimed_header(self: Task) -> None:
    """As ``header``, for a pattern that leaves it out."""
    _tell_header(self)


@shared_task(bind=True, name="c.nests")
def nests(self: Task) -> None:
    """Call another task directly and eagerly, within a claimed run."""
    from celery_claims import current_claim

    with journal().run(self.request):
        outer = current_claim()
        note(
            self,
            direct=tells_claim() is None,
            eager=tells_claim.apply().get(disable_sync_subtasks=False) is None,
            outer=outer is not None and current_claim() is not None,
        )


@shared_task(name="c.tells_claim")
def tells_claim() -> int | None:
    """The token of the claim that this very call has."""
    from celery_claims import current_claim

    held = current_claim()
    return None if held is None else held.token


class Counting(Task):
    """A base class with a ``__call__`` of its own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        note(self, called=True)
        return super().__call__(*args, **kwargs)


@shared_task(bind=True, base=Counting, name="c.called")
def called(self: Task, value: Any) -> Any:
    with journal().run(self.request):
        return value
