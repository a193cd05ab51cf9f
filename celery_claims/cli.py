"""``celery -A proj claims ...``: who holds what, since when, and whether it is all in order."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click
from celery.bin.base import CeleryCommand
from celery.concurrency import get_implementation
from celery.concurrency.prefork import TaskPool

from .checks import printable
from .claims import Claims, claims_of
from .errors import ClaimsError, StoreError
from .parts import ask_in_parts
from .protocol import Record
from .stores import Page, Store, Unreadable, View

__all__ = ["claims"]

#: Records read at a time.
PAGE = 100


class Refused(click.ClickException):
    """A typed error as one line; exit code 1."""

    def __init__(self, error: ClaimsError) -> None:
        super().__init__(str(error))


@click.group(name="claims", help="Look into the claims of an app and clean up.")
@click.pass_context
def claims(ctx: click.Context) -> None:
    found = claims_of(ctx.obj.app)
    if found is None:
        raise click.ClickException(
            "this app has no claims: call celery_claims.install(app) where it is made, "
            "and name it with -A"
        )
    with _refusing():
        # First, for a receiver that fails while modules are imported is logged at length.
        _ = found.settings
        ctx.obj.app.loader.import_default_modules()
    ctx.obj.claims = found


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
of_queue = click.option("--queue", metavar="NAME", help="Only of this queue.")


@claims.command("list", cls=CeleryCommand)
@of_queue
@click.option("--expired", "view", flag_value=View.ORPHANED.value, help="Whose lease is over.")
@click.option("--all", "view", flag_value=View.ALL.value, help="Also free and finished ones.")
@click.option("--live", "view", flag_value=View.LIVE.value, default=True, hidden=True)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@as_json
@click.pass_context
def list_claims(ctx: Any, queue: str | None, view: str, limit: int, as_json: bool) -> None:
    """List claims that are held now."""
    with _store(ctx) as store, _refusing():
        shown: list[Record] = []
        unreadable: list[Unreadable] = []
        now = 0
        for page in _pages(store, View(view), queue, limit):
            shown += page.records
            unreadable += page.unreadable
            now = page.now
    for each in unreadable:
        click.echo(f"unreadable: {each}", err=True)
    rows = [_row(record, now) for record in shown]
    if as_json:
        click.echo(json.dumps(rows))
    else:
        _table(rows, ("task", "id", "queue", "state", "owner", "token", "left", "deliveries"))


@claims.command("show", cls=CeleryCommand)
@click.argument("task_id")
@of_queue
@as_json
@click.pass_context
def show(ctx: Any, task_id: str, queue: str | None, as_json: bool) -> None:
    """Show everything that is known about a task ID."""
    queues = [queue] if queue else sorted(ctx.obj.app.amqp.queues)
    with _store(ctx) as store, _refusing():
        found = ask_in_parts(store.lookup, [(name, task_id) for name in queues])
        now = store.census(queues[0]).now
    records = [record for record in found if isinstance(record, Record)]
    errors = [error for error in found if isinstance(error, StoreError)]
    if errors and not records:
        raise Refused(errors[0])
    for error in errors:
        click.echo(f"unreadable: {error}", err=True)
    if not records:
        raise click.ClickException(
            f"no record of task {task_id!r} in queue {', '.join(queues)}; name another with --queue"
        )
    rows = [{**_row(record, now), **_details(record)} for record in records]
    if as_json:
        click.echo(json.dumps(rows))
    else:
        for row in rows:
            _table([{"field": name, "value": value} for name, value in row.items()], None)


@claims.command("stats", cls=CeleryCommand)
@of_queue
@as_json
@click.pass_context
def stats(ctx: Any, queue: str | None, as_json: bool) -> None:
    """Count records by what they say."""
    with _store(ctx) as store, _refusing():
        counts = asdict(store.census(queue))
        counts["unreadable"] = len(_unreadable(store, queue))
    del counts["now"]
    if as_json:
        click.echo(json.dumps(counts))
    else:
        _table([{"records": name, "count": count} for name, count in counts.items()], None)


@claims.command("cleanup", cls=CeleryCommand)
@as_json
@click.pass_context
def cleanup(ctx: Any, as_json: bool) -> None:
    """Clean expired claims up now."""
    found: Claims = ctx.obj.claims
    with _store(ctx) as store, _refusing():
        sweep = found.sweeper(store).run_once()
    if as_json:
        click.echo(json.dumps(asdict(sweep)))
    else:
        click.echo(str(sweep))


@claims.command("check", cls=CeleryCommand)
@as_json
@click.pass_context
def check(ctx: Any, as_json: bool) -> None:
    """Check the settings, the store and the tasks; exit code 1 if something is wrong."""
    found: Claims = ctx.obj.claims
    # Of the settings: a pool that ``worker --pool`` names is checked when that worker starts.
    pool = found.app.conf.worker_pool
    with _refusing():
        found.check_place(forks=issubclass(get_implementation(pool), TaskPool))
        tasks = sorted(task.name for task in found.claimed_tasks())
        with _store(ctx) as store:
            problems = [*found.problems(store), *map(str, _unreadable(store, None))]
    if not tasks:
        problems.append("no task is claimed: decorate one with @claimed or set claims_tasks")
    if as_json:
        click.echo(json.dumps({"store": store.name, "tasks": tasks, "problems": problems}))
    else:
        click.echo(f"store: {store.name}")
        click.echo(f"claimed tasks: {', '.join(tasks) or 'none'}")
        for problem in problems:
            click.echo(f"problem: {problem}")
        if not problems:
            click.echo("no problem found")
    ctx.exit(1 if problems else 0)


def _store(ctx: Any) -> Store:
    with _refusing():
        found: Claims = ctx.obj.claims
        return found.open_store()


@contextmanager
def _refusing() -> Iterator[None]:
    """Errors of ours end a command with one line."""
    try:
        yield
    except ClaimsError as error:
        raise Refused(error) from error


def _pages(store: Store, view: View, queue: str | None, limit: int = sys.maxsize) -> Iterator[Page]:
    cursor: str | None = None
    while limit > 0:
        page = store.scan(view, queue=queue, cursor=cursor, limit=min(limit, PAGE))
        yield page
        limit -= len(page.records)
        cursor = page.cursor
        if cursor is None:
            return


def _unreadable(store: Store, queue: str | None) -> list[Unreadable]:
    """What stands where claims should; it costs a look at every claim."""
    found: dict[Unreadable, None] = {}
    for view in (View.ORPHANED, View.LIVE):
        for page in _pages(store, view, queue):
            found.update(dict.fromkeys(page.unreadable))
    return list(found)


def _row(record: Record, now: int) -> dict[str, Any]:
    return {
        "task": record.delivery.task,
        "id": record.task_id,
        "queue": record.queue,
        "state": "expired" if record.is_orphan(now) else record.state.value,
        "outcome": record.outcome.value if record.outcome else None,
        "owner": record.owner,
        "token": record.token,
        "left": max(0.0, record.expires_at - now) / 1000 if record.is_live(now) else None,
        "attempt": list(record.attempt),
        "deliveries": record.deliveries,
    }


def _details(record: Record) -> dict[str, Any]:
    return {
        "root": record.root_id,
        "started": record.started,
        "claimed_at": record.claimed_at,
        "expires_at": record.expires_at,
        "settled_at": record.settled_at or None,
        "forget_at": record.forget_at or None,
        "from_queue": record.delivery.queue,
        "delivery_tag": record.delivery.tag,
    }


def _table(rows: list[dict[str, Any]], columns: Iterable[str] | None) -> None:
    """A table where rich is installed and someone looks at it, else tab-separated lines."""
    names = list(columns) if columns else list(rows[0]) if rows else []
    cells = [
        ["" if row[name] is None else printable(str(row[name])) for name in names] for row in rows
    ]
    if not _draw(names, cells):
        for line in [names, *cells]:
            click.echo("\t".join(line))


def _draw(names: list[str], cells: list[list[str]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        return False
    console = Console()
    if not console.is_terminal:
        return False
    table = Table(*names)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    return True
