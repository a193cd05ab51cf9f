"""Private Redis servers: on free ports, in temporary folders, gone with who wanted them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.cluster
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.process.waiting import wait_until

#: Seconds for a server to start; a loaded machine is not a failure.
START = 30.0

#: What a cluster's bus adds to the port.
BUS = 10_000


def need_redis() -> None:
    """Leave the test out where there is no server, but never in CI."""
    if shutil.which("redis-server") is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is missing: make servers installs it")
        pytest.skip("redis-server is not installed: make servers")


def free_port(*, with_bus: bool = False) -> int:
    """A port that nothing listened on a moment ago; with ``with_bus`` so is that of its bus."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
        if not with_bus:
            return port
        if port + BUS > 65_535:
            continue
        with socket.socket() as bus, contextlib.suppress(OSError):
            bus.bind(("127.0.0.1", port + BUS))
            return port


def watch(pid: int) -> subprocess.Popen[bytes]:
    """End a process when this one is gone, in whatever way: a killed test run leaves no servers."""
    # The pipe is open as long as this process lives, and nobody writes to it.
    return subprocess.Popen(
        ["sh", "-c", f"read _; kill -9 {pid}"], stdin=subprocess.PIPE, start_new_session=True
    )


class RedisServer:
    """A server process. Nothing is saved unless an argument says so.

    Parameters:
        arguments: of redis-server, e.g. ``--appendonly yes``.
        config: lines of its configuration file, which a sentinel writes itself.
    """

    def __init__(self, *arguments: str, config: str = "", sentinel: bool = False) -> None:
        need_redis()
        self._folder = tempfile.TemporaryDirectory(prefix="claims-redis-")
        self.folder = Path(self._folder.name)
        self.port = free_port(with_bus="--cluster-enabled" in arguments)
        self.socket = self.folder / "redis.sock"
        self.log = self.folder / "log"
        self._arguments = arguments
        self._mode = ["--sentinel"] if sentinel else []
        self._config = self.folder / "redis.conf"
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", config]
        if not sentinel:
            lines += [f"unixsocket {self.socket}", 'save ""', "repl-diskless-sync-delay 0"]
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, password: str | None = None) -> RedisServer:
        """Start it and wait until it answers."""
        with stopped_if_it_fails(self):
            self._start(password)
        return self

    def _start(self, password: str | None) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", str(self._config), *self._mode, *self._arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._watch = watch(self._process.pid)
        with self.client(password=password) as client:
            wait_until(lambda: self._answers(client), START, what=self._tell)

    def client(self, **options: Any) -> Any:
        """A plain client, for what tests do behind the store's back."""
        options.setdefault("socket_timeout", START)
        retry = Retry(NoBackoff(), 0)
        return redis.Redis(host="127.0.0.1", port=self.port, protocol=2, retry=retry, **options)

    def ask(self, *command: Any) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; what it had not saved is gone."""
        if self._watch is not None:
            # First, so that it cannot end whatever gets the number of this process next.
            self._watch.kill()
            self._watch.communicate()
            self._watch = None
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        self.kill()
        self._folder.cleanup()

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self, client: Any) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._tell()
        try:
            return bool(client.ping())
        except (redis.ConnectionError, OSError):
            return False

    def _tell(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


@contextlib.contextmanager
def stopped_if_it_fails(servers: Any) -> Iterator[None]:
    """No process is left over by a constructor that raises."""
    try:
        yield
    except BaseException:
        servers.stop()
        raise


class Replicated:
    """A master with a replica, and three sentinels that watch them where they are wanted."""

    def __init__(self, *, sentinels: int = 0) -> None:
        self.master = RedisServer()
        self.replica = RedisServer("--replicaof", "127.0.0.1", str(self.master.port))
        watching = (
            f"sentinel monitor claims 127.0.0.1 {self.master.port} 2\n"
            "sentinel down-after-milliseconds claims 500\n"
            "sentinel failover-timeout claims 3000\n"
        )
        self.sentinels = [RedisServer(config=watching, sentinel=True) for _ in range(sentinels)]
        with stopped_if_it_fails(self):
            for server in (self.master, self.replica, *self.sentinels):
                server.start()
            wait_until(self._follows, START, what="the replica follows its master")
            wait_until(self._is_watched, START, what="the sentinels know each other")

    @property
    def url(self) -> str:
        return ";".join(f"sentinel://127.0.0.1:{one.port}" for one in self.sentinels) + "/0"

    def stop(self) -> None:
        for server in (*self.sentinels, self.replica, self.master):
            server.stop()

    def __enter__(self) -> Replicated:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _follows(self) -> bool:
        with self.replica.client() as client:
            return client.info("replication")["master_link_status"] == "up"

    def _is_watched(self) -> bool:
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                facts = client.execute_command("SENTINEL", "MASTER", "claims")
                if not isinstance(facts, dict):
                    facts = dict(zip(facts[::2], facts[1::2], strict=True))
                known = {_text(name): _text(value) for name, value in facts.items()}
                others = len(self.sentinels) - 1
                if int(known["num-other-sentinels"]) < others or int(known["num-slaves"]) < 1:
                    return False
        return True


class RedisCluster:
    """Three masters with a replica each."""

    def __init__(self) -> None:
        arguments = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        self.nodes = [RedisServer(*arguments) for _ in range(6)]
        with stopped_if_it_fails(self):
            for node in self.nodes:
                node.start()
            self._create()
            wait_until(self._is_whole, START, what="the cluster covers all slots")

    def _create(self) -> None:
        places = [f"127.0.0.1:{node.port}" for node in self.nodes]
        options = ["--cluster-replicas", "1", "--cluster-yes"]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *places, *options],
            check=True,
            capture_output=True,
            timeout=2 * START,
        )

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def client(self) -> Any:
        """A client that finds each key where it is."""
        cluster: Any = redis.cluster.RedisCluster
        return cluster(host="127.0.0.1", port=self.nodes[0].port, protocol=2)

    def masters(self) -> list[RedisServer]:
        return [node for node in self.nodes if _text(node.ask("ROLE")[0]) == "master"]

    def holder(self, slot: int) -> RedisServer:
        """The master that has the keys of a slot."""
        holders = [
            node for node in self.masters() if node.ask("CLUSTER", "COUNTKEYSINSLOT", slot) > 0
        ]
        assert len(holders) == 1, holders
        return holders[0]

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> RedisCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _is_whole(self) -> bool:
        if any("state:ok" not in _text(node.ask("CLUSTER", "INFO")) for node in self.nodes):
            return False
        # Each master answers with its replicas last.
        return [len(node.ask("ROLE")[2]) for node in self.masters()] == [1, 1, 1]


@functools.cache
def shared_cluster() -> RedisCluster:
    """Started for the first test that asks, stopped with the process."""
    running = RedisCluster()
    atexit.register(running.stop)
    return running


@contextlib.contextmanager
def paused(server: RedisServer) -> Iterator[None]:
    """The server is there and says nothing."""
    server.pause()
    try:
        yield
    finally:
        server.go_on()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
