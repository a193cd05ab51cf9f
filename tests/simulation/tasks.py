"""One app for all simulated processes, with Celery's own tracer and a result backend that tells."""

from __future__ import annotations

import functools
from datetime import datetime, timezone
from typing import Any

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.exceptions import Reject, Retry
from celery_claims import claimed, install
from celery_claims.app import _send_onward
from celery_claims.headers import Passport
from celery_claims.protocol import Outcome
from celery_claims.run import Run, run_of
from celery_claims.tracer import wrap_tracer

from .judge import Body, part_of
from .world import EPOCH, Process, the_world

__all__ = ["KINDS", "iso", "one_app"]

#: name of a task -> its options
KINDS: dict[str, dict[str, Any]] = {
    # a lost child: its message is delivered again
    "sim.late": {"acks_late": True, "reject_on_worker_lost": True},
    # a lost child fails its task
    "sim.kept": {"acks_late": True},
    "sim.strict": {"acks_late": True, "reject_on_worker_lost": True},
    "sim.early": {"acks_late": False},
}
#: How a body ends by itself, beside returning, and what is recorded of that.
PLANNED = {Retry: Outcome.RETRY, Reject: Outcome.REJECTED, ValueError: Outcome.FAILURE}
#: Parts of a body, between which the judge looks.
PARTS = 3


def iso(seconds: float) -> str:
    """A moment of the world, as messages tell it."""
    return datetime.fromtimestamp(EPOCH + seconds, timezone.utc).isoformat()


class Backend(DisabledBackend):  # type: ignore[misc]
    """Where results go: the judge learns of them."""

    def store_result(
        self, task_id: str, result: Any, state: str, *_: Any, request: Any = None, **__: Any
    ) -> Any:
        world = the_world()
        process = world.running().process
        process.step()
        if state in ("SUCCESS", "FAILURE", "REVOKED", "RETRY"):
            part = part_of({"id": task_id, "retries": getattr(request, "retries", 0)})
            world.simulation.judge.leaves("a result")
            world.simulation.judge.stored(part, state, result)
        process.step()
        return result

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        return {"status": "PENDING", "result": None}


def work(self: Any) -> str:
    """The body of every task: what its plan says."""
    world = the_world()
    simulation, process, run = world.simulation, world.running().process, run_of(self)
    plan = simulation.plan.work[self.request.id]
    body = Body(part_of(vars(self.request)), process, run, simulation.case_of(process, run))
    simulation.judge.begins(body)
    try:
        for _ in range(PARTS):
            world.wait(plan.length / PARTS)
            simulation.judge.check(self.request.id)
            if plan.checks and run is not None:
                simulation.judge.looks(body)
                run.ensure()
                simulation.judge.leaves("its work")
            if plan.deadly == "worker":
                _kill_worker(process)
            if plan.deadly and process.parent is not None:
                process.die()
        _end(self, plan, simulation, body)
        simulation.judge.completes(body.part, Outcome.SUCCESS)
    except tuple(PLANNED) as end:
        if not getattr(end, "requeue", False):
            simulation.judge.completes(body.part, PLANNED[type(end)])
        raise
    finally:
        simulation.judge.is_over(body)
    return "done"


def _kill_worker(process: Process) -> None:
    if process.parent is None:
        process.die()
    else:
        process.world.after(0.0, process.parent.kill)


def _end(task: Any, plan: Any, simulation: Any, body: Body) -> None:
    process = simulation.world.running().process
    if task.request.retries < plan.retries:
        process.step()
        eta = datetime.fromtimestamp(EPOCH + simulation.world.now + plan.countdown, timezone.utc)
        simulation.judge.looks(body)
        raise task.retry(eta=eta, max_retries=None)
    if simulation.requeued[task.request.id] < plan.requeues:
        simulation.requeued[task.request.id] += 1
        raise Reject("again", requeue=True)
    if plan.ending == "failure":
        raise ValueError("as planned")
    if plan.ending == "reject":
        raise Reject("as planned", requeue=False)


@functools.cache
def one_app() -> Celery:
    """The app; to make one for each process would take longer than all else."""
    app = Celery("simulation", broker="memory://", set_as_current=False)
    app.conf.update(
        task_default_queue="celery",
        task_ignore_result=False,
        worker_hijack_root_logger=False,
        task_acks_on_failure_or_timeout=True,
    )
    backend = Backend(app)
    install(app, url="memory://", tasks=["sim.*"])
    for name, options in KINDS.items():
        task = app.task(name=name, bind=True, shared=False, backend=backend, **options)(
            _copy_of(work)
        )
        if name == "sim.strict":
            claimed(strict=True)(task)
    app.finalize()
    app.amqp.send_task_message = _publish
    for name in KINDS:
        wrap_tracer(app, app.tasks[name], _new_run, "simulated")
    return app


def _copy_of(function: Any) -> Any:
    @functools.wraps(function)
    def copy(self: Any) -> Any:
        return function(self)

    return copy


def _new_run(passport: Passport) -> Run:
    run: Run = the_world().running().process.claims.new_run(passport)
    return run


def _publish(producer: Any, name: str, message: Any, **options: Any) -> None:
    """In place of the producer, which has no broker here."""
    headers, properties, body, _ = message
    headers = {**headers, **options.get("headers", {}), "task": name}
    _send_onward(headers=headers)
    the_world().simulation.publish(headers, body, dict(properties))
