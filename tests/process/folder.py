"""Kombu's folder transport and Celery's file backend, without races that make tests flaky.

A message file is visible before it is written: a consumer that looks in between reads nothing and
raises (3 of 6000 messages, with a busy consumer). And a worker that declares an exchange while
another one starts may read or replace a table that is not written yet. Both are met here by
writing aside and linking, which is atomic; what is written stays the same. So is a result that is
replaced, which would else be read half old and half new.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

from celery.backends.filesystem import FilesystemBackend
from kombu.transport.filesystem import Channel
from kombu.utils.encoding import ensure_bytes
from kombu.utils.json import dumps


def put_at_once(channel: Channel, queue: str, payload: Any, **options: Any) -> None:
    """In place of ``Channel._put``."""
    name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
    target = Path(channel.data_folder_out)
    # Not named after the queue: before kombu 5.7 a consumer takes every file that has its name.
    aside = target / f".{uuid.uuid4()}.new"
    aside.write_text(dumps(payload))
    aside.rename(target / name)


_queue_bind = Channel._queue_bind


def bind_to_existing(
    channel: Channel, exchange: str, routing_key: str, pattern: str, queue: str
) -> None:
    """In place of ``Channel._queue_bind``, which is safe once the exchange's file exists."""
    file = channel.control_folder / f"{exchange}.exchange"
    channel.control_folder.mkdir(exist_ok=True)
    aside = file.with_name(f".{uuid.uuid4()}.new")
    aside.write_text("[]")
    try:
        os.link(aside, file)
    except FileExistsError:
        # Another process was first, which is just as well.
        pass
    finally:
        aside.unlink()
    _queue_bind(channel, exchange, routing_key, pattern, queue)


def set_at_once(backend: FilesystemBackend, key: str, value: Any) -> None:
    """In place of ``FilesystemBackend.set``."""
    target = Path(os.fsdecode(backend._filename(key)))
    aside = target.with_name(f".{uuid.uuid4()}.new")
    aside.write_bytes(ensure_bytes(value))
    aside.rename(target)


def make_folders_atomic() -> None:
    """Mend transport and backend in this process; harmless when repeated."""
    FilesystemBackend.set = set_at_once
    Channel._put = put_at_once
    Channel._queue_bind = bind_to_existing
