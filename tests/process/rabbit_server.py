"""Private RabbitMQ servers: on free ports, in temporary folders, gone with who wanted them.

A node takes seconds to start and 130 MB to run, so that all processes of a test run share one. It
is a child of a keeper, ``python -m tests.process.rabbit_server``, which waits for the end of the
test run's main process, whatever that end is, and takes the node and its folder away.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from .waiting import wait_until

__all__ = ["RabbitServer", "VirtualHost", "need_rabbitmq", "shared_server"]

#: Debian's own command insists on being root or rabbitmq; what it calls does not.
PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

#: Seconds for a node to start; a loaded machine is not a failure.
START = 90.0

#: Seconds for an answer of a running node.
ANSWER = 60.0

#: What prctl calls PR_SET_PDEATHSIG.
DEATH_SIGNAL = 1

#: Small and quiet: one scheduler that does not spin, and no name service but our own.
ERLANG = (
    "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none"
)

CONFIG = """\
log.console = true
log.console.level = warning
log.file = false
disk_free_limit.absolute = 50MB
"""


def need_rabbitmq() -> None:
    """Leave the test out where there is no server, but never in CI."""
    if not PROGRAM.exists() or shutil.which("epmd") is None:
        if os.environ.get("CI"):
            pytest.fail("rabbitmq-server is missing: make servers installs it")
        pytest.skip("rabbitmq-server is not installed: make servers")


def free_ports(count: int) -> list[int]:
    """Different ports that nothing listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class RabbitServer:
    """A running node, as tests see it: whoever has its folder may use it.

    Parameters:
        folder: the node's own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._facts: dict[str, int] = json.loads((folder / "ports.json").read_text())

    @property
    def port(self) -> int:
        """Where it speaks AMQP."""
        return self._facts["amqp"]

    def evaluate(self, source: str) -> str:
        """Evaluate Erlang expressions in the node.

        Returns:
            the value of the last one, as Erlang prints it.
        """
        port = int((self.folder / "control").read_text())
        request = f"{source}.".encode()
        with socket.create_connection(("127.0.0.1", port), timeout=ANSWER) as control:
            control.sendall(struct.pack(">I", len(request)) + request)
            with control.makefile("rb") as answers:
                (length,) = struct.unpack(">I", answers.read(4))
                kind, _, value = answers.read(length).decode().partition(" ")
        assert kind == "ok", f"{source}: {value}"
        return value

    def new_host(self) -> VirtualHost:
        """A virtual host of its own for one test."""
        return VirtualHost(self, f"test-{uuid.uuid4().hex[:12]}")

    def set_option(self, name: str, value: int) -> None:
        """Set one of RabbitMQ's own settings, for channels that are opened from now on."""
        self.evaluate(f"application:set_env(rabbit, {name}, {value})")

    def stop_app(self) -> None:
        """What ``rabbitmqctl stop_app`` does: every connection ends, what is durable stays."""
        self.evaluate("rabbit:stop()")

    def start_app(self) -> None:
        self.evaluate("rabbit:start(), rabbit:await_startup()")


class VirtualHost:
    """Queues and connections that no other test sees.

    Parameters:
        server: where.
        name: its name.
    """

    def __init__(self, server: RabbitServer, name: str) -> None:
        self.server = server
        self.name = name
        self._erlang = f'<<"{name}">>'
        everything = ", ".join(['<<".*">>'] * 3)
        server.evaluate(
            f'ok = rabbit_vhost:add({self._erlang}, <<"tests">>), '
            "ok = rabbit_auth_backend_internal:set_permissions("
            f'<<"guest">>, {self._erlang}, {everything}, <<"tests">>)'
        )

    def url(self, port: int | None = None) -> str:
        """As Celery wants it; ``port`` is that of a proxy before the server."""
        return f"amqp://guest:guest@127.0.0.1:{port or self.server.port}/{self.name}"

    def close_connections(self) -> None:
        """What ``rabbitmqctl close_all_connections`` does, for this host."""
        self.server.evaluate(
            '[rabbit_networking:close_connection(proplists:get_value(pid, C), "on purpose") '
            f"|| C <- {self._connections()}]"
        )

    def connections(self) -> int:
        """How many there are."""
        return int(self.server.evaluate(f"length({self._connections()})"))

    def ready(self, queue: str) -> int:
        """How many messages of a queue wait for a consumer."""
        return self._count(queue, "ready")

    def unacknowledged(self, queue: str) -> int:
        """How many messages of a queue consumers have."""
        return self._count(queue, "unacknowledged")

    def _count(self, queue: str, which: str) -> int:
        # Of a quorum queue RabbitMQ itself only tells what was so up to five seconds ago.
        query = {"ready": "messages_ready", "unacknowledged": "messages_checked_out"}[which]
        answer = self.server.evaluate(
            f"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({self._erlang}, queue, "
            f'<<"{queue}">>)), case amqqueue:get_type(Q) of '
            f"rabbit_quorum_queue -> {{ok, N, _}} = ra:consistent_query("
            f"amqqueue:get_pid(Q), fun rabbit_fifo:query_{query}/1), N; "
            f"_ -> [{{_, N}}] = rabbit_amqqueue:info(Q, [messages_{which}]), N end"
        )
        return int(answer)

    def delete(self) -> None:
        """With all that is in it."""
        self.server.evaluate(f'rabbit_vhost:delete({self._erlang}, <<"tests">>)')

    def _connections(self) -> str:
        return (
            "[C || C <- rabbit_networking:connection_info_all([pid, vhost]), "
            f"proplists:get_value(vhost, C) =:= {self._erlang}]"
        )


