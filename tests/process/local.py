"""A local process that answers what a Docker container object answers."""

from __future__ import annotations

import io
import os
import shlex
import signal as signals
import subprocess
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from .waiting import wait_until

#: Tells the processes of one container from all others, also after their parent's death.
MARKER = "CELERY_TEST_CONTAINER"

#: Seconds that a killed process gets to be gone.
KILL_TIMEOUT = 10.0

#: No network and no ports, in the words of Docker's API.
ATTRS: dict[str, Any] = {
    "NetworkSettings": {"Networks": {}, "Ports": {}},
    "HostConfig": {"PortBindings": None},
    "Config": {"Env": [], "Labels": {}},
}


def signal_number(signal: str | int | None) -> int:
    """``SIGTERM``, ``TERM``, 15 or None (kill) as a number, as Docker reads it."""
    if signal is None:
        return signals.SIGKILL
    if isinstance(signal, int):
        return signal
    name = signal.upper()
    return signals.Signals[name if name.startswith("SIG") else f"SIG{name}"]


class LocalProcess:
    """A command in its own session and folder, with its output in a file.

    Parameters:
        argv: the command.
        folder: its own: working folder, temporary files and output.
        env: added to this process's environment.
        name: in messages.
    """

    def __init__(
        self, argv: Sequence[str], folder: Path, *, env: Mapping[str, str], name: str
    ) -> None:
        self.argv = list(argv)
        self.folder = folder
        self.name = name
        self.id = uuid.uuid4().hex
        self.output = folder / "output.log"
        #: where in the output the present process began
        self.output_start = 0
        temporary = folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        # Kombu's folder broker moves messages through TMPDIR, so each process has one of its own,
        # on the disk that the broker is on.
        self.env = {**os.environ, "TMPDIR": str(temporary), **env, MARKER: self.id}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def attrs(self) -> dict[str, Any]:
        env = [f"{key}={value}" for key, value in self.env.items()]
        return {**ATTRS, "Config": {"Env": env, "Labels": {}}}

    @property
    def status(self) -> str:
        """``created``, ``running`` (also while stopped by a signal) or ``exited``."""
        if self.process is None:
            return "created"
        return "running" if self.process.poll() is None else "exited"

    @property
    def pid(self) -> int:
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process.pid

    def start(self) -> None:
        if self.status == "running":
            raise RuntimeError(f"{self.name} is running already")
        self.output_start = self.output.stat().st_size if self.output.exists() else 0
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self.argv,
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def reload(self) -> None:
        """Docker's objects are snapshots to be renewed; this one is never out of date."""

    def wait(self, timeout: float) -> int:
        """Wait for the main process to exit.

        Returns:
            the exit code, negative for a signal.
        Raises:
            subprocess.TimeoutExpired.
        """
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process.wait(timeout)

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal to the main process only; after SIGKILL it is gone."""
        number = signal_number(signal)
        os.kill(self.pid, number)
        if number == signals.SIGKILL:
            self.wait(KILL_TIMEOUT)

    def restart(self, timeout: float = 10) -> None:
        """Stop gracefully, after ``timeout`` seconds forcibly, and start again."""
        if self.status == "running":
            self.kill("SIGTERM")
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill("SIGKILL")
        self.start()

    def logs(self) -> bytes:
        """The output of all the starts."""
        return self.output.read_bytes() if self.output.exists() else b""

    def logs_since_start(self) -> bytes:
        return self.logs()[self.output_start :]

    def exec_run(self, command: str | Sequence[str]) -> tuple[int, bytes]:
        """Run a command beside the main process: same environment, same folder."""
        argv = shlex.split(command) if isinstance(command, str) else list(command)
        env = {key: value for key, value in self.env.items() if key != MARKER}
        done = subprocess.run(
            argv,
            cwd=self.folder,
            env=env,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.returncode, done.stdout

    def get_archive(self, path: str) -> tuple[list[bytes], dict[str, Any]]:
        """A file or folder, by its path within this container's folder, as a tar archive."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(self.folder / path, arcname=Path(path).name)
        return [buffer.getvalue()], {"name": Path(path).name}

    def processes(self) -> list[psutil.Process]:
        """Every living process of this container, orphans included."""
        return [process for process in psutil.process_iter() if self._is_mine(process)]

    def children(self) -> list[int]:
        """The living processes but the main one: pool children, also when orphaned."""
        main = self.process.pid if self.process is not None else None
        return [process.pid for process in self.processes() if process.pid != main]

    def signal_all(self, signal: str | int | None) -> list[psutil.Process]:
        """Send a signal to every process of this container.

        Returns:
            those that it was sent to.
        """
        number = signal_number(signal)
        processes = self.processes()
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        return processes

    def destroy(self) -> None:
        """End every process of this container, whatever state it is in.

        Raises:
            WaitTimeout: naming what could not be ended.
        """

        killed: list[psutil.Process] = []

        def nothing_left() -> bool:
            # Repeated: a child may be forked between the look and the kill.
            killed.extend(self.signal_all("SIGKILL"))
            # One that is about to be gone has lost its environment and is not known as one of us.
            return not any(map(_is_alive, killed)) and not self.processes()

        wait_until(
            nothing_left,
            KILL_TIMEOUT,
            what=lambda: f"{self.name} left {list(filter(_is_alive, killed))}",
        )
        if self.process is not None:
            self.process.wait(KILL_TIMEOUT)

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            # In this order: most processes of a machine are somebody else's, and asking is dear.
            return process.environ().get(MARKER) == self.id and _is_alive(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


def _is_alive(process: psutil.Process) -> bool:
    """Whether it is there, and not only its exit code."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
