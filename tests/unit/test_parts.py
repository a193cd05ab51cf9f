"""One element that a store refuses costs its own answer, and nobody else's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from celery_claims.errors import (
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from celery_claims.parts import ask_in_parts
from hypothesis import given
from hypothesis import strategies as st

BAD = StoreCorrupt("store://", "cannot be read")


class Verb:
    """Doubles numbers, and refuses a batch with a bad one in it."""

    def __init__(self, bad: set[int], error: StoreError = BAD) -> None:
        self.bad = bad
        self.error = error
        self.calls = 0

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.calls += 1
        if self.bad & set(batch):
            raise self.error
        return [2 * number for number in batch]


@given(number=st.integers(0, 40), bad=st.sets(st.integers(0, 39)))
def test_each_gets_its_own_answer_in_order(number: int, bad: set[int]) -> None:
    verb = Verb(bad)
    answers = ask_in_parts(verb, range(number))
    assert answers == [BAD if each in bad else 2 * each for each in range(number)]
    assert verb.calls <= max(1, 2 * number - 1)


def test_a_good_batch_is_one_call() -> None:
    verb = Verb(set())
    assert ask_in_parts(verb, range(500)) == list(range(0, 1000, 2))
    assert verb.calls == 1


def test_one_bad_element_costs_few_calls() -> None:
    verb = Verb({137})
    ask_in_parts(verb, range(500))
    assert verb.calls <= 1 + 2 * math.ceil(math.log2(500))


@pytest.mark.parametrize("kind", [StoreUnavailable, StoreReadOnly, StoreFull])
def test_an_error_of_the_whole_store_is_not_asked_for_again(kind: type[StoreError]) -> None:
    """No part of the batch fares better, and each try may cost a time-out."""
    verb = Verb({3}, kind("store://", "told"))
    with pytest.raises(kind):
        ask_in_parts(verb, range(500))
    assert verb.calls == 1


def test_an_empty_batch_that_is_refused_is_told() -> None:
    """``expire([])`` has something to do: nobody else is there to be blamed."""

    def verb(_: Sequence[int]) -> list[int]:
        raise BAD

    with pytest.raises(StoreCorrupt):
        ask_in_parts(verb, [])