def shared_server(name: str = "main") -> RabbitServer:
    """The node of this name, which all processes of one test run share.

    The first that asks starts it; the rest wait meanwhile.
    """
    need_rabbitmq()
    owner = _main_process()
    folder = Path(tempfile.gettempdir(), f"claims-rabbit-{owner}-{name}")
    with _lock(folder.with_suffix(".lock")):
        if not _is_alive(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _start_keeper(owner, folder)
    return RabbitServer(folder)


def _main_process() -> int:
    """The process with which the test run ends: that of pytest, not of one of its workers."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _is_alive(folder: Path) -> bool:
    """Whether a node that answers is in the folder, and not what an earlier run left there."""
    try:
        return RabbitServer(folder).evaluate("alive") == "alive"
    except (OSError, ValueError):
        return False


def _start_keeper(owner: int, folder: Path) -> None:
    with (folder / "log").open("ab") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", __name__, str(owner), str(folder)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def told() -> str:
        return (folder / "log").read_text(errors="replace")[-4000:]

    def is_up() -> bool:
        assert keeper.poll() is None, told()
        return _is_alive(folder)

    wait_until(is_up, START, what=told, interval=0.1)


# the keeper


def keep(owner: int, folder: Path) -> None:
    """Run a node until the process ``owner`` is gone."""
    try:
        waiting_for = psutil.Process(owner)
        with contextlib.ExitStack() as stack:
            env = _environment(folder)
            epmd = ["epmd", "-port", env["ERL_EPMD_PORT"], "-address", "127.0.0.1"]
            for command in (epmd, [str(PROGRAM)]):
                process = _start(command, env, folder)
                stack.callback(process.wait)
                stack.callback(process.kill)
            waiting_for.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)


def _start(command: list[str], env: Mapping[str, str], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        # The keeper has no other thread.
        preexec_fn=_die_with_parent,  # noqa: PLW1509
    )


def _die_with_parent() -> None:
    """Between fork and exec: the kernel kills this process when the keeper dies."""
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)


def _environment(folder: Path) -> dict[str, str]:
    amqp, distribution, epmd = free_ports(3)
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{amqp}\n{CONFIG}")
    (folder / "enabled_plugins").write_text("[].\n")
    (folder / "env.conf").touch()
    (folder / "ports.json").write_text(json.dumps({"amqp": amqp}))
    program = Path(__file__).with_name("rabbit_control.erl")
    variables: dict[str, Any] = {
        # For the cookie.
        "HOME": folder,
        "ERL_EPMD_PORT": epmd,
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP_BYTES": 0,
        "RABBITMQ_NODENAME": f"claims-{amqp}@localhost",
        "RABBITMQ_DIST_PORT": distribution,
        "RABBITMQ_MNESIA_BASE": folder / "mnesia",
        "RABBITMQ_LOG_BASE": folder,
        "RABBITMQ_CONFIG_FILE": folder / "rabbitmq",
        "RABBITMQ_ADVANCED_CONFIG_FILE": folder / "advanced.config",
        "RABBITMQ_CONF_ENV_FILE": folder / "env.conf",
        "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "enabled_plugins",
        # The program then becomes the node, with no shell between it and this process.
        "RUNNING_UNDER_SYSTEMD": "1",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
            f'{ERLANG} -control {folder / "control"} -eval file:eval("{program}")'
        ),
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))}
    return {**inherited, **{name: str(value) for name, value in variables.items()}}


if __name__ == "__main__":
    keep(int(sys.argv[1]), Path(sys.argv[2]))
