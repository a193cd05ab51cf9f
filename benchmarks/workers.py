"""What claims cost a whole worker: tasks per second, the way of a message, memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.exceptions import ChannelError

from tests.process.waiting import wait_until

from .app import CLAIMS, CONF, PEER, STARTS
from .measuring import Measure, Point, Scale, percentile

#: The plot of tasks per second.
THROUGHPUT = "throughput"

ROOT = Path(__file__).parents[1]

#: Seconds for a worker to drain its queue: only against hangs.
PATIENCE = 600.0

#: Seconds that a worker has to end by itself. It has run its tasks by then; but if it is told to
#: end with results that it has not read yet, its children wait for half a minute for that.
ENDING = 3.0


@dataclass(frozen=True)
class Setting:
    """Where a worker runs.

    Parameters:
        conf: settings of Celery, the broker's among them.
        store: the claims' URL.
        empty: called before each run.
        peer: the package that locks the tasks, where they are not claimed.
        pool, concurrency: of the worker.
        claims: more settings of ``install``.
    """

    conf: Mapping[str, Any]
    store: str
    empty: Callable[[], object]
    pool: str = "prefork"
    concurrency: int = 2
    claims: Mapping[str, Any] = field(default_factory=dict)
    peer: str | None = None
    app: str = "benchmarks.app"


def throughput(setting: Setting, tasks: int, *, claimed: bool, task: str, args: Any = ()) -> float:
    """Tasks per second of a worker that drains a queue.

    The queue is filled before the worker starts; the clock runs from the first sixth of the
    messages, when everything is warm, to the last one.
    """
    setting.empty()
    app = client(setting)
    with app.connection_for_write() as connection:
        fill(app, connection, task, args, tasks)
        with worker(setting, claimed=claimed):
            return drain(connection, tasks)


def drain(connection: Any, tasks: int) -> float:
    """Wait until the queue is empty; how many messages it lost per second."""
    started: tuple[float, int] | None = None
    before = time.perf_counter(), tasks
    deadline = time.monotonic() + PATIENCE
    with connection.channel() as channel:
        while True:
            left = waiting(channel)
            now = time.perf_counter()
            if started is None and left <= tasks * 5 // 6:
                # All of a few may be gone between two looks.
                started = (now, left) if left else before
            before = now, left
            if left == 0 and started is not None:
                return started[1] / (now - started[0])
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} of {tasks} messages are left")
            time.sleep(0.02)


def waiting(channel: Any) -> int:
    """How many messages wait in the queue."""
    try:
        count: int = channel.queue_declare("celery", passive=True).message_count
    except ChannelError:
        # On Redis a queue without messages does not exist.
        return 0
    return count


def fill(app: Celery, connection: Any, task: str, args: Any, tasks: int) -> None:
    signature = app.signature(task, args)
    with app.amqp.Producer(connection) as producer:
        for _ in range(tasks):
            signature.apply_async(producer=producer)


def client(setting: Setting) -> Celery:
    app = Celery("client", set_as_current=False)
    app.conf.update(setting.conf)
    return app


@contextlib.contextmanager
def worker(
    setting: Setting, *, claimed: bool, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, ready, that ends with the block."""
    own = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        CONF: json.dumps(dict(setting.conf)),
        **(env or {}),
    }
    if claimed:
        own[CLAIMS] = json.dumps({"url": setting.store, **setting.claims})
    elif setting.peer is not None:
        own[PEER] = setting.peer
    command = [
        *(sys.executable, "-m", "celery", "-A", setting.app, "worker"),
        *("--pool", setting.pool, "--concurrency", str(setting.concurrency)),
        *("--loglevel", "INFO" if env else "WARNING", "--hostname", f"{uuid.uuid4()}@benchmark"),
        *("--without-gossip", "--without-mingle"),
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDING)
            # Its children too, if they are still there.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def drained(
    name: str,
    target: float,
    setting: Callable[[], contextlib.AbstractContextManager[Setting]],
    *,
    tasks: int,
    task: str = "bench.nothing",
    args: Any = (),
) -> Measure:
    """Tasks per second, claimed over bare."""

    def pairs(scale: Scale) -> Iterator[float]:
        number = scale.of(tasks, tasks // 30)
        with setting() as where:
            for pair in range(scale.pairs):
                rate = {
                    claimed: throughput(where, number, claimed=claimed, task=task, args=args)
                    for claimed in ((True, False) if pair % 2 else (False, True))
                }
                yield rate[True] / rate[False]

    point = Point(THROUGHPUT, name.removeprefix("tasks/s, "))
    return Measure(name, f"at least {target}", lambda found: found >= target, pairs, point=point)


def latency(
    name: str,
    target: float,
    setting: Callable[[], contextlib.AbstractContextManager[Setting]],
    percent: float,
) -> Measure:
    """Milliseconds that claims add between publishing and the start of an idle worker's task."""

    def pairs(scale: Scale) -> Iterator[float]:
        with setting() as where:
            for pair in range(scale.pairs):
                found = {
                    claimed: percentile(
                        arrivals(where, scale.of(200, 20), claimed=claimed), percent
                    )
                    for claimed in ((True, False) if pair % 2 else (False, True))
                }
                yield 1000 * (found[True] - found[False])

    return Measure(name, f"at most {target} ms", lambda found: found <= target, pairs, "ms")


def arrivals(setting: Setting, tasks: int, *, claimed: bool) -> list[float]:
    """How long each of some messages, sent one by one, was under way, in seconds."""
    setting.empty()
    app = client(setting)
    with tempfile.TemporaryDirectory() as folder:
        starts = Path(folder, "starts")
        starts.touch()

        def send_and_wait(number: int) -> None:
            app.signature("bench.arrive", (time.time(),)).apply_async()
            wait_until(lambda: len(starts.read_text().splitlines()) >= number, PATIENCE)

        with worker(setting, claimed=claimed, env={STARTS: str(starts)}):
            # The first ones meet a worker that is still starting.
            for number in range(1, tasks + 6):
                send_and_wait(number)
        return [float(line) for line in starts.read_text().splitlines()[5:]]


def resident(setting: Setting, *, claimed: bool) -> float:
    """MiB that the main process of an idle worker holds."""
    import psutil

    setting.empty()
    with worker(setting, claimed=claimed, env={STARTS: os.devnull}) as process:
        app = client(setting)
        wait_until(lambda: bool(app.control.ping(timeout=0.5)), PATIENCE)
        return float(psutil.Process(process.pid).memory_info().rss) / 2**20


def memory(
    setting: Callable[[], contextlib.AbstractContextManager[Setting]], target: float
) -> Measure:
    def pairs(scale: Scale) -> Iterator[float]:
        with setting() as where:
            for pair in range(scale.pairs):
                found = {
                    claimed: resident(where, claimed=claimed)
                    for claimed in ((True, False) if pair % 2 else (False, True))
                }
                yield found[True] - found[False]

    return Measure(
        "resident memory of a worker's main process, added by claims",
        f"at most {target} MiB",
        lambda found: found <= target,
        pairs,
        "MiB",
    )
