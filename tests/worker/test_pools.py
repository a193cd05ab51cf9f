"""Children that come and go, and bodies whose end no tracer reports."""

from __future__ import annotations

import pytest
from celery_claims.protocol import Outcome

from tests.process.container import WorkerSpec
from tests.process.setup import ProcessSetup, publish_copies
from tests.process.waiting import wait_until

from .steps import (
    ENDLESS,
    POOLS,
    assert_all_acknowledged,
    in_pools,
    stored,
    traps,
    wait_finished,
    wait_for_events,
    workers,
)

TRAPS = "tests.worker.apps.traps"


def assert_claimed_and_finished(setup: ProcessSetup, *task_ids: str) -> set[int]:
    """Each ran once, under a claim, and is finished as a success; the processes that did it."""
    for record in wait_finished(setup.site, *task_ids):
        assert record.outcome is Outcome.SUCCESS
        (run,) = setup.journal.runs(record.task_id)
        assert run.token == record.token
    return {setup.journal.runs(task_id)[0].pid for task_id in task_ids}


@traps({"worker_max_tasks_per_child": 1}, lease=ENDLESS)
@workers(1, concurrency=2)
def test_every_new_child_can_claim(celery_setup: ProcessSetup) -> None:
    """No connection and no lock crosses the fork, which happens while others use the store."""
    setup = celery_setup
    signature = setup.app.signature("traps.late")
    ids = [publish_copies(setup.app, signature, 2).id for _ in range(8)]
    assert len(assert_claimed_and_finished(setup, *ids)) == 8
    for task_id in ids:
        wait_for_events(setup.worker, "skipped", task_id)
    assert_all_acknowledged(setup)


@traps({"worker_prefetch_multiplier": 4}, lease=ENDLESS)
@pytest.mark.workers(WorkerSpec(app=TRAPS, extra=("--autoscale", "3,1"), log_level="DEBUG"))
def test_children_of_an_autoscaled_pool_can_claim(celery_setup: ProcessSetup) -> None:
    """The pool grows while tasks run."""
    setup = celery_setup
    signature = setup.app.signature("traps.late", ("end",))
    ids = [signature.clone().apply_async().id for _ in range(3)]
    wait_until(lambda: len(setup.journal.runs()) == 3, what="three children at work")
    setup.gates.open("end")
    assert len(assert_claimed_and_finished(setup, *ids)) == 3


@traps({"worker_pool_restarts": True}, lease=ENDLESS)
@workers(1)
def test_a_restarted_pool_can_claim(celery_setup: ProcessSetup) -> None:
    """The gate and the tracers outlive the reload of the pool."""
    setup = celery_setup
    signature = setup.app.signature("traps.late")
    before = publish_copies(setup.app, signature, 1)
    old = assert_claimed_and_finished(setup, before.id)
    name = setup.worker.hostname()
    (reply,) = setup.app.control.pool_restart(destination=[name], reply=True, timeout=20, limit=1)
    assert "ok" in reply[name]
    after = publish_copies(setup.app, signature, 2)
    assert assert_claimed_and_finished(setup, after.id).isdisjoint(old)
    wait_for_events(setup.worker, "skipped", after.id)
    assert_all_acknowledged(setup)


@traps({"worker_pool_start_method": "spawn"}, lease=ENDLESS)
@workers(1)
def test_a_spawned_child_can_claim(celery_setup: ProcessSetup) -> None:
    """A child that shares nothing with its parent reads its settings and opens its own store."""
    setup = celery_setup
    result = publish_copies(setup.app, setup.app.signature("traps.late"), 2)
    assert_claimed_and_finished(setup, result.id)
    wait_for_events(setup.worker, "skipped", result.id)
    assert_all_acknowledged(setup)


@traps(lease=ENDLESS)
@in_pools(*POOLS)
def test_a_memory_error_is_a_failure(celery_setup: ProcessSetup, pool: str) -> None:
    """Celery stores the failure, does not acknowledge the message and ends the worker or forgets
    the task. Neither a copy nor the message itself, should it come back, runs again."""
    setup = celery_setup
    signature = setup.app.signature("traps.raises", ("MemoryError",))
    result = publish_copies(setup.app, signature, 1)
    (record,) = wait_finished(setup.site, result.id)
    assert record.outcome is Outcome.FAILURE
    publish_copies(setup.app, signature, 1, task_id=result.id)
    if pool in {"threads", "gevent"}:
        setup.worker.kill("SIGTERM")
    setup.worker.wait()
    setup.worker.restart()
    wait_for_events(setup.worker, "skipped", result.id)
    assert len(setup.journal.runs(result.id)) == 1
    assert [state for _, state in stored(setup.site, result.id)] == ["FAILURE"]


@traps(lease=ENDLESS)
@workers(1)
def test_a_child_that_exits_is_lost(celery_setup: ProcessSetup) -> None:
    """SystemExit ends the child; Celery fails the task and acknowledges it."""
    setup = celery_setup
    result = publish_copies(setup.app, setup.app.signature("traps.raises", ("SystemExit",)), 2)
    wait_for_events(setup.worker, "skipped", result.id)
    (record,) = wait_finished(setup.site, result.id)
    assert record.outcome is Outcome.WORKER_LOST
    assert len(setup.journal.runs(result.id)) == 1


@traps(lease=ENDLESS, max_deliveries=2)
@in_pools("threads", "gevent")
@pytest.mark.parametrize(
    ("task", "arguments"), [("traps.raises", ("SystemExit",)), ("traps.breaks_tracer", ())]
)
def test_what_escapes_the_tracer_of_a_thread_is_given_back(
    celery_setup: ProcessSetup, pool: str, task: str, arguments: tuple[str, ...]
) -> None:
    """Celery tells nobody of such an end. The claim does not stay for ever: the task runs again,
    and counts as one that died."""
    setup = celery_setup
    result = publish_copies(setup.app, setup.app.signature(task, arguments), 2)
    wait_for_events(setup.worker, "exhausted", result.id)
    wait_for_events(setup.worker, "skipped", result.id)
    (record,) = wait_finished(setup.site, result.id)
    assert (record.outcome, record.deliveries) == (Outcome.EXHAUSTED, 2)
    assert len(setup.journal.runs(result.id)) == 2
    assert setup.journal.max_overlap(result.id) == 1
    assert_all_acknowledged(setup)
