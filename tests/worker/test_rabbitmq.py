"""Claims on RabbitMQ, with classic and with quorum queues."""

from __future__ import annotations

from tests.process.setup import ProcessSetup, publish_copies

from .rabbits import on_rabbitmq
from .steps import assert_all_acknowledged, stored, wait_for_events, workers


@on_rabbitmq()
@workers(2, concurrency=2)
def test_the_same_message_twenty_times_runs_once(celery_setup: ProcessSetup) -> None:
    """Not twice while alive, not again when finished; nothing is left at the broker."""
    signature = celery_setup.app.signature("traps.late", ("end",))
    result = publish_copies(celery_setup.app, signature, 20)
    wait_for_events(celery_setup.workers, "held", result.id, 19)
    celery_setup.gates.open("end")
    wait_for_events(celery_setup.workers, "skipped", result.id, 19)
    (run,) = celery_setup.journal.runs(result.id)
    assert result.get(timeout=5) == [run.pid, 0]
    assert stored(celery_setup.site, result.id) == [(run.pid, "SUCCESS")]
    assert_all_acknowledged(celery_setup)


@on_rabbitmq()
@workers(2)
def test_fifty_held_copies_eat_no_prefetch(celery_setup: ProcessSetup) -> None:
    """A worker that may take one message, and holds fifty copies, runs an unrelated task."""
    signature = celery_setup.app.signature("traps.late", ("end",))
    result = publish_copies(celery_setup.app, signature, 51)
    wait_for_events(celery_setup.workers, "held", result.id, 50)
    other = celery_setup.app.signature("traps.late").apply_async()
    celery_setup.journal.wait_for_end(other.id, timeout=10)
    assert len(celery_setup.journal.runs(result.id)) == 1
    celery_setup.gates.open("end")
    wait_for_events(celery_setup.workers, "skipped", result.id, 50)
    # What was granted is taken back: of two tasks only one is begun, and the other waits.
    signature = celery_setup.app.signature("traps.late", ("later",))
    results = [signature.apply_async() for _ in range(4)]
    for each in results[:2]:
        celery_setup.journal.wait_for_runs(each.id)
    celery_setup.gates.open("later")
    for each in results:
        each.get(timeout=20)
    assert_all_acknowledged(celery_setup)
