"""pytest-celery's containers over local processes and folders."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import celery
from pytest_celery import CeleryTestContainer
from pytest_docker_tools.exceptions import ContainerFailed

from .local import ATTRS, LocalProcess
from .waiting import TIMEOUT, wait_until

#: What tests import, for the workers too.
ROOT = Path(__file__).parents[2]


class ProcessContainer(CeleryTestContainer):
    """A container that is a local process. What Docker cannot do is named below.

    Parameters:
        process: the process, started or not.
    """

    _container: LocalProcess

    def __init__(self, process: LocalProcess) -> None:
        super().__init__(process)

    @property
    def pid(self) -> int:
        """The main process."""
        return self._container.pid

    @property
    def folder(self) -> Path:
        """Where the process works."""
        return self._container.folder

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {}

    def start(self) -> None:
        self._container.start()

    def ready(self, timeout: float = TIMEOUT) -> bool:
        """Wait for the prompt of the present start.

        Raises:
            ContainerFailed: the process exited before it was ready.
            WaitTimeout: with the log.
        """
        prompt = self.ready_prompt or ""

        def is_ready() -> bool:
            if prompt in self._container.logs_since_start().decode(errors="replace"):
                return True
            if self.status == "exited":
                raise ContainerFailed(
                    self, f"{self.name} exited before it was ready: {self.logs()}"
                )
            return False

        return wait_until(is_ready, timeout, what=lambda: f"{prompt!r} in {self.logs()}")

    def restart(self, timeout: float = 10) -> None:
        self._container.restart(timeout)
        self.ready()

    def logs(self) -> str:
        return self._container.logs().decode(errors="replace")

    def teardown(self) -> None:
        """End the process and all that it started."""
        self._container.destroy()

    def children(self) -> list[int]:
        """The pids of all living processes but the main one, orphans included."""
        return self._container.children()

    def kill_group(self, signal: str | int | None = None) -> None:
        """Send a signal to the main process and all that it started."""
        self._container.signal_all(signal)

    def pause(self, *, children: bool = False) -> None:
        """Freeze the main process; with ``children`` all, as a suspended machine does."""
        if children:
            self._container.signal_all("SIGSTOP")
        else:
            self._container.kill("SIGSTOP")

    def resume(self) -> None:
        """Let every process of the container go on."""
        self._container.signal_all("SIGCONT")

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the main process to exit; its exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired.
        """
        return self._container.wait(timeout)

    def has_exited(self, timeout: float = TIMEOUT) -> bool:
        """Whether the main process exits within ``timeout`` seconds."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True


@dataclass(frozen=True)
class WorkerSpec:
    """How to start a worker.

    Parameters:
        app: the module with the Celery app.
        name: the part of the node name before the @.
        pool: prefork, threads, solo or gevent.
        concurrency: count of children, threads or greenlets.
        queues: comma-separated.
        log_level: of the worker.
        extra: more arguments of ``celery worker``.
        env: more environment variables.
    """

    app: str = "tests.worker.apps.bare"
    name: str = "worker"
    pool: str = "prefork"
    concurrency: int = 1
    queues: str = "celery"
    log_level: str = "INFO"
    extra: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)


class WorkerProcess(ProcessContainer):
    """A Celery worker.

    Parameters:
        spec: how to start it.
        folder: its own.
        env: environment variables of the whole setup; those of ``spec`` go over them.
    """

    def __init__(self, spec: WorkerSpec, folder: Path, env: Mapping[str, str]) -> None:
        self.spec = spec
        both = {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            **env,
            **spec.env,
        }
        process = LocalProcess([], folder, env=both, name=spec.name)
        super().__init__(process)
        process.argv = self._argv()

    @property
    def ready_prompt(self) -> str:
        return " ready."

    @property
    def node_name(self) -> str:
        """As in ``celery inspect`` and in the logs."""
        return f"{self.spec.name}@{self.id[:12]}"

    def version(self) -> str:
        return celery.__version__

    def log_level(self) -> str:
        return self.spec.log_level

    def worker_name(self) -> str:
        return self.spec.name

    def worker_queue(self) -> str:
        return self.spec.queues

    def _argv(self) -> list[str]:
        spec = self.spec
        return [
            *(sys.executable, "-m", "celery", "-A", spec.app, "worker"),
            *("--hostname", self.node_name, "--queues", spec.queues),
            *("--pool", spec.pool, "--concurrency", str(spec.concurrency)),
            *("--loglevel", spec.log_level),
            # Start-up talk with other workers: a second each on the embedded brokers.
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            *spec.extra,
        ]


class BeatProcess(ProcessContainer):
    """Celery beat.

    Parameters:
        app: the module with the Celery app.
        folder: its own, with its schedule file.
        env: environment variables of the whole setup.
    """

    def __init__(self, app: str, folder: Path, env: Mapping[str, str]) -> None:
        argv = [
            *(sys.executable, "-m", "celery", "-A", app, "beat"),
            *("--loglevel", "INFO", "--schedule", str(folder / "schedule"), "--pidfile", ""),
        ]
        both = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env}
        super().__init__(LocalProcess(argv, folder, env=both, name="beat"))

    @property
    def ready_prompt(self) -> str:
        return "beat: Starting..."


class LocalFolder:
    """A folder that answers what a Docker container object answers: always running, silent."""

    status = "running"
    attrs = ATTRS

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.id = folder.name
        folder.mkdir(parents=True, exist_ok=True)

    def reload(self) -> None:
        """A folder is never out of date."""

    def logs(self) -> bytes:
        return b""

    def kill(self, signal: str | int | None = None) -> None:
        raise RuntimeError(f"{self.name} is a folder: there is no process to kill")

    def restart(self, timeout: float = 10) -> None:
        raise RuntimeError(f"{self.name} is a folder: there is no process to restart")


class FolderContainer(CeleryTestContainer):
    """A broker or backend that is files.

    Parameters:
        folder: where the files are.
        url: as Celery wants it.
        options: its ``broker_transport_options``.
    """

    _container: LocalFolder

    def __init__(self, folder: Path, url: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(LocalFolder(folder))
        self.folder = folder
        self.url = url
        self.options = dict(options or {})

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {"url": self.url, "host_url": self.url, "transport_options": self.options}
