"""How a task may wait and end under claims: as without them, and then never again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, uuid
from celery.exceptions import (
    Reject,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
)
from celery.result import AsyncResult

from tests.process.container import WorkerSpec
from tests.process.gates import Gates
from tests.process.journal import Journal
from tests.process.setup import Site, publish_copies
from tests.process.versions import (
    REQUEUES_UNACKED_TIMEOUTS,
    STORES_REJECTIONS,
    TELLS_TIMEOUTS_TWICE,
)
from tests.process.waiting import stays, wait_until
from tests.worker.apps import celery_tasks

from .sites import (
    BOTH,
    CLAIMS,
    count_in_log,
    is_claimed,
    redeliver,
    shared_site,
    start_together,
    wait_for_line,
    wait_for_signals,
    wait_for_skip,
)

claimed = pytest.mark.parametrize("site", ["claimed"], indirect=True)
new_options = pytest.mark.skipif(
    not celery_tasks.NEW_OPTIONS, reason="this Celery has one option for failures and timeouts"
)

#: Seconds
LIMIT = 30

#: The state of a task that rejected its message for good.
REJECTED = "FAILURE" if STORES_REJECTIONS else "PENDING"


@pytest.fixture(scope="module", params=BOTH)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with shared_site(tmp_path_factory.mktemp("endings"), request.param) as site:
        specs = [WorkerSpec(site.app_module, f"w{number}", concurrency=2) for number in (1, 2)]
        start_together(site, *specs)
        yield site


@pytest.fixture
def call(celery_setup_app: Celery) -> Any:
    """Publish a task by name; its keyword arguments in a dict."""

    def call(name: str, kwargs: Any = None, copies: int = 1, **options: Any) -> AsyncResult:
        signature = celery_setup_app.signature(name, kwargs=kwargs or {})
        return publish_copies(celery_setup_app, signature, copies, **options)

    return call


def runs_once(site: Site, result: AsyncResult) -> None:
    """It ran once, and a copy of it does not run again if it was claimed."""
    assert len(site.journal.wait_for_end(result.id)) == 1
    if is_claimed(site):
        skipped = count_in_log(site, "skipped task", f"[{result.id}]")
        copies = redeliver(site, result.id)
        wait_for_skip(site, result.id, skipped + copies)
        assert len(site.journal.runs(result.id)) == 1


# before the start


@claimed
def test_two_copies_with_an_eta_beyond_the_lease_are_one_run(
    site: Site, call: Any, journal: Journal
) -> None:
    lease = CLAIMS["lease"]
    assert isinstance(lease, int)
    sent = time.monotonic()
    result = call("tests.work", copies=4, countdown=lease + 2)
    assert result.get(timeout=LIMIT) is None
    assert time.monotonic() - sent >= lease + 2
    wait_for_skip(site, result.id, 3)
    assert len(journal.runs(result.id)) == 1
    assert count_in_log(site, "taken_over", result.id) == 0


@pytest.mark.parametrize("name", ["tests.work", "tests.late"])
def test_a_countdown_is_waited_for(site: Site, call: Any, name: str) -> None:
    sent = time.monotonic()
    result = call(name, countdown=0.5)
    assert result.get(timeout=LIMIT) is None
    (run,) = site.journal.runs(result.id)
    assert run.started - sent >= 0.5
    wait_for_signals(site, result.id, "prerun", "success", "postrun:SUCCESS")


@pytest.mark.parametrize("countdown", [None, 0.5])
def test_an_expired_task_is_revoked(site: Site, call: Any, countdown: float | None) -> None:
    past = datetime.now(timezone.utc) - timedelta(seconds=1)
    result = call("tests.late", expires=past, countdown=countdown)
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=LIMIT)
    wait_for_signals(site, result.id, "revoked")
    assert not site.journal.runs(result.id)
    if is_claimed(site):
        wait_for_skip(site, result.id, redeliver(site, result.id))
        assert not site.journal.runs(result.id)


@claimed
def test_a_copy_that_expires_while_held_changes_nothing(
    site: Site, call: Any, journal: Journal, gates: Gates
) -> None:
    result = call("tests.late", {"answer": "mine", "gate": "expires"})
    journal.wait_for_runs(result.id)
    call("tests.late", task_id=result.id, expires=0.5)
    wait_for_line(site, "held task", f"[{result.id}]")
    assert stays(lambda: len(journal.runs(result.id)) == 1, 0.6)
    gates.open("expires")
    wait_for_skip(site, result.id)
    assert result.get(timeout=LIMIT) == "mine"
    wait_for_signals(site, result.id, "prerun", "success", "postrun:SUCCESS")


# revoking


def revoke(site: Site, app: Celery, task_id: str, **options: Any) -> None:
    app.control.revoke(task_id, **options)
    words = "Terminating" if options.get("terminate") else "Tasks flagged as revoked"
    wait_for_line(site, words, task_id, count=1 if options.get("terminate") else 2)


def test_a_task_revoked_before_it_starts_never_does(
    site: Site, celery_setup_app: Celery, call: Any
) -> None:
    task_id = uuid()
    revoke(site, celery_setup_app, task_id)
    result = call("tests.late", task_id=task_id)
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=LIMIT)
    wait_for_signals(site, task_id, "revoked")
    assert not site.journal.runs(task_id)


def test_a_task_revoked_while_it_waits_for_its_eta_never_starts(
    site: Site, celery_setup_app: Celery, call: Any
) -> None:
    result = call("tests.late", countdown=2)
    wait_for_line(site, "received", result.id)
    revoke(site, celery_setup_app, result.id)
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=LIMIT)
    assert not site.journal.runs(result.id)
    if is_claimed(site):
        wait_for_skip(site, result.id, redeliver(site, result.id))


@claimed
def test_revoking_a_held_copy_leaves_the_run_its_result(
    site: Site, celery_setup_app: Celery, call: Any, journal: Journal, gates: Gates
) -> None:
    result = call("tests.late", {"answer": "mine", "gate": "revoked"}, copies=3)
    journal.wait_for_runs(result.id)
    wait_for_line(site, "held task", f"[{result.id}]", count=2)
    revoke(site, celery_setup_app, result.id)
    gates.open("revoked")
    wait_for_skip(site, result.id, 2)
    assert result.get(timeout=LIMIT) == "mine"
    assert len(journal.runs(result.id)) == 1


@pytest.mark.parametrize("name", ["tests.work", "tests.late"])
def test_a_terminated_task_is_revoked_and_does_not_run_again(
    site: Site, celery_setup_app: Celery, call: Any, journal: Journal, name: str
) -> None:
    result = call(name, {"gate": "never"})
    (run,) = journal.wait_for_runs(result.id)
    revoke(site, celery_setup_app, result.id, terminate=True, signal="SIGKILL")
    # Or "revoked", by the other worker, which marks whatever is not its own and has no result yet.
    with pytest.raises(TaskRevokedError):
        result.get(timeout=LIMIT)
    journal.note_dead(run.pid)
    wait_for_signals(site, result.id, "prerun", "revoked")
    runs_once(site, result)


@claimed
def test_terminating_a_run_does_not_let_its_held_copies_run(
    site: Site, celery_setup_app: Celery, call: Any, journal: Journal
) -> None:
    result = call("tests.late", {"gate": "never"}, copies=3)
    (run,) = journal.wait_for_runs(result.id)
    wait_for_line(site, "held task", f"[{result.id}]", count=2)
    revoke(site, celery_setup_app, result.id, terminate=True, signal="SIGKILL")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=LIMIT)
    journal.note_dead(run.pid)
    wait_for_skip(site, result.id, 2)
    assert len(journal.runs(result.id)) == 1
    assert result.state == "REVOKED"


def test_revoking_by_a_stamp(site: Site, celery_setup_app: Celery, call: Any) -> None:
    stamp = uuid()
    arguments = {"headers": {"batch": [stamp]}}
    replies = celery_setup_app.control.broadcast(
        "revoke_by_stamped_headers", arguments=arguments, reply=True, limit=2, timeout=LIMIT
    )
    assert len(replies) == 2
    result = call("tests.late", stamped_headers=["batch"], batch=stamp)
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=LIMIT)
    assert not site.journal.runs(result.id)
    assert call("tests.late", stamped_headers=["batch"], batch=uuid()).get(timeout=LIMIT) is None


# limits


def test_a_soft_limit_that_is_caught(site: Site, call: Any) -> None:
    result = call("c.soft", {"catch": True}, soft_time_limit=1)
    assert result.get(timeout=LIMIT) == "cleaned up"
    wait_for_signals(site, result.id, "prerun", "success", "postrun:SUCCESS")
    runs_once(site, result)


def test_a_soft_limit_that_is_not_caught(site: Site, call: Any) -> None:
    result = call("c.soft", {"catch": False}, soft_time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=LIMIT)
    wait_for_signals(site, result.id, "prerun", "failure", "postrun:FAILURE")
    runs_once(site, result)


@pytest.mark.parametrize("name", ["tests.work", "c.hangs_once"])
def test_a_hard_limit_fails_the_task_and_acknowledges_it(site: Site, call: Any, name: str) -> None:
    kwargs = {"gate": "never"} if name == "tests.work" else {}
    result = call(name, kwargs, time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=LIMIT)
    # Celery itself may tell of the failure twice; the body is left by a SystemExit.
    failures = ["failure"] * (2 if TELLS_TIMEOUTS_TWICE else 1)
    wait_for_signals(site, result.id, "prerun", *failures, "postrun", ordered=False)
    runs_once(site, result)


@pytest.mark.parametrize(
    "name", ["c.hangs_once_unacked", pytest.param("c.hangs_once_untimed", marks=new_options)]
)
def test_a_hard_limit_runs_the_task_again_if_it_does_not_acknowledge_timeouts(
    site: Site, call: Any, journal: Journal, name: str
) -> None:
    result = call(name, time_limit=1)
    if not REQUEUES_UNACKED_TIMEOUTS:
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=LIMIT)
        runs_once(site, result)
        return
    journal.wait_for_end(result.id, 2)
    # A result object remembers the first final state that it sees.
    wait_until(lambda: AsyncResult(result.id).state == "SUCCESS", what="the second run's result")
    assert [run.event for run in journal.runs(result.id)] == ["SystemExit", "finish"]
    if is_claimed(site):
        wait_for_line(site, "given_back task", result.id)


def test_a_rate_limit_spreads_the_runs(site: Site, call: Any, journal: Journal) -> None:
    results = [call("c.limited") for _ in range(8)]
    for result in results:
        assert result.get(timeout=LIMIT) == 1.0
    starts = [run.started for result in results for run in journal.runs(result.id)]
    assert len(starts) == 8
    # Two workers at four a second each, after one each at once.
    assert max(starts) - min(starts) >= 0.4


# acknowledgements


@claimed
@pytest.mark.parametrize("name", ["tests.work", "tests.late"])
def test_copies_of_a_running_task_wait_and_are_skipped(
    site: Site, call: Any, journal: Journal, gates: Gates, name: str
) -> None:
    result = call(name, {"answer": 1, "gate": f"copies-{name}"}, copies=4)
    journal.wait_for_runs(result.id)
    wait_for_line(site, "held task", f"[{result.id}]", count=3)
    gates.open(f"copies-{name}")
    wait_for_skip(site, result.id, 3)
    assert result.get(timeout=LIMIT) == 1
    assert len(journal.runs(result.id)) == 1
    wait_for_signals(site, result.id, "prerun", "success", "postrun:SUCCESS")


@pytest.mark.parametrize(
    "name",
    [
        *("tests.fail", "c.late_failure", "c.unacked_failure"),
        pytest.param("c.unacked_failure_only", marks=new_options),
    ],
)
def test_a_failure(site: Site, call: Any, name: str) -> None:
    result = call(name)
    with pytest.raises(ValueError, match="on purpose"):
        result.get(timeout=LIMIT)
    wait_for_signals(site, result.id, "prerun", "failure", "postrun:FAILURE")
    runs_once(site, result)


@claimed
def test_a_copy_held_beside_a_failure_that_is_not_acknowledged_does_not_run(
    site: Site, call: Any, journal: Journal, gates: Gates
) -> None:
    result = call("c.unacked_failure", {"gate": "unacked"}, copies=3)
    journal.wait_for_runs(result.id)
    wait_for_line(site, "held task", f"[{result.id}]", count=2)
    gates.open("unacked")
    wait_for_skip(site, result.id, 2)
    wait_for_line(site, f"[{result.id}]", "finished as rejected", count=2)
    assert len(journal.runs(result.id)) == 1


def test_a_rejected_message_that_is_requeued_runs_again(
    site: Site, call: Any, journal: Journal
) -> None:
    result = call("c.rejects", {"requeue": True})
    assert result.get(timeout=LIMIT) == "second time"
    assert [run.event for run in journal.wait_for_end(result.id, 2)] == ["Reject", "finish"]
    assert journal.max_overlap(result.id) == 1
    if is_claimed(site):
        assert count_in_log(site, "given_back task", result.id) == 1
        wait_for_skip(site, result.id, redeliver(site, result.id))
        assert len(journal.runs(result.id)) == 2


@claimed
def test_a_copy_held_beside_a_requeued_one_is_the_second_run(
    site: Site, call: Any, journal: Journal, gates: Gates
) -> None:
    result = call("c.rejects", {"requeue": True, "gate": "requeue"}, copies=2)
    journal.wait_for_runs(result.id)
    wait_for_line(site, "held task", f"[{result.id}]")
    gates.open("requeue")
    assert result.get(timeout=LIMIT) == "second time"
    # Whichever of the held and the requeued one was first; the other is acknowledged.
    wait_for_skip(site, result.id)
    assert len(journal.runs(result.id)) == 2
    assert journal.max_overlap(result.id) == 1


def test_a_rejected_message_that_is_not_requeued_is_over(
    site: Site, call: Any, journal: Journal
) -> None:
    result = call("c.rejects", {"requeue": False})
    if STORES_REJECTIONS:
        with pytest.raises(Reject):
            result.get(timeout=LIMIT)
    failure = ["failure"] if STORES_REJECTIONS else []
    wait_for_signals(site, result.id, "prerun", "postrun:REJECTED", *failure)
    runs_once(site, result)


# states


def test_an_ignored_task_keeps_the_state_it_has_set(
    site: Site, call: Any, journal: Journal
) -> None:
    result = call("c.custom_state")
    journal.wait_for_end(result.id)
    wait_for_signals(site, result.id, "prerun", "postrun:IGNORED")
    assert (result.state, result.info) == ("HALFWAY", {"done": 50})
    runs_once(site, result)
    assert result.state == "HALFWAY"


def test_a_started_task_says_so_and_how_far_it_is(site: Site, call: Any, gates: Gates) -> None:
    gate = f"progress-{uuid()}"
    result = call("c.progress", {"gate": gate})
    wait_until(lambda: result.state == "STARTED", what="STARTED")
    gates.open(gate)
    wait_until(lambda: result.state == "PROGRESS", what="PROGRESS")
    gates.open(f"{gate}-end")
    assert result.get(timeout=LIMIT) == "done"


def test_a_task_whose_result_is_ignored_leaves_none(site: Site, call: Any) -> None:
    result = call("c.quiet")
    wait_for_signals(site, result.id, "prerun", "success", "postrun:SUCCESS")
    assert result.state == "PENDING"
    runs_once(site, result)


# pools


class TestOtherPools:
    """Every ending again where the body runs in the worker's own process."""

    @pytest.fixture
    def site(self, request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Site]:
        with shared_site(tmp_path) as site:
            yield site

    @pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
    def test_every_ending_is_final(
        self, site: Site, call: Any, journal: Journal, pool: str
    ) -> None:
        site.start_worker(pool=pool, concurrency=2)
        expected = {
            call("tests.work"): ("SUCCESS", 1),
            call("tests.late"): ("SUCCESS", 1),
            call("tests.fail"): ("FAILURE", 1),
            call("c.unacked_failure"): ("FAILURE", 1),
            call("c.retrying", {"times": 1}): ("SUCCESS", 2),
            call("c.replaced", {"levels": 1}): ("SUCCESS", 2),
            call("c.rejects", {"requeue": False}): (REJECTED, 1),
            call("c.rejects", {"requeue": True}): ("SUCCESS", 2),
            call("c.custom_state"): ("HALFWAY", 1),
            call("tests.late", expires=-1): ("REVOKED", 0),
        }
        for result, (state, runs) in expected.items():
            if runs:
                journal.wait_for_end(result.id, runs)
            wait_until(lambda r=result, s=state: r.state == s, what=f"{state} of {result.id}")
        for result, (state, runs) in expected.items():
            wait_for_skip(site, result.id, redeliver(site, result.id))
            assert (result.state, len(journal.runs(result.id))) == (state, runs)
