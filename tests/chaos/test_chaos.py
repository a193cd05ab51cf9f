"""A short chaos run on each broker; ``make chaos`` runs longer ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.container import ROOT
from tests.process.rabbit_server import need_rabbitmq
from tests.stores.redis_server import need_redis

#: What is left ends within seconds; what only the visibility timeout brings back is not waited for.
SHORT = ["--seconds=12", "--pause=1", "--rate=4", "--workers=2", "--rest=90"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("broker", "store"), [("redis", "redis"), ("rabbitmq", "postgresql")])
def test_nothing_is_lost_and_no_stale_write_is_taken(
    broker: str, store: str, tmp_path: Path
) -> None:
    """Promises 1, 2, 3, 4, 5 and 7, whatever happens to workers, servers and connections."""
    need_redis()
    if broker == "rabbitmq":
        need_rabbitmq()
    numbers = tmp_path / "numbers.json"
    # A process of its own, for its tasks are of an app that is made once.
    where = [f"--broker={broker}", f"--store={store}", f"--json={numbers}"]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *where, *SHORT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=360,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(numbers.read_text())
    assert found["violations"] == []
    assert (found["lost"], found["stale_accepted"]) == (0, 0)
    explained = sum(found[name] for name in ("swallowed", "unclaimed", "unsent"))
    assert found["finished"] + explained == found["sent"] > 40
    assert explained <= found["sent"] / 20
    # One may take five seconds of the twelve.
    assert sum(found["faults"].values()) > 1
