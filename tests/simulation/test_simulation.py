"""Simulated workers through whatever a seed makes of their world: no promise is broken."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.plan import FAULTS, crowd, plan_of
from tests.simulation.simulation import simulate

#: Seeds of one test.
EACH = 25
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", range(1, 1 + 8 * EACH, EACH))
def test_no_seed_breaks_a_promise(first: int) -> None:
    """Repeat a failing one with ``make simulate SIMULATE="--seed N"``."""
    for seed in range(first, first + EACH):
        result = simulate(plan_of(seed))
        assert not result.violations, f"{result.plan}: {result.violations[0]}"


def test_many_workers_share_one_store_and_one_broker() -> None:
    result = simulate(crowd(1, workers=40, tasks=1000))
    assert not result.violations, result.violations[0]
    assert result.counts["bodies"] >= 1000
    assert result.counts["TookOver"] > 0


def test_the_plans_have_every_fault_and_every_kind_of_worker() -> None:
    plans = [plan_of(seed) for seed in range(1, 1 + 8 * EACH)]
    assert {name for plan in plans for name in plan.faults} == set(FAULTS)
    kinds = {(plan.broker, plan.pool) for plan in plans}
    assert kinds == {
        (broker, pool) for broker in ("amqp", "redis") for pool in ("prefork", "threads")
    }


def test_a_seed_is_repeated_exactly() -> None:
    """In another process, whose hashes, clock and pid are others."""
    program = "from tests.simulation.test_simulation import digest; print(digest(range(1, 16)))"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "TZ": zone},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Kolkata"))
    }
    assert found == {f"{digest(range(1, 16))}\n"}


def digest(seeds: range) -> str:
    """Of the timelines of some seeds."""
    seen = hashlib.sha256()
    for seed in seeds:
        simulate(plan_of(seed), lambda line: seen.update(line.encode()))
    return seen.hexdigest()
