"""What claims do to results: those of the one run are the only ones, in whatever backend."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord, group
from celery.result import AsyncResult
from celery_claims.errors import DeliveriesExhausted

from tests.process.result_nodes import RedisBackend
from tests.process.setup import ProcessSetup, publish_copies
from tests.process.waiting import wait_until

from .apps import celery_tasks
from .rabbits import AMQP, lose_connections
from .redis_steps import kill
from .steps import (
    assert_all_acknowledged,
    stored,
    traps,
    wait_for_events,
    wait_started,
    where,
    workers,
)


def results_in(*places: tuple[str, str]) -> pytest.MarkDecorator:
    """Run the test once with each of these pairs of a broker and a result backend."""
    return pytest.mark.parametrize(
        ("broker_kind", "backend_kind"),
        [pytest.param(*place, id="-".join(place)) for place in places],
    )


everywhere = results_in(("redis", "redis"), ("rabbitmq", "redis"), ("rabbitmq", "rpc"))
#: The rpc backend has no chords.
where_chords_are_counted = results_in(("redis", "redis"), ("rabbitmq", "redis"))

CONF: dict[str, Any] = {**AMQP, "imports": [celery_tasks.MODULE]}
#: No connection is lost on Redis, but on RabbitMQ that is how a message is delivered again.
AGAIN = {**CONF, "worker_cancel_long_running_tasks_on_connection_loss": False}


def deliver_again(setup: ProcessSetup, *task_ids: str) -> None:
    """The broker believes that the workers are gone, and delivers what they run once more."""
    if setup.app.connection_for_read().transport.driver_type == "amqp":
        lose_connections(setup)
    else:
        assert [setup.site.broker.redeliver(task_id) for task_id in task_ids] == [1] * len(task_ids)
    for task_id in task_ids:
        wait_for_events(setup.workers, "held", task_id)


def states(setup: ProcessSetup, result: AsyncResult) -> list[str]:
    return [state for _, state in stored(setup.site, result.id)]


def raw(setup: ProcessSetup, result: AsyncResult) -> str | None:
    """What the backend has, byte for byte, where it can be read without taking it."""
    backend = setup.site.backend
    if not isinstance(backend, RedisBackend):
        return None
    with backend.client() as client:
        found: str = client.get(f"celery-task-meta-{result.id}")
    return found


@everywhere
@traps(CONF, url="redis")
@workers(2, concurrency=2)
def test_the_result_is_that_of_the_one_run(celery_setup: ProcessSetup) -> None:
    """Copies that were held, and one that comes later, neither write nor overwrite anything."""
    setup = celery_setup
    late = setup.app.signature("traps.late", ("end",))
    result = publish_copies(setup.app, late, 5)
    (run,) = setup.journal.wait_for_runs(result.id)
    wait_for_events(setup.workers, "held", result.id, 4)
    setup.gates.open("end")
    assert result.get(timeout=30) == [run.pid, 0]
    before = raw(setup, result)
    wait_for_events(setup.workers, "skipped", result.id, 4)
    publish_copies(setup.app, late, 1, task_id=result.id)
    wait_for_events(setup.workers, "skipped", result.id, 5)
    assert states(setup, result) == ["SUCCESS"]
    assert raw(setup, result) == before
    assert result.get(timeout=30) == [run.pid, 0]
    assert_all_acknowledged(setup)


@everywhere
@traps(CONF, url="redis", cleanup_every=1)
@workers(2)
def test_the_result_of_a_killed_workers_task_is_that_of_its_successor(
    celery_setup: ProcessSetup,
) -> None:
    """Who waits for the result does not notice."""
    setup = celery_setup
    result = setup.app.signature("traps.late", ("end",)).apply_async()
    (run,) = setup.journal.wait_for_runs(result.id)
    wait_started(setup.site, result.id)
    killed, other = where(setup.workers, run.pid)
    kill(setup, killed)
    _, again = setup.journal.wait_for_runs(result.id, 2)
    setup.gates.open("end")
    assert result.get(timeout=30) == [again.pid, 1]
    assert stored(setup.site, result.id) == [(again.pid, "SUCCESS")]
    assert_all_acknowledged(setup, other)


@everywhere
@traps(AGAIN, tasks=["*"], url="redis", lease=30.0)
@workers(2)
def test_chains_and_groups_go_on_from_the_one_run(celery_setup: ProcessSetup) -> None:
    """What is delivered again while it runs continues its chain once and answers its group once."""
    setup = celery_setup
    late, add = setup.app.signature("tests.late"), setup.app.signature("c.add")
    steps = chain(
        late.clone((1,), {"gate": "end"}), add.clone((2,)), add.clone((3,)), app=setup.app
    )
    line = steps.apply_async()
    first, second = line.parent.parent, line.parent
    setup.journal.wait_for_runs(first.id)
    deliver_again(setup, first.id)
    side_by_side = group([add.clone((n, n)) for n in range(3)], app=setup.app).apply_async()
    # Not before: a part of the group may be behind the first task, in the same process.
    setup.gates.open("end")
    assert side_by_side.get(timeout=30) == [0, 2, 4]
    assert line.get(timeout=30) == 6
    wait_for_events(setup.workers, "skipped", first.id)
    every = [first, second, line, *side_by_side.results]
    assert [len(setup.journal.runs(result.id)) for result in every] == [1] * 6
    assert [states(setup, result) for result in every] == [["SUCCESS"]] * 6
    assert_all_acknowledged(setup)


@where_chords_are_counted
@traps({**AGAIN, "worker_prefetch_multiplier": 3}, tasks=["*"], url="redis", lease=30.0)
@workers(2)
def test_a_chord_counts_each_part_once(celery_setup: ProcessSetup) -> None:
    """A part that ran twice would be counted twice, and the body would begin without another."""
    setup = celery_setup
    late, total = setup.app.signature("tests.late"), setup.app.signature("c.total")
    parts = [late.clone((n,), {"gate": f"part-{n}"}) for n in (1, 10)]
    result = chord(parts, total, app=setup.app).apply_async()
    ids = [part.id for part in result.parent.results]
    for task_id in ids:
        setup.journal.wait_for_runs(task_id)
    deliver_again(setup, *ids)
    setup.gates.open("part-1")
    wait_for_events(setup.workers, "skipped", ids[0])
    assert not setup.journal.runs(result.id)
    setup.gates.open("part-10")
    assert result.get(timeout=30) == 11
    wait_for_events(setup.workers, "skipped", ids[1])
    assert [len(setup.journal.runs(task_id)) for task_id in (*ids, result.id)] == [1, 1, 1]
    assert_all_acknowledged(setup)


@everywhere
@traps(CONF, url="redis", max_deliveries=1, cleanup_every=1)
@workers(2)
def test_who_waits_for_a_task_that_kills_its_worker_is_told(celery_setup: ProcessSetup) -> None:
    """Poison stops: FAILURE, once, where the result is looked for."""
    setup = celery_setup
    result = setup.app.signature("traps.late", ("never",)).apply_async()
    (run,) = setup.journal.wait_for_runs(result.id)
    wait_started(setup.site, result.id)
    killed, other = where(setup.workers, run.pid)
    kill(setup, killed)
    with pytest.raises(DeliveriesExhausted):
        result.get(timeout=30)
    assert states(setup, result) == ["FAILURE"]
    assert len(setup.journal.runs(result.id)) == 1
    wait_until(lambda: setup.site.broker.left() == 0, what="an empty queue")
    assert_all_acknowledged(setup, other)
