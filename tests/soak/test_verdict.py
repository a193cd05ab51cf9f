"""A leak is told from everything else that moves."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from .verdict import LEAST, MOST, Finding, Measure, Point, find, judge

MIB = 2**20
MEMORY, FILES = Measure("a worker", "memory", "memory"), Measure("a worker", "files", "files")
HOUR, WARM_UP = 3600.0, 300.0


def series(value: Callable[[float], float], seconds: float = HOUR, count: int = 240) -> list[Point]:
    return [(at, value(at)) for at in (seconds * place / count for place in range(count))]


def found(value: Callable[[float], float], measure: Measure = MEMORY) -> Finding:
    return find(measure, series(value), WARM_UP)


def noise(size: float) -> float:
    return random.gauss(0, size)


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(20261124)


def test_noise_is_flat() -> None:
    finding = found(lambda _: 60 * MIB + noise(2 * MIB))
    assert finding.verdict == "flat"
    assert finding.first == pytest.approx(60 * MIB, rel=0.02)


@pytest.mark.parametrize("bytes_per_task", [100, 1000])
def test_a_few_bytes_of_each_task_are_a_leak(bytes_per_task: int) -> None:
    """20 tasks a second, for an hour."""
    finding = found(lambda at: 60 * MIB + 20 * at * bytes_per_task + noise(MIB / 2))
    assert finding.verdict == "growing"
    assert finding.growth == pytest.approx(20 * (HOUR - WARM_UP) * bytes_per_task, rel=0.3)
    assert finding.last > finding.first


def test_a_leak_below_what_is_tolerated_is_not_told() -> None:
    """The tolerance is an amount: a longer run would find it."""
    slow = 20.0

    def leak(at: float) -> float:
        return 60 * MIB + 20 * at * slow

    assert found(leak).verdict == "flat"
    assert find(MEMORY, series(leak, 5 * HOUR), WARM_UP).verdict == "growing"


@pytest.mark.parametrize("period", [60.0, 600.0, 1100.0])
def test_a_sawtooth_is_flat(period: float) -> None:
    """A write-ahead log between two checkpoints, garbage between two collections."""
    assert found(lambda at: 20 * MIB * (at % period) / period).verdict == "flat"


def test_a_sawtooth_whose_foot_rises_is_a_leak() -> None:
    finding = found(lambda at: 5 * MIB * (at % 60) / 60 + 2000 * 20 * at)
    assert finding.verdict == "growing"


@pytest.mark.parametrize("at", [400.0, 1000.0, 1950.0, 3000.0])
def test_a_step_is_not_a_leak(at: float) -> None:
    """Something came that stays: a thread's arena, a cache that was filled."""
    assert found(lambda now: 60 * MIB + (20 * MIB if now > at else 0) + noise(1000)).verdict == (
        "flat"
    )


def test_growth_while_warming_up_is_not_a_leak() -> None:
    assert found(lambda at: 60 * MIB * min(1.0, at / WARM_UP)).verdict == "flat"


def test_growth_that_comes_to_an_end_is_not_a_leak() -> None:
    """A table that fills up until as much goes as comes."""
    assert found(lambda at: 60 * MIB * min(1.0, at / (HOUR / 2))).verdict == "flat"


def test_what_shrinks_is_flat() -> None:
    assert found(lambda at: 100 * MIB - 10_000 * at).verdict == "flat"


def test_a_file_now_and_then_that_stays_open_is_a_leak() -> None:
    assert found(lambda at: 20 + at // 300, FILES).verdict == "growing"


def test_files_that_come_and_go_are_flat() -> None:
    assert found(lambda _: 20 + random.randint(0, 6), FILES).verdict == "flat"


def test_some_wild_values_hide_no_leak_and_make_none() -> None:
    def wild(at: float) -> float:
        return 500 * MIB if random.random() < 0.1 else 60 * MIB + noise(1000)

    assert found(wild).verdict == "flat"
    assert found(lambda at: wild(at) + 20_000 * at).verdict == "growing"


def test_of_a_large_level_a_share_is_tolerated() -> None:
    records = Measure("the store", "records", "count")
    assert found(lambda at: 1000 + at / 10, records).verdict == "flat"
    assert found(lambda at: 1000 + at / 5, records).verdict == "growing"
    assert found(lambda at: at / 10, records).verdict == "growing"


def test_of_a_short_life_nothing_is_said() -> None:
    for count in (1, LEAST - 1):
        finding = find(MEMORY, series(lambda at: at * MIB, count=count), 0)
        assert finding.verdict == "too short"


def test_more_points_than_are_looked_at_say_the_same() -> None:
    finding = find(MEMORY, series(lambda at: 40_000 * at, count=5000), WARM_UP)
    assert (finding.points, finding.verdict) == (MOST, "growing")


def test_each_series_is_judged_by_what_it_is() -> None:
    rising = series(lambda at: 100 + at / 200)
    findings = judge({MEMORY: rising, FILES: rising}, WARM_UP)
    assert [(str(each.measure), each.verdict) for each in findings] == [
        ("a worker: memory", "flat"),
        ("a worker: files", "growing"),
    ]
