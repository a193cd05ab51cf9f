"""Promises on RabbitMQ that are kept elsewhere by other means: a frozen worker, a next attempt."""

from __future__ import annotations

import pytest
from celery import Celery, uuid
from celery_claims.protocol import State

from tests.process.setup import ProcessSetup, Site
from tests.process.waiting import wait_until

from .apps import celery_tasks
from .rabbits import AMQP, on_rabbitmq
from .redis_steps import kill
from .steps import (
    ENDLESS,
    assert_all_acknowledged,
    freeze,
    pids,
    stored,
    traps,
    wait_for_events,
    wait_for_record,
    wait_started,
    where,
    workers,
)

#: RabbitMQ takes a worker for dead that has been silent for twice as many seconds.
HEARTBEAT = {"broker_heartbeat": 2, "broker_heartbeat_checkrate": 2}


@on_rabbitmq(conf=HEARTBEAT, url="redis")
@workers(2)
def test_a_frozen_run_that_wakes_up_is_told_and_leaves_no_trace(
    celery_setup: ProcessSetup,
) -> None:
    """Fenced, by a higher token; told; and nothing of it is stored, sent or acknowledged."""
    setup = celery_setup
    callback = setup.app.signature("traps.late", task_id=uuid())
    result = setup.app.signature("traps.late", ("end",)).apply_async(link=callback)
    (run,) = setup.journal.wait_for_runs(result.id)
    frozen, other = where(setup.workers, run.pid)
    wait_started(setup.site, result.id)
    freeze(setup.site, frozen)
    first, again = setup.journal.wait_for_runs(result.id, 2)
    assert first.token is not None and again.token is not None
    assert again.token > first.token
    frozen.resume()
    wait_for_events(frozen, "lost", result.id)
    wait_until(lambda: run.pid not in pids(frozen), what="the end of the body")
    setup.journal.note_dead(run.pid)
    setup.gates.open("end")
    assert result.get(timeout=30) == [again.pid, 1]
    setup.journal.wait_for_end(callback.id)
    assert stored(setup.site, result.id) == [(again.pid, "SUCCESS")]
    assert [len(setup.journal.runs(each)) for each in (result.id, callback.id)] == [2, 1]
    assert again.pid in pids(other)
    assert_all_acknowledged(setup)


@on_rabbitmq(conf={"imports": [celery_tasks.MODULE]}, tasks=["*"], lease=ENDLESS)
@workers(2)
def test_the_next_attempt_waits_for_the_one_that_published_it(celery_setup: ProcessSetup) -> None:
    """``retry(throw=False)`` goes on; the other worker has its retry meanwhile, and keeps it."""
    setup = celery_setup
    result = setup.app.signature("c.goes_on", ("end",)).apply_async()
    wait_for_events(setup.workers, "held", result.id)
    assert [run.retries for run in setup.journal.runs(result.id)] == [0]
    setup.gates.open("end")
    first, second = setup.journal.wait_for_end(result.id, 2)
    assert (first.retries, second.retries) == (0, 1)
    assert setup.journal.max_overlap(result.id) == 1
    assert_all_acknowledged(setup)


@pytest.mark.brokers("rabbitmq")
@traps({**AMQP, "worker_prefetch_multiplier": 2}, cleanup_every=1)
def test_an_early_task_of_a_killed_worker_is_not_run_again(
    site: Site, celery_setup_app: Celery
) -> None:
    """At most once, as Celery promises; one that had not started yet was not acknowledged."""
    early = celery_setup_app.signature("traps.early", ("end",))
    killed = site.start_worker(log_level="DEBUG")
    started = early.clone().apply_async()
    site.journal.wait_for_runs(started.id)
    unstarted = early.clone().apply_async()
    wait_for_events(killed, "claimed", unstarted.id)
    kill(site, killed)
    site.gates.open("end")
    site.start_worker(log_level="DEBUG")
    unstarted.get(timeout=30)
    wait_for_record(site, started.id, lambda record: record.state is State.FREE)
    assert len(site.journal.runs(started.id)) == 1
