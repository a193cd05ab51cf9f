"""Expired claims are cleaned up, by beat or without it, and what they knew outlives them."""

from __future__ import annotations

from celery_claims.options import CLEANUP_TASK
from celery_claims.protocol import Outcome, State
from celery_claims.stores import View

from tests.process.setup import ProcessSetup, publish_copies

from .steps import (
    store_of,
    traps,
    wait_finished,
    wait_for_record,
    wait_started,
    where,
    workers,
)

#: Seconds between cleanups that no test lives to see.
NEVER = 3600


def kill_in_mid_task(setup: ProcessSetup) -> str:
    """Leave an expired claim of a started task behind; the killed worker is dropped."""
    result = publish_copies(setup.app, setup.app.signature("traps.late", ("never",)), 1)
    (run,) = setup.journal.wait_for_runs(result.id)
    killed, _ = where(setup.workers, run.pid)
    wait_started(setup.site, result.id)
    killed.container.kill_group("SIGKILL")
    setup.journal.note_dead(run.pid)
    return result.id


def assert_cleaned_with_its_counters(setup: ProcessSetup, task_id: str) -> None:
    """Free, and the death of its run is known to the next one."""
    record = wait_for_record(setup.site, task_id, lambda found: found.state is State.FREE)
    assert (record.outcome, record.deliveries) == (Outcome.EXPIRED, 1)
    setup.gates.open("never")
    publish_copies(setup.app, setup.app.signature("traps.late"), 1, task_id=task_id)
    assert setup.app.AsyncResult(task_id).get(timeout=20)[1] == 1
    (finished,) = wait_finished(setup.site, task_id)
    assert finished.token > record.token


@traps(cleanup_every=1)
@workers(2)
def test_workers_clean_up_without_beat(celery_setup: ProcessSetup) -> None:
    """Beat may be absent: the workers' heartbeats take turns."""
    assert_cleaned_with_its_counters(celery_setup, kill_in_mid_task(celery_setup))


@traps(
    {"beat_schedule": {CLEANUP_TASK: {"task": CLEANUP_TASK, "schedule": 1.0}}}, cleanup_every=NEVER
)
@workers(2)
def test_beat_cleans_up(celery_setup: ProcessSetup) -> None:
    """The scheduled task does it too; the workers' own turn is too far away to help."""
    setup = celery_setup
    task_id = kill_in_mid_task(setup)
    setup.site.start_beat()
    assert_cleaned_with_its_counters(setup, task_id)


@traps(tasks=["*"], cleanup_every=1)
@workers(1)
def test_the_cleanup_itself_is_never_claimed(celery_setup: ProcessSetup) -> None:
    """Beat has an entry for it without a word in the app's schedule, and it leaves no record."""
    setup = celery_setup
    setup.site.start_beat()
    setup.worker.wait_for_log(f"Task {CLEANUP_TASK}[")
    setup.worker.wait_for_log("succeeded in")
    result = publish_copies(setup.app, setup.app.signature("traps.late"), 1)
    result.get(timeout=20)
    wait_finished(setup.site, result.id)
    store = store_of(setup.site)
    try:
        page = store.scan(View.ALL)
    finally:
        store.close()
    assert {record.task_id for record in page.records} == {result.id}
