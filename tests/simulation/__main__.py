"""``make simulate``: simulated workers, by the thousands of seeds or by the thousand.

A seed that fails is told, and repeated by ``--seed`` with its timeline.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import click
from rich.console import Console
from rich.progress import Progress

from .plan import crowd, plan_of
from .simulation import Result, simulate

#: Seeds of one errand of a process.
CHUNK = 20


@click.command(help=__doc__)
@click.option("--seeds", type=int, default=5000, show_default=True, help="How many.")
@click.option("--from", "first", type=int, default=1, show_default=True, help="The first seed.")
@click.option("--seed", type=int, help="Only this one, with its timeline.")
@click.option("--jobs", type=int, default=2, show_default=True, help="Processes that share them.")
@click.option("--workers", type=int, help="One run with so many workers ...")
@click.option("--tasks", type=int, default=100_000, show_default=True, help="... and tasks.")
def main(
    seeds: int, first: int, seed: int | None, jobs: int, workers: int | None, tasks: int
) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if workers is not None:
        failed = one_crowd(console, workers, tasks, seed or first)
    elif seed is not None:
        failed = one_seed(console, seed)
    else:
        failed = many_seeds(console, range(first, first + seeds), jobs)
    raise SystemExit(failed)


def one_seed(console: Console, seed: int) -> bool:
    plan = plan_of(seed)
    console.print(str(plan))
    for task_id, work in plan.work.items():
        console.print(f"  {task_id}: {work}")
    result = simulate(plan, print)
    tell(console, [result])
    return bool(result.violations)


def one_crowd(console: Console, workers: int, tasks: int, seed: int) -> bool:
    plan = crowd(seed, workers, tasks)
    console.print(str(plan))
    began = time.monotonic()
    with console.status("simulated"):
        result = simulate(plan)
    tell(console, [result])
    console.print(f"in {time.monotonic() - began:.0f} s")
    return bool(result.violations)


def many_seeds(console: Console, seeds: range, jobs: int) -> bool:
    began = time.monotonic()
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    results: list[Result] = []
    with Progress(console=console) as progress, ProcessPoolExecutor(jobs) as pool:
        bar = progress.add_task("seeds", total=len(seeds))
        for some in pool.map(run_chunk, chunks):
            results += some
            for result in some:
                if result.violations:
                    progress.console.print(f"{result.plan}\n  {result.violations[0]}")
            progress.advance(bar, len(some))
    tell(console, results)
    console.print(f"in {time.monotonic() - began:.0f} s")
    return any(result.violations for result in results)


def run_chunk(seeds: range) -> list[Result]:
    return list(map(simulate, map(plan_of, seeds)))


def tell(console: Console, results: list[Result]) -> None:
    counts = sum((result.counts for result in results), Counter[str]())
    failed = [result for result in results if result.violations]
    events = sum(result.events for result in results)
    seconds = sum(result.seconds for result in results)
    told = ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items()))
    console.print(f"{events:,} events in {seconds:,.0f} simulated seconds: {told}")
    console.print(f"{len(failed)} of {len(results)} runs broke a promise")
    for result in failed:
        console.print(f"--seed {result.plan.seed}: {result.violations[0]}")


__all__ = ["main"]

if __name__ == "__main__":
    main()
