"""Copies, leases and the death of their owners."""

from __future__ import annotations

import os
import time

import pytest
from celery import Celery
from celery.exceptions import WorkerLostError
from celery_claims.protocol import Outcome, State

from tests.process.setup import ProcessSetup, Site, publish_copies
from tests.process.versions import FINDS_STORED_SUCCESS
from tests.process.waiting import stays, wait_until

from .apps.trap_tasks import CRASH_VARIABLE, KILL_VARIABLE
from .steps import (
    ENDLESS,
    LEASE,
    POOLS,
    SOON,
    assert_all_acknowledged,
    end_warm,
    events,
    in_pools,
    stored,
    traps,
    wait_finished,
    wait_for_events,
    wait_for_record,
    wait_started,
    waiting,
    where,
    workers,
)


@pytest.mark.oldest
@traps()
@in_pools(*POOLS, count=2, concurrency=2)
def test_the_same_message_three_times_runs_once(celery_setup: ProcessSetup, pool: str) -> None:
    """Not twice while alive, not again when finished; nothing is left at the broker."""
    signature = celery_setup.app.signature("traps.late", ("end",))
    result = publish_copies(celery_setup.app, signature, 3)
    wait_for_events(celery_setup.workers, "held", result.id, 2)
    celery_setup.gates.open("end")
    wait_for_events(celery_setup.workers, "skipped", result.id, 2)
    (run,) = celery_setup.journal.runs(result.id)
    assert result.get(timeout=5) == [run.pid, 0]
    assert stored(celery_setup.site, result.id) == [(run.pid, "SUCCESS")]
    assert_all_acknowledged(celery_setup)


@pytest.mark.brokers("sqlite")
@traps()
@workers(2, concurrency=2)
def test_the_same_message_three_times_runs_once_on_sqlite(celery_setup: ProcessSetup) -> None:
    """As above, on kombu's SQLite broker with the store beside it."""
    signature = celery_setup.app.signature("traps.late", ("end",))
    result = publish_copies(celery_setup.app, signature, 3)
    wait_for_events(celery_setup.workers, "held", result.id, 2)
    celery_setup.gates.open("end")
    wait_for_events(celery_setup.workers, "skipped", result.id, 2)
    (run,) = celery_setup.journal.runs(result.id)
    assert result.get(timeout=5) == [run.pid, 0]


@traps()
@workers(2)
def test_a_copy_that_arrives_after_the_end_is_skipped(celery_setup: ProcessSetup) -> None:
    """Not again when finished."""
    signature = celery_setup.app.signature("traps.early")
    result = publish_copies(celery_setup.app, signature, 1)
    result.get(timeout=20)
    wait_finished(celery_setup.site, result.id)
    publish_copies(celery_setup.app, signature, 5, task_id=result.id)
    wait_for_events(celery_setup.workers, "skipped", result.id, 5)
    assert len(celery_setup.journal.runs(result.id)) == 1
    assert_all_acknowledged(celery_setup)


@traps()
@in_pools("prefork", "threads", "gevent", count=2)
def test_a_lease_is_renewed_to_the_end_of_the_task(celery_setup: ProcessSetup, pool: str) -> None:
    """Not twice while alive: three leases long, with a copy that waits on the other worker."""
    signature = celery_setup.app.signature("traps.late", ("end",))
    result = publish_copies(celery_setup.app, signature, 2)
    wait_for_events(celery_setup.workers, "held", result.id)
    celery_setup.journal.wait_for_runs(result.id)
    assert stays(lambda: len(celery_setup.journal.runs(result.id)) == 1, 3 * LEASE)
    celery_setup.gates.open("end")
    wait_for_events(celery_setup.workers, "skipped", result.id)
    (run,) = celery_setup.journal.runs(result.id)
    assert run.event == "finish"
    assert_all_acknowledged(celery_setup)


@traps()
@in_pools("solo", "gevent", count=2)
def test_a_body_that_never_yields_is_renewed(celery_setup: ProcessSetup, pool: str) -> None:
    """The heartbeat is a thread of the operating system; no loop and no greenlet stops it."""
    signature = celery_setup.app.signature("traps.spin", (3 * LEASE,))
    result = publish_copies(celery_setup.app, signature, 2)
    wait_for_events(celery_setup.workers, "held", result.id)
    wait_for_events(celery_setup.workers, "skipped", result.id)
    (run,) = celery_setup.journal.runs(result.id)
    assert run.ended is not None and run.ended - run.started >= 3 * LEASE
    assert run.event == "finish"


