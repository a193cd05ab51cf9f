"""Claims on kombu's Redis transport."""

from __future__ import annotations

import pytest
from celery_claims.protocol import State

from tests.process.setup import ProcessSetup

from .steps import wait_finished


@pytest.mark.brokers("redis")
@pytest.mark.site(app="tests.worker.apps.claimed", claims={"tasks": ["*"], "url": "redis"})
def test_claims_on_a_redis_of_the_site(celery_setup: ProcessSetup) -> None:
    result = celery_setup.app.signature("tests.late", (1,)).apply_async()
    assert result.get(timeout=20) == 1
    (record,) = wait_finished(celery_setup.site, result.id)
    assert record.token == celery_setup.journal.runs(result.id)[0].token


@pytest.mark.brokers("redis")
@pytest.mark.site(app="tests.worker.apps.claimed", claims={"tasks": ["*"], "url": "postgresql"})
def test_claims_on_a_postgresql_of_the_site(celery_setup: ProcessSetup) -> None:
    result = celery_setup.app.signature("tests.late", (1,)).apply_async()
    assert result.get(timeout=20) == 1
    (record,) = wait_finished(celery_setup.site, result.id)
    assert record.state is State.FINISHED
