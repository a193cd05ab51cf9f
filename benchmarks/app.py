"""The app of a measured worker; everything comes from its environment."""

from __future__ import annotations

import json
import os
import time

from celery import Celery

#: Settings of Celery as JSON; ``broker_url`` is among them.
CONF = "BENCHMARK_CONF"
#: Settings of ``install`` as JSON; without it nothing is claimed.
CLAIMS = "BENCHMARK_CLAIMS"
#: A file to which each started task writes how long it was under way, in seconds.
STARTS = "BENCHMARK_STARTS"

app = Celery("benchmark")
app.conf.update(task_ignore_result=True, **json.loads(os.environ.get(CONF, "{}")))
if CLAIMS in os.environ:
    from celery_claims import install

    install(app, tasks=["bench.*"], **json.loads(os.environ[CLAIMS]))


@app.task(name="bench.nothing")
def nothing() -> None:
    """What is left is the cost of running a task at all."""


@app.task(name="bench.sleep")
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="bench.arrive")
def arrive(published: float) -> None:
    """Write down how long the message was under way."""
    late = time.time() - published
    with open(os.environ[STARTS], "a") as file:
        file.write(f"{late}\n")
