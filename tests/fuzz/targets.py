"""What is fuzzed: each target takes any bytes, and raises only if a promise is broken.

It does not matter who chooses the bytes: ``tests.fuzz`` has atheris for that, and the tests run the
targets for a moment so that they go on working.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.bin.celery import celery
from celery_claims import claimed, install
from celery_claims.config import read_settings
from celery_claims.errors import ConfigurationError, InvalidArgument
from celery_claims.protocol import ClaimRequest, Record, State
from celery_claims.stores import SCHEMES, View, open_store, postgres_rows, sqlite_rows
from celery_claims.stores.memory import MemoryStore
from celery_claims.stores.packing import CODES, state_of, unpack_text
from celery_claims.stores.redis_record import as_record
from celery_claims.stores.redis_scan import _read as read_place
from click.testing import CliRunner

from tests.unit.apps import bare_app
from tests.unit.messages import TASK, Desk, message

from .source import Source

__all__ = ["TARGETS"]

FIELDS = ("id", "root_id", "retries", "replaced_task_nesting", "x-death", "celery_claims", "args")
SETTINGS = ("url", "tasks", "lease", "keep_finished", "max_hold", "store_timeout", "on_store_down")
OPTIONS = ("lease", "strict", "keep_finished", "max_deliveries", "max_hold", "leese")
WORDS = (
    *("list", "show", "stats", "cleanup", "check", "nonsense", "--queue", "--limit", "--json"),
    *("--all", "--expired", "--live", "--help", "--queue=", "--limit=x", "-1", "0", "q"),
)


def messages(raw: bytes) -> None:
    """Two deliveries: each is run, held or refused, and claimed only as what it is."""
    data = Source(raw)
    desk = Desk()
    for _ in range(2):
        headers: Any = {"task": TASK, "id": "id-1", **data.fields(FIELDS)}
        body: Any = [[], {}, {}]
        form = data.whole(0, 3)
        if form == 1:
            headers, body = {}, {"kwargs": {}, **headers}
        elif form == 2:
            body = {"args": [], "kwargs": {}, **data.fields(FIELDS)}
        elif form == 3:
            body = data.raw(data.whole(0, 40))
        desk.receive(message(headers, body, properties=data.value(), delivery_info=data.value()))


def settings(raw: bytes) -> None:
    """Taken, or refused by name."""
    given = Source(raw).fields(SETTINGS)
    try:
        read_settings({f"claims_{name}": each for name, each in given.items()})
    except ConfigurationError as error:
        if not error.setting.startswith("claims_"):
            raise


def options(raw: bytes) -> None:
    """Of ``claimed(...)``: taken, or refused by name."""

    def body() -> None: ...

    try:
        claimed(**Source(raw).fields(OPTIONS))(body)
    except ConfigurationError as error:
        if not str(error).startswith("claimed"):
            raise


def urls(raw: bytes) -> None:
    """Opened, or refused."""
    data = Source(raw)
    scheme = data.pick(sorted(SCHEMES))
    try:
        store = open_store(f"{scheme}://{data.text(200)}")
    except ConfigurationError:
        return
    store.close()


@functools.cache
def _app() -> Celery:
    app = bare_app()
    install(app, url=f"memory://{uuid4().hex}", tasks=["*"])
    app.finalize()
    return app


def commands(raw: bytes) -> None:
    """``celery claims`` ends with what was asked for, a refusal or how it is used."""
    data = Source(raw)
    words = [data.text(20) if data.flag() else data.pick(WORDS) for _ in range(data.whole(0, 5))]
    result = CliRunner().invoke(celery, ["-A", _app(), "claims", *words])  # type: ignore[list-item]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2), words


def rows(raw: bytes) -> None:
    """A packed row of Redis is a record, or no record."""
    data = Source(raw)
    expires_at = data.number(8)
    packed = data.rest()
    try:
        as_record("q", unpack_text(packed[:8]) or "t", packed, expires_at).as_expiry()
    except InvalidArgument:
        raise
    except ValueError:
        return


def finished(raw: bytes) -> None:
    """One of a finished record in Redis is that, with how it ended, or no record."""
    data = Source(raw)
    codes = [code for outcome, code in CODES.items() if state_of(outcome) is State.FINISHED]
    # The numbers of a whole one, each as short as it can be or of eight bytes, and what follows.
    numbers = [bytes([data.pick(codes)])]
    for _ in range(8):
        wide = data.flag()
        numbers.append(b"\xcf" + data.raw(8).rjust(8, b"\0") if wide else data.raw(1) or b"\0")
        if len(numbers) == 7:
            numbers.append(b"\xa0")
    try:
        record = as_record("q", "t", b"".join(numbers) + data.rest(), 0)
    except InvalidArgument:
        raise
    except ValueError:
        return
    assert record.state is State.FINISHED and record.outcome is not None


_COLUMNS = (
    *("id", "queue", "task_id", "token", "outcome", "nesting", "retries", "deaths", "deliveries"),
    *("started", "claimed_at", "settled_at", "forget_at", "root_id", "expires_at", "owner"),
    *("grant_id", "task", "tag", "from_queue", "priority"),
)


def _cell(data: Source) -> Any:
    """Anything that a column of SQLite may hold."""
    kind = data.whole(0, 5)
    if kind == 0:
        return None
    if kind == 1:
        return data.text(6)
    if kind == 2:
        return data.number(8)
    if kind == 3:
        # It keeps what is no number as NULL.
        real = data.real()
        return None if math.isnan(real) else real
    return data.whole(0, 9) if kind == 4 else data.raw(data.whole(0, 12))


def sqlite_rows_(raw: bytes) -> None:
    """A row is a record or is shown as none, and a scan can go on after it."""
    data = Source(raw)
    row: dict[str, Any] = {"id": data.number(8), **_whole_row(data)}
    for _ in range(data.whole(0, 4)):
        row[data.pick(_COLUMNS[1:])] = _cell(data)
    records, others = sqlite_rows.read_rows([row])  # type: ignore[list-item]
    assert len(records) + len(others) == 1
    assert all(each.removal and each.problem for each in others)
    for view in View:
        # What has no time of expiry is in no index by it.
        if view is View.ALL or row["expires_at"] is not None:
            cursor = sqlite_rows.cursor_at(view, None, row)  # type: ignore[arg-type]
            sqlite_rows.place_of(view, None, cursor)


def _whole_row(data: Source) -> dict[str, Any]:
    """A record of a live claim, as the store writes it."""
    number = functools.partial(data.whole, 0, 9)
    texts = ("queue", "task_id", "root_id", "owner", "grant_id", "task", "tag", "from_queue")
    counts = ("nesting", "retries", "deaths", "deliveries", "settled_at", "forget_at")
    return {
        **dict.fromkeys(_COLUMNS[1:], None),
        **dict.fromkeys(texts, b"x"),
        **{name: number() for name in counts},
        "token": 1 + number(),
        "outcome": number(),
        "started": number() % 2,
        "claimed_at": number(),
        "expires_at": number(),
        "priority": None,
    }


def postgres_rows_(raw: bytes) -> None:
    """A row of the table is a record or none; an answer of a function is one, or unreadable."""
    data = Source(raw)
    row: list[Any] = [
        *(1, 2, None, None, 0, 0, 0, 0, None, data.pick((0, 4)), False, None),
        *[b"x"] * 8,
    ]
    for _ in range(data.whole(0, 4)):
        row[data.whole(0, len(row) - 1)] = _cell(data)
    with contextlib.suppress(postgres_rows.UnreadableRow):
        assert isinstance(postgres_rows.as_record(row[: data.whole(18, 30)]), Record)
    request = ClaimRequest("q", "t", "owner", 1000, "grant", "t")
    number, text, word = (
        functools.partial(data.number, 8),
        lambda: data.raw(data.whole(0, 6)),
        functools.partial(data.number, 2),
    )
    answers = ("already claimed", "finished", "superseded", "exhausted", "took over", "success")
    facts = [number(), number(), number(), number(), number(), number(), data.flag(), word()]
    again = [text(), text(), number(), text(), text(), text(), None]
    claimed_row = [0, data.pick(answers), number(), text(), *facts, number(), *again]
    readers: tuple[Callable[[], object], ...] = (
        lambda: postgres_rows.claim_answer(request, claimed_row),
        lambda: postgres_rows.renew_answer(
            [0, data.pick(("renewed", "ended", "lost")), number(), number(), word(), text()]
        ),
        lambda: postgres_rows.settle_answer(
            [0, data.pick(("settled", "ended", "lost")), number(), word(), text()]
        ),
    )
    for read in readers:
        try:
            read()
        except postgres_rows.UnreadableRow:
            continue


def cursors(raw: bytes) -> None:
    """Where a scan goes on, or no cursor."""
    data = Source(raw)
    view = data.pick(list(View))
    parts = [view.value, None, *(data.value(1) for _ in range(data.whole(0, 4)))]
    cursor = json.dumps(parts) if data.flag() else data.text(40)
    readers: tuple[Callable[[], object], ...] = (
        lambda: MemoryStore(private=True).scan(view, cursor=cursor),
        lambda: sqlite_rows.place_of(view, None, cursor),
        lambda: read_place(cursor, view, None),
    )
    for read in readers:
        try:
            read()
        except InvalidArgument as error:
            if error.argument != "cursor":
                raise


#: By the name that the command line takes.
TARGETS = {
    each.__name__.rstrip("_"): each
    for each in (
        *(messages, settings, options, urls, commands, rows, finished, sqlite_rows_),
        *(postgres_rows_, cursors),
    )
}
