"""Retries under claims: the same as without, one attempt after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import MaxRetriesExceededError

from tests.process.gates import Gates
from tests.process.journal import Journal
from tests.process.nodes import FolderBroker
from tests.process.setup import Site
from tests.process.waiting import wait_until
from tests.worker.apps import celery_tasks

from .sites import (
    BOTH,
    count_in_log,
    is_claimed,
    notes,
    redeliver,
    shared_site,
    wait_for_line,
    wait_for_signals,
    wait_for_skip,
)

claimed = pytest.mark.parametrize("site", ["claimed"], indirect=True)


@pytest.fixture(scope="module", params=BOTH)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with shared_site(tmp_path_factory.mktemp("retry"), request.param) as site:
        # Without claims the next attempt may run beside this one, and its result be overwritten.
        site.start_worker(concurrency=3 if is_claimed(site) else 1, queues="celery,other")
        yield site


def published(site: Site, task_id: str) -> list[dict[str, Any]]:
    """The headers of a task's messages as they were sent, the attempts in order."""
    assert isinstance(site.broker, FolderBroker)
    messages = [json.loads(path.read_text()) for path in site.broker.consumed.glob("*.msg")]
    headers = [message["headers"] for message in messages if message["headers"]["id"] == task_id]
    return sorted(headers, key=lambda header: header["retries"])


def assert_one_after_another(site: Site, task_id: str, attempts: int) -> None:
    runs = site.journal.wait_for_end(task_id, attempts)
    assert sorted(run.retries for run in runs) == list(range(attempts))
    if is_claimed(site):
        assert site.journal.max_overlap(task_id) == 1
        tokens = [run.token for run in runs]
        assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("countdown", [0, 0.5])
def test_a_retried_task_runs_once_per_attempt(
    site: Site, celery_setup_app: Celery, countdown: float
) -> None:
    signature = celery_setup_app.signature("c.retrying", (2,), {"countdown": countdown})
    result = signature.apply_async()
    assert result.get(timeout=30) == 2
    assert_one_after_another(site, result.id, 3)
    wait_for_signals(
        site,
        result.id,
        *("prerun", "retry", "postrun:RETRY"),
        *("prerun", "retry", "postrun:RETRY"),
        *("prerun", "success", "postrun:SUCCESS"),
    )


def test_autoretry_for_succeeds_in_the_end(site: Site, celery_setup_app: Celery) -> None:
    result = celery_setup_app.signature("c.autoretried", (1,)).apply_async()
    assert result.get(timeout=30) == 1
    assert_one_after_another(site, result.id, 2)


def test_autoretry_for_fails_when_its_retries_are_used_up(
    site: Site, celery_setup_app: Celery
) -> None:
    result = celery_setup_app.signature("c.autoretried", (9,)).apply_async()
    with pytest.raises(ValueError, match="failure 2"):
        result.get(timeout=30)
    assert_one_after_another(site, result.id, 3)
    wait_for_signals(
        site,
        result.id,
        *("prerun", "retry", "postrun:RETRY"),
        *("prerun", "retry", "postrun:RETRY"),
        *("prerun", "failure", "postrun:FAILURE"),
    )


def test_more_than_max_retries_fail(site: Site, celery_setup_app: Celery) -> None:
    signature = celery_setup_app.signature("c.retrying", (9,), {"max_retries": 1})
    result = signature.apply_async()
    with pytest.raises(MaxRetriesExceededError):
        result.get(timeout=30)
    assert_one_after_another(site, result.id, 2)


def test_retry_without_throw_goes_on_with_the_same_result(
    site: Site, celery_setup_app: Celery, gates: Gates
) -> None:
    result = celery_setup_app.signature("c.goes_on", ("goes-on",)).apply_async()
    wait_until(lambda: notes(site, result.id, "published"), what="the retry")
    gates.open("goes-on")
    assert_one_after_another(site, result.id, 2)
    assert result.get(timeout=30) in (0, 1)


