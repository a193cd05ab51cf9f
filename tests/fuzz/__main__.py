"""Bad input chosen by the branches that it reaches: ``python -m tests.fuzz TARGET [options]``.

The options are libFuzzer's, such as ``-max_total_time=60``, a folder to keep what was found, or a
file with one input to try again. ``make fuzz`` runs every target. The same promises are held to
with hypothesis in ``tests/unit/test_bad_messages.py``, ``tests/unit/test_bad_settings.py`` and
``tests/stores/test_damage.py``.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import atheris

with atheris.instrument_imports(include=["celery_claims"]):
    from celery_claims.config import read_settings
    from celery_claims.errors import ConfigurationError, InvalidArgument
    from celery_claims.stores import SCHEMES, View, open_store
    from celery_claims.stores.memory import MemoryStore
    from celery_claims.stores.packing import unpack_text
    from celery_claims.stores.redis_record import as_record
    from celery_claims.stores.redis_scan import _read as read_place
    from celery_claims.stores.sqlite_rows import place_of

    from tests.unit.messages import TASK, Desk, message

logging.disable(logging.CRITICAL)

FIELDS = ("id", "root_id", "retries", "replaced_task_nesting", "x-death", "celery_claims", "args")
SETTINGS = ("url", "tasks", "lease", "keep_finished", "max_hold", "store_timeout", "on_store_down")


def value(data: Any, depth: int = 2) -> Any:
    """Anything that JSON has."""
    kind = data.ConsumeIntInRange(0, 7 if depth else 5)
    if kind == 0:
        return None
    if kind == 1:
        return data.ConsumeBool()
    if kind == 2:
        return data.ConsumeInt(9)
    if kind == 3:
        return data.ConsumeFloat()
    if kind in (4, 5):
        return data.ConsumeUnicode(data.ConsumeIntInRange(0, 12))
    several = range(data.ConsumeIntInRange(0, 3))
    if kind == 6:
        return [value(data, depth - 1) for _ in several]
    return {data.ConsumeUnicode(4): value(data, depth - 1) for _ in several}


def some_fields(data: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        data.PickValueInList(list(names)): value(data) for _ in range(data.ConsumeIntInRange(0, 4))
    }


def messages(raw: bytes) -> None:
    """Two deliveries: each is run, held or refused, and claimed only as what it is."""
    data = atheris.FuzzedDataProvider(raw)
    desk = Desk()
    for _ in range(2):
        headers: Any = {"task": TASK, "id": "id-1", **some_fields(data, FIELDS)}
        body: Any = [[], {}, {}]
        form = data.ConsumeIntInRange(0, 3)
        if form == 1:
            headers, body = {}, {"kwargs": {}, **headers}
        elif form == 2:
            body = {"args": [], "kwargs": {}, **some_fields(data, FIELDS)}
        elif form == 3:
            body = data.ConsumeBytes(data.ConsumeIntInRange(0, 40))
        desk.receive(message(headers, body, properties=value(data), delivery_info=value(data)))


def settings(raw: bytes) -> None:
    """Taken, or refused by name."""
    data = atheris.FuzzedDataProvider(raw)
    given = some_fields(data, SETTINGS)
    try:
        read_settings({f"claims_{name}": each for name, each in given.items()})
    except ConfigurationError as error:
        if not error.setting.startswith("claims_"):
            raise


def urls(raw: bytes) -> None:
    """Opened, or refused."""
    data = atheris.FuzzedDataProvider(raw)
    scheme = data.PickValueInList(sorted(SCHEMES))
    try:
        store = open_store(f"{scheme}://{data.ConsumeUnicode(200)}")
    except ConfigurationError:
        return
    store.close()


def rows(raw: bytes) -> None:
    """A packed row is a record, or no record."""
    data = atheris.FuzzedDataProvider(raw)
    expires_at = data.ConsumeInt(8)
    packed = data.ConsumeBytes(data.remaining_bytes())
    try:
        as_record("q", unpack_text(packed[:8]) or "t", packed, expires_at).as_expiry()
    except InvalidArgument:
        raise
    except ValueError:
        return


def cursors(raw: bytes) -> None:
    """Where a scan goes on, or no cursor."""
    data = atheris.FuzzedDataProvider(raw)
    view = data.PickValueInList(list(View))
    parts = [view.value, None, *(value(data, 1) for _ in range(data.ConsumeIntInRange(0, 4)))]
    cursor = json.dumps(parts) if data.ConsumeBool() else data.ConsumeUnicode(40)
    readers: tuple[Callable[[], object], ...] = (
        lambda: MemoryStore(private=True).scan(view, cursor=cursor),
        lambda: place_of(view, None, cursor),
        lambda: read_place(cursor, view, None),
    )
    for read in readers:
        try:
            read()
        except InvalidArgument as error:
            if error.argument != "cursor":
                raise


TARGETS = {each.__name__: each for each in (messages, settings, urls, rows, cursors)}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {'|'.join(TARGETS)} [options of libFuzzer]")
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


main()
