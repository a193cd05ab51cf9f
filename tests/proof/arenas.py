"""The stores that clients meet in, with their servers, and what can go wrong in each."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import threading
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Any

import psutil

from tests.process.proxy import Fault, Proxy
from tests.stores.postgres_server import PostgresServer
from tests.stores.redis_server import RedisServer, Replicated

from .specification import Specification

__all__ = [
    "Arena",
    "ForgetfulRedisArena",
    "LaggingRedisArena",
    "MemoryArena",
    "PostgresArena",
    "RedisArena",
    "SQLiteArena",
    "pause",
]

#: Seconds that a client waits for an answer: short, so that it learns of each fault.
TIMEOUT = 0.5


class Arena(ABC):
    """A store to ask, for one run.

    Parameters:
        rng: decides how long faults last.
    """

    name: str
    url: str
    options: tuple[tuple[str, Any], ...] = ()
    #: of losing a question or an answer within the client, where nothing outside does it
    odds = 0.0
    #: whether clients may be processes
    shared = True
    #: whether clients' own wall clocks may be wrong
    wrong_clock = False
    specification = Specification(accuracy_ms=2)

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        #: how often the store lost its memory, from when to when by the monotonic clock
        self.amnesias: list[tuple[int, int]] = []
        #: from when to when the store answered without the replica that then took over
        self.fallbacks: list[tuple[int, int]] = []

    def faults(self) -> dict[str, Callable[[], None]]:
        """What may be done to the store, by name; each is over when it returns."""
        return {}

    def close(self) -> None:
        """Remove it."""

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, least: float, most: float) -> None:
        threading.Event().wait(self.rng.uniform(least, most))


class MemoryArena(Arena):
    name = "memory"
    shared = False
    odds = 0.01

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.url = f"memory://proof-{rng.getrandbits(64):x}"


class SQLiteArena(Arena):
    name = "sqlite"
    odds = 0.01
    options = (("timeout", TIMEOUT),)

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._folder = tempfile.TemporaryDirectory(prefix="claims-proof-")
        self.url = f"sqlite:///{Path(self._folder.name, 'claims.db')}"

    def close(self) -> None:
        self._folder.cleanup()


class _ServerArena(Arena):
    """A server behind a proxy."""

    wrong_clock = True
    proxy: Proxy

    def faults(self) -> dict[str, Callable[[], None]]:
        return {
            "server killed": self.kill_server,
            "server paused": self.pause_server,
            "connections cut": self.proxy.cut,
            "replies lost": lambda: self._pass_through(Fault.LOSE_REPLIES),
            "cut instead of a reply": lambda: self._pass_through(Fault.CUT_ON_REPLY),
            "network silent": lambda: self._pass_through(Fault.SILENCE),
        }

    def _pass_through(self, fault: Fault) -> None:
        self.proxy.fault = fault
        self._wait(0.02, 2 * TIMEOUT)
        self.proxy.fault = Fault.NONE
        # What lost a part of its stream must not go on as if nothing had been.
        self.proxy.cut()

    def kill_server(self) -> None:
        """With SIGKILL, and start it again."""
        raise NotImplementedError

    def server_processes(self) -> Sequence[psutil.Process]:
        raise NotImplementedError

    def pause_server(self) -> None:
        with pause(self.server_processes()):
            self._wait(0.02, 3 * TIMEOUT)


class RedisArena(_ServerArena):
    """Each write is on the disk before it is answered."""

    name = "redis"
    options = (("timeout", TIMEOUT),)
    saving: tuple[str, ...] = ("--appendonly", "yes", "--appendfsync", "always")

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.server = RedisServer(*self.saving).start()
        self.proxy = Proxy(self.server.port)
        self.url = f"redis://127.0.0.1:{self.proxy.port}/0"

    def kill_server(self) -> None:
        self.server.kill()
        self.server.start()

    def server_processes(self) -> Sequence[psutil.Process]:
        return [psutil.Process(self.server.pid)]

    def close(self) -> None:
        self.proxy.stop()
        self.server.stop()


class ForgetfulRedisArena(RedisArena):
    """A server that saves nothing: when it is killed, all claims are gone."""

    name = "redis, nothing saved"
    saving = ()

    def faults(self) -> dict[str, Callable[[], None]]:
        return {"server killed": self.kill_server}

    def kill_server(self) -> None:
        began = _now()
        super().kill_server()
        self.amnesias.append((began, _now()))


class LaggingRedisArena(Arena):
    """A master, a replica that is frozen before the master dies, and sentinels that promote it.

    What was written while the replica was frozen is lost.
    """

    name = "redis, failover"
    options = (("timeout", TIMEOUT), ("master_name", "claims"))

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.servers = Replicated(sentinels=3)
        self.url = self.servers.url
        self.failed_over = threading.Event()

    def faults(self) -> dict[str, Callable[[], None]]:
        return {} if self.failed_over.is_set() else {"failover": self.fail_over}

    def fail_over(self) -> None:
        self.failed_over.set()
        with pause([psutil.Process(self.servers.replica.pid)]):
            # Else the kernel would still give it what was sent while it was frozen.
            self.servers.master.ask("CLIENT", "KILL", "TYPE", "replica")
            alone_since = _now()
            self._wait(0.3, 0.4)
            self.fallbacks.append((alone_since, _now()))
            self.servers.master.kill()

    def close(self) -> None:
        self.servers.stop()


class PostgresArena(_ServerArena):
    """fsync is on, as in any server that is not a test's."""

    name = "postgresql"
    options = (("timeout", TIMEOUT),)
    # It reads the clock before it waits for a row.
    specification = Specification(monotone=False, accuracy_ms=2)

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.server = PostgresServer(fsync="on", restart_after_crash="off")
        self.proxy = Proxy(self.server.port)
        self.url = self.server.url.replace(f":{self.server.port}/", f":{self.proxy.port}/")

    def kill_server(self) -> None:
        processes = self.server_processes()
        # The postmaster first: it would end its children in good order.
        self.server.stop(signal.SIGKILL)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=30)
        self.server.start()

    def server_processes(self) -> Sequence[psutil.Process]:
        postmaster = psutil.Process(self.server.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def close(self) -> None:
        self.proxy.stop()
        self.server.close()


@contextlib.contextmanager
def pause(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """They are there and do nothing."""
    for process in processes:
        _signal(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            _signal(process, signal.SIGCONT)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _now() -> int:
    return clock_gettime_ns(CLOCK_MONOTONIC)
