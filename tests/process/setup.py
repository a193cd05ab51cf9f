"""pytest-celery's setup on local processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from celery import Celery, Signature, uuid
from celery.result import AsyncResult
from celery_claims.claims import Claims
from celery_claims.stores import Store
from kombu.utils import symbol_by_name
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestSetup,
    CeleryWorkerCluster,
)

from .container import BeatProcess, WorkerProcess, WorkerSpec
from .environment import CLAIMS_VARIABLE, CONF_VARIABLE, FOLDER_VARIABLE
from .gates import Gates
from .journal import Journal
from .nodes import ProcessWorker, SiteBroker
from .places import store_url
from .waiting import TIMEOUT, wait_until

#: Brokers of a site by name; imported on use, for each needs what it needs.
BROKERS: Mapping[str, str] = {
    "folder": "tests.process.nodes:FolderBroker",
    "rabbitmq": "tests.process.rabbit_broker:RabbitBroker",
    "redis": "tests.process.redis_broker:RedisBroker",
    "sqlite": "tests.process.nodes:SQLiteBroker",
}

#: Result backends of a site by name.
BACKENDS: Mapping[str, str] = {
    "folder": "tests.process.nodes:FolderBackend",
    "redis": "tests.process.result_nodes:RedisBackend",
    "rpc": "tests.process.result_nodes:RpcBackend",
}


class Site:
    """The folder of one test: broker, results, journal, gates, and the processes started in it.

    Parameters:
        folder: empty, and the test's own.
        conf: Celery settings over the site's own, for the test's app and the workers.
        claims: settings of ``install`` without their prefix, for apps that claim; ``url`` may
            be ``redis``, ``cluster``, ``postgresql`` or ``sqlite`` for a store of the site's own.
        app: the module that workers run unless their ``WorkerSpec`` is given another.
        broker: one of ``BROKERS``, or a broker that is there already.
        backend: one of ``BACKENDS``; what is usual beside the broker if not given.
    """

    def __init__(
        self,
        folder: Path,
        *,
        conf: Mapping[str, Any] | None = None,
        claims: Mapping[str, Any] | None = None,
        app: str = WorkerSpec.app,
        broker: str | SiteBroker = "folder",
        backend: str | None = None,
    ) -> None:
        self.folder = folder
        self.app_module = app
        if isinstance(broker, str):
            broker = symbol_by_name(BROKERS[broker])(folder / "broker")
        self.broker: SiteBroker = broker
        backend_class = symbol_by_name(BACKENDS[backend or broker.usual_backend])
        self.backend: CeleryTestBackend = backend_class(folder / "results")
        self.journal = Journal(folder / "journal.jsonl")
        self.gates = Gates(folder / "gates")
        self.claims = {**self.broker.claims, **(claims or {})}
        if "url" in self.claims:
            self.claims["url"] = store_url(self.claims["url"], folder)
        # The broker's own side must use the names and prefixes that the workers are given.
        self.broker.options.update((conf or {}).get("broker_transport_options", {}))
        self.conf = {
            **self.broker.settings(),
            "result_backend": self.backend.config()["url"],
            "result_extended": True,
            "broker_connection_retry_on_startup": True,
            # How long Celery waits for a lost child's result; its default is ten seconds.
            "worker_lost_wait": 1.0,
            **(conf or {}),
            "broker_transport_options": self.broker.options,
        }
        #: more environment variables of the processes
        self.extra_env: dict[str, str] = {}
        self._processes: list[WorkerProcess | BeatProcess] = []

    def env(self) -> dict[str, str]:
        """What the processes are told."""
        return {
            CONF_VARIABLE: json.dumps(self.conf),
            CLAIMS_VARIABLE: json.dumps(self.claims),
            FOLDER_VARIABLE: str(self.folder),
            **self.extra_env,
        }

    def start_worker(
        self, spec: WorkerSpec | None = None, *, wait: bool = True, **changes: Any
    ) -> ProcessWorker:
        """Start a worker.

        Parameters:
            spec: how; the site's app and a name of its own if not given.
            wait: until it is ready.
            changes: fields of ``WorkerSpec``.
        """
        number = len(self._processes) + 1
        default = WorkerSpec(app=self.app_module, name=f"w{number}")
        container = WorkerProcess(
            replace(spec or default, **changes), self.folder / f"p{number}", self.env()
        )
        self._processes.append(container)
        container.start()
        if wait:
            container.ready()
        return ProcessWorker(container)

    def start_beat(self, app: str | None = None) -> BeatProcess:
        """Start beat and wait until it is ready."""
        number = len(self._processes) + 1
        beat = BeatProcess(app or self.app_module, self.folder / f"p{number}", self.env())
        self._processes.append(beat)
        beat.start()
        beat.ready()
        return beat

    def open_store(self) -> Store:
        """The store that the workers use, wherever their settings put it."""
        return self._app_claims.open_store()

    @cached_property
    def _app_claims(self) -> Claims:
        app = Celery("site", set_as_current=False, config_source=self.conf)
        return Claims(app, self.claims)

    def logs(self) -> dict[str, str]:
        """The output of every process, by the name of its folder and its own."""
        return {
            f"{process.folder.name} ({process.name})": process.logs() for process in self._processes
        }

    def teardown(self) -> None:
        """End every process that was started here, and check that none is left."""
        for process in self._processes:
            process.teardown()
        self.broker.release()


class ProcessSetup(CeleryTestSetup):
    """A setup whose nodes are local processes.

    Parameters:
        worker_cluster, broker_cluster, backend_cluster, app: as ``CeleryTestSetup`` has them.
        site: where it all is.
    """

    def __init__(
        self,
        worker_cluster: CeleryWorkerCluster,
        broker_cluster: CeleryBrokerCluster,
        backend_cluster: CeleryBackendCluster,
        app: Celery,
        *,
        site: Site,
    ) -> None:
        super().__init__(worker_cluster, broker_cluster, backend_cluster, app)
        self.site = site

    @property
    def workers(self) -> tuple[ProcessWorker, ...]:
        return self.worker_cluster.nodes

    @property
    def journal(self) -> Journal:
        return self.site.journal

    @property
    def gates(self) -> Gates:
        return self.site.gates

    def start_worker(self, spec: WorkerSpec | None = None, **changes: Any) -> ProcessWorker:
        """Start one more worker; see ``Site.start_worker``."""
        worker = self.site.start_worker(spec, **changes)
        worker._app = self.app
        return worker

    def count_in_logs(self, text: str) -> int:
        """How often any of the processes has logged it."""
        return sum(log.count(text) for log in self.site.logs().values())

    def wait_for_log(self, text: str, count: int = 1, timeout: float = TIMEOUT) -> None:
        """Wait until the processes have logged it so often, whichever of them it was."""
        wait_until(
            lambda: self.count_in_logs(text) >= count,
            timeout,
            what=lambda: f"{text!r} {count} times, but {self.count_in_logs(text)} times",
        )


def publish_copies(app: Celery, signature: Signature, copies: int, **options: Any) -> AsyncResult:
    """Publish one message several times: same task id, same run, same attempt.

    Parameters:
        app: the test's app.
        signature: what to call.
        copies: how many messages.
        options: of ``apply_async``.
    """
    task_id = options.pop("task_id", None) or uuid()
    for _ in range(copies):
        signature.clone().apply_async(task_id=task_id, **options)
    return app.AsyncResult(task_id)
