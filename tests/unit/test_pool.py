"""What the pool's callbacks lead to when Celery's own would be wrong."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.worker import state
from celery_claims.case import Case
from celery_claims.pool import PoolWatch, Watch
from celery_claims.protocol import Outcome
from celery_claims.settling import Ending

from tests.unit.factories import incoming


def lost_child() -> MagicMock:
    error = WorkerLostError("Worker exited prematurely: signal 15 (SIGTERM)")
    return MagicMock(spec=ExceptionInfo, exception=error)


def watched(*, late: bool, cancelled: bool) -> tuple[Watch, MagicMock, MagicMock, MagicMock]:
    """A watch, its gate, its keeper and Celery's callback for errors."""
    gate, keeper, request, error = MagicMock(), MagicMock(), MagicMock(), MagicMock()
    request._already_cancelled = cancelled
    keeper.returning.return_value = Outcome.NACKED
    case = Case(incoming(late=late), connection=0, grant_id="grant")
    options: dict[str, Any] = {"callback": MagicMock(), "error_callback": error}
    return Watch(gate, keeper, case, request, options), gate, keeper, error


@pytest.mark.parametrize(
    ("flag", "late", "cancelled", "ending"),
    [
        (1, True, False, Ending.TERMINATED),
        # Celery writes the failure of a task that it acknowledged at the start: there is no other.
        (1, False, False, Ending.WORKER_LOST),
        (1, True, True, Ending.WORKER_LOST),
        (None, True, False, Ending.WORKER_LOST),
    ],
    ids=["cut off", "early", "cancelled", "no shutdown"],
)
def test_what_a_cold_shutdown_cuts_off_is_given_back(
    monkeypatch: pytest.MonkeyPatch, flag: int | None, late: bool, cancelled: bool, ending: Ending
) -> None:
    """Nothing lost: Celery 5.4 reports it as a failure and its message goes back all the same."""
    monkeypatch.setattr(state, "should_terminate", flag)
    watch, gate, keeper, error = watched(late=late, cancelled=cancelled)
    watch.error(lost_child())
    ((_, found), _) = keeper.ended.call_args
    assert found is ending
    assert error.called is (ending is Ending.WORKER_LOST)
    assert gate.come_back.called is (flag is None)
    assert gate.over.called is (flag is not None)


@pytest.mark.parametrize("told", ["error", "timeout"])
@pytest.mark.parametrize("holds", [True, False])
def test_an_end_is_told_here_only_under_the_claim(told: str, holds: bool) -> None:
    """Told: Celery writes the failure of a lost or late child in the parent."""
    watch, gate, keeper, _ = watched(late=True, cancelled=False)
    watch._error = watch._timeout = callback = MagicMock()
    keeper.holds.return_value = holds
    watch.error(lost_child()) if told == "error" else watch.timeout(False, 5.0)
    assert (callback.called, keeper.ended.called) == (holds, holds)
    assert gate.come_back.call_args.kwargs.get("started", False) is not holds


def test_only_a_pool_of_processes_has_its_flush_watched() -> None:
    """The others have no books, and looking into them would end the worker with its connection."""
    threads = MagicMock(spec=["flush"])
    PoolWatch(MagicMock(), MagicMock(), forks=False).wrap_flush(threads)
    threads.flush()
    assert threads.flush.call_count == 1
