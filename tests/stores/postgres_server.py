"""A private PostgreSQL, and a private pgbouncer before it, on free ports in a temporary folder.

No cluster that the machine's packages started is touched. PostgreSQL refuses to run as root: then
it runs as the user that its package made.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import psycopg

from tests.process.waiting import wait_until

__all__ = ["PgBouncer", "PostgresServer", "a_server", "shared_server"]

USER, DATABASE = "claims", "postgres"

#: Where packages put the programs that are not for every user.
PLACES = ("/usr/lib/postgresql/*/bin/initdb", "/usr/local/pgsql/bin/initdb")

#: Small and fast; what the tests look for does not need to outlive the machine.
SETTINGS = {
    "listen_addresses": "'127.0.0.1'",
    "max_connections": "200",
    "shared_buffers": "'64MB'",
    "fsync": "off",
    "unix_socket_directories": "''",
    "autovacuum_naptime": "'5s'",
    "client_connection_check_interval": "'1s'",
}


class PostgresServer:
    """One server of its own.

    Parameters:
        settings: over ``SETTINGS``, as postgresql.conf has them.
    """

    def __init__(self, **settings: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="celery-claims-postgres-"))
        _give_away(self._folder)
        self._data = self._folder / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "--pgdata", str(self._data), "--username", USER, "--auth", "trust",
            "--encoding", "UTF8", "--locale", "C", "--no-sync",
        )  # fmt: skip
        lines = {**SETTINGS, "port": str(self.port), **settings}
        self._conf = self._data / "postgresql.conf"
        with self._conf.open("a") as conf:
            conf.writelines(f"{name} = {value}\n" for name, value in lines.items())
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def pid(self) -> int:
        """Of the postmaster; the server's other processes are its children."""
        assert self._process is not None
        return self._process.pid

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A connection of the test's own, that commits each statement."""
        return psycopg.connect(self.url, **{"autocommit": True, "connect_timeout": 30, **options})

    def execute(self, statement: str, *values: object) -> list[Any]:
        with contextlib.closing(self.connect()) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        command = [program("postgres"), "-D", str(self._data)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, **_as_its_user())
        wait_until(self._answers, what=self._told)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends its sessions in good order, SIGQUIT or SIGKILL crash it."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=60)
            self._process = None

    def become_standby(self) -> None:
        """Start again as one that follows no primary: it only reads."""
        (self._data / "standby.signal").touch()
        with self._conf.open("a") as conf:
            conf.write("restore_command = 'false'\n")
        self.start()

    def promote(self) -> None:
        """Let a standby take writes again."""
        self.execute("SELECT pg_promote()")

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._told()
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _told(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [program(name), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            **_as_its_user(),
        )


class PgBouncer:
    """A pooler in transaction mode before a server, with two server connections.

    Parameters:
        server: where it sends its clients' transactions.
    """

    def __init__(self, server: PostgresServer) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="celery-claims-pgbouncer-"))
        _give_away(self._folder)
        self.port = free_port()
        users = self._folder / "users.txt"
        users.write_text(f'"{USER}" ""\n')
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(
            "[databases]\n"
            f"{DATABASE} = host=127.0.0.1 port={server.port}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\n"
            "pool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 200\n"
        )
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program("pgbouncer"), str(settings)], stderr=log, **_as_its_user()
            )
        try:
            wait_until(self._answers, what="pgbouncer to answer")
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{DATABASE}"

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            # It keeps nothing, and a signal that it inherited as ignored would not end it.
            self._process.kill()
        self._process.wait(timeout=60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text(errors="replace")
        try:
            psycopg.connect(self.url, connect_timeout=30).close()
        except psycopg.OperationalError:
            return False
        return True


@lru_cache(maxsize=1)
def shared_server() -> PostgresServer:
    """One server for all tests of this process; each takes a schema of its own."""
    server = PostgresServer()
    atexit.register(server.close)
    return server


def program(name: str) -> str:
    """The newest PostgreSQL's program of this name.

    Raises:
        AssertionError: none is installed.
    """
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    candidates = [path.with_name(name) for place in PLACES for path in _matching(place)]
    programs = [str(path) for path in candidates if path.exists()] + ([found] if found else [])
    assert programs, f"{name} is not installed: run the tests by `make test`, which installs it"
    return programs[0]


def _matching(place: str) -> Sequence[Path]:
    found = Path("/").glob(place.lstrip("/"))
    return sorted(found, key=lambda path: path.parent.parent.name.zfill(8), reverse=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _as_its_user() -> dict[str, Any]:
    apart: dict[str, Any] = {"start_new_session": True, "stdin": subprocess.DEVNULL}
    if os.geteuid() != 0:
        return apart
    # The folder of the checkout may be closed to it.
    return {**apart, "user": "postgres", "group": "postgres", "extra_groups": [], "cwd": "/"}


def _give_away(folder: Path) -> None:
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")


@contextlib.contextmanager
def a_server(**settings: str) -> Iterator[PostgresServer]:
    """A server that the test may stop, or that needs settings of its own."""
    server = PostgresServer(**settings)
    try:
        yield server
    finally:
        server.close()
