"""Where a task's processor time goes, with claims and without: the limit of what can be saved."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from . import servers
from .workers import PATIENCE, Setting, client, fill, waiting, worker

SETTINGS: Mapping[str, Callable[[], AbstractContextManager[Setting]]] = {
    "redis": servers.redis_and_redis,
    "rabbitmq": servers.rabbitmq_and_redis,
}

#: Microseconds of each kind of process for one task.
Spent = Mapping[str, float]


@click.command(help=__doc__)
@click.option("--broker", type=click.Choice(sorted(SETTINGS)), default="redis", show_default=True)
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--tasks", type=click.IntRange(60), default=4000, show_default=True)
def main(broker: str, pairs: int, tasks: int) -> None:
    console = Console(highlight=False)
    runs: dict[bool, list[Spent]] = {False: [], True: []}
    with SETTINGS[broker]() as setting, console.status("measuring") as status:
        for pair in range(pairs):
            status.update(f"pair {pair + 1} of {pairs}")
            for claimed in (True, False) if pair % 2 else (False, True):
                runs[claimed].append(spent(setting, tasks, claimed=claimed))
    console.print(shown(runs))


def spent(setting: Setting, tasks: int, *, claimed: bool) -> Spent:
    """The processor time of each kind of process while a prefork worker drains a queue."""
    setting.empty()
    app = client(setting)
    with app.connection_for_write() as connection:
        fill(app, connection, "bench.nothing", (), tasks)
        with worker(setting, claimed=claimed) as process, connection.channel() as channel:
            wait_for(channel, tasks * 5 // 6)
            before, left = times(process.pid), waiting(channel)
            wait_for(channel, 0)
            after = times(process.pid)
    return {kind: 1e6 * (after[kind] - before[kind]) / left for kind in after}


def wait_for(channel: Any, left: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while waiting(channel) > left:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{waiting(channel)} messages are left")
        time.sleep(0.01)


def times(pid: int) -> dict[str, float]:
    """Seconds that the processes of a worker, and the servers of this run, have taken so far."""
    parent = psutil.Process(pid)
    kinds = {"main process": [parent], "pool": parent.children(recursive=True)}
    kinds["servers"] = _servers()
    return {kind: sum(map(_seconds, processes)) for kind, processes in kinds.items()}


def _servers() -> list[psutil.Process]:
    """Of this run; RabbitMQ's is nobody's child."""
    redis = [each for each in psutil.Process().children() if each.name() == "redis-server"]
    return redis + [each for each in psutil.process_iter() if each.name() == "beam.smp"]


def _seconds(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


def shown(runs: Mapping[bool, list[Spent]]) -> Table:
    table = Table("µs of processor time for a task", "bare", "claimed", "added")
    medians: dict[bool, dict[str, float]] = defaultdict(dict)
    for claimed, each in runs.items():
        for kind in each[0]:
            medians[claimed][kind] = statistics.median(run[kind] for run in each)
        medians[claimed]["together"] = statistics.median(sum(run.values()) for run in each)
    for kind, bare in medians[False].items():
        ours = medians[True][kind]
        table.add_row(kind, f"{bare:.0f}", f"{ours:.0f}", f"{ours - bare:+.0f}")
    return table


if __name__ == "__main__":
    main()