@traps(lease=ENDLESS)
@workers(2)
def test_a_lost_child_fails_its_task_and_no_copy_runs(celery_setup: ProcessSetup) -> None:
    """Celery acknowledges a late task whose child was lost: its attempt is finished."""
    signature = celery_setup.app.signature("traps.late", ("never",))
    result = publish_copies(celery_setup.app, signature, 2)
    wait_for_events(celery_setup.workers, "held", result.id)
    (run,) = celery_setup.journal.wait_for_runs(result.id)
    os.kill(run.pid, 9)
    with pytest.raises(WorkerLostError):
        result.get(timeout=20)
    (record,) = wait_finished(celery_setup.site, result.id)
    assert record.outcome is Outcome.WORKER_LOST
    wait_for_events(celery_setup.workers, "skipped", result.id)
    assert len(celery_setup.journal.runs(result.id)) == 1
    assert [state for _, state in stored(celery_setup.site, result.id)] == ["FAILURE"]
    assert_all_acknowledged(celery_setup)


@traps(lease=ENDLESS)
@workers(2)
def test_a_lost_child_of_a_requeued_task_gives_it_back_counted(celery_setup: ProcessSetup) -> None:
    """With ``reject_on_worker_lost`` the task runs again at once, and one death is known."""
    signature = celery_setup.app.signature("traps.requeued", ("end",))
    result = publish_copies(celery_setup.app, signature, 2)
    wait_for_events(celery_setup.workers, "held", result.id)
    (run,) = celery_setup.journal.wait_for_runs(result.id)
    os.kill(run.pid, 9)
    celery_setup.journal.note_dead(run.pid)
    _, again = celery_setup.journal.wait_for_runs(result.id, 2)
    celery_setup.gates.open("end")
    assert result.get(timeout=20) == [again.pid, 1]
    wait_for_events(celery_setup.workers, "skipped", result.id)
    assert len(celery_setup.journal.runs(result.id)) == 2
    assert_all_acknowledged(celery_setup)


@traps()
@workers(2)
@pytest.mark.parametrize("whole_group", [False, True], ids=["parent", "both"])
def test_a_killed_workers_task_is_taken_over(celery_setup: ProcessSetup, whole_group: bool) -> None:
    """Back soon: within the lease and a little more, by the worker that holds a copy."""
    signature = celery_setup.app.signature("traps.late", ("end",))
    result = publish_copies(celery_setup.app, signature, 2)
    wait_for_events(celery_setup.workers, "held", result.id)
    (run,) = celery_setup.journal.wait_for_runs(result.id)
    killed, other = where(celery_setup.workers, run.pid)
    wait_started(celery_setup.site, result.id)
    at = time.monotonic()
    if whole_group:
        killed.container.kill_group("SIGKILL")
    else:
        killed.kill()
    wait_until(lambda: not killed.children(), what="the end of the children")
    celery_setup.journal.note_dead(run.pid)
    _, again = celery_setup.journal.wait_for_runs(result.id, 2)
    assert again.started - at < LEASE + SOON
    assert events(other, "taken_over", result.id) == 1
    celery_setup.gates.open("end")
    assert result.get(timeout=20) == [again.pid, 1]
    assert celery_setup.journal.max_overlap(result.id) == 1
    assert_all_acknowledged(celery_setup, other)


@traps()
@workers(2)
def test_a_held_copy_goes_back_when_its_worker_ends(celery_setup: ProcessSetup) -> None:
    """Nothing lost: a copy that waits is not acknowledged, and so outlives both workers."""
    setup = celery_setup
    signature = setup.app.signature("traps.late", ("end",))
    result = publish_copies(setup.app, signature, 2)
    wait_for_events(setup.workers, "held", result.id)
    (run,) = setup.journal.wait_for_runs(result.id)
    killed, other = where(setup.workers, run.pid)
    end_warm(other)
    assert waiting(setup.broker) == 1
    killed.container.kill_group("SIGKILL")
    setup.journal.note_dead(run.pid)
    setup.gates.open("end")
    other.restart()
    assert len(setup.journal.wait_for_end(result.id, 2)) == 2
    assert setup.journal.max_overlap(result.id) == 1
    wait_finished(setup.site, result.id)
    assert_all_acknowledged(setup, other)


