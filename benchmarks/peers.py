"""Claims beside packages that lock tasks: how many are published and run in a second.

They lock when a task is published, so that publishing is part of it. They do not promise the same:
what each keeps while workers die is counted by ``make chaos-peers``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

from .app import make_app
from .measuring import Measure, Point, Scale
from .servers import redis_and_redis
from .workers import THROUGHPUT, Setting, drain, worker

__all__ = ["beside"]

#: What Celery has of its own against tasks that ran already.
DEDUPLICATION = "worker_deduplicate_successful_tasks"

#: How many tasks are enough where each of them waits for the lock that its publisher took.
MOST = {"celery-heimdall": 100}


def beside(peer: str) -> Measure:
    """Claims over a peer; above 1 they are ahead.

    Parameters:
        peer: the name of a package, or ``DEDUPLICATION``.
    """

    def pairs(scale: Scale) -> Iterator[float]:
        tasks = min(scale.of(4000, 200), MOST.get(peer, 4000))
        with redis_and_redis() as where:
            other = _with_peer(where, peer)
            for pair in range(scale.pairs):
                rate = {
                    claimed: _rate(where if claimed else other, tasks, claimed=claimed)
                    for claimed in ((True, False) if pair % 2 else (False, True))
                }
                yield rate[True] / rate[False]

    name = f"tasks/s, published and run: claims / {peer}"
    point = Point(THROUGHPUT, f"claims over {peer}")
    return Measure(name, "above 1", lambda found: found > 1, pairs, point=point)


def _rate(setting: Setting, tasks: int, *, claimed: bool) -> float:
    """Tasks per second, from the first that is published to the last that has run."""
    setting.empty()
    app = make_app(dict(setting.conf), claims=None, peer=None if claimed else setting.peer)
    publish = app.tasks["bench.nothing"].apply_async
    began = time.perf_counter()
    for number in range(tasks):
        publish((number,))
    publishing = time.perf_counter() - began
    with app.connection_for_read() as connection, worker(setting, claimed=claimed):
        return tasks / (publishing + tasks / drain(connection, tasks))


def _with_peer(setting: Setting, peer: str) -> Setting:
    conf = {**setting.conf, "result_backend": setting.store}
    if peer == DEDUPLICATION:
        # It looks the task's result up, and only where messages are acknowledged late.
        own = {DEDUPLICATION: True, "task_acks_late": True, "task_ignore_result": False}
        return replace(setting, conf={**conf, **own})
    if find_spec(peer.replace("-", "_")) is None:
        raise LookupError(f"{peer} is not installed: make bench installs it")
    own = {
        "celery-once": {
            "ONCE": {
                "backend": "celery_once.backends.Redis",
                "settings": {"url": setting.store, "default_timeout": 3600},
            }
        },
        "celery-singleton": {"singleton_backend_url": setting.store},
    }.get(peer, {})
    return replace(setting, conf={**conf, **own}, peer=peer)
