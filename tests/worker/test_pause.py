"""A frozen machine: stopped past its leases, replaced, and woken up again."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from celery import Celery, Signature, uuid
from celery.result import AsyncResult

from tests.process.nodes import ProcessWorker
from tests.process.setup import ProcessSetup, Site, publish_copies
from tests.process.waiting import stays, wait_until

from .apps.trap_tasks import CRASH_VARIABLE, LATE_BEAT_VARIABLE
from .steps import (
    LEASE,
    assert_all_acknowledged,
    end_warm,
    freeze,
    in_pools,
    pids,
    stored,
    traps,
    wait_claimed_by,
    wait_finished,
    wait_for_events,
    wait_started,
    waiting,
)


@dataclass(frozen=True)
class Frozen:
    """One running and one reserved task of a worker that is frozen, taken over by another."""

    running: AsyncResult
    reserved: AsyncResult
    frozen: ProcessWorker
    other: ProcessWorker


def take_over(setup: ProcessSetup, running: Signature, reserved: Signature) -> Frozen:
    """Let one worker run and reserve, freeze it, and wait until the other has taken over."""
    frozen, other = setup.workers
    # It has nothing yet; this decides who receives what.
    freeze(setup.site, other)
    first = publish_copies(setup.app, running, 1)
    setup.journal.wait_for_runs(first.id)
    second = publish_copies(setup.app, reserved, 1)
    wait_claimed_by(setup.site, frozen, second.id)
    other.resume()
    for signature, result in ((running, first), (reserved, second)):
        publish_copies(setup.app, signature, 1, task_id=result.id)
        wait_for_events(other, "held", result.id)
    wait_started(setup.site, first.id)
    freeze(setup.site, frozen)
    setup.journal.wait_for_runs(first.id, 2)
    wait_claimed_by(setup.site, other, first.id)
    return Frozen(first, second, frozen, other)


def assert_only_the_other_finished(setup: ProcessSetup, case: Frozen) -> None:
    """One finish of each, by the new owner, and one callback."""
    alive = pids(case.other)
    for result in (case.running, case.reserved):
        ((pid, state),) = stored(setup.site, result.id)
        assert (pid in alive, state) == (True, "SUCCESS")
        assert result.result == [pid, int(result is case.running)]
        finishes = [run for run in setup.journal.runs(result.id) if run.event == "finish"]
        assert pid in {run.pid for run in finishes}
    (reserved,) = setup.journal.runs(case.reserved.id)
    assert reserved.pid in alive


@traps({"worker_prefetch_multiplier": 2})
@in_pools("prefork", "threads", count=2)
@pytest.mark.parametrize("again", range(3))
def test_a_task_reserved_in_a_frozen_worker_never_starts(
    celery_setup: ProcessSetup, pool: str, again: int
) -> None:
    """A run does not start on a lease that is gone, and one that is over leaves no trace.

    The frozen body ends in the moment that it wakes up, which frees its place for the reserved
    task before the worker's own heartbeat has learned anything.
    """
    setup = celery_setup
    callback = setup.app.signature("traps.late", task_id=uuid())
    running = setup.app.signature("traps.late", ("end",)).set(link=callback)
    case = take_over(setup, running, setup.app.signature("traps.late"))
    setup.gates.open("end")
    wait_finished(setup.site, case.running.id, case.reserved.id, callback.id)
    case.frozen.resume()
    wait_for_events(case.frozen, "skipped", case.running.id)
    wait_for_events(case.frozen, "skipped", case.reserved.id)
    assert_only_the_other_finished(setup, case)
    assert len(setup.journal.runs(callback.id)) == 1
    assert_all_acknowledged(setup)


@traps({"worker_prefetch_multiplier": 2})
@in_pools("prefork", "threads", count=2)
def test_a_frozen_run_that_wakes_up_is_told(celery_setup: ProcessSetup, pool: str) -> None:
    """Prefork stops the body; a thread's body finds out when it asks about its claim."""
    setup = celery_setup
    body = "traps.late" if pool == "prefork" else "traps.strict"
    running = setup.app.signature(body, ("end",))
    case = take_over(setup, running, setup.app.signature("traps.late"))
    old = setup.journal.runs(case.running.id)[0]
    case.frozen.resume()
    wait_for_events(case.frozen, "lost", case.running.id)
    wait_for_events(case.frozen, "held", case.running.id)
    if pool == "threads":
        assert setup.journal.wait_for_end(case.running.id)[0].event == "ClaimLost"
    else:
        wait_until(lambda: old.pid not in pids(case.frozen), what="the end of the body")
        setup.journal.note_dead(old.pid)
    setup.gates.open("end")
    wait_for_events(case.frozen, "skipped", case.running.id)
    wait_for_events(case.frozen, "skipped", case.reserved.id)
    assert_only_the_other_finished(setup, case)
    assert_all_acknowledged(setup)


@traps()
def test_a_frozen_end_is_not_recorded(site: Site, celery_setup_app: Celery) -> None:
    """Fenced: a worker that stops between result and record changes nothing when it wakes up."""
    late = celery_setup_app.signature("traps.late")
    old, new = (
        site.start_worker(pool="threads", log_level="DEBUG", env={CRASH_VARIABLE: f"gate:{name}"})
        for name in ("old", "new")
    )
    freeze(site, new)
    result = publish_copies(celery_setup_app, late, 1)
    site.journal.wait_for_end(result.id)
    freeze(site, old)
    new.resume()
    publish_copies(celery_setup_app, late, 1, task_id=result.id)
    wait_claimed_by(site, new, result.id)
    site.gates.open("old")
    old.resume()
    wait_for_events(old, "held", result.id)
    record = wait_claimed_by(site, new, result.id)
    site.gates.open("new")
    wait_for_events(old, "skipped", result.id)
    (finished,) = wait_finished(site, result.id)
    assert finished.token == record.token
    end_warm(old, new)
    assert waiting(site.broker) == 0


@traps({"worker_lost_wait": 0.1})
def test_a_lost_child_is_not_told_of_a_task_that_another_worker_has(
    site: Site, celery_setup_app: Celery
) -> None:
    """Told: the parent wakes up and finds its child gone before its heartbeat asks for the lease;
    a failure must not reach the results, for the task is another's."""
    late = celery_setup_app.signature("traps.late", ("end",))
    frozen = site.start_worker(env={LATE_BEAT_VARIABLE: "2"}, log_level="DEBUG")
    result = publish_copies(celery_setup_app, late, 1)
    (run,) = site.journal.wait_for_runs(result.id)
    other = site.start_worker(log_level="DEBUG")
    freeze(site, frozen)
    publish_copies(celery_setup_app, late, 1, task_id=result.id)
    site.journal.wait_for_runs(result.id, 2)
    # Long past the trust of the frozen one, whatever it had renewed last.
    assert stays(lambda: len(site.journal.runs(result.id)) == 2, 2 * LEASE)
    os.kill(run.pid, 9)
    site.journal.note_dead(run.pid)
    frozen.resume()
    wait_for_events(frozen, "held", result.id)
    site.gates.open("end")
    (_, again) = site.journal.wait_for_end(result.id, 2)
    wait_finished(site, result.id)
    end_warm(frozen, other)
    assert stored(site, result.id) == [(again.pid, "SUCCESS")]
