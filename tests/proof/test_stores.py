"""A short proof of each store; ``make proof`` is the long one."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from .arenas import (
    Arena,
    ForgetfulRedisArena,
    LaggingRedisArena,
    MemoryArena,
    PostgresArena,
    RedisArena,
    SQLiteArena,
)
from .broken import BUGS, ClientClock, RacyClaim, Unfenced
from .run import LONG, never_happened
from .runs import History, Settings, answers_lost, judge, record, tokens_that_went_back

KEEPING = (MemoryArena, SQLiteArena, RedisArena, PostgresArena)
SHARED = (SQLiteArena, RedisArena, PostgresArena)


def named(classes: tuple[type, ...]) -> list[str]:
    return [each.__name__ for each in classes]


def run(make: type[Arena], settings: Settings) -> None:
    with make(random.Random(settings.seed)) as arena:
        history = record(arena, settings)
        judgement = judge(arena, history)
        assert judgement.operations >= settings.operations
        # A run goes on until something went wrong, where something can.
        if arena.faults() or settings.processes:
            assert history.faults.total() > 0
        if arena.odds:
            assert judgement.unknown > 0
        assert judgement.is_good, judgement.counterexample or judgement.undecided
        assert tokens_that_went_back(history.operations) == []


@pytest.mark.parametrize("make", KEEPING, ids=named(KEEPING))
def test_what_threads_hear_while_things_break_is_linearizable(make: type[Arena]) -> None:
    run(make, Settings(operations=2000, clients=5, seed=random.randrange(1 << 32)))


@pytest.mark.parametrize("make", SHARED, ids=named(SHARED))
def test_what_processes_hear_while_things_break_is_linearizable(make: type[Arena]) -> None:
    """They are killed and paused, too, and where the store has a server their clocks are wrong."""
    settings = Settings(operations=1000, clients=3, processes=True, seed=random.randrange(1 << 32))
    run(make, settings)


BROKEN = [
    *((MemoryArena, bug) for bug in BUGS),
    *((make, bug) for make in SHARED for bug in (Unfenced, RacyClaim)),
]


@pytest.mark.parametrize(("make", "bug"), BROKEN)
def test_a_broken_store_is_found_out(make: type[Arena], bug: type) -> None:
    """Without faults: it is the store that is wrong, and the counterexample says where."""
    with make(random.Random(1)) as arena:
        # Whether clients meet is a matter of chance.
        for seed in range(5):
            settings = Settings(operations=1500, clients=5, fault_every=0, seed=seed, wrap=bug)
            judgement = judge(arena, record(arena, settings))
            if judgement.violations:
                break
        assert "none of these may come next" in judgement.counterexample


ASKED = (RedisArena, PostgresArena)


@pytest.mark.parametrize("make", ASKED, ids=named(ASKED))
def test_a_store_that_goes_by_the_clients_clock_is_found_out(make: type[Arena]) -> None:
    """By processes, whose wall clocks are wrong; nothing else goes wrong, and it is that."""
    settings = Settings(1000, processes=True, clients=4, fault_every=0, wrap=ClientClock)
    with make(random.Random(1)) as arena:
        judgement = judge(arena, record(arena, settings))
        assert "none of these may come next" in judgement.counterexample
        arena.wrong_clock = False
        judgement = judge(arena, record(arena, replace(settings, seed=1)))
        assert judgement.is_good, judgement.counterexample


@pytest.mark.parametrize("make", [SQLiteArena, RedisArena])
def test_every_kind_of_fault_happens_before_any_comes_again(make: type[Arena]) -> None:
    with make(random.Random(1)) as arena:
        settings = Settings(1500, processes=True, clients=3, fault_every=0.01, seed=1)
        happened = record(arena, settings).faults
    assert len(happened) == (2 if make is SQLiteArena else 8)
    assert happened.total() > 0
    assert max(happened.values()) - min(happened.values()) <= 1


def test_a_long_run_without_one_of_its_faults_is_told_of() -> None:
    """``make proof`` fails then."""
    operations: list[Any] = [None] * LONG
    history = History(operations, Counter({"server killed": 0, "client paused": 3}), 1.0)
    assert never_happened(history) == ["server killed"]
    assert never_happened(History(operations[1:], history.faults, 1.0)) == []


def _is_bad(arena: Arena, history: History) -> bool:
    return not judge(arena, history, budget=2000, explained=False).is_good


def test_a_redis_that_saves_nothing_forgets_claims_but_tokens_rise() -> None:
    with ForgetfulRedisArena(random.Random(1)) as arena:
        history = record(arena, Settings(operations=2500, seed=1, fault_every=0.5))
        assert arena.amnesias
        assert _is_bad(arena, history), "nothing was lost: the run shows nothing"
        forgiving = judge(arena, history, forgiving=True)
        assert forgiving.is_good, forgiving.counterexample
        assert tokens_that_went_back(history.operations) == []


def test_a_redis_that_fails_over_to_a_lagging_replica_loses_claims_but_tokens_rise() -> None:
    with LaggingRedisArena(random.Random(1)) as arena:
        history = record(arena, Settings(operations=4000, seed=1, fault_every=0.2))
        assert history.faults["failover"] == 1
        assert _is_bad(arena, history), "nothing was lost: the run shows nothing"
        assert answers_lost(arena, history.operations) > 0
        assert tokens_that_went_back(history.operations) == []
