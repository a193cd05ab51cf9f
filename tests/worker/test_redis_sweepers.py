"""A sweeper that is killed between two of its steps, on a Redis broker."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult
from celery_claims.options import CLEANUP_TASK

from tests.process.setup import Site
from tests.process.waiting import wait_until

from .apps.trap_tasks import CRASH_VARIABLE
from .redis_steps import SOON_BACK, finishes, kill, on_redis, redis_of, wait_for_nothing
from .steps import traps, wait_expired, wait_started

#: Before the message is back, and when it is but its claim is not cleaned up.
in_two_places = pytest.mark.parametrize("crash", ["before_give_back", "after_give_back"])


def leave_an_orphan(site: Site, app: Celery) -> AsyncResult[Any]:
    """A task whose worker was killed in its body."""
    killed = site.start_worker()
    result = app.signature("traps.late", ("end",)).apply_async()
    site.journal.wait_for_runs(result.id)
    wait_started(site, result.id)
    kill(site, killed)
    # A sweep that comes before gives the message back as one that nobody touches.
    wait_expired(site, result.id)
    return result


def assert_one_more_run(site: Site, result: AsyncResult[Any]) -> None:
    """The second one, which knows of the first; nothing is left."""
    site.journal.wait_for_runs(result.id, 2)
    site.gates.open("end")
    assert result.get(timeout=30)[1] == 1
    wait_for_nothing(redis_of(site))
    assert len(site.journal.runs(result.id)) == 2
    assert finishes(site, result.id) == 1


@on_redis
@traps(**SOON_BACK)
@in_two_places
def test_a_worker_that_is_killed_while_it_sweeps(
    site: Site, celery_setup_app: Celery, crash: str
) -> None:
    """Nothing lost, and run once: another worker's sweep goes on where this one ended."""
    result = leave_an_orphan(site, celery_setup_app)
    # It does not take what it gives back, so that its death is about the sweep alone.
    sweeper = site.start_worker(queues="others", env={CRASH_VARIABLE: crash}, wait=False)
    assert sweeper.wait() == -9
    given_back = crash == "after_give_back"
    assert redis_of(site).waiting() == given_back
    assert len(redis_of(site).unacked(result.id)) == (not given_back)
    site.start_worker()
    assert_one_more_run(site, result)


@on_redis
@traps(
    {"beat_schedule": {CLEANUP_TASK: {"task": CLEANUP_TASK, "schedule": 1.0}}},
    # The workers' own turn is too far away to help.
    lease=1.0,
    cleanup_every=3600,
)
@in_two_places
def test_a_sweep_of_beats_that_is_killed(site: Site, celery_setup_app: Celery, crash: str) -> None:
    """It dies with the child that runs it; the next one goes on."""
    result = leave_an_orphan(site, celery_setup_app)
    site.start_worker(env={CRASH_VARIABLE: crash})
    site.start_beat()
    wait_until((site.folder / "crashed").exists, what="the death of the sweep")
    assert_one_more_run(site, result)
