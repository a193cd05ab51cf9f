"""The store does not answer for longer than any lease, and then it does."""

from __future__ import annotations

import pytest

from tests.process.journal import Run
from tests.process.setup import ProcessSetup, publish_copies
from tests.process.waiting import stays, wait_until

from .steps import (
    LEASE,
    assert_all_acknowledged,
    end_warm,
    in_pools,
    locked,
    pids,
    stored,
    traps,
    wait_finished,
    wait_for_events,
    waiting,
    workers,
)


@traps()
@in_pools("prefork", "threads", "gevent", concurrency=3)
def test_deliveries_wait_and_running_tasks_go_on(celery_setup: ProcessSetup, pool: str) -> None:
    """Nothing lost, nothing twice: ends are recorded late, and acknowledgements wait for that."""
    setup, worker = celery_setup, celery_setup.worker
    signature = setup.app.signature("traps.late", ("end",))
    running = publish_copies(setup.app, signature, 1)
    ending = publish_copies(setup.app, setup.app.signature("traps.late", ("first",)), 1)
    setup.journal.wait_for_runs(running.id)
    setup.journal.wait_for_runs(ending.id)
    with locked(setup.site):
        new = publish_copies(setup.app, setup.app.signature("traps.late"), 1)
        publish_copies(setup.app, signature, 1, task_id=running.id)
        worker.wait_for_log("store_down: deliveries wait")
        wait_for_events(worker, "held", new.id)
        setup.gates.open("first")
        assert ending.get(timeout=10)[1] == 0
        publish_copies(setup.app, setup.app.signature("traps.late"), 1, task_id=ending.id)
        assert stays(lambda: setup.journal.runs(running.id)[0].is_running, 2 * LEASE)
        assert len(setup.journal.runs()) == 2
    wait_finished(setup.site, new.id, ending.id)
    setup.gates.open("end")
    wait_finished(setup.site, running.id)
    wait_for_events(worker, "skipped", running.id)
    wait_for_events(worker, "skipped", ending.id)
    worker.wait_for_log("store_up")
    assert [len(setup.journal.runs(r.id)) for r in (running, ending, new)] == [1, 1, 1]
    assert [len(stored(setup.site, r.id)) for r in (running, ending, new)] == [1, 1, 1]
    assert_all_acknowledged(setup)


@traps(strict=True)
@workers(1)
def test_a_strict_body_is_stopped(celery_setup: ProcessSetup) -> None:
    """Told: when its lease cannot be trusted any more, although nobody may have taken it over."""
    setup, worker = celery_setup, celery_setup.worker
    result = publish_copies(setup.app, setup.app.signature("traps.late", ("end",)), 1)
    (run,) = setup.journal.wait_for_runs(result.id)
    with locked(setup.site):
        wait_for_events(worker, "lost", result.id)
        wait_until(lambda: run.pid not in pids(worker), what="the end of the body")
        setup.journal.note_dead(run.pid)
        assert len(setup.journal.runs(result.id)) == 1
    setup.gates.open("end")
    _, again = setup.journal.wait_for_end(result.id, 2)
    assert result.get(timeout=10)[0] == again.pid
    assert [state for _, state in stored(setup.site, result.id)] == ["SUCCESS"]
    assert_all_acknowledged(setup)


@traps()
@in_pools("threads", "gevent")
def test_a_strict_body_finds_out(celery_setup: ProcessSetup, pool: str) -> None:
    """Told, in pools that cannot stop a body: at its next ``check``."""
    setup = celery_setup
    result = publish_copies(setup.app, setup.app.signature("traps.strict", ("end",)), 1)
    setup.journal.wait_for_runs(result.id)
    with locked(setup.site):
        (run,) = setup.journal.wait_for_end(result.id)
        assert run.event == "ClaimLost"
    setup.gates.open("end")
    wait_finished(setup.site, result.id)
    assert [run.event for run in setup.journal.runs(result.id)] == ["ClaimLost", "finish"]
    assert [state for _, state in stored(setup.site, result.id)] == ["SUCCESS"]


@traps(on_store_down="run")
@workers(1)
def test_deliveries_run_unclaimed_if_told_so(celery_setup: ProcessSetup) -> None:
    """``claims_on_store_down = "run"`` is the switch to fail open."""
    setup = celery_setup
    with locked(setup.site):
        result = publish_copies(setup.app, setup.app.signature("traps.late"), 1)
        (run,) = setup.journal.wait_for_end(result.id)
        assert run.token is None
        assert result.get(timeout=10) == [run.pid, None]

    def next_run() -> Run:
        following = publish_copies(setup.app, setup.app.signature("traps.late"), 1)
        return setup.journal.wait_for_end(following.id)[0]

    # The store is left alone for a moment after it failed.
    assert any(next_run().token is not None for _ in range(50))
    assert_all_acknowledged(setup)


@pytest.mark.oldest
@traps()
@in_pools("prefork", "threads")
def test_a_warm_shutdown_acknowledges_what_it_could_not_record(
    celery_setup: ProcessSetup, pool: str
) -> None:
    """An ended task must not run again only because the store did not answer at the end."""
    setup, worker = celery_setup, celery_setup.worker
    result = publish_copies(setup.app, setup.app.signature("traps.late", ("end",)), 1)
    setup.journal.wait_for_runs(result.id)
    with locked(setup.site):
        setup.gates.open("end")
        assert result.get(timeout=10)[1] == 0
        worker.wait_for_log("store_down")
        end_warm(worker)
        assert waiting(setup.broker) == 0
    assert len(setup.journal.runs(result.id)) == 1
