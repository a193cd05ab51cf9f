"""Tasks that are declared in every way that Celery and ``claimed`` allow; the rest is unclaimed."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task
from celery.worker.request import Request
from celery.worker.strategy import default
from celery_claims import claimed, current_claim, install

from . import claims_settings, journal, worker_app
from .celery_tasks import note

app = worker_app()


def tell(task: Task) -> int | None:
    """Run, and answer with the token."""
    with journal().run(task.request):
        held = current_claim()
        return None if held is None else held.token


@claimed
@app.task(bind=True, name="d.above")
def above(self: Task) -> int | None:
    return tell(self)


@app.task(bind=True, name="d.below")
@claimed
def below(self: Task) -> int | None:
    return tell(self)


@claimed(lease=2, max_deliveries=1)
@shared_task(bind=True, name="d.shared_above")
def shared_above(self: Task) -> int | None:
    return tell(self)


@shared_task(bind=True, name="d.shared_below")
@claimed(lease=2)
def shared_below(self: Task) -> int | None:
    return tell(self)


@app.task(bind=True, name="d.unclaimed")
def unclaimed(self: Task) -> int | None:
    return tell(self)


@claimed
class OfClass(Task):
    """A task that is a class, with a ``__call__`` of its own."""

    name = "d.of_class"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        note(self, called=True)
        return super().__call__(*args, **kwargs)

    def run(self) -> int | None:
        return tell(self)


app.register_task(OfClass())


class CustomRequest(Request):
    """A request that tells when the pool has begun its body."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        journal().write("note", task_id=self.id, request_saw=pid)
        super().on_accepted(pid, time_accepted)


def custom_strategy(task: Task, app: Any, consumer: Any, **options: Any) -> Any:
    """Celery's own, and a word about each message that it gets."""
    handle = default(task, app, consumer, **options)

    def strategy(message: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        journal().write("note", task_id=message.headers["id"], strategy=True)
        return handle(message, body, *args, **kwargs)

    return strategy


class Custom(Task):
    """The places where a task may bring its own machinery."""

    Strategy = f"{__name__}:custom_strategy"
    Request = CustomRequest


@claimed
@app.task(bind=True, base=Custom, name="d.custom")
def custom(self: Task) -> int | None:
    return tell(self)


install(app, **claims_settings())


@claimed
@app.task(bind=True, name="d.after_install")
def after_install(self: Task) -> int | None:
    return tell(self)
