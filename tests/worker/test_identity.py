"""Which messages are one run, which are not, and what a run knows of its claim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, states, uuid
from celery.result import AsyncResult
from celery_claims import AtomicClaimManager
from celery_claims.protocol import TookOver

from tests.process.gates import Gates
from tests.process.journal import Journal
from tests.process.setup import Site, publish_copies
from tests.process.versions import STORES_REJECTIONS
from tests.process.waiting import stays, wait_until

from .sites import (
    count_in_log,
    notes,
    redeliver,
    shared_site,
    wait_for_line,
    wait_for_signals,
    wait_for_skip,
)
from .steps import freeze, record_of, store_of, wait_finished

#: Seconds
LIMIT = 30

#: Ids that people and programs have made.
IDS = (
    "with space",
    "ünïcode ☃ 𝛑",
    "{hash}:tag",
    "back\\slash/../slash",
    "quotes'\"`",
    "%s %d {0} $HOME",
    "tab\tand\x00nul",
    "*?[a-z]",
    "0",
    "long" * 2500,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with shared_site(tmp_path_factory.mktemp("identity")) as site:
        site.start_worker(concurrency=3)
        yield site


@pytest.fixture
def call(celery_setup_app: Celery) -> Any:
    """Publish a task by name; its keyword arguments in a dict."""

    def call(name: str, kwargs: Any = None, copies: int = 1, **options: Any) -> AsyncResult:
        signature = celery_setup_app.signature(name, kwargs=kwargs or {})
        return publish_copies(celery_setup_app, signature, copies, **options)

    return call


# later copies


@pytest.mark.parametrize(
    ("name", "kwargs", "options", "reason"),
    [
        ("tests.work", {}, {}, "finished as success"),
        ("tests.fail", {}, {}, "finished as failure"),
        ("c.unacked_failure", {}, {}, "finished as rejected"),
        ("c.custom_state", {}, {}, "finished as ignored"),
        ("c.rejects", {"requeue": False}, {}, "finished as rejected"),
        ("c.hangs_once", {}, {"time_limit": 1}, "finished as timed out"),
    ],
)
def test_a_later_copy_of_a_finished_attempt_is_skipped(
    site: Site, call: Any, journal: Journal, name: str, kwargs: Any, options: Any, reason: str
) -> None:
    result = call(name, kwargs, **options)
    journal.wait_for_end(result.id)
    wait_finished(site, result.id)
    if name != "c.rejects" or STORES_REJECTIONS:
        # The end of a rejected run is in the store before its worker writes the result.
        wait_until(lambda: AsyncResult(result.id).state != states.PENDING, what="a state")
    state = AsyncResult(result.id).state
    assert redeliver(site, result.id) == 1
    wait_for_line(site, "skipped task", f"[{result.id}]", f"its attempt {reason}")
    assert len(journal.runs(result.id)) == 1
    assert AsyncResult(result.id).state == state


def test_a_later_copy_of_a_retried_attempt_is_skipped_while_the_next_one_waits(
    site: Site, call: Any, journal: Journal
) -> None:
    result = call("c.retrying", {"times": 1, "countdown": 4})
    journal.wait_for_end(result.id)
    wait_for_line(site, "received", result.id, count=2)
    call("c.retrying", {"times": 1}, task_id=result.id)
    assert result.get(timeout=LIMIT) == 1
    wait_for_skip(site, result.id)
    assert [run.retries for run in journal.runs(result.id)] == [0, 1]


# other runs


def test_the_same_id_under_another_root_is_another_run(
    site: Site, call: Any, journal: Journal
) -> None:
    result = call("c.quiet", root_id="one")
    journal.wait_for_end(result.id)
    wait_finished(site, result.id)
    call("c.quiet", task_id=result.id, root_id="two")
    journal.wait_for_end(result.id, 2)
    call("c.quiet", task_id=result.id, root_id="two")
    wait_for_skip(site, result.id)
    assert len(journal.runs(result.id)) == 2


def test_two_roots_of_one_id_run_one_after_the_other(
    site: Site, call: Any, journal: Journal, gates: Gates
) -> None:
    result = call("tests.late", {"gate": "roots"}, root_id="one")
    journal.wait_for_runs(result.id)
    call("tests.late", task_id=result.id, root_id="two")
    wait_for_line(site, "held task", f"[{result.id}]")
    assert len(journal.runs(result.id)) == 1
    gates.open("roots")
    journal.wait_for_end(result.id, 2)
    assert journal.max_overlap(result.id) == 1


@pytest.mark.parametrize("task_id", IDS, ids=[ascii(task_id)[:20] for task_id in IDS])
def test_any_text_is_an_id(site: Site, call: Any, journal: Journal, task_id: str) -> None:
    call("c.quiet", copies=3, task_id=task_id)
    # A log line of its own for every id, whatever is in it.
    wait_for_skip(site, task_id, 2)
    assert len(journal.wait_for_end(task_id)) == 1
    record = record_of(site, task_id)
    assert record is not None and record.task_id == task_id


def test_an_id_that_is_longer_than_a_claim_takes_runs_unclaimed(
    site: Site, call: Any, journal: Journal
) -> None:
    task_id = "x" * 10_241
    call("c.quiet", task_id=task_id)
    (run,) = journal.wait_for_end(task_id)
    assert run.token is None
    wait_for_line(site, "unclaimed, for its message cannot be identified: c.quiet")


# how long a finished attempt is remembered


class TestForgetting:
    @pytest.fixture
    def site(self, request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Site]:
        with shared_site(tmp_path, claims={"keep_finished": request.param}) as site:
            site.start_worker(concurrency=2)
            yield site

    @pytest.mark.parametrize("site", [0], indirect=True)
    def test_an_id_may_be_used_again_at_once_if_nothing_is_kept(
        self, site: Site, call: Any, journal: Journal, gates: Gates
    ) -> None:
        result = call("c.quiet")
        journal.wait_for_end(result.id)
        call("c.quiet", task_id=result.id)
        journal.wait_for_end(result.id, 2)
        # Not twice at once, even so.
        late = call("tests.late", {"gate": "again"}, copies=2)
        journal.wait_for_runs(late.id)
        wait_for_line(site, "held task", f"[{late.id}]")
        gates.open("again")
        journal.wait_for_end(late.id, 2)
        assert journal.max_overlap(late.id) == 1

    @pytest.mark.parametrize("site", [1.5], indirect=True)
    def test_a_finished_attempt_is_forgotten_in_time(
        self, site: Site, call: Any, journal: Journal
    ) -> None:
        result = call("c.quiet")
        journal.wait_for_end(result.id)
        redeliver(site, result.id)
        wait_for_skip(site, result.id)
        wait_until(lambda: record_of(site, result.id) is None, what="the end of the record")
        redeliver(site, result.id)
        journal.wait_for_end(result.id, 2)


# what a run knows


def test_a_run_knows_its_claim(site: Site, call: Any, journal: Journal) -> None:
    result = call("c.claim", {"times": 2})
    journal.wait_for_end(result.id, 3)
    claims = notes(site, result.id, "claim")
    assert [claim["attempt"] for claim in claims] == [[0, 0], [0, 1], [0, 2]]
    tokens = [claim["token"] for claim in claims]
    assert tokens == sorted(set(tokens))
    for claim in claims:
        assert (claim["queue"], claim["task_id"]) == ("celery", result.id)
        assert claim["deliveries"] == 0
        assert 0 < claim["remaining"] <= 3


def test_a_run_may_extend_its_lease_so_often(site: Site, call: Any, journal: Journal) -> None:
    result = call("c.extends")
    journal.wait_for_end(result.id)
    assert notes(site, result.id, "count") == [10]
    (before,), (after,) = notes(site, result.id, "before"), notes(site, result.id, "after")
    assert before <= 3
    assert after > 9 * 60
    (error,) = notes(site, result.id, "error")
    assert "max_extensions" in error


def test_direct_and_eager_calls_in_a_run_have_no_claim(
    site: Site, call: Any, journal: Journal
) -> None:
    result = call("c.nests")
    journal.wait_for_end(result.id)
    for fact in ("direct", "eager", "outer"):
        assert notes(site, result.id, fact) == [True]


class TestLoss:
    @pytest.fixture
    def site(self, tmp_path: Any) -> Iterator[Site]:
        with shared_site(tmp_path, claims={"lease": 1}) as site:
            yield site

    @pytest.mark.parametrize("pool", ["threads", "gevent"])
    def test_a_lost_claim_ends_the_run_and_leaves_no_trace(
        self, site: Site, call: Any, journal: Journal, gates: Gates, pool: str
    ) -> None:
        """Not retried though the task retries every Exception, no result, no failure."""
        worker = site.start_worker(pool=pool, concurrency=2)
        result = call("c.loses", {"gate": "lost"})
        journal.wait_for_runs(result.id)
        freeze(site, worker)
        manager = AtomicClaimManager(store_of(site))
        taken: list[Any] = []

        def take() -> bool:
            taken.append(manager.claim("celery", result.id, "another", 60_000))
            return isinstance(taken[-1], TookOver)

        wait_until(take, what="the takeover", interval=0.2)
        gates.open("lost")
        worker.resume()
        (run,) = journal.wait_for_end(result.id)
        assert run.event == "ClaimLost"
        wait_for_line(site, "lost task", result.id)
        assert result.state == "PENDING"
        wait_for_signals(site, result.id, "prerun", "postrun:IGNORED")
        # The message is this worker's still: it waits for the end of the other run.
        assert count_in_log(site, "skipped task", result.id) == 0
        manager.release(taken[-1].token)
        wait_for_skip(site, result.id)
        assert stays(lambda: len(journal.runs(result.id)) == 1, 0.3)


# outside of a worker


def test_calls_outside_of_a_worker_have_no_claim(celery_setup_app: Celery) -> None:
    from celery_claims import current_claim, install

    install(celery_setup_app, tasks=["*"], url="memory://")
    task = celery_setup_app.tasks["c.tells_claim"]
    assert current_claim() is None
    assert task() is None
    assert task.apply().get() is None
    celery_setup_app.conf.task_always_eager = True
    assert task.delay().get() is None
    assert task.apply_async(task_id=uuid()).get() is None
