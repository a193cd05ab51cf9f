"""Warm, soft and cold shutdown: what is given back, what is kept, what is never finished.

Leases are longer than any test: whatever another worker runs was given back.
"""

from __future__ import annotations

import pytest
from celery import Celery
from celery_claims.protocol import Outcome, State

from tests.process.nodes import ProcessWorker
from tests.process.setup import ProcessSetup, Site, publish_copies
from tests.process.versions import CELERY, COLD_SHUTDOWN_AT_ONCE, SOLO_GOES_ON
from tests.process.waiting import stays

from .steps import (
    ENDLESS,
    LEASE,
    POOLS,
    assert_all_acknowledged,
    in_pools,
    record_of,
    stored,
    traps,
    wait_accepted,
    wait_claimed_by,
    wait_finished,
    wait_for_events,
    where,
)


@pytest.mark.brokers("folder", "redis", "rabbitmq")
@traps({"worker_prefetch_multiplier": 3}, lease=ENDLESS)
@pytest.mark.parametrize("pool", POOLS)
def test_a_warm_shutdown_gives_back_what_it_did_not_start(
    site: Site, celery_setup_app: Celery, pool: str
) -> None:
    """Unstarted and ETA claims are free when the worker ends; the running task is finished."""
    worker = site.start_worker(pool=pool, log_level="DEBUG")
    later, running, reserved = three_tasks(site, celery_setup_app, worker)
    worker.kill("SIGTERM")
    worker.wait_for_log("Warm shutdown")
    site.gates.open("end")
    assert worker.wait() == 0
    other = site.start_worker(pool=pool, log_level="DEBUG")
    wait_finished(site, running, reserved)
    wait_claimed_by(site, other, later)
    assert [len(site.journal.runs(i)) for i in (running, reserved, later)] == [1, 1, 0]
    assert stored(site, running) == [(site.journal.runs(running)[0].pid, "SUCCESS")]


@traps()
@in_pools("prefork", "threads", "gevent", count=2)
def test_leases_are_renewed_while_a_warm_shutdown_drains(
    celery_setup: ProcessSetup, pool: str
) -> None:
    """Not twice while alive: three leases long the draining worker keeps its task."""
    signature = celery_setup.app.signature("traps.late", ("end",))
    result = publish_copies(celery_setup.app, signature, 2)
    wait_for_events(celery_setup.workers, "held", result.id)
    (run,) = celery_setup.journal.wait_for_runs(result.id)
    draining, other = where(celery_setup.workers, run.pid)
    draining.kill("SIGTERM")
    draining.wait_for_log("Closing Pool")
    assert stays(lambda: len(celery_setup.journal.runs(result.id)) == 1, 3 * LEASE)
    celery_setup.gates.open("end")
    assert draining.wait() == 0
    wait_for_events(other, "skipped", result.id)
    assert len(celery_setup.journal.runs(result.id)) == 1
    assert_all_acknowledged(celery_setup, other)


@pytest.mark.oldest
@pytest.mark.brokers("folder", "redis", "rabbitmq")
@traps({"worker_prefetch_multiplier": 3}, lease=ENDLESS)
@pytest.mark.parametrize(
    ("pool", "soft"),
    [
        pytest.param("prefork", 0.0, id="prefork"),
        # Not in gevent, which does not allow Celery to sleep in its hub.
        pytest.param(
            "prefork",
            1.0,
            id="prefork-soft",
            marks=pytest.mark.skipif(CELERY < (5, 5), reason="soft shutdown came with Celery 5.5"),
        ),
        pytest.param(
            "gevent",
            0.0,
            id="gevent",
            marks=pytest.mark.skipif(CELERY < (5, 5), reason="its bodies are left to their lease"),
        ),
    ],
)
def test_a_cold_shutdown_never_finishes_what_it_cut_off(
    site: Site, celery_setup_app: Celery, pool: str, soft: float
) -> None:
    """What was stopped, or never started, is given back and runs elsewhere; the deployment does
    not count as a death of the task."""
    if pool == "gevent" and site.conf["broker_url"].startswith("amqp"):
        pytest.skip("Celery itself, without claims, waits there for the body that it cut off")
    site.conf["worker_soft_shutdown_timeout"] = soft
    worker = site.start_worker(pool=pool, log_level="DEBUG")
    later, running, *reserved = cold_tasks(site, celery_setup_app, worker)
    worker.kill("SIGQUIT")
    worker.wait()
    site.journal.note_dead(site.journal.runs(running)[0].pid)
    record = record_of(site, running)
    assert record is not None and record.state is State.FREE
    site.gates.open("end")
    other = site.start_worker(pool=pool, log_level="DEBUG")
    wait_finished(site, running, *reserved)
    wait_claimed_by(site, other, later)
    cut_off, again = site.journal.runs(running)
    assert cut_off.event != "finish"
    assert celery_setup_app.AsyncResult(running).result == [again.pid, 0]
    assert [len(site.journal.runs(task_id)) for task_id in reserved] == [1] * len(reserved)
    assert site.journal.runs(later) == []


