"""What others see of claims while workers run: Celery events, and ``celery inspect claims``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from celery_claims.protocol import Outcome, Settlement

from tests.process.setup import ProcessSetup, publish_copies
from tests.process.waiting import wait_until

from .rabbits import AMQP
from .redis_steps import kill
from .steps import (
    record_of,
    store_of,
    traps,
    wait_for_events,
    wait_started,
    where,
    workers,
)


@contextmanager
def watched(app: Celery) -> Iterator[list[dict[str, Any]]]:
    """The events of claims that a monitor receives."""
    seen: list[dict[str, Any]] = []
    ready = threading.Event()

    def note(event: dict[str, Any]) -> None:
        if event["type"].startswith("claim-"):
            seen.append(event)

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": note})
        consume_ready = receiver.on_consume_ready

        def on_consume_ready(*args: Any, **kwargs: Any) -> None:
            consume_ready(*args, **kwargs)
            ready.set()

        receiver.on_consume_ready = on_consume_ready
        thread = threading.Thread(target=lambda: receiver.capture(limit=None, wakeup=False))
        thread.start()
        try:
            assert ready.wait(30)
            yield seen
        finally:
            receiver.should_stop = True
            thread.join(30)
        assert not thread.is_alive()


def wait_for_kind(seen: list[dict[str, Any]], kind: str, task_id: str) -> dict[str, Any]:
    """Wait for an event of this kind about a task."""

    def found() -> dict[str, Any] | None:
        return next((e for e in seen if (e["type"], e["uuid"]) == (kind, task_id)), None)

    return wait_until(found, what=lambda: f"{kind} of {task_id} in {[e['type'] for e in seen]}")


@pytest.mark.parametrize("broker_kind", ["redis", "rabbitmq"])
@traps(AMQP, url="redis", max_deliveries=2, cleanup_every=1)
@workers(2, extra=("--task-events",))
class TestWatching:
    def test_a_monitor_sees_what_happens_to_claims(self, celery_setup: ProcessSetup) -> None:
        """Each of the six events, with the task and the token that it is about."""
        setup, late = celery_setup, celery_setup.app.signature("traps.late")
        with watched(setup.app) as seen:
            twice = publish_copies(setup.app, late.clone(("end",)), 2)
            (run,) = setup.journal.wait_for_runs(twice.id)
            claimed = wait_for_kind(seen, "claim-claimed", twice.id)
            assert (claimed["token"], claimed["name"]) == (run.token, "traps.late")
            assert claimed["queue"] == "celery"
            wait_for_kind(seen, "claim-held", twice.id)
            setup.gates.open("end")
            wait_for_kind(seen, "claim-skipped", twice.id)

            poison = late.clone(("never",)).apply_async()
            last = self._killed(setup, poison.id, runs=1)
            taken = wait_for_kind(seen, "claim-taken-over", poison.id)
            assert taken["token"] == setup.journal.wait_for_runs(poison.id, 2)[1].token
            setup.start_worker(last.spec, name="w3")
            self._killed(setup, poison.id, runs=2)
            wait_for_kind(seen, "claim-exhausted", poison.id)

            lost = late.clone(("later",)).apply_async()
            setup.journal.wait_for_runs(lost.id)
            record = record_of(setup.site, lost.id)
            assert record is not None
            with store_of(setup.site) as store:
                store.settle([Settlement(record.as_token(), Outcome.NACKED, 60_000)])
            wait_for_kind(seen, "claim-lost", lost.id)
            setup.gates.open("later")
            lost.get(timeout=30)

    def _killed(self, setup: ProcessSetup, task_id: str, *, runs: int) -> Any:
        """Kill the worker that runs a task."""
        run = setup.journal.wait_for_runs(task_id, runs)[-1]
        wait_started(setup.site, task_id)
        living = [w for w in setup.workers if w.container.status == "running"]
        victim = next(w for w in living if run.pid in {w.container.pid, *w.children()})
        kill(setup, victim)
        return victim

    def test_a_worker_says_what_it_has(self, celery_setup: ProcessSetup) -> None:
        """``celery inspect claims``: what it runs, and what it holds."""
        setup = celery_setup
        late = setup.app.signature("traps.late", ("end",))
        result = publish_copies(setup.app, late, 2)
        (run,) = setup.journal.wait_for_runs(result.id)
        wait_for_events(setup.workers, "held", result.id)
        runner, holder = where(setup.workers, run.pid)
        reports: dict[str, Any] = {}
        for reply in setup.app.control.broadcast("claims", reply=True, timeout=10, limit=2):
            reports.update(reply)
        active = reports[runner.hostname()]["ok"]["active"]
        held = reports[holder.hostname()]["ok"]["held"]
        assert [(case["id"], case["token"]) for case in active] == [(result.id, run.token)]
        assert [case["id"] for case in held] == [result.id]
        assert all(report["ok"]["store_up"] for report in reports.values())
        setup.gates.open("end")
        result.get(timeout=30)
