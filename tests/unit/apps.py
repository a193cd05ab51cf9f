"""Celery apps with claims, and claimed runs in this process, without a worker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery, _state, signals
from celery.app.task import Task
from celery_claims import install
from celery_claims.claims import Claims, installed
from celery_claims.headers import HEADER, Passport
from celery_claims.host import Host
from celery_claims.protocol import (
    Attempt,
    ClaimRequest,
    ClaimToken,
    Outcome,
    Record,
    Settlement,
    Success,
    TookOver,
    trust_until,
)
from celery_claims.stores.memory import MemoryStore
from celery_claims.testing import FakeClock

from tests.unit.factories import LEASE, FlakyStore

LEASE_MS = round(LEASE * 1000)


class UnitApp(Celery):
    """An app that keeps its tasks to itself; Celery's own shares them with every later app."""

    def task(self, *args: Any, **options: Any) -> Any:
        return super().task(*args, **{"shared": False, **options})


def bare_app(**conf: Any) -> Celery:
    """An app on brokers and backends of this process; its queue is its own."""
    app = UnitApp(f"unit-{uuid.uuid4().hex}", set_as_current=False)
    app.conf.update(
        broker_url="memory://",
        result_backend="cache+memory://",
        task_default_queue=f"q-{uuid.uuid4().hex}",
    )
    app.conf.update(conf)
    return app


def claimed_app(**settings: Any) -> Celery:
    """An app whose every task is claimed, unless told otherwise."""
    app = bare_app()
    install(app, **{"url": f"memory://{uuid.uuid4().hex}", "tasks": ["*"], **settings})
    return app


@contextmanager
def current(app: Celery) -> Iterator[Celery]:
    """The app is the current one meanwhile."""
    before = _state._tls.current_app
    app.set_current()
    try:
        yield app
    finally:
        _state._set_current_app(before)


@contextmanager
def published() -> Iterator[list[dict[str, Any]]]:
    """The headers of what is published meanwhile."""
    seen: list[dict[str, Any]] = []

    def note(headers: dict[str, Any] | None = None, **_: Any) -> None:
        seen.append(headers or {})

    signals.after_task_publish.connect(note)
    try:
        yield seen
    finally:
        signals.after_task_publish.disconnect(note)


class Bench:
    """Runs claimed tasks as a pool's process does: by their tracer, with a passport.

    Parameters:
        app: with claims.
        clock: of the store, and of the run, in microseconds.
    """

    def __init__(self, app: Celery, clock: FakeClock) -> None:
        self.app = app
        self.clock = clock
        self.store = FlakyStore(MemoryStore(clock=clock, private=True))
        self.claims: Claims = installed(app)
        self.claims.__dict__["store"] = self.store
        self.claims.host = Host(clock=lambda: clock.now_us / 1e6)

    @property
    def now(self) -> float:
        """Monotonic seconds."""
        return self.clock.now_us / 1e6

    def grant(self, task_id: str, attempt: Attempt | None = None) -> ClaimToken:
        """Claim it for the worker whose pool this is."""
        return self._claim(task_id, "w1", attempt or Attempt())

    def _claim(self, task_id: str, owner: str, attempt: Attempt) -> ClaimToken:
        request = ClaimRequest(
            "first", task_id, owner, LEASE_MS, uuid.uuid4().hex, task_id, attempt
        )
        (answer,) = self.store.store.claim([request])
        assert isinstance(answer, (Success, TookOver))
        return answer.token

    def passport(self, task_id: str, **given: Any) -> Passport:
        attempt = given.pop("attempt", Attempt())
        fields: dict[str, Any] = {
            "token": self.grant(task_id, attempt),
            "lease": LEASE,
            "strict": False,
            "keep_finished": 7200.0,
            "deliveries": 0,
            "mark_start": False,
            "trusted_until": trust_until(self.now, LEASE),
            "worker": 1,
        }
        return Passport(**{**fields, **given})

    def run(self, task: Task, *args: Any, passport: Passport | None = None, **request: Any) -> Any:
        """Execute one request; under a fresh claim if no passport is given."""
        if passport is None:
            passport = self.passport(request.pop("id", uuid.uuid4().hex))
        task_id = passport.token.task_id
        fields = {
            "id": task_id,
            "root_id": task_id,
            "task": task.name,
            "retries": passport.token.attempt.retries,
            "delivery_info": {"exchange": "", "routing_key": "first", "priority": 0},
            "hostname": "w1@host",
            "is_eager": False,
            HEADER: passport.as_header(),
            "headers": {HEADER: passport.as_header()},
            **request,
        }
        self.app.finalize()
        self.claims.wrap_tracers("w1@host")
        return task.__trace__(task_id, args, {}, fields)

    def lose(self, task_id: str) -> None:
        """The lease runs out, and another worker has the task now."""
        self.clock.advance(LEASE_MS)
        self._claim(task_id, "w2", Attempt())

    def settle(self, token: ClaimToken, outcome: Outcome) -> None:
        """By whoever else has the token: the worker at its end, an earlier life of this process."""
        self.store.store.settle([Settlement(token, outcome, 7_200_000)])

    def record(self, task_id: str) -> Record:
        (found,) = self.store.store.lookup([("first", task_id)])
        assert found is not None
        return found
