"""The app and the tasks of chaos; what protects them comes from the environment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery, Task
from celery_claims import current_claim

from tests.process.environment import CLAIMS_VARIABLE, CONF_VARIABLE
from tests.process.waiting import stays
from tests.worker.apps import journal

from .environment import LEDGER, PROTECTION
from .ledger import Ledger

__all__ = ["app"]

#: How often a retrying task fails before it goes well.
RETRIES = 2

app = Celery("chaos")
app.conf.update(json.loads(os.environ.get(CONF_VARIABLE, "{}")))
protection = os.environ.get(PROTECTION, "bare")
base: Any = Task
options: dict[str, Any] = {"acks_late": True, "reject_on_worker_lost": True}
if protection == "claims":
    from celery_claims import install

    install(app, tasks=["chaos.*"], **json.loads(os.environ[CLAIMS_VARIABLE]))
elif protection == "once":
    from celery_once import QueueOnce

    base = QueueOnce
    options["once"] = {"graceful": True}
elif protection == "singleton":
    from celery_singleton import Singleton

    base = Singleton
elif protection == "heimdall":
    from celery_heimdall import HeimdallTask

    base = HeimdallTask
    options["heimdall"] = {"unique": True}

_ledger = Ledger(os.environ.get(LEDGER, ""))


@contextmanager
def protected(task: Task) -> Iterator[None]:
    """Tell the journal and do the work between two writes to the ledger under the claim's token.

    By the first the ledger knows of a run before it ends: one that it was taken over from, and
    that wakes up meanwhile, writes too late.
    """
    started = time.monotonic()

    def write() -> None:
        claim = current_claim()
        _ledger.write(task.request.id, 0 if claim is None else claim.token, started)

    with journal().run(task.request):
        write()
        yield
        write()


@app.task(bind=True, base=base, name="chaos.work", **options)
def work(self: Task, number: int, seconds: float) -> int:
    """Take so long, then write. The number makes the arguments of each task its own."""
    with protected(self):
        stays(lambda: True, seconds)
    return number


@app.task(bind=True, base=base, name="chaos.follow", **options)
def follow(self: Task, result: Any, number: int) -> int:
    """What comes after another task."""
    with protected(self):
        pass
    return number


@app.task(bind=True, base=base, name="chaos.retry", max_retries=None, **options)
def retry(self: Task, number: int) -> int:
    """Fail a few times first."""
    with protected(self):
        if self.request.retries < RETRIES:
            raise self.retry(countdown=0.2)
    return number
