"""Measure what claims cost and print it beside what it should cost: ``make bench``."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import celery
import click
from rich.console import Console

from . import footprint, peers, servers, stores, workers
from .measuring import Figure, Measure, Scale, run

MEASURES: Sequence[Measure] = (
    workers.drained(
        "tasks/s, prefork: Redis broker, Redis store",
        0.97,
        servers.redis_and_redis,
        tasks=6000,
    ),
    workers.drained(
        "tasks/s, prefork: RabbitMQ broker, Redis store",
        0.97,
        servers.rabbitmq_and_redis,
        tasks=6000,
    ),
    workers.drained(
        "tasks/s, prefork: Redis broker, PostgreSQL store",
        0.92,
        servers.redis_and_postgres,
        tasks=6000,
    ),
    workers.drained(
        "tasks/s, prefork: folder broker, SQLite store (normal)",
        0.95,
        servers.folder_and_sqlite,
        tasks=1500,
    ),
    workers.drained(
        "tasks/s, 100 threads that sleep 10 ms: Redis, Redis",
        0.97,
        lambda: servers.redis_and_redis("threads", 100),
        tasks=6000,
        task="bench.sleep",
        args=(0.01,),
    ),
    workers.drained(
        "tasks/s, 100 greenlets that sleep 10 ms: Redis, Redis",
        0.97,
        lambda: servers.redis_and_redis("gevent", 100),
        tasks=6000,
        task="bench.sleep",
        args=(0.01,),
    ),
    peers.beside("celery-once"),
    peers.beside("celery-singleton"),
    peers.beside("celery-heimdall"),
    peers.beside(peers.DEDUPLICATION),
    workers.latency("publish to start, median, added", 1.0, servers.redis_and_redis, 50),
    workers.latency("publish to start, p99, added", 5.0, servers.redis_and_redis, 99),
    stores.one_claim("redis: one claim / one PING", 1.25, stores.redis, stores.ping, 2000),
    stores.one_release("redis: one release / one PING", 1.25, stores.redis, 2000),
    stores.idle_script("redis: a script that does nothing / one PING"),
    stores.one_claim(
        "sqlite: one claim / a bare upsert, FULL", 1.25, stores.sqlite, stores.sqlite_upsert, 300
    ),
    stores.sqlite_statements("sqlite: only the statements of a claim / a bare upsert, FULL"),
    stores.one_claim(
        "postgresql: one claim / a bare upsert",
        1.25,
        stores.postgres,
        stores.postgres_upsert,
        300,
    ),
    stores.upsert_by_function("postgresql: an upsert by a function / a bare upsert"),
    stores.claim_and_release("memory: claim and release / lock, insert, delete", 8),
    stores.words_of_a_claim("memory: only the words of a claim and release / lock, insert, delete"),
    stores.many_threads("memory: 8 threads / one thread, the same work", 1.0),
    stores.batch("redis: a batch of 100 / 100 claims", 0.10, stores.redis, 10),
    stores.batch("postgresql: a batch of 100 / 100 claims", 0.10, stores.postgres, 3),
    stores.batch("sqlite: a batch of 100 / 100 claims", 0.15, stores.sqlite, 3),
    stores.renewal_share("redis: renewing 10,000 claims, lease 30 s, of a core", 1.0),
    *stores.growth("memory", 1.1, stores.memory, 2000),
    *stores.growth("sqlite", 1.1, stores.sqlite, 200),
    *stores.growth("redis", 1.1, stores.redis, 1000),
    *stores.growth("postgresql", 1.1, stores.postgres, 200),
    stores.cleanup("redis: p99 of claims during cleanup / without", 2.0, stores.redis, 3000),
    stores.cleanup("postgresql: p99 of claims during cleanup / without", 2.0, stores.postgres, 500),
    stores.cleanup("sqlite: p99 of claims during cleanup / without", 2.0, stores.sqlite, 500),
    stores.redis_bytes("redis: memory of a live claim", 250, finished=False),
    stores.redis_bytes("redis: memory of a finished record", 64, finished=True),
    stores.row_bytes(
        "postgresql: a finished record on disk", 120, stores.postgres, stores.postgres_size
    ),
    stores.row_bytes("sqlite: a finished record on disk", 120, stores.sqlite, stores.sqlite_size),
    footprint.import_time(10),
    workers.memory(servers.redis_and_redis, 3),
)


@click.command(help=__doc__)
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True, help="For a line.")
@click.option("--quick", is_flag=True, help="Small amounts and one pair: only to see it work.")
@click.option("--only", "words", multiple=True, help="Lines with this text; may be repeated.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--plots", type=click.Path(path_type=Path), help="Draw the figures in this folder.")
@click.option("--list", "listed", is_flag=True, help="Name the lines and measure nothing.")
def main(
    pairs: int,
    quick: bool,
    words: tuple[str, ...],
    file: Path | None,
    plots: Path | None,
    listed: bool,
) -> None:
    chosen = [m for m in MEASURES if not words or any(word in m.name for word in words)]
    if not chosen:
        raise click.BadParameter(f"no line has {words}; --list names them", param_hint="--only")
    if listed:
        for measure in chosen:
            click.echo(measure.name)
        return
    figures = measured(chosen, Scale(1 if quick else pairs, quick))
    if file is not None:
        file.write_text(json.dumps(report(figures, quick), indent=1) + "\n")
    if plots is not None:
        # The library is wanted for nothing else.
        from .plots import draw

        for drawn in draw(figures, plots):
            click.echo(drawn)
    if any(figure.failure for figure in figures):
        raise SystemExit(1)


def measured(chosen: Sequence[Measure], scale: Scale) -> list[Figure]:
    """Measure one after the other; each is printed as soon as it is known."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{'median':>9}  {'lowest':>9}  {'highest':>9}  {'target':<15}  reached")
    figures = []
    for place, measure in enumerate(chosen, start=1):
        with console.status(f"{place} of {len(chosen)}: {measure.name}"):
            figure = run(measure, scale)
        figures.append(figure)
        console.print(line(figure))
    return figures


def line(figure: Figure) -> str:
    """A figure in one line."""
    if figure.failure:
        return f"   failed  {figure.name}: {figure.failure}"
    values = (figure.median, min(figure.values), max(figure.values))
    cells = [f"{value:.3g} {figure.unit}".rstrip() for value in values]
    verdict = "" if not figure.target else "yes" if figure.reached else "no"
    return (
        f"{cells[0]:>9}  {cells[1]:>9}  {cells[2]:>9}  {figure.target:<15}  {verdict:<7}  "
        f"{figure.name}"
    )


def report(figures: Sequence[Figure], quick: bool) -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "celery": celery.__version__,
        "quick": quick,
        "figures": [figure.as_json() for figure in figures],
    }


if __name__ == "__main__":
    main()
