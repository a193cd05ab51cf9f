"""What workers hold: for how long, how much, and that they let go of it."""

from __future__ import annotations

import pytest
from celery_claims.errors import DeliveriesExhausted

from tests.process.setup import ProcessSetup, publish_copies
from tests.process.versions import ACKS_AT_ONCE
from tests.process.waiting import stays, wait_until

from .apps import celery_tasks
from .apps.trap_tasks import HOLD_VARIABLE
from .rabbits import AMQP
from .steps import (
    ENDLESS,
    assert_all_acknowledged,
    events,
    in_pools,
    insides,
    traps,
    wait_claimed_by,
    wait_finished,
    wait_for_events,
    waiting,
    where,
    workers,
)

#: Nothing that is held asks again by itself while a test lasts.
SILENT = {HOLD_VARIABLE: "600"}


@traps({"worker_prefetch_multiplier": 2}, max_hold=1.5, max_deliveries=2)
@workers(1)
def test_a_hung_body_is_stopped_and_counted(celery_setup: ProcessSetup) -> None:
    """``claims_max_hold``: stopped, given back as one that died, and so at last exhausted.

    Celery's loop is no help: on the embedded brokers it waits with the next task for the pool.
    """
    setup, worker = celery_setup, celery_setup.worker
    hung = publish_copies(setup.app, setup.app.signature("traps.late", ("never",)), 1)
    setup.journal.wait_for_runs(hung.id)
    following = setup.app.signature("traps.late").apply_async()
    wait_claimed_by(setup.site, worker, following.id)
    with pytest.raises(DeliveriesExhausted):
        hung.get(timeout=30)
    first, second = setup.journal.runs(hung.id)
    assert second.started - first.started >= 1.5
    assert events(worker, "lost", hung.id) == 2
    assert events(worker, "given_back", hung.id) == 2
    assert following.get(timeout=20)[1] == 0
    assert_all_acknowledged(setup)


@pytest.mark.brokers("folder", "redis")
@traps(lease=ENDLESS)
@workers(2)
def test_an_unrelated_task_passes_fifty_held_copies(celery_setup: ProcessSetup) -> None:
    """A held delivery must not eat the prefetch count, nor ask the store in a hot loop."""
    setup = celery_setup
    signature = setup.app.signature("traps.late", ("end",))
    long = publish_copies(setup.app, signature, 51)
    (run,) = setup.journal.wait_for_runs(long.id)
    _, other = where(setup.workers, run.pid)
    wait_for_events(other, "held", long.id, 50)
    before = insides(setup, other)["questions"]
    unrelated = setup.app.signature("traps.late").apply_async()
    setup.journal.wait_for_runs(unrelated.id)
    assert stays(lambda: len(setup.journal.runs(long.id)) == 1, 1.0)
    # One for the unrelated task; the pause between two questions of the line is seconds by now.
    assert insides(setup, other)["questions"] - before <= 8
    assert insides(setup, other)["waiting"] == 50
    setup.gates.open("end")
    wait_for_events(setup.workers, "skipped", long.id, 50)
    assert_all_acknowledged(setup)
    assert len(setup.journal.runs(long.id)) == 1


@pytest.mark.brokers("folder", "redis", "rabbitmq")
@traps(AMQP, lease=ENDLESS)
@workers(2, env=SILENT)
def test_an_unrelated_task_waits_for_nothing_that_is_held(celery_setup: ProcessSetup) -> None:
    """With a prefetch count of one it starts while the long task runs and its copies are held,
    though none of them asks again and no lease ends. `make numbers` has the seconds: within one."""
    setup = celery_setup
    long = publish_copies(setup.app, setup.app.signature("traps.late", ("end",)), 51)
    (run,) = setup.journal.wait_for_runs(long.id)
    _, other = where(setup.workers, run.pid)
    wait_for_events(other, "held", long.id, 50)
    before = insides(setup, other)["questions"]
    unrelated = setup.app.signature("traps.late").apply_async()
    setup.journal.wait_for_end(unrelated.id)
    # The only question is the unrelated task's.
    assert insides(setup, other)["questions"] == before + 1
    assert insides(setup, other)["waiting"] == 50
    (run,) = setup.journal.runs(long.id)
    assert run.is_running


@pytest.mark.brokers("folder", "redis", "rabbitmq")
@traps({**AMQP, "imports": [celery_tasks.MODULE]}, tasks=["*"], lease=ENDLESS)
@workers(1, concurrency=2, env=SILENT)
def test_the_next_attempt_starts_when_the_one_before_it_lets_go(celery_setup: ProcessSetup) -> None:
    """What was held behind it by the same worker does not wait until it would have asked again."""
    setup = celery_setup
    result = setup.app.signature("c.goes_on", ("end",)).apply_async()
    wait_for_events(setup.worker, "held", result.id)
    setup.gates.open("end")
    first, second = setup.journal.wait_for_end(result.id, 2)
    assert first.ended is not None
    assert second.started > first.ended
    assert (first.retries, second.retries) == (0, 1)
    assert_all_acknowledged(setup)


@traps(lease=ENDLESS, max_held=5)
@workers(2)
def test_no_more_copies_are_held_than_allowed(celery_setup: ProcessSetup) -> None:
    """``claims_max_held`` beside the prefetch count; the others wait at the broker."""
    setup = celery_setup
    result = publish_copies(setup.app, setup.app.signature("traps.late", ("end",)), 20)
    (run,) = setup.journal.wait_for_runs(result.id)
    _, other = where(setup.workers, run.pid)
    wait_for_events(other, "held", result.id, 6)
    assert stays(lambda: waiting(setup.broker) == 13, 2.0)
    assert events(setup.workers, "held", result.id) == 6
    setup.gates.open("end")
    wait_for_events(setup.workers, "skipped", result.id, 19)
    assert_all_acknowledged(setup)
    assert len(setup.journal.runs(result.id)) == 1


@traps()
@in_pools("prefork", "gevent", concurrency=2)
def test_nothing_is_kept_in_mind_of_ended_tasks(celery_setup: ProcessSetup, pool: str) -> None:
    """After two hundred tasks and some copies a worker remembers none of them.

    Fewer where an acknowledgement, and so the next message, waits for the loop's next round.
    """
    setup, worker = celery_setup, celery_setup.worker
    signature = setup.app.signature("traps.early")
    count = 200 if ACKS_AT_ONCE else 20
    ids = [signature.clone().apply_async().id for _ in range(count)]
    publish_copies(setup.app, signature, 5, task_id=ids[0])
    wait_for_events(worker, "skipped", ids[0], 5)
    wait_until(lambda: all(setup.journal.runs(i) for i in ids), what="every task")
    wait_finished(setup.site, *ids)
    empty = {"active": 0, "waiting": 0, "granted": 0, "delivered": 0}

    def forgotten() -> bool:
        left = insides(setup, worker)
        return {name: left[name] for name in empty} == empty

    wait_until(forgotten, what=lambda: str(insides(setup, worker)))
    assert len(setup.journal.runs()) == count
