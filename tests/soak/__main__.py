"""``python -m tests.soak``: keep workers busy for an hour, and see whether anything grows."""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from .run import Now, Outcome, run
from .tasks import LEAKS
from .verdict import Finding, Measure
from .world import Plan

#: How a run is told that nobody watches in a terminal: columns, lines, and what is in each.
WIDTH, LINES = 120, 20
SHOWN = {
    "workers memory": "memory",
    "workers files": "files",
    "workers sockets": "sockets",
    "workers threads": "threads",
    "workers active": "count",
    "workers held": "count",
    "broker unacknowledged": "count",
    "store records": "count",
}
MIB = 2**20


@click.command(help=__doc__)
@click.option("--broker", type=click.Choice(["redis", "rabbitmq"]), default="redis")
@click.option("--store", type=click.Choice(["redis", "sqlite", "postgresql"]), default="redis")
@click.option("--minutes", type=float, default=60.0, show_default=True)
@click.option("--pools", default="prefork,threads", show_default=True, help="One for each worker.")
@click.option("--concurrency", type=int, default=3, show_default=True)
@click.option("--rate", type=float, default=20.0, show_default=True, help="Sent in a second.")
@click.option("--keep-finished", type=float, default=6.0, show_default=True, help="Seconds.")
@click.option("--rest", type=float, default=60.0, help="Seconds at the end, at most.")
@click.option("--disturb", type=float, default=0.0, help="Seconds between ends of processes.")
@click.option("--leak", multiple=True, type=click.Choice(sorted(LEAKS)), help="In each task.")
@click.option("--bare", is_flag=True, help="Without claims, to compare.")
@click.option("--seed", type=int, help="Decides what is sent; a random one if not given.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the findings here.")
def main(minutes: float, pools: str, seed: int | None, file: Path | None, **given: Any) -> None:
    if not Path("/proc/self/status").exists():
        raise click.ClickException("what a process uses is read from /proc, which is not here")
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    plan = Plan(seconds=60 * minutes, pools=tuple(pools.split(",")), seed=seed, **given)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(width=WIDTH, soft_wrap=True, highlight=False, markup=False)
    claims = "no claims" if plan.bare else f"{plan.store} store"
    console.print(f"seed {seed}: {plan.broker} broker, {claims}, {minutes:g} minutes")
    with watched(plan, console) as tell:
        outcome = run(plan, tell)
    if file is not None:
        file.write_text(json.dumps(as_json(outcome)))
    report(outcome, console)
    sys.exit(bool(outcome.complaints))


@contextmanager
def watched(plan: Plan, console: Console) -> Iterator[Callable[[Now], None]]:
    """A table in a terminal, a line now and then elsewhere."""
    began: dict[Measure, float] = {}
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            yield lambda now: live.update(table_now(now, began, plan), refresh=True)
        return
    due = 0.0

    def tell(now: Now) -> None:
        nonlocal due
        for each in now.happened:
            console.print(f"{now.seconds:6.0f} s  {each}")
        if now.seconds >= due:
            console.print(line(now))
            due = now.seconds + plan.seconds / LINES

    yield tell


def table_now(now: Now, began: dict[Measure, float], plan: Plan) -> Table:
    title = f"{now.seconds:.0f} of {plan.seconds:.0f} s, {now.sent} tasks sent"
    shown = Table("", "at first", "now", title=title)
    for measure, value in now.latest.items():
        first = began.setdefault(measure, value)
        shown.add_row(str(measure), amount(first, measure.kind), amount(value, measure.kind))
    return shown


def line(now: Now) -> str:
    """Sums over all workers, and what the servers have."""
    sums: dict[str, float] = defaultdict(float)
    for measure, value in now.latest.items():
        whose = measure.of if measure.of in ("broker", "store") else "workers"
        sums[f"{whose} {measure.what}"] += value
    told = ", ".join(
        f"{name} {amount(sums[name], kind)}" for name, kind in SHOWN.items() if name in sums
    )
    return f"{now.seconds:6.0f} s  {now.sent} sent; {told}"


def report(outcome: Outcome, console: Console) -> None:
    shown = Table("", "", "points", "first third", "last third", "growth", "tolerated", "")
    for each in outcome.findings:
        values = (each.first, each.last, each.growth, each.tolerated)
        amounts = (amount(value, each.measure.kind) for value in values)
        shown.add_row(each.measure.of, each.measure.what, str(each.points), *amounts, each.verdict)
    console.print(shown)
    counts = ", ".join(f"{name} {number}" for name, number in sorted(outcome.counts.items()))
    console.print(f"{outcome.sent} tasks sent; {counts or 'no claims'}")
    for complaint in outcome.complaints:
        console.print(complaint)
    for told in outcome.story:
        console.print(told)
    if not outcome.complaints:
        console.print("flat: nothing grows, and nothing is left")


def amount(value: float, kind: str) -> str:
    if kind in ("memory", "size"):
        return f"{value / MIB:.2f} MiB"
    return f"{value:.1f}".removesuffix(".0")


def as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "sent": outcome.sent,
        "counts": dict(outcome.counts),
        "left": outcome.left,
        "kept": outcome.kept,
        "complaints": outcome.complaints,
        "findings": _findings(outcome.findings),
    }


def _findings(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [
        {**asdict(each), "measure": each.measure._asdict(), "verdict": each.verdict}
        for each in findings
    ]


if __name__ == "__main__":
    main()
