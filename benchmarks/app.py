"""The app of a measured worker; everything comes from its environment."""

from __future__ import annotations

import json
import os
import time
from importlib import import_module
from typing import Any

from celery import Celery

#: Settings of Celery as JSON; ``broker_url`` is among them.
CONF = "BENCHMARK_CONF"
#: Settings of ``install`` as JSON; without it nothing is claimed.
CLAIMS = "BENCHMARK_CLAIMS"
#: The package that locks the tasks; without it none does.
PEER = "BENCHMARK_PEER"
#: A file to which each started task writes how long it was under way, in seconds.
STARTS = "BENCHMARK_STARTS"


def make_app(conf: dict[str, Any], *, claims: dict[str, Any] | None, peer: str | None) -> Celery:
    """An app with the tasks.

    Parameters:
        conf: settings of Celery.
        claims: settings of ``install``; None: nothing is claimed.
        peer: the package that locks the tasks; None: none does.
    """
    made = Celery("benchmark")
    made.conf.update({"task_ignore_result": True, **conf})
    if claims is not None:
        from celery_claims import install

        install(made, tasks=["bench.*"], **claims)
    # Not shared: another app of this process has other options for them.
    made.task(name="bench.nothing", shared=False, **_of_peer(peer))(nothing)
    made.task(name="bench.sleep", shared=False)(sleep)
    made.task(name="bench.arrive", shared=False)(arrive)
    return made


def nothing(number: int = 0) -> None:
    """What is left is the cost of running a task at all; by its number each is another one."""


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def arrive(published: float) -> None:
    """Write down how long the message was under way."""
    late = time.time() - published
    with open(os.environ[STARTS], "a") as file:
        file.write(f"{late}\n")


#: What each package takes the place of Celery's task with, and its options there, as it tells.
_PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "celery-once": ("celery_once", "QueueOnce", {"once": {"graceful": True}}),
    "celery-singleton": ("celery_singleton", "Singleton", {}),
    "celery-heimdall": ("celery_heimdall", "HeimdallTask", {"heimdall": {"unique": True}}),
}


def _of_peer(peer: str | None) -> dict[str, Any]:
    """The options of a task that a package shall lock."""
    if peer is None:
        return {}
    module, base, options = _PEERS[peer]
    return {"base": getattr(import_module(module), base), **options}


def _from_environment(name: str) -> Any:
    return json.loads(os.environ.get(name, "null"))


app = make_app(
    _from_environment(CONF) or {}, claims=_from_environment(CLAIMS), peer=os.environ.get(PEER)
)
