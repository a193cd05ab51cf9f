"""The app and the tasks of a soak worker; what they leak, if anything, the environment says."""

from __future__ import annotations

import gc
import itertools
import json
import os
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery, Task

from tests.process.environment import CLAIMS_VARIABLE, CONF_VARIABLE
from tests.process.waiting import stays

from .environment import LEAK

__all__ = ["LEAKS", "app"]

#: How often a retrying task fails before it goes well.
RETRIES = 2

#: Tasks between two collections of garbage. Of a task that failed Celery leaves 150 kB in cycles,
#: with claims or without, and Python collects them so late that a child takes 100 MiB for them
#: first, in which a leak would hide.
COLLECT = 20

app = Celery("soak")
app.conf.update(json.loads(os.environ.get(CONF_VARIABLE, "{}")))
claims = json.loads(os.environ.get(CLAIMS_VARIABLE, "{}"))
if claims:
    from celery_claims import install

    install(app, tasks=["soak.*"], **claims)

_kept: list[Any] = []
_begun = itertools.count(1)


def _wait_for_ever() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


#: What a task can leave behind, each time.
LEAKS: dict[str, Callable[[], Any]] = {
    "memory": lambda: _kept.append(bytearray(50_000)),
    "files": lambda: _kept.append(os.open(os.devnull, os.O_RDONLY)),
    "threads": _wait_for_ever,
}


def begin() -> None:
    """Leave behind what is wanted; now and then collect what is garbage already."""
    for name in filter(None, os.environ.get(LEAK, "").split(",")):
        LEAKS[name]()
    if next(_begun) % COLLECT == 0:
        gc.collect()


@app.task(name="soak.work")
def work(seconds: float) -> str:
    """Take so long; the result has some size."""
    begin()
    stays(lambda: True, seconds)
    return "x" * 500


@app.task(bind=True, name="soak.retry", max_retries=RETRIES)
def retry(self: Task) -> None:
    """Fail a few times first."""
    begin()
    if self.request.retries < RETRIES:
        raise self.retry(countdown=0.2)


@app.task(name="soak.fail")
def fail() -> None:
    """Celery keeps the traceback, and what hangs on it."""
    begin()
    raise ValueError("on purpose")
