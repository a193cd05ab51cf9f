"""A site that the tests of a module share, and what they ask of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery_claims.checks import printable

from tests.process.container import WorkerSpec
from tests.process.setup import Site
from tests.process.waiting import TIMEOUT, wait_until
from tests.worker.apps import celery_tasks

#: Every task claimed, Celery's own too; leases that run out while a test waits.
CLAIMS = {"tasks": ["*"], "lease": 3, "cleanup_every": 1}

#: Both kinds of an app; a test that runs on both says that Celery stays Celery.
BOTH = ("claimed", "bare")


@contextmanager
def shared_site(
    folder: Path,
    kind: str = "claimed",
    *,
    conf: Mapping[str, Any] | None = None,
    claims: Mapping[str, Any] | None = None,
    broker: str = "folder",
) -> Iterator[Site]:
    """A site for a whole module.

    Parameters:
        folder: empty.
        kind: ``claimed`` or ``bare``.
        conf: Celery settings.
        claims: settings of ``install``, over ``CLAIMS``.
        broker: as ``Site`` has it.
    """
    site = Site(
        folder,
        app=f"tests.worker.apps.{kind}",
        conf={"imports": [celery_tasks.MODULE], **(conf or {})},
        claims={**CLAIMS, **(claims or {})},
        broker=broker,
    )
    try:
        yield site
    finally:
        site.teardown()


def is_claimed(site: Site) -> bool:
    return site.app_module.endswith(".claimed")


def signals(site: Site, task_id: str) -> list[str]:
    """The signals of one task, of each attempt in the order they were sent, the attempts in theirs:
    without claims, two of them may run side by side."""
    lines = [line for line in site.journal.lines() if line["event"] == "signal"]
    of_task = [line for line in lines if line["task_id"] == task_id]
    of_task.sort(key=lambda line: line["attempt"])
    return [line["name"] + (f":{line['state']}" if line["state"] else "") for line in of_task]


def wait_for_signals(site: Site, task_id: str, *expected: str, ordered: bool = True) -> None:
    """Wait for exactly these signals, named without ``task_``; ``received`` is left out, for
    it is sent by another process than the others, and ``ordered`` is false where others are."""

    def found() -> list[str]:
        names = [name.removeprefix("task_") for name in signals(site, task_id)]
        names = [name for name in names if name != "received"]
        return names if ordered else sorted(names)

    wanted = list(expected) if ordered else sorted(expected)
    wait_until(lambda: found() == wanted, what=lambda: f"{expected}, there are {found()}")


def notes(site: Site, task_id: str, fact: str) -> list[Any]:
    """What the runs of a task said under this name, in order."""
    return [
        line[fact]
        for line in site.journal.lines()
        if line["event"] == "note" and line["task_id"] == task_id and fact in line
    ]


def log(site: Site) -> str:
    """The log of all processes."""
    return "\n".join(site.logs().values())


def count_in_log(site: Site, *words: str) -> int:
    """How many log lines have all of these words."""
    return sum(all(word in line for word in words) for line in log(site).splitlines())


def wait_for_line(site: Site, *words: str, count: int = 1, timeout: float = TIMEOUT) -> None:
    """Wait for so many log lines that have all of these words."""
    wait_until(
        lambda: count_in_log(site, *words) >= count,
        timeout,
        what=lambda: f"{count} lines with {words} in:\n{log(site)[-5000:]}",
    )


def wait_for_skip(site: Site, task_id: str, count: int = 1) -> None:
    """Wait until so many copies of a task were acknowledged without a run."""
    wait_for_line(site, "skipped task", f"[{printable(task_id)}]", count=count)


def redeliver(site: Site, task_id: str) -> int:
    """Deliver all messages of a task again; how many there were."""
    return site.broker.redeliver(task_id)


def start_together(site: Site, *specs: WorkerSpec) -> None:
    """Start several workers, and wait for all of them."""
    workers = [site.start_worker(spec, wait=False) for spec in specs]
    for worker in workers:
        worker.container.ready()
