"""pytest-celery's nodes over the containers of this package."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import kombu
import psutil
from celery import Celery
from pytest_celery import CeleryTestBackend, CeleryTestBroker, CeleryTestWorker

from .container import FolderContainer, WorkerProcess, WorkerSpec
from .waiting import TIMEOUT, stays, wait_until

#: Seconds between two looks into an empty queue; kombu's default is one second.
POLLING = 0.1


class ProcessWorker(CeleryTestWorker):
    """A worker that is a local process.

    Parameters:
        container: the process.
        app: the test's app.
    """

    container: WorkerProcess

    def __init__(self, container: WorkerProcess, app: Celery | None = None) -> None:
        super().__init__(container, app)

    @property
    def spec(self) -> WorkerSpec:
        return self.container.spec

    def hostname(self) -> str:
        return self.container.node_name

    def children(self) -> list[int]:
        """The pids of the pool's children."""
        return self.container.children()

    def pause(self, *, children: bool = False) -> None:
        self.container.pause(children=children)

    def resume(self) -> None:
        self.container.resume()

    def wait(self, timeout: float = TIMEOUT) -> int:
        return self.container.wait(timeout)

    def wait_for_log(self, log: str, message: str = "", timeout: float = TIMEOUT) -> None:
        # The plugin's own looks once a second.
        wait_until(
            lambda: log in self.logs(),
            timeout,
            what=lambda: f"{message or log!r} in the log of {self.name()}:\n{self.logs()}",
        )

    def assert_log_exists(self, log: str, message: str = "", timeout: float = TIMEOUT) -> None:
        self.wait_for_log(log, message, timeout)

    def assert_log_does_not_exist(self, log: str, message: str = "", timeout: float = 1) -> None:
        quiet = stays(lambda: log not in self.logs(), timeout)
        assert quiet, f"{message or log!r} in the log of {self.name()}:\n{self.logs()}"

    def get_running_processes_info(
        self, columns: list[str] | None = None, filters: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        wanted = columns or ["pid", "name", "username", "cmdline", "create_time"]
        pids = [self.container.pid, *self.container.children()]
        rows = [psutil.Process(pid).as_dict(attrs=wanted) for pid in pids]
        conditions = (filters or {}).items()
        return [row for row in rows if all(row.get(key) == value for key, value in conditions)]


class SiteBroker(CeleryTestBroker):
    """The broker of one site.

    Parameters:
        container: answers to ``celeryconfig`` with ``url`` and ``transport_options``.
    """

    #: one of ``setup.BACKENDS``: where results go that a site says nothing of
    usual_backend = "folder"

    @property
    def options(self) -> dict[str, Any]:
        """``broker_transport_options``; what is changed here is what ``settings`` says."""
        options: dict[str, Any] = self.config()["transport_options"]
        return options

    def settings(self) -> dict[str, Any]:
        """What Celery needs to be told of it."""
        config = self.config()
        return {
            "broker_url": config["url"],
            "broker_transport_options": config["transport_options"],
        }

    def connect(self, **options: Any) -> kombu.Connection:
        """A connection of the test's own.

        Parameters:
            options: over the transport options of the settings.
        """
        settings = self.settings()
        return kombu.Connection(
            settings["broker_url"],
            transport_options={**settings["broker_transport_options"], **options},
        )

    def waiting(self, queue: str = "celery") -> int:
        """How many messages wait in the queue."""
        raise NotImplementedError

    def left(self, queue: str = "celery") -> int:
        """How many messages of the queue are not acknowledged, for tests whose workers are gone."""
        return self.waiting(queue)

    @property
    def claims(self) -> dict[str, Any]:
        """Settings of ``install`` that this broker needs."""
        return {}

    def release(self) -> None:
        """Nothing uses it any more."""

    def redeliver(self, task_id: str) -> int:
        """Deliver a task's messages again that workers have, delivery tag and all, as a broker
        does by itself when it thinks that they are gone.

        Returns:
            how many messages.
        """
        raise NotImplementedError


class EmbeddedBroker(SiteBroker):
    """A broker without a server."""

    container: FolderContainer

    @property
    def folder(self) -> Path:
        return self.container.folder


class FolderBroker(EmbeddedBroker):
    """Kombu's filesystem transport in a folder of its own.

    Parameters:
        folder: messages, exchanges and what was consumed.
    """

    def __init__(self, folder: Path) -> None:
        self.queue = folder / "queue"
        self.consumed = folder / "consumed"
        options = {
            # The same folder for both: workers and test read what the other one wrote.
            "data_folder_in": str(self.queue),
            "data_folder_out": str(self.queue),
            "control_folder": str(folder / "control"),
            # Otherwise a message is moved through the machine's temporary folder to be read.
            "processed_folder": str(self.consumed),
            "store_processed": True,
            "polling_interval": POLLING,
        }
        super().__init__(FolderContainer(folder, "filesystem://", options))
        for path in (self.queue, self.consumed, folder / "control"):
            path.mkdir(exist_ok=True)

    def waiting(self, queue: str = "celery") -> int:
        return len(list(self.queue.glob(f"[!.]*.{queue}.msg")))

    def redeliver(self, task_id: str) -> int:
        # Also those that were acknowledged, which no other broker can.
        found = [path for path in self.consumed.glob("*.msg") if _task_of(path) == task_id]
        for path in found:
            aside = self.queue / f".{uuid.uuid4()}.new"
            shutil.copy(path, aside)
            aside.rename(self.queue / f"{uuid.uuid4()}.{path.name.partition('.')[2]}")
        return len(found)


class SQLiteBroker(EmbeddedBroker):
    """Kombu's SQLAlchemy transport on a SQLite file.

    Parameters:
        folder: where the file is.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "broker.db"
        # Several processes write; the driver's own five seconds are short on a loaded machine.
        options = {"connect_args": {"timeout": 30}}
        super().__init__(FolderContainer(folder, f"sqla+sqlite:///{self.file}", options))
        # Made here once, for workers that start together would all try to make the tables.
        with self.connect() as connection:
            connection.default_channel.queue_declare("celery")
            connection.default_channel.session.close()

    def waiting(self, queue: str = "celery") -> int:
        with self._open() as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM kombu_message m JOIN kombu_queue q ON q.id = m.queue_id"
                " WHERE m.visible AND q.name = ?",
                (queue,),
            ).fetchone()
        return int(count)

    def redeliver(self, task_id: str) -> int:
        with self._open() as connection, connection:
            return connection.execute(
                "UPDATE kombu_message SET visible = 1"
                " WHERE NOT visible AND json_extract(payload, '$.headers.id') = ?",
                (task_id,),
            ).rowcount

    def _open(self) -> contextlib.closing[sqlite3.Connection]:
        return contextlib.closing(sqlite3.connect(self.file, timeout=30))


class FolderBackend(CeleryTestBackend):
    """Celery's file backend in a folder: nothing to lock, so nothing to wait for.

    Parameters:
        folder: where the results are.
    """

    container: FolderContainer

    def __init__(self, folder: Path) -> None:
        super().__init__(FolderContainer(folder, f"file://{folder}"))


def _task_of(path: Path) -> str | None:
    headers = json.loads(path.read_text()).get("headers") or {}
    return headers.get("id")
