"""A short soak, as it should be and with leaks; ``make soak`` is an hour of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.process.container import ROOT
from tests.stores.redis_server import need_redis

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="what a process uses is read from /proc"
)


def soak(numbers: Path, *options: str) -> dict[str, Any]:
    """Half a minute; what was found, and ``exit`` with how it ended."""
    need_redis()
    # A process of its own, for an app of its own.
    command = [sys.executable, "-m", "tests.soak", "--minutes=0.5", "--concurrency=2"]
    ran = subprocess.run(
        [*command, f"--json={numbers}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert numbers.exists(), ran.stdout + ran.stderr
    return {**json.loads(numbers.read_text()), "exit": ran.returncode, "told": ran.stdout}


def growing(found: dict[str, Any]) -> set[tuple[str, str]]:
    """Whose, less its pid, and what."""
    return {
        (each["measure"]["of"].rstrip("0123456789 "), each["measure"]["what"])
        for each in found["findings"]
        if each["verdict"] == "growing"
    }


@pytest.mark.timeout(200)
def test_nothing_grows_under_a_steady_load(tmp_path: Path) -> None:
    """Every kind of task came by, and its records went."""
    found = soak(tmp_path / "numbers.json")
    assert found["complaints"] == [], found["told"]
    assert found["exit"] == 0
    assert found["counts"]["claimed"] > found["sent"] > 100
    assert found["counts"]["held"] > 0
    assert found["counts"]["skipped"] > 0
    measured = {(each["measure"]["of"], each["measure"]["what"]) for each in found["findings"]}
    assert {("store", "records"), ("broker", "touched"), ("w1 claims", "held")} <= measured


@pytest.mark.timeout(200)
def test_leaks_are_found_in_every_process_and_in_the_store(tmp_path: Path) -> None:
    leaks = ("memory", "files", "threads")
    options = [f"--leak={each}" for each in leaks]
    found = soak(tmp_path / "numbers.json", *options, "--keep-finished=3600", "--rest=1")
    assert found["exit"] == 1
    leaking = {
        (worker, leak) for worker in ("w1 prefork child", "w2 threads parent") for leak in leaks
    }
    assert leaking | {("store", "records")} <= growing(found), found["told"]
    assert not {whose for whose, _ in growing(found)} & {"w1 prefork parent", "broker"}
    assert found["kept"] > 0
