"""The example of RabbitMQ with PostgreSQL does what its README says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.local import LocalProcess
from tests.process.places import store_url
from tests.process.rabbit_server import VirtualHost, shared_server
from tests.process.waiting import wait_until

from .pages import ROOT

EXAMPLE = ROOT / "examples" / "rabbitmq_postgresql"


class Worker:
    """One of the two, as the README starts them."""

    def __init__(self, name: str, folder: Path, env: dict[str, str]) -> None:
        argv = [sys.executable, "-m", "celery", "-A", "app", "worker", "-n", f"{name}@%h"]
        argv += ["-c", "1", "--loglevel", "INFO"]
        self.process = LocalProcess(argv, folder / name, env=env, name=name)
        self.process.start()

    def log(self) -> str:
        return self.process.logs().decode(errors="replace")

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.log(), what=lambda: f"{text!r} in {self.log()}")

    def tokens(self) -> list[int]:
        return [int(token) for token in re.findall(r"paid person 0 .* token (\d+)", self.log())]


@pytest.fixture
def host() -> Iterator[VirtualHost]:
    host = shared_server().new_host()
    yield host
    host.delete()


def test_a_killed_worker_is_followed_by_the_other(tmp_path: Path, host: VirtualHost) -> None:
    env = {
        "PYTHONPATH": f"{EXAMPLE}:{ROOT}",
        "RABBITMQ_URL": host.url(),
        "POSTGRESQL_URL": store_url("postgresql", tmp_path),
    }
    workers = [Worker(name, tmp_path, env) for name in ("one", "two")]
    try:
        for worker in workers:
            worker.wait_for(" ready.")
        code = "from app import pay; pay.delay('May', 60)"
        assert workers[0].process.exec_run([sys.executable, "-c", code])[0] == 0
        wait_until(lambda: any(worker.tokens() for worker in workers), what="somebody is paid")
        first, second = sorted(workers, key=lambda worker: not worker.tokens())
        # First of all the connections are lost, which doubles nothing.
        host.close_connections()
        wait_until(lambda: any("held task" in worker.log() for worker in workers), what="a hold")
        assert len(first.tokens() + second.tokens()) == 1
        first.process.signal_all("SIGKILL")
        second.wait_for("taken_over task")
        wait_until(second.tokens, what="somebody is paid again")
        assert second.tokens()[0] > first.tokens()[0]
    finally:
        for worker in workers:
            worker.process.destroy()