@claimed
def test_the_next_attempt_waits_until_the_one_that_published_it_has_ended(
    site: Site, celery_setup_app: Celery, journal: Journal, gates: Gates
) -> None:
    result = celery_setup_app.signature("c.goes_on", ("waits",)).apply_async()
    wait_for_line(site, "held task", f"[{result.id}]")
    assert len(journal.runs(result.id)) == 1
    gates.open("waits")
    first, second = journal.wait_for_end(result.id, 2)
    assert first.ended is not None
    assert second.started > first.ended
    assert (first.retries, second.retries) == (0, 1)


def test_a_retry_may_go_to_another_queue(site: Site, celery_setup_app: Celery) -> None:
    result = celery_setup_app.signature("c.retrying", (2,), {"queue": "other"}).apply_async()
    assert result.get(timeout=30) == 2
    assert_one_after_another(site, result.id, 3)
    if is_claimed(site):
        # The attempts meet in one record: copies of all of them are known to be over.
        assert redeliver(site, result.id) == 3
        wait_for_skip(site, result.id, 3)
        assert len(site.journal.runs(result.id)) == 3


@claimed
def test_the_claim_keeps_its_first_queue(site: Site, celery_setup_app: Celery) -> None:
    signature = celery_setup_app.signature("c.retrying", (2,), {"queue": "other"})
    result = signature.apply_async(headers={"mine": "kept"})
    result.get(timeout=30)
    first, *others = published(site, result.id)
    assert "celery_claims" not in first
    assert [header["celery_claims"] for header in others] == [{"queue": "celery"}] * 2


def test_custom_headers_survive_and_ours_does_not_pile_up(
    site: Site, celery_setup_app: Celery
) -> None:
    signature = celery_setup_app.signature("c.retrying", (3,))
    result = signature.apply_async(headers={"mine": "kept"})
    assert result.get(timeout=30) == 3
    headers = published(site, result.id)
    assert [header["mine"] for header in headers] == ["kept"] * 4
    assert all(seen["mine"] == "kept" for seen in notes(site, result.id, "headers"))
    ours = [header.get("celery_claims") for header in headers]
    expected = {"queue": "celery"} if is_claimed(site) else None
    assert ours == [None, expected, expected, expected]


@claimed
def test_a_stale_copy_of_the_first_attempt_is_skipped_while_the_second_runs_and_after(
    site: Site, celery_setup_app: Celery, journal: Journal, gates: Gates
) -> None:
    site.start_worker(concurrency=1)
    result = celery_setup_app.signature("c.waits_in_retry", ("second",)).apply_async()
    journal.wait_for_runs(result.id, 2)
    # Attempt 0's and attempt 1's message.
    assert redeliver(site, result.id) == 2
    wait_for_line(site, "held task", f"[{result.id}]")
    gates.open("second")
    assert result.get(timeout=30) == 1
    wait_for_skip(site, result.id, 2)
    wait_for_line(site, f"[{result.id}]", "attempt (0, 1) of the same run is known")
    assert len(journal.runs(result.id)) == 2
    redelivered = redeliver(site, result.id)
    wait_for_skip(site, result.id, 2 + redelivered)
    assert len(journal.runs(result.id)) == 2
    assert count_in_log(site, "taken_over", result.id) == 0


@pytest.mark.skipif(not celery_tasks.NEW_OPTIONS, reason="this Celery has no retry_on_worker_lost")
def test_a_retry_for_a_lost_worker_is_the_next_attempt(
    site: Site, celery_setup_app: Celery, journal: Journal
) -> None:
    """The worker publishes it in the place of the child that died."""
    result = celery_setup_app.signature("c.dies_once").apply_async()
    assert result.get(timeout=30) == 1
    assert_one_after_another(site, result.id, 2)
    if is_claimed(site):
        assert redeliver(site, result.id) == 2
        wait_for_skip(site, result.id, 2)
        assert len(journal.runs(result.id)) == 2
