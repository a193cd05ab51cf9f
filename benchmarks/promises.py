"""What the promises are worth, in numbers: real workers on real brokers, with claims and without.

``make numbers`` prints a table for Redis and RabbitMQ, and fails if a number with claims is not as
promised. Runs and overlaps are counted from the
journal that the task bodies write, so they do not depend on what workers say of themselves.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from celery import Celery
from rich.console import Console

from tests.process.container import WorkerSpec
from tests.process.nodes import ProcessWorker
from tests.process.setup import Site, publish_copies
from tests.process.waiting import stays, wait_until
from tests.worker.apps import create_app

#: Seconds; kombu's default of the visibility timeout, and one that a run can wait for.
HOUR, SHORT = 3600, 3
LEASE, CLEANUP = 5, 2
#: Seconds to wait for what may never happen without claims.
QUIET = 3 * SHORT
TASK = "tests.late"

Workers = list[ProcessWorker]


@dataclass(frozen=True)
class Story:
    """Something that happens to a task, and the number that tells how it went.

    Parameters:
        name: for people.
        promised: the number with claims; what it may be at most, if it is ``most`` seconds.
        most: seconds; None: the number is ``promised`` to the letter.
        brokers: where it can happen.
        bare: it ends without claims, too, in a time that can be waited for.
        tell: lets it happen and answers the number.
        visibility: the broker's visibility timeout in seconds, on Redis.
        workers: how many.
    """

    name: str
    promised: str
    tell: Callable[[Site, Celery, Workers], str]
    brokers: tuple[str, ...] = ("redis", "rabbitmq")
    bare: bool = True
    visibility: int = HOUR
    workers: int = 2
    most: float | None = None

    def is_kept(self, number: str) -> bool:
        """Whether a number is as promised."""
        if self.most is None:
            return number == self.promised
        return float(number.removesuffix(" s")) <= self.most


def runs(site: Site, task_id: str) -> str:
    """Wait until nothing runs any more; how often it ran, and how many at once beyond one."""
    wait_until(lambda: _all_ended(site, task_id), 60)
    while not stays(lambda: _all_ended(site, task_id), 2):
        pass
    return f"{len(site.journal.runs(task_id))} / {site.journal.max_overlap(task_id) - 1}"


def _all_ended(site: Site, task_id: str) -> bool:
    return all(not run.is_running for run in site.journal.runs(task_id))


def longer_than_visibility(site: Site, app: Celery, _: Workers) -> str:
    result = app.signature(TASK, kwargs={"gate": "end"}).apply_async()
    site.journal.wait_for_runs(result.id)
    restore_meanwhile(app, 3 * SHORT)
    site.gates.open("end")
    return runs(site, result.id)


def eta_beyond_visibility(site: Site, app: Celery, _: Workers) -> str:
    site.gates.open("end")
    result = app.signature(TASK, kwargs={"gate": "end"}).apply_async(countdown=3 * SHORT)
    restore_meanwhile(app, 3 * SHORT)
    site.journal.wait_for_runs(result.id)
    return runs(site, result.id)


def restore_meanwhile(app: Celery, seconds: float) -> None:
    """Look for messages past their visibility timeout, as often as a hundred workers would.

    One worker of kombu's looks every hundred seconds only.
    """
    with app.connection_for_read() as connection:
        qos = connection.default_channel.qos

        def look() -> bool:
            qos.restore_visible(interval=1)
            return True

        stays(look, seconds)


def killed_worker(site: Site, app: Celery, workers: Workers) -> str:
    """Seconds from SIGKILL of a worker and its children to the next start of its task."""
    result = app.signature(TASK, kwargs={"gate": "end"}).apply_async()
    (run,) = site.journal.wait_for_runs(result.id)
    victim = next(worker for worker in workers if run.pid in worker.children())
    victim.container.kill_group("SIGKILL")
    killed = time.monotonic()
    site.journal.note_dead(run.pid)
    second = site.journal.wait_for_runs(result.id, 2, timeout=60)[1]
    site.gates.open("end")
    return f"{second.started - killed:.1f} s"


def twenty_copies(site: Site, app: Celery, _: Workers) -> str:
    result = publish_copies(app, app.signature(TASK, kwargs={"gate": "end"}), 20)
    site.journal.wait_for_runs(result.id)
    stays(lambda: len(site.journal.runs(result.id)) == 1, QUIET)
    site.gates.open("end")
    wait_until(lambda: site.broker.waiting() == 0, 60)
    return runs(site, result.id)


def unrelated_task(site: Site, app: Celery, _: Workers) -> str:
    """Seconds from publishing to the start of a task behind fifty copies of a long one."""
    long = publish_copies(app, app.signature(TASK, kwargs={"gate": "end"}), 51)
    site.journal.wait_for_runs(long.id)
    stays(lambda: site.broker.waiting() > 0, QUIET)
    site.gates.open("other")
    published = time.monotonic()
    unrelated = app.signature(TASK, kwargs={"gate": "other"}).apply_async()
    (run,) = site.journal.wait_for_runs(unrelated.id)
    site.gates.open("end")
    return f"{run.started - published:.2f} s"


STORIES = (
    Story(
        f"a task 3 times longer than the visibility timeout ({SHORT} s): runs / overlaps",
        "1 / 0",
        longer_than_visibility,
        brokers=("redis",),
        visibility=SHORT,
    ),
    Story(
        "an ETA 3 times beyond the visibility timeout: runs / overlaps",
        "1 / 0",
        eta_beyond_visibility,
        brokers=("redis",),
        visibility=SHORT,
    ),
    Story(
        "SIGKILL of a worker until its task starts again (visibility timeout: an hour)",
        f"at most {LEASE} + {CLEANUP} + 1 s",
        killed_worker,
        bare=False,
        most=LEASE + CLEANUP + 1,
    ),
    Story("the same message published 20 times: runs / overlaps", "1 / 0", twenty_copies),
    Story(
        "an unrelated task behind 50 held copies, prefetch 1: publish to start",
        "within 1 s",
        unrelated_task,
        bare=False,
        most=1,
    ),
)


def told(story: Story, broker: str, *, claimed: bool) -> str:
    """Let a story happen on a broker of its own."""
    with tempfile.TemporaryDirectory(prefix="claims-numbers-") as folder:
        options = {"visibility_timeout": story.visibility} if broker == "redis" else {}
        site = Site(
            Path(folder),
            app=f"tests.worker.apps.{'claimed' if claimed else 'bare'}",
            broker=broker,
            conf={
                "worker_prefetch_multiplier": 1,
                "broker_transport_options": options,
                # Without it Celery ends a worker whose channel the broker closed.
                "broker_channel_error_retry": True,
            },
            claims={"tasks": ["tests.*"], "lease": LEASE, "cleanup_every": CLEANUP},
        )
        with running(site, story.workers) as workers, client(site.conf) as app:
            return story.tell(site, app, workers)


@contextmanager
def running(site: Site, workers: int) -> Iterator[Workers]:
    """So many workers with one process each."""
    try:
        started = [
            site.start_worker(WorkerSpec(app=site.app_module, name=f"w{number}"), wait=False)
            for number in range(workers)
        ]
        for worker in started:
            worker.container.ready()
        yield started
    finally:
        site.teardown()


@contextmanager
def client(conf: Mapping[str, Any]) -> Iterator[Celery]:
    app = create_app(conf)
    try:
        yield app
    finally:
        app.close()


@click.command(help=__doc__)
@click.option(
    "--broker",
    "brokers",
    multiple=True,
    type=click.Choice(["redis", "rabbitmq"]),
    default=("redis", "rabbitmq"),
)
@click.option("--only", default="", help="Stories with this text.")
def main(brokers: tuple[str, ...], only: str) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    broken = []
    console.print(f"{'broker':<9} {'with claims':>12} {'without':>12}  {'promised':<21}  what")
    for story in (each for each in STORIES if only in each.name):
        for broker in (name for name in story.brokers if name in brokers):
            with console.status(f"{broker}: {story.name}"):
                ours = told(story, broker, claimed=True)
                bare = told(story, broker, claimed=False) if story.bare else ""
            console.print(f"{broker:<9} {ours:>12} {bare:>12}  {story.promised:<21}  {story.name}")
            if not story.is_kept(ours):
                broken.append(f"{broker}: {story.name}: {ours}, promised {story.promised}")
    if broken:
        raise click.ClickException("; ".join(broken))


if __name__ == "__main__":
    main()
