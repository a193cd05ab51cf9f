"""``python -m tests.chaos``: break everything at random, and count what came of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from .run import Outcome, run
from .world import Plan

#: What is compared, in one table.
PROTECTIONS = ("claims", "bare", "once", "singleton", "heimdall")


@click.command(help=__doc__)
@click.option("--broker", type=click.Choice(["redis", "rabbitmq"]), default="redis")
@click.option("--store", type=click.Choice(["redis", "postgresql"]), default="redis")
@click.option("--seconds", type=float, default=240.0, show_default=True, help="Of chaos.")
@click.option("--workers", type=int, default=3, show_default=True)
@click.option("--rate", type=float, default=8.0, show_default=True, help="Sent in a second.")
@click.option("--pause", type=float, default=3.0, show_default=True, help="Between faults.")
@click.option("--rest", type=float, default=180.0, show_default=True, help="At most, to end.")
@click.option("--seed", type=int, help="Decides all; a random one if not given.")
@click.option("--protection", type=click.Choice(PROTECTIONS), default="claims")
@click.option("--all", "compared", is_flag=True, help="Each protection in turn, in one table.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the numbers here.")
@click.option("--logs", type=click.Path(path_type=Path), help="Keep the workers' logs here.")
def main(compared: bool, file: Path | None, logs: Path | None, **given: Any) -> None:
    seed = given.pop("seed")
    plan = Plan(seed=random.SystemRandom().randrange(10**6) if seed is None else seed, **given)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"seed {plan.seed}: {plan.broker} broker, {plan.store} store")
    if compared:
        compare(plan, console)
        return
    outcome = watched(plan, console)
    if file is not None:
        file.write_text(json.dumps(as_json(outcome)))
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
        for name, log in outcome.logs.items():
            logs.joinpath(f"{name}.log").write_text(log)
    console.print(table({plan.protection: as_json(outcome)}))
    if plan.protection == "claims":
        for violation in outcome.verdict.violations:
            console.print(violation)
        raise SystemExit(bool(outcome.verdict.violations))


def watched(plan: Plan, console: Console) -> Outcome:
    began = time.monotonic()
    with console.status(f"{plan.protection}: chaos for {plan.seconds:.0f} s") as status:

        def tell(what: str) -> None:
            status.update(f"{plan.protection}: {time.monotonic() - began:.0f} s, {what}")

        return run(plan, tell)


def compare(plan: Plan, console: Console) -> None:
    """Each protection in a process of its own, for each is an app of its own."""
    found = {}
    for protection in PROTECTIONS:
        file = Path(f"chaos-{plan.seed}-{protection}.json").absolute()
        shared = [f"--{name}={value}" for name, value in asdict(plan).items() if name in SHARED]
        own = [f"--protection={protection}", f"--json={file}"]
        with console.status(f"{protection}: chaos for {plan.seconds:.0f} s"):
            subprocess.run(
                [sys.executable, "-m", "tests.chaos", *shared, *own],
                check=False,
                stdout=subprocess.DEVNULL,
            )
        found[protection] = json.loads(file.read_text())
        file.unlink()
    console.print(table(found))


#: Options that every run of a comparison shares.
SHARED = ("broker", "store", "seconds", "workers", "rate", "pause", "rest", "seed")


def as_json(outcome: Outcome) -> dict[str, Any]:
    verdict = outcome.verdict
    counts = {name: getattr(verdict, name) for name in ROWS}
    return {
        **counts,
        "repeated": dict(verdict.repeated),
        "overlaps": dict(verdict.overlaps),
        "violations": verdict.violations,
        "losses_of_the_broker": verdict.losses_of_the_broker,
        "faults": dict(outcome.faults),
    }


def table(found: dict[str, dict[str, Any]]) -> Table:
    """The numbers side by side."""
    shown = Table("", *found)
    for name, title in ROWS.items():
        shown.add_row(title, *(str(each[name]) for each in found.values()))
    for name, title in (("repeated", "run again"), ("overlaps", "run at once")):
        for why in sorted({why for each in found.values() for why in each[name]}):
            told = "nothing explains it" if why == "nothing" else why
            shown.add_row(f"{title}: {told}", *(str(e[name].get(why, 0)) for e in found.values()))
    kills = [sum(n for what, n in e["faults"].items() if "kill" in what) for e in found.values()]
    shown.add_row("SIGKILLs", *map(str, kills))
    return shown


#: Rows of the table, by the field of a verdict.
ROWS = {
    "sent": "tasks sent",
    "finished": "finished",
    "swallowed": "never delivered",
    "swallowed_retries": "of these, a retry and what follows it",
    "unclaimed": "waiting for the visibility timeout",
    "unsent": "retries and chords' bodies that Celery did not send",
    "lost": "not finished otherwise",
    "stale_tried": "stale writes tried",
    "stale_refused": "stale writes refused",
    "stale_accepted": "stale writes accepted",
}


if __name__ == "__main__":
    main()
