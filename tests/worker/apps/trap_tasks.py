"""Tasks that fall into the traps of death and time, and what lets tests look inside a worker."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Task, shared_task
from celery.backends.base import Backend
from celery.backends.rpc import RPCBackend
from celery.worker.control import inspect_command
from celery_claims import claimed, current_claim, desk, holding
from celery_claims.brokers import Fate
from celery_claims.claims import installed
from celery_claims.heartbeat import Heartbeat
from celery_claims.keeper import Keeper
from celery_claims.pool import Watch
from celery_claims.protocol import Record
from celery_claims.run import Run
from celery_claims.sweep import Sweeper

from tests.process.environment import FOLDER_VARIABLE
from tests.process.waiting import stays, wait_until

from . import gates, journal

logger = logging.getLogger(__name__)

#: What a run shall do when its end is recorded: kill its process once, ``before_finish`` or
#: ``after_finish``, or wait before it at a gate, ``gate:name``. Or what a sweep shall do that has
#: found something: kill its process once, ``before_give_back`` or ``after_give_back``.
CRASH_VARIABLE = "CELERY_TEST_CRASH"
#: ``parent``: its worker dies with it.
KILL_VARIABLE = "CELERY_TEST_KILL"
#: Seconds for which the first heartbeat after a pause is late: all else goes on before it.
LATE_BEAT_VARIABLE = "CELERY_TEST_LATE_BEAT"

#: Seconds after which a held delivery asks again by itself, for what must not wait for that.
HOLD_VARIABLE = "CELERY_TEST_HOLD"


def _deliveries() -> int | None:
    claim = current_claim()
    return None if claim is None else claim.deliveries


@shared_task(bind=True, name="traps.late", acks_late=True)
def late(self: Task, gate: str | None = None) -> list[int | None]:
    """Wait at a gate, if one is named, and tell who ran it after how many dead runs."""
    with journal().run(self.request):
        if gate is not None:
            gates().wait(gate)
    return [os.getpid(), _deliveries()]


@shared_task(bind=True, name="traps.early")
def early(self: Task, gate: str | None = None) -> list[int | None]:
    """As ``late``, acknowledged before it starts."""
    with journal().run(self.request):
        if gate is not None:
            gates().wait(gate)
    return [os.getpid(), _deliveries()]


@shared_task(bind=True, name="traps.requeued", acks_late=True, reject_on_worker_lost=True)
def requeued(self: Task, gate: str | None = None) -> list[int | None]:
    """As ``late``, and a lost child gives it back."""
    with journal().run(self.request):
        if gate is not None:
            gates().wait(gate)
    return [os.getpid(), _deliveries()]


@claimed(strict=True)
@shared_task(bind=True, name="traps.strict", acks_late=True)
def strict(self: Task, gate: str) -> list[int | None]:
    """As ``late``, and asks about its claim while it waits."""
    with journal().run(self.request):
        claim = current_claim()
        assert claim is not None
        wait_until(lambda: claim.check() or gates().is_open(gate))
    return [os.getpid(), _deliveries()]


@shared_task(bind=True, name="traps.spin", acks_late=True)
def spin(self: Task, seconds: float) -> int:
    """Keep the processor and the interpreter busy: nothing else of this loop runs."""
    with journal().run(self.request):
        until = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < until:
            rounds += 1
    return rounds


@shared_task(bind=True, name="traps.poison", acks_late=True, reject_on_worker_lost=True)
def poison(self: Task) -> None:
    """Kill the process that runs it."""
    with journal().run(self.request):
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task(bind=True, name="traps.retries", acks_late=True, max_retries=None)
def retries(self: Task, times: int) -> int:
    """Retry so many times, then answer."""
    with journal().run(self.request):
        if self.request.retries < times:
            raise self.retry(countdown=0)
    return times


@shared_task(bind=True, name="traps.raises", acks_late=True)
def raises(self: Task, error: str) -> None:
    """Raise one of the errors that Celery does not treat as a failure of the task alone."""
    with journal().run(self.request):
        raise {"MemoryError": MemoryError, "SystemExit": SystemExit}[error]


class Breaking(Task):
    """A task whose end raises what a tracer lets out."""

    def after_return(self, *args: Any, **kwargs: Any) -> None:
        raise MemoryError


@shared_task(bind=True, base=Breaking, name="traps.breaks_tracer", acks_late=True)
def breaks_tracer(self: Task) -> None:
    """Succeed, after which the tracer itself fails."""
    with journal().run(self.request):
        pass


@inspect_command()
def claims_insides(state: Any) -> dict[str, int]:
    """How much a worker keeps in mind of its claims."""
    keeper = installed(state.app).keeper
    assert keeper is not None
    return {
        "questions": _questions["asked"],
        "active": len(keeper.desk.active()),
        "waiting": len(keeper.desk.lines.waiting()),
        "granted": len(keeper._by_grant),
        "delivered": len(state.consumer.claims_gate._delivered),
        "alarm": int(keeper.next_alarm() is not None),
    }


def count_questions() -> None:
    """Count the questions that the gate puts to the store."""
    ask = Keeper.ask

    def counting(self: Keeper, cases: list[Any]) -> Any:
        _questions["asked"] += len(cases)
        return ask(self, cases)

    Keeper.ask = counting  # type: ignore[method-assign]


_questions: Counter[str] = Counter()


def note_results() -> None:
    """Tell the journal of every result that reaches the backend, and of its process."""
    for backend in (Backend, RPCBackend):
        backend.store_result = _noting(backend.store_result)


def _noting(store: Callable[..., Any]) -> Callable[..., Any]:
    def store_result(
        self: Any, task_id: str, result: Any, state: str, *args: Any, **kw: Any
    ) -> Any:
        journal().write("stored", of=task_id, state=state)
        return store(self, task_id, result, state, *args, **kw)

    return store_result


def hold_long() -> None:
    """Arrange the pauses that ``HOLD_VARIABLE`` wants."""
    seconds = os.environ.get(HOLD_VARIABLE)
    if seconds is not None:
        holding.FIRST_PAUSE = holding.LONGEST_PAUSE = desk.LONGEST_PAUSE = float(seconds)


def crash_once() -> None:
    """Arrange the death that ``CRASH_VARIABLE`` names."""
    where = os.environ.get(CRASH_VARIABLE)
    if where is None:
        return
    finish = Run.finish

    def crashing(self: Run, *args: Any, **kwargs: Any) -> bool | None:
        if where.startswith("gate:"):
            gates().wait(where.removeprefix("gate:"))
        if where == "before_finish":
            _die_unless_dead_before()
        recorded = finish(self, *args, **kwargs)
        if where == "after_finish":
            _die_unless_dead_before()
        return recorded

    Run.finish = crashing  # type: ignore[method-assign]
    give_back = Sweeper._give_back

    def giving_back(self: Sweeper, records: tuple[Record, ...]) -> list[Fate]:
        if records and where == "before_give_back":
            _die_unless_dead_before()
        fates = give_back(self, records)
        if Fate.PUT_BACK in fates and where == "after_give_back":
            _die_unless_dead_before()
        return fates

    Sweeper._give_back = giving_back  # type: ignore[method-assign]


def tell_accepted() -> None:
    """Log that Celery knows of a body which its pool has begun."""
    accepted = Watch.accepted

    def telling(self: Watch, *args: Any, **kwargs: Any) -> None:
        accepted(self, *args, **kwargs)
        logger.info("accepted: %s", self._case.incoming.task_id)

    Watch.accepted = telling  # type: ignore[method-assign]


def beat_late() -> None:
    """Arrange what ``LATE_BEAT_VARIABLE`` says."""
    seconds = float(os.environ.get(LATE_BEAT_VARIABLE, "0"))
    if not seconds:
        return
    run_once, last = Heartbeat.run_once, [time.monotonic()]

    def beating(self: Heartbeat) -> Any:
        before, last[0] = last[0], time.monotonic()
        if last[0] - before > seconds:
            stays(lambda: True, seconds)
        return run_once(self)

    Heartbeat.run_once = beating  # type: ignore[method-assign]


def _die_unless_dead_before() -> None:
    try:
        (Path(os.environ[FOLDER_VARIABLE]) / "crashed").touch(exist_ok=False)
    except FileExistsError:
        return
    if os.environ.get(KILL_VARIABLE) == "parent":
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
