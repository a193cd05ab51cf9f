"""Tasks that kill whatever runs them, and what must not be taken for that."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.result import AsyncResult
from celery_claims.errors import DeliveriesExhausted
from celery_claims.protocol import Outcome

from tests.process.nodes import FolderBroker
from tests.process.setup import ProcessSetup, Site, publish_copies

from .steps import (
    ENDLESS,
    assert_all_acknowledged,
    end_warm,
    events,
    freeze,
    record_of,
    stored,
    traps,
    wait_accepted,
    wait_claimed_by,
    wait_finished,
    wait_for_events,
    wait_started,
    waiting,
    workers,
)


def assert_exhausted_once(site: Site, result: AsyncResult) -> None:
    """FAILURE with DeliveriesExhausted, once, and nothing runs again."""
    (record,) = wait_finished(site, result.id)
    assert record.outcome is Outcome.EXHAUSTED
    assert [state for _, state in stored(site, result.id)] == ["FAILURE"]
    with pytest.raises(DeliveriesExhausted):
        result.get(timeout=5)


@traps(lease=ENDLESS, max_deliveries=2)
@workers(2)
def test_a_task_that_kills_its_child_fails_for_good(celery_setup: ProcessSetup) -> None:
    """Poison stops: after two dead runs there is no third, of any copy."""
    result = publish_copies(celery_setup.app, celery_setup.app.signature("traps.poison"), 2)
    wait_for_events(celery_setup.workers, "exhausted", result.id)
    assert_exhausted_once(celery_setup.site, result)
    wait_for_events(celery_setup.workers, "skipped", result.id)
    assert len(celery_setup.journal.runs(result.id)) == 2
    assert_all_acknowledged(celery_setup)


@traps(max_deliveries=2, cleanup_every=1)
@workers(1)
def test_a_task_that_kills_its_worker_fails_for_good(celery_setup: ProcessSetup) -> None:
    """Poison stops, also where only the end of the lease tells of the death."""
    setup, worker = celery_setup, celery_setup.worker
    result = publish_copies(setup.app, setup.app.signature("traps.late", ("never",)), 1)
    for death in (1, 2):
        run = setup.journal.wait_for_runs(result.id, death)[-1]
        wait_started(setup.site, result.id)
        worker.container.kill_group("SIGKILL")
        setup.journal.note_dead(run.pid)
        assert isinstance(setup.broker, FolderBroker)
        assert setup.broker.redeliver(result.id)
        worker.restart()
    wait_for_events(worker, "exhausted", result.id)
    assert_exhausted_once(setup.site, result)
    assert len(setup.journal.runs(result.id)) == 2
    assert setup.journal.max_overlap(result.id) == 1
    assert_all_acknowledged(setup)


@traps(max_deliveries=1)
@workers(1)
def test_retries_are_not_deaths(celery_setup: ProcessSetup) -> None:
    """Each attempt is counted by itself, and a retry is an end."""
    result = celery_setup.app.signature("traps.retries", (3,)).apply_async()
    assert result.get(timeout=30) == 3
    assert len(celery_setup.journal.runs(result.id)) == 4


@pytest.mark.oldest
@traps(lease=ENDLESS, max_deliveries=1)
def test_deployments_are_not_deaths(site: Site, celery_setup_app: Celery) -> None:
    """A body that a cold shutdown stopped was given back uncounted, as often as it happens."""
    result = celery_setup_app.signature("traps.late", ("end",)).apply_async()
    for deployment in (1, 2):
        worker = site.start_worker(log_level="DEBUG")
        site.journal.wait_for_runs(result.id, deployment)
        wait_accepted(site, worker, result.id)
        worker.kill("SIGQUIT")
        worker.wait()
        assert waiting(site.broker) == 1
    site.gates.open("end")
    site.start_worker(log_level="DEBUG")
    assert result.get(timeout=20)[1] == 0
    assert len(site.journal.runs(result.id)) == 3


@traps(max_deliveries=1)
@workers(2)
def test_waiting_in_a_worker_that_dies_is_not_a_death(celery_setup: ProcessSetup) -> None:
    """A task that only waited for its time has not been started; nor has a held copy."""
    setup = celery_setup
    killed, other = setup.workers
    # One receives while the other is frozen: a task with an ETA leaves its worker room for a copy.
    freeze(setup.site, other)
    signature = setup.app.signature("traps.late")
    result = publish_copies(setup.app, signature, 1, countdown=3)
    wait_claimed_by(setup.site, killed, result.id)
    freeze(setup.site, killed)
    other.resume()
    publish_copies(setup.app, signature, 1, task_id=result.id, countdown=3)
    wait_for_events(other, "held", result.id)
    killed.container.kill_group("SIGKILL")
    wait_claimed_by(setup.site, other, result.id)
    assert result.get(timeout=20)[1] == 0
    record = record_of(setup.site, result.id)
    assert record is not None and record.deliveries == 0
    assert events(other, "exhausted", result.id) == 0
    end_warm(other)
