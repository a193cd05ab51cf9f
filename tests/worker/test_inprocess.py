"""Claims in one process: the plugin's own app and worker on the memory broker."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task, chord, uuid
from celery.contrib.testing.worker import start_worker
from celery_claims import AtomicClaimManager, current_claim, install, open_store
from celery_claims.events import ClaimEvent, add_hook, remove_hook
from celery_claims.protocol import State

from tests.process.setup import publish_copies
from tests.process.waiting import wait_until

pytestmark = pytest.mark.celery(broker_url="memory://", result_backend="cache+memory://")

#: Seconds
LIMIT = 20


@pytest.fixture
def store_url() -> str:
    """A store of this test."""
    return f"memory://{uuid()}"


@pytest.fixture
def manager(store_url: str) -> AtomicClaimManager:
    return AtomicClaimManager(open_store(store_url))


class Runs:
    """What the tasks of a test did, and where they wait."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int | None]] = {}
        self.gate = threading.Event()

    def enter(self, task: Task) -> None:
        held = current_claim()
        self.tokens.setdefault(task.request.id, []).append(None if held is None else held.token)


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def events() -> Iterator[Counter[tuple[str, str]]]:
    """How often each event of each task happened."""
    seen: Counter[tuple[str, str]] = Counter()

    def count(event: ClaimEvent) -> None:
        seen[event.name, event.task_id] += 1

    add_hook(count)
    yield seen
    remove_hook(count)


@pytest.fixture
def app(celery_app: Celery, store_url: str, runs: Runs) -> Celery:
    """The plugin's app, with claims and tasks, before its worker starts."""
    install(celery_app, tasks=["*"], url=store_url, lease=5)

    @celery_app.task(bind=True, name="in.double")
    def double(self: Task, number: int) -> int:
        runs.enter(self)
        return 2 * number

    @celery_app.task(bind=True, name="in.total")
    def total(self: Task, numbers: list[int]) -> int:
        runs.enter(self)
        return sum(numbers)

    @celery_app.task(bind=True, name="in.waits", acks_late=True)
    def waits(self: Task) -> str:
        runs.enter(self)
        assert runs.gate.wait(LIMIT)
        return "waited"

    @celery_app.task(bind=True, name="in.retries", max_retries=3)
    def retries(self: Task, times: int) -> int:
        runs.enter(self)
        if self.request.retries < times:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    return celery_app


def wait_for_record(manager: AtomicClaimManager, task_id: str) -> Any:
    """The record of a task, once it is finished."""

    def found() -> Any:
        record = manager.store.lookup([("celery", task_id)])[0]
        return record if record is not None and record.state is State.FINISHED else None

    return wait_until(found, what="a finished record")


def test_a_task_runs_under_a_claim(
    app: Celery, celery_worker: Any, runs: Runs, manager: AtomicClaimManager
) -> None:
    result = app.tasks["in.double"].delay(21)
    assert result.get(timeout=LIMIT) == 42
    (token,) = runs.tokens[result.id]
    assert token is not None
    record = wait_for_record(manager, result.id)
    assert (record.state, record.token) == (State.FINISHED, token)


def test_copies_are_skipped(
    app: Celery, celery_worker: Any, runs: Runs, events: Counter[tuple[str, str]]
) -> None:
    result = publish_copies(app, app.signature("in.double", (1,)), 4)
    assert result.get(timeout=LIMIT) == 2
    wait_until(lambda: events["skipped", result.id] == 3, what="three skips")
    assert len(runs.tokens[result.id]) == 1


def test_a_chord_of_claimed_tasks(app: Celery, celery_worker: Any) -> None:
    header = [app.signature("in.double", (n,)) for n in range(4)]
    result = chord(header, app=app)(app.signature("in.total"))
    assert result.get(timeout=LIMIT) == 12


def test_retries_in_one_process(app: Celery, celery_worker: Any, runs: Runs) -> None:
    result = app.tasks["in.retries"].delay(2)
    assert result.get(timeout=LIMIT) == 2
    tokens = [token for token in runs.tokens[result.id] if token is not None]
    assert len(tokens) == 3
    assert tokens == sorted(set(tokens))


def test_eager_calls_beside_a_worker_have_no_claim(
    app: Celery, celery_worker: Any, runs: Runs, manager: AtomicClaimManager
) -> None:
    result = app.tasks["in.double"].apply((1,))
    assert result.get() == 2
    assert runs.tokens[result.id] == [None]
    assert manager.store.lookup([("celery", result.id)]) == [None]


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_worker_that_ends_leaves_no_claim(
    app: Celery, runs: Runs, manager: AtomicClaimManager, pool: str
) -> None:
    with start_worker(app, pool=pool, perform_ping_check=False, shutdown_timeout=LIMIT):
        results = [app.tasks["in.waits"].delay() for _ in range(3)]
        wait_until(lambda: runs.tokens, what="a run")
        assert manager.active_claims("celery") >= 1
        later = app.tasks["in.double"].apply_async((1,), countdown=600)
        if pool == "threads":
            # A solo worker that runs a body receives nothing meanwhile.
            wait_until(lambda: manager.is_claimed("celery", later.id), what="its claim")
        runs.gate.set()
        assert [result.get(timeout=LIMIT) for result in results] == ["waited"] * 3
    assert manager.active_claims("celery") == 0
    assert manager.list_claims("celery") == []
    assert later.id not in runs.tokens
