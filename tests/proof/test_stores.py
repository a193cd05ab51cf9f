"""A short proof of each store; ``make proof`` is the long one."""

from __future__ import annotations

import random

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
from .broken import BUGS, RacyClaim, Unfenced
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