@pytest.mark.skipif(CELERY >= (5, 5), reason="this Celery stops the bodies first")
@traps(lease=LEASE)
def test_a_cold_shutdown_leaves_greenlets_to_their_lease(
    site: Site, celery_setup_app: Celery
) -> None:
    """As long as the process lives they may run, so that nothing may run beside them."""
    worker = site.start_worker(pool="gevent", log_level="DEBUG")
    _, running = cold_tasks(site, celery_setup_app, worker)
    worker.kill("SIGQUIT")
    worker.wait()
    site.journal.note_dead(site.journal.runs(running)[0].pid)
    record = record_of(site, running)
    assert record is not None and record.state is State.CLAIMED
    site.gates.open("end")
    site.start_worker(pool="gevent", log_level="DEBUG")
    wait_finished(site, running)
    assert len(site.journal.runs(running)) == 2


@traps({"worker_prefetch_multiplier": 3}, lease=ENDLESS)
def test_a_cold_shutdown_keeps_what_a_thread_still_runs(
    site: Site, celery_setup_app: Celery
) -> None:
    """A thread cannot be stopped: its task keeps its claim to the end and is finished then."""
    worker = site.start_worker(pool="threads", log_level="DEBUG")
    later, running, *reserved = cold_tasks(site, celery_setup_app, worker)
    worker.kill("SIGQUIT")
    worker.wait_for_log("Hitting Ctrl+C again" if COLD_SHUTDOWN_AT_ONCE else "Terminating Pool")
    other = site.start_worker(pool="threads", log_level="DEBUG")
    publish_copies(celery_setup_app, celery_setup_app.signature("traps.late"), 1, task_id=running)
    wait_for_events(other, "held", running)
    site.gates.open("end")
    worker.wait()
    wait_finished(site, running, *reserved)
    wait_claimed_by(site, other, later)
    assert [len(site.journal.runs(i)) for i in (running, *reserved)] == [1] * (1 + len(reserved))
    assert site.journal.runs(later) == []
    assert [state for _, state in stored(site, running)] == ["SUCCESS"]


@traps({"worker_prefetch_multiplier": 3}, lease=ENDLESS)
def test_a_cold_shutdown_of_a_solo_worker(site: Site, celery_setup_app: Celery) -> None:
    """Celery raises in the body: the task has failed, and is finished; the rest is given back.

    An older one waits for the end of the body, or forgets that it was to shut down.
    """
    worker = site.start_worker(pool="solo", log_level="DEBUG")
    later, running, _ = three_tasks(site, celery_setup_app, worker)
    worker.kill("SIGQUIT")
    if not COLD_SHUTDOWN_AT_ONCE:
        site.gates.open("end")
    (record,) = wait_finished(site, running)
    if SOLO_GOES_ON:
        worker.kill("SIGTERM")
    worker.wait()
    other = site.start_worker(pool="solo", log_level="DEBUG")
    wait_claimed_by(site, other, later)
    assert record.outcome is (Outcome.FAILURE if COLD_SHUTDOWN_AT_ONCE else Outcome.SUCCESS)
    assert len(site.journal.runs(running)) == 1


def three_tasks(site: Site, app: Celery, worker: ProcessWorker) -> tuple[str, str, str]:
    """One that waits for its time, one that runs and one that waits for the pool."""
    later, running = two_tasks(site, app, worker)
    reserved = app.signature("traps.late").apply_async().id
    if worker.spec.pool != "solo":
        # A solo worker receives nothing while it runs.
        wait_claimed_by(site, worker, reserved)
    return later, running, reserved


def cold_tasks(site: Site, app: Celery, worker: ProcessWorker) -> tuple[str, ...]:
    """As above, without the third if a full pool keeps this Celery from a cold shutdown."""
    return (three_tasks if COLD_SHUTDOWN_AT_ONCE else two_tasks)(site, app, worker)


def two_tasks(site: Site, app: Celery, worker: ProcessWorker) -> tuple[str, str]:
    """One that waits for its time and one that runs."""
    late = app.signature("traps.late")
    later = late.clone().apply_async(countdown=3600).id
    wait_claimed_by(site, worker, later)
    running = late.clone(("end",)).apply_async().id
    wait_accepted(site, worker, running)
    return later, running
