"""The wait at the end of a chaos run: for what may still come, and for nothing else."""

from __future__ import annotations

from itertools import chain, repeat

from tests.process.waiting import TIMEOUT

from .run import came_to_rest

#: Seconds.
FORGOTTEN, INTERVAL = 0.1, 0.01


def test_it_is_over_when_all_have_ended() -> None:
    left = chain([{"a"}, {"a"}], repeat(set[str]()))
    assert came_to_rest(lambda: next(left), lambda: True, TIMEOUT, TIMEOUT, INTERVAL)


def test_what_nobody_has_is_not_waited_for() -> None:
    """A killed worker took it from its queue and told nobody: the patience is not used up."""
    assert not came_to_rest(lambda: {"a"}, lambda: False, 10 * TIMEOUT, FORGOTTEN, INTERVAL)


def test_what_the_broker_has_is_waited_for() -> None:
    """However long it takes: a moment without a message is one on its way to a worker."""
    answers = iter([True, False] * 30)
    had: list[bool] = []

    def left() -> set[str]:
        return {"a"} if len(had) < 60 else set()

    def has_messages() -> bool:
        had.append(next(answers))
        return had[-1]

    assert came_to_rest(left, has_messages, TIMEOUT, FORGOTTEN, INTERVAL)
    assert len(had) == 60


def test_the_patience_has_an_end() -> None:
    assert not came_to_rest(lambda: {"a"}, lambda: True, FORGOTTEN, TIMEOUT, INTERVAL)
