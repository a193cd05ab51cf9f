"""The promises on kombu's Redis transport, with the store on the broker's own server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from celery import Celery, chain, chord, uuid
from celery_claims.errors import DeliveriesExhausted
from celery_claims.protocol import (
    Attempt,
    ClaimRequest,
    ClaimToken,
    Outcome,
    Settlement,
    State,
    Success,
)

from tests.process.container import ROOT
from tests.process.setup import ProcessSetup, Site, publish_copies
from tests.process.waiting import stays, wait_until

from .apps import celery_tasks
from .redis_steps import SOON_BACK, finishes, in_hand, kill, on_redis, redis_of, wait_for_nothing
from .steps import (
    ENDLESS,
    TIMED,
    assert_back_soon,
    end_warm,
    in_pools,
    stored,
    take_the_turn,
    traps,
    wait_finished,
    wait_for_events,
    wait_for_record,
    wait_started,
    where,
    workers,
)

#: Seconds; kombu's default is an hour.
VISIBILITY = 2

#: All another than kombu's own.
OWN_NAMES: dict[str, Any] = {
    "global_keyprefix": "ours:",
    "unacked_key": "u",
    "unacked_index_key": "i",
    "unacked_mutex_key": "m",
    "sep": "|",
    "priority_steps": [0, 5],
    "queue_order_strategy": "priority",
}

#: Seconds between cleanups that no test lives to see.
NEVER = 3600


def claim_for_another(site: Site, task_id: str) -> ClaimToken:
    """Somebody has the task, for longer than any test takes."""
    with site.open_store() as store:
        request = ClaimRequest("celery", task_id, "somebody", 600_000, "g", task_id, Attempt())
        (answer,) = store.claim([request])
    assert isinstance(answer, Success)
    return answer.token


def give_up(site: Site, token: ClaimToken) -> None:
    with site.open_store() as store:
        store.settle([Settlement(token, Outcome.NACKED, 60_000)])


@on_redis
@traps(
    {
        "broker_transport_options": {"visibility_timeout": VISIBILITY},
        "worker_prefetch_multiplier": 2,
    },
    lease=30.0,
)
@in_pools("prefork", "threads", "gevent", count=1)
def test_nothing_is_given_away_while_its_worker_lives(
    celery_setup: ProcessSetup, pool: str
) -> None:
    """Not twice while alive: running, reserved, waiting for its ETA and held, for three visibility
    timeouts, while somebody without claims looks for messages to put back."""
    setup, broker = celery_setup, redis_of(celery_setup)
    late = setup.app.signature("traps.late", ("end",))
    held = uuid()
    token = claim_for_another(setup.site, held)
    running = late.clone().apply_async()
    setup.journal.wait_for_runs(running.id)
    publish_copies(setup.app, late, 1, task_id=held)
    wait_for_events(setup.workers, "held", held)
    waiting = late.clone().apply_async(countdown=3 * VISIBILITY)
    wait_for_events(setup.workers, "claimed", waiting.id)
    reserved = late.clone().apply_async()
    ids = [running.id, held, waiting.id, reserved.id]
    tags = in_hand(broker, *ids)
    with broker.connect() as connection:
        qos = connection.default_channel.qos

        def nothing_is_put_back() -> bool:
            qos.restore_visible(interval=1)
            return sorted(broker.unacked()) == sorted(tags) and broker.waiting() == 0

        assert stays(nothing_is_put_back, 3 * VISIBILITY)
    give_up(setup.site, token)
    setup.gates.open("end")
    for task_id in ids:
        setup.app.AsyncResult(task_id).get(timeout=20)
    assert [len(setup.journal.runs(task_id)) for task_id in ids] == [1] * 4
    wait_for_nothing(broker)


@on_redis
@traps({"broker_transport_options": {"visibility_timeout": VISIBILITY}}, lease=30.0)
@workers(1, pool="solo")
def test_a_solo_body_is_not_given_away(celery_setup: ProcessSetup) -> None:
    """Though the body blocks everything in its process but the heartbeat."""
    setup, broker = celery_setup, redis_of(celery_setup)
    running = publish_copies(setup.app, setup.app.signature("traps.late", ("end",)), 1)
    setup.journal.wait_for_runs(running.id)
    with broker.connect() as connection:
        qos = connection.default_channel.qos

        def nothing_is_put_back() -> bool:
            qos.restore_visible(interval=1)
            return bool(broker.unacked()) and broker.waiting() == 0

        assert stays(nothing_is_put_back, 2 * VISIBILITY)
    setup.gates.open("end")
    running.get(timeout=20)


@on_redis
@traps(lease=ENDLESS, cleanup_every=NEVER)
@workers(1)
def test_what_is_held_is_known_to_the_broker_at_once(celery_setup: ProcessSetup) -> None:
    """Not at the next touch, which is minutes away: the worker may be killed before."""
    setup, broker = celery_setup, redis_of(celery_setup)
    held = uuid()
    claim_for_another(setup.site, held)
    publish_copies(setup.app, setup.app.signature("traps.late"), 1, task_id=held)
    wait_until(lambda: broker.touched() == 1, what="the held message")


@on_redis
@pytest.mark.parametrize(
    ("pool", "priority"),
    [
        pytest.param(
            "prefork",
            7,
            marks=traps(
                {"broker_transport_options": OWN_NAMES, "worker_prefetch_multiplier": 2},
                **SOON_BACK,
            ),
            id="prefork-own-names",
        ),
        pytest.param(
            "gevent", 0, marks=traps({"worker_prefetch_multiplier": 2}, **SOON_BACK), id="gevent"
        ),
    ],
)
def test_whatever_a_killed_worker_had_comes_back(
    site: Site, celery_setup_app: Celery, pool: str, priority: int
) -> None:
    """Back soon, and nothing lost: the running task, a reserved one, one with an ETA, a held one.

    The broker's own visibility timeout is an hour.
    """
    app, broker = celery_setup_app, redis_of(site)
    late = app.signature("traps.late", ("end",), priority=priority)
    killed = site.start_worker(pool=pool, log_level="DEBUG")
    held = uuid()
    token = claim_for_another(site, held)
    running = late.clone().apply_async()
    site.journal.wait_for_runs(running.id)
    publish_copies(app, late, 1, task_id=held)
    wait_for_events(killed, "held", held)
    waiting = late.clone().apply_async(countdown=5)
    wait_for_events(killed, "claimed", waiting.id)
    reserved = late.clone().apply_async()
    wait_for_events(killed, "claimed", reserved.id)
    ids = [running.id, held, waiting.id, reserved.id]
    tags = in_hand(broker, *ids)
    wait_until(lambda: broker.touched() == 4, what="every message")
    kill(site, killed)
    site.start_worker(pool=pool, log_level="DEBUG")
    site.gates.open("end")
    give_up(site, token)
    for task_id in ids:
        app.AsyncResult(task_id).get(timeout=30)
    assert [finishes(site, task_id) for task_id in ids] == [1] * 4
    assert [len(site.journal.runs(task_id)) for task_id in ids] == [2, 1, 1, 1]
    wait_for_nothing(broker)
    assert len(set(tags)) == 4


@on_redis
@traps(**TIMED)
@workers(2)
def test_a_killed_workers_task_is_back_within_lease_and_cleanup_interval(
    celery_setup: ProcessSetup,
) -> None:
    """Back soon, in seconds, where only a sweep brings it back: the visibility timeout is an hour,
    and the worker whose turn it was is dead."""
    setup = celery_setup
    result = setup.app.signature("traps.late", ("end",)).apply_async()
    (run,) = setup.journal.wait_for_runs(result.id)
    killed, _ = where(setup.workers, run.pid)
    in_hand(redis_of(setup), result.id)
    take_the_turn(setup.site)
    killed_at = time.monotonic()
    kill(setup, killed)
    _, again = setup.journal.wait_for_runs(result.id, 2)
    assert_back_soon(killed_at, again)
    setup.gates.open("end")
    result.get(timeout=20)
    wait_for_nothing(redis_of(setup))


@on_redis
@traps(
    {"imports": [celery_tasks.MODULE], "worker_prefetch_multiplier": 2}, tasks=["*"], **SOON_BACK
)
def test_a_retry_that_waited_for_its_predecessor_comes_back(
    site: Site, celery_setup_app: Celery
) -> None:
    """Attempt 1 is held in the worker that runs attempt 0 when it is killed.

    Which of the two comes back first is the broker's: attempt 0 may run again before.
    """
    killed = site.start_worker(log_level="DEBUG")
    result = celery_setup_app.signature("c.goes_on", ("end",)).apply_async()
    wait_for_events(killed, "held", result.id)
    wait_until(lambda: redis_of(site).touched() == 2, what="both messages")
    kill(site, killed)
    site.gates.open("end")
    site.start_worker(log_level="DEBUG")
    assert result.get(timeout=30) in (0, 1)
    wait_for_nothing(redis_of(site))
    assert [run.retries for run in site.journal.runs(result.id)].count(1) == 1


@on_redis
@traps({"worker_prefetch_multiplier": 2}, **SOON_BACK)
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


@on_redis
@traps(max_deliveries=1, **SOON_BACK)
@workers(1)
def test_a_task_that_kills_its_worker_fails_for_good(celery_setup: ProcessSetup) -> None:
    """Poison stops, though nobody but the sweep delivers it again."""
    setup, worker = celery_setup, celery_setup.worker
    result = setup.app.signature("traps.late", ("never",)).apply_async()
    setup.journal.wait_for_runs(result.id)
    wait_started(setup.site, result.id)
    kill(setup, worker)
    worker.restart()
    wait_for_events(worker, "exhausted", result.id)
    with pytest.raises(DeliveriesExhausted):
        result.get(timeout=10)
    (record,) = wait_finished(setup.site, result.id)
    assert record.outcome is Outcome.EXHAUSTED
    assert [state for _, state in stored(setup.site, result.id)] == ["FAILURE"]
    assert len(setup.journal.runs(result.id)) == 1
    wait_for_nothing(redis_of(setup))


@pytest.mark.oldest
@on_redis
@traps()
@workers(2)
def test_copies_run_once_and_later_ones_not_at_all(celery_setup: ProcessSetup) -> None:
    """Exclusive, and not again when finished."""
    setup = celery_setup
    late = setup.app.signature("traps.late", ("end",))
    result = publish_copies(setup.app, late, 20)
    wait_for_events(setup.workers, "held", result.id, 19)
    setup.gates.open("end")
    result.get(timeout=20)
    wait_for_events(setup.workers, "skipped", result.id, 19)
    publish_copies(setup.app, late, 1, task_id=result.id)
    wait_for_events(setup.workers, "skipped", result.id, 20)
    assert len(setup.journal.runs(result.id)) == 1
    wait_for_nothing(redis_of(setup))
    end_warm(*setup.workers)


@on_redis
@traps({"imports": [celery_tasks.MODULE]}, tasks=["*"])
@workers(1, concurrency=2)
def test_retries_chains_and_chords_are_as_without_claims(celery_setup: ProcessSetup) -> None:
    """Celery stays Celery."""
    app = celery_setup.app
    add, total = app.signature("c.add"), app.signature("c.total")
    results = [
        app.signature("c.retrying", (2,)).apply_async(),
        chain(add.clone((1, 2)), add.clone((3,)), app=app).apply_async(),
        chord([add.clone((n, n)) for n in range(3)], total, app=app).apply_async(),
        app.signature("c.replaced", (2,)).apply_async(),
    ]
    assert [result.get(timeout=30) for result in results] == [2, 6, 6, "replaced"]
    wait_for_nothing(redis_of(celery_setup))


@on_redis
@traps(lease=1.0, cleanup_every=NEVER)
@workers(2)
def test_a_cleanup_by_hand_gives_messages_back(celery_setup: ProcessSetup) -> None:
    """``celery claims cleanup``, where neither beat nor a worker is about to."""
    setup = celery_setup
    result = setup.app.signature("traps.late", ("end",)).apply_async()
    (run,) = setup.journal.wait_for_runs(result.id)
    killed, _ = where(setup.workers, run.pid)
    kill(setup, killed)
    setup.gates.open("end")
    command = [sys.executable, "-m", "celery", "-A", setup.site.app_module, "claims", "cleanup"]

    env = {**os.environ, **setup.site.env()}

    def runs_again() -> bool:
        subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
        return len(setup.journal.runs(result.id)) == 2

    wait_until(runs_again, what="the end of the lease")
    result.get(timeout=20)
