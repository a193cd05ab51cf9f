"""Every way to declare a task, to configure an app and to bring one's own machinery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, uuid
from celery.result import AsyncResult

from tests.process.journal import Journal
from tests.process.setup import Site, publish_copies

from .sites import CLAIMS, count_in_log, is_claimed, notes, shared_site, wait_for_skip
from .steps import record_of, wait_finished

#: Seconds
LIMIT = 30

CLAIMED = (
    *("d.above", "d.below", "d.shared_above", "d.shared_below"),
    *("d.of_class", "d.custom", "d.after_install"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with shared_site(tmp_path_factory.mktemp("declared"), "declared", claims={"tasks": []}) as site:
        site.start_worker(concurrency=2)
        yield site


def send(app: Celery, name: str, copies: int = 1) -> AsyncResult:
    """By name, as somebody does who has not these tasks."""
    task_id = uuid()
    for _ in range(copies):
        app.send_task(name, task_id=task_id)
    return app.AsyncResult(task_id)


@pytest.mark.parametrize("name", CLAIMED)
def test_a_claimed_task_runs_once(
    site: Site, celery_setup_app: Celery, journal: Journal, name: str
) -> None:
    result = send(celery_setup_app, name, copies=3)
    token = result.get(timeout=LIMIT)
    wait_for_skip(site, result.id, 2)
    (run,) = journal.runs(result.id)
    assert run.token == token is not None


def test_another_task_is_not_claimed(
    site: Site, celery_setup_app: Celery, journal: Journal
) -> None:
    result = send(celery_setup_app, "d.unclaimed", copies=2)
    journal.wait_for_end(result.id, 2)
    assert result.get(timeout=LIMIT) is None
    assert record_of(site, result.id) is None


def test_a_task_with_a_call_of_its_own_is_called_so(
    site: Site, celery_setup_app: Celery, journal: Journal
) -> None:
    result = send(celery_setup_app, "d.of_class")
    assert result.get(timeout=LIMIT) is not None
    assert notes(site, result.id, "called") == [True]


def test_strategy_and_request_of_a_task_are_its_own(site: Site, celery_setup_app: Celery) -> None:
    """They see one message, for the other never got past the gate."""
    result = send(celery_setup_app, "d.custom", copies=2)
    assert result.get(timeout=LIMIT) is not None
    wait_for_skip(site, result.id)
    assert notes(site, result.id, "strategy") == [True]
    (run,) = site.journal.runs(result.id)
    assert notes(site, result.id, "request_saw") == [run.pid]


class TestNamespace:
    @pytest.fixture
    def site(self, tmp_path: Any) -> Iterator[Site]:
        site = Site(tmp_path, app="tests.worker.apps.namespaced", claims=CLAIMS)
        yield site
        site.teardown()

    def test_settings_as_in_django(
        self, site: Site, celery_setup_app: Celery, journal: Journal
    ) -> None:
        site.start_worker()
        signature = celery_setup_app.signature("tests.work", ("answer",))
        result = publish_copies(celery_setup_app, signature, 2)
        assert result.get(timeout=LIMIT) == "answer"
        wait_for_skip(site, result.id)
        (run,) = journal.runs(result.id)
        assert run.token is not None


@pytest.mark.parametrize("kind", ["claimed", "bare"])
class TestCall:
    @pytest.fixture
    def site(self, tmp_path: Any, kind: str) -> Iterator[Site]:
        with shared_site(tmp_path, kind) as site:
            yield site

    @pytest.mark.parametrize("pool", ["prefork", "threads"])
    def test_a_base_with_a_call_of_its_own(
        self, site: Site, celery_setup_app: Celery, journal: Journal, pool: str
    ) -> None:
        site.start_worker(pool=pool)
        result = celery_setup_app.signature("c.called", (7,)).apply_async()
        assert result.get(timeout=LIMIT) == 7
        assert notes(site, result.id, "called") == [True]
        (run,) = journal.runs(result.id)
        assert (run.token is not None) == is_claimed(site)
        if is_claimed(site):
            wait_finished(site, result.id)
        assert not count_in_log(site, "ERROR")
