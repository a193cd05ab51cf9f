"""The example on Redis does what its README says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.local import LocalProcess
from tests.process.waiting import wait_until
from tests.stores.redis_server import RedisServer

from .pages import ROOT, environment

EXAMPLE = ROOT / "examples" / "redis"

#: Seconds; a second or two on an idle machine.
PATIENCE = 60


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    with RedisServer() as server:
        paths = f"{EXAMPLE}:{ROOT}"
        yield {**environment(), "PYTHONPATH": paths, "REDIS_URL": server.url}


@pytest.fixture
def workers(env: dict[str, str], tmp_path: Path) -> Iterator[list[LocalProcess]]:
    processes = []
    for name in ("one", "two"):
        argv = ["-m", "celery", "-A", "app", "worker", "-n", f"{name}@%h", "-c", "1"]
        worker = LocalProcess(
            [sys.executable, *argv, "--loglevel", "INFO"], tmp_path / name, env=env, name=name
        )
        worker.start()
        processes.append(worker)
    for worker in processes:
        wait_for(worker, " ready.")
    yield processes
    for worker in processes:
        worker.destroy()


def log(worker: LocalProcess) -> str:
    return worker.logs().decode()


def wait_for(worker: LocalProcess, text: str, count: int = 1) -> None:
    wait_until(
        lambda: log(worker).count(text) >= count, PATIENCE, what=lambda: f"{text}: {log(worker)}"
    )


def tokens(worker: LocalProcess) -> set[int]:
    """The tokens that its frames were logged under."""
    return {int(token) for token in re.findall(r"under token (\d+)", log(worker))}


def run(env: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        env=env,
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_killed_workers_film_is_rendered(
    env: dict[str, str], workers: list[LocalProcess]
) -> None:
    """Taken over under a higher token, from its first frame on, though the visibility timeout is an
    hour."""
    sent = run(env, "-c", "from app import render; render.delay('Metropolis', 4)")
    assert sent.returncode == 0, sent.stderr
    wait_until(lambda: [w for w in workers if "frame 0" in log(w)], PATIENCE, what="a first frame")
    killed, other = sorted(workers, key=lambda worker: "frame 0" not in log(worker))
    killed.signal_all("SIGKILL")
    wait_for(other, "frame 3")
    assert log(other).count("taken_over task app.render[") == 1
    assert [log(other).count(f"frame {frame} of") for frame in range(4)] == [1] * 4
    (before,), (after,) = tokens(killed), tokens(other)
    assert after > before


def test_twenty_messages_are_one_run(env: dict[str, str], workers: list[LocalProcess]) -> None:
    code = (
        "from app import render; [render.apply_async(['M', 2], task_id='m-1') for _ in range(20)]"
    )
    assert run(env, "-c", code).returncode == 0
    wait_until(
        lambda: sum(log(worker).count("skipped task") for worker in workers) == 19,
        PATIENCE,
        what=lambda: "\n".join(map(log, workers)),
    )
    assert sum(log(worker).count("frame 0 of M") for worker in workers) == 1
    listed = run(env, "-m", "celery", "-A", "app", "claims", "list")
    assert listed.returncode == 0, listed.stderr
    checked = run(env, "-m", "celery", "-A", "app", "claims", "check")
    # The test's server saves nothing, and that is all.
    assert checked.stdout.count("problem:") == 1, checked.stdout
    assert "appendonly" in checked.stdout
