"""What the tests on a Redis broker have in common."""

from __future__ import annotations

from typing import Any

import pytest

from tests.process.nodes import ProcessWorker
from tests.process.redis_broker import RedisBroker
from tests.process.setup import ProcessSetup, Site
from tests.process.waiting import wait_until

on_redis = pytest.mark.brokers("redis")

#: Settings with which a dead worker's messages are back within two seconds or so.
SOON_BACK: dict[str, Any] = {"lease": 1.0, "cleanup_every": 1}


def redis_of(setup: ProcessSetup | Site) -> RedisBroker:
    assert isinstance(setup.broker, RedisBroker)
    return setup.broker


def kill(setup: ProcessSetup | Site, worker: ProcessWorker) -> None:
    """SIGKILL a worker and its children."""
    processes = (worker.container.pid, *worker.children())
    worker.container.kill_group("SIGKILL")
    setup.journal.note_dead(*processes)


def in_hand(broker: RedisBroker, *task_ids: str) -> list[str]:
    """Wait until workers have a message of each of these tasks; their delivery tags."""
    return [
        wait_until(lambda: broker.unacked(task_id), what=f"{task_id} in a worker's hands")[0]  # noqa: B023 - waits
        for task_id in task_ids
    ]


def wait_for_nothing(broker: RedisBroker) -> None:
    """Wait until every message was acknowledged."""
    wait_until(
        lambda: not broker.unacked() and broker.waiting() == 0,
        what=lambda: f"no message: {broker.unacked()} and {broker.waiting()} waiting",
    )


def finishes(setup: ProcessSetup | Site, task_id: str) -> int:
    """How many runs of a task came to their end."""
    return sum(run.event == "finish" for run in setup.journal.runs(task_id))