@traps()
@in_pools("threads", "solo", "gevent", count=2)
def test_a_killed_worker_of_any_pool_is_taken_over(celery_setup: ProcessSetup, pool: str) -> None:
    """Back soon, as above."""
    signature = celery_setup.app.signature("traps.late", ("end",))
    result = publish_copies(celery_setup.app, signature, 2)
    wait_for_events(celery_setup.workers, "held", result.id)
    (run,) = celery_setup.journal.wait_for_runs(result.id)
    killed, other = where(celery_setup.workers, run.pid)
    killed.kill()
    celery_setup.journal.note_dead(run.pid)
    celery_setup.gates.open("end")
    (pid, _) = result.get(timeout=20)
    assert pid == other.container.pid
    assert celery_setup.journal.max_overlap(result.id) == 1
    assert_all_acknowledged(celery_setup, other)


@traps(cleanup_every=1)
@workers(2)
def test_an_early_task_of_a_killed_worker_is_not_run_again(celery_setup: ProcessSetup) -> None:
    """Early acknowledgement stays at most once, as Celery promises."""
    result = celery_setup.app.signature("traps.early", ("never",)).apply_async()
    (run,) = celery_setup.journal.wait_for_runs(result.id)
    killed, _ = where(celery_setup.workers, run.pid)
    wait_started(celery_setup.site, result.id)
    killed.container.kill_group("SIGKILL")
    wait_for_record(celery_setup.site, result.id, lambda record: record.state is State.FREE)
    assert waiting(celery_setup.broker) == 0
    assert len(celery_setup.journal.runs(result.id)) == 1


@traps(lease=ENDLESS)
@workers(2)
def test_an_early_task_of_a_lost_child_is_finished(celery_setup: ProcessSetup) -> None:
    """Early acknowledgement stays at most once, also where a copy comes later."""
    signature = celery_setup.app.signature("traps.early", ("never",))
    result = publish_copies(celery_setup.app, signature, 1)
    (run,) = celery_setup.journal.wait_for_runs(result.id)
    os.kill(run.pid, 9)
    (record,) = wait_finished(celery_setup.site, result.id)
    assert record.outcome is Outcome.WORKER_LOST
    publish_copies(celery_setup.app, signature, 1, task_id=result.id)
    wait_for_events(celery_setup.workers, "skipped", result.id)
    assert len(celery_setup.journal.runs(result.id)) == 1


@pytest.mark.oldest
@traps(lease=ENDLESS)
def test_a_child_killed_after_its_release_is_not_run_again(
    site: Site, celery_setup_app: Celery
) -> None:
    """Its message is acknowledged, or requeued and skipped: the record says how the run ended."""
    assert runs_of_a_child_killed(site, celery_setup_app, "after_finish", Outcome.SUCCESS) == 1


@pytest.mark.oldest
@traps(lease=ENDLESS)
def test_a_child_killed_before_its_release_runs_as_often_as_celery_has_it(
    site: Site, celery_setup_app: Celery
) -> None:
    """Celery looks for the result of a lost child; before it did, it requeued the message."""
    outcome = Outcome.WORKER_LOST if FINDS_STORED_SUCCESS else Outcome.SUCCESS
    runs = runs_of_a_child_killed(site, celery_setup_app, "before_finish", outcome)
    assert runs == (1 if FINDS_STORED_SUCCESS else 2)


def runs_of_a_child_killed(site: Site, app: Celery, crash: str, outcome: Outcome) -> int:
    """How often a task ran whose child was killed around the release, each time with success."""
    worker = site.start_worker(env={CRASH_VARIABLE: crash}, log_level="DEBUG")
    result = publish_copies(app, app.signature("traps.requeued"), 2)
    wait_for_events(worker, "skipped", result.id)
    (record,) = wait_finished(site, result.id)
    assert record.outcome is outcome
    end_warm(worker)
    assert waiting(site.broker) == 0
    runs = len(site.journal.runs(result.id))
    assert [state for _, state in stored(site, result.id)] == ["SUCCESS"] * runs
    return runs


@traps()
@pytest.mark.parametrize(("crash", "runs"), [("before_finish", 2), ("after_finish", 1)])
def test_a_worker_killed_around_a_release(
    site: Site, celery_setup_app: Celery, crash: str, runs: int
) -> None:
    """Without the release a copy runs again, for nobody knows the end; with it, never."""
    env = {CRASH_VARIABLE: crash, KILL_VARIABLE: "parent"}
    dying = site.start_worker(env=env, log_level="DEBUG")
    signature = celery_setup_app.signature("traps.late")
    result = publish_copies(celery_setup_app, signature, 2)
    assert dying.wait() == -9
    other = site.start_worker(log_level="DEBUG")
    if runs == 1:
        wait_for_events(other, "skipped", result.id)
    else:
        site.journal.wait_for_end(result.id, runs)
    wait_finished(site, result.id)
    assert len(site.journal.runs(result.id)) == runs
    end_warm(other)
    assert waiting(site.broker) == 0
