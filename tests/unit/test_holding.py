"""The lines of held deliveries: fair, patient, and never asleep for ever."""

from __future__ import annotations

import random

import pytest
from celery_claims.case import Case, Phase
from celery_claims.holding import FIRST_PAUSE, LONGEST_PAUSE, Lines
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.factories import denied, incoming


@pytest.fixture
def lines() -> Lines:
    return Lines(random.Random(7))


def held(task_id: str = "id-1") -> Case:
    return Case(incoming(task_id), connection=0, grant_id="g", phase=Phase.HELD)


def stand(lines: Lines, *cases: Case, at: float = 0.0) -> None:
    for case in cases:
        lines.join(case)
        lines.set_alarm(case, at)


def test_only_the_first_of_a_line_asks(lines: Lines) -> None:
    """One question per task id; every line has its own first."""
    first, second, other = held(), held(), held("id-2")
    stand(lines, first, second, other)
    assert lines.due(0.0) == [first, other]


def test_a_line_is_served_in_the_order_of_arrival(lines: Lines) -> None:
    """Whoever leaves, the next is who has waited longest."""
    cases = [held() for _ in range(5)]
    stand(lines, *cases)
    served = []
    for moment in range(5):
        (first,) = lines.due(float(moment))
        served.append(first)
        lines.leave(first, float(moment + 1))
    assert served == cases
    assert cases[0].key not in lines


def test_standing_twice_is_standing_once(lines: Lines) -> None:
    case, other = held(), held()
    stand(lines, case, other)
    lines.join(case)
    assert lines.waiting() == [case, other]


def test_leaving_from_the_middle_keeps_the_first(lines: Lines) -> None:
    """Whoever leaves, the first stays first and has an alarm."""
    first, middle, last = held(), held(), held()
    stand(lines, first, middle, last, at=1.0)
    lines.leave(middle, 5.0)
    assert lines.waiting() == [first, last]
    assert lines.next_alarm() is not None


def test_leaving_without_standing_is_nothing(lines: Lines) -> None:
    case = held()
    lines.leave(case, 1.0)
    stand(lines, held())
    lines.leave(case, 1.0)
    assert len(lines.waiting()) == 1


def test_an_alarm_rings_once(lines: Lines) -> None:
    stand(lines, held(), at=1.0)
    assert lines.due(0.99) == []
    assert len(lines.due(1.0)) == 1
    assert lines.due(2.0) == [] and lines.next_alarm() is None


def test_a_new_alarm_replaces_the_old_one(lines: Lines) -> None:
    """Earlier or later: only the last one counts."""
    case = held()
    stand(lines, case, at=1.0)
    lines.set_alarm(case, 3.0)
    assert lines.due(2.0) == []
    lines.set_alarm(case, 2.5)
    assert lines.due(2.5) == [case]
    assert lines.due(4.0) == []


def test_waking_starts_the_pauses_anew(lines: Lines) -> None:
    """What it waited for has happened: the next denial is of somebody else."""
    case = held()
    stand(lines, case, at=100.0)
    case.pauses = 9
    lines.wake(case.key, 1.0)
    assert lines.due(1.0) == [case] and case.pauses == 0
    lines.wake(("celery", "nobody"), 1.0)


def test_dissolving_ends_every_line_and_alarm(lines: Lines) -> None:
    cases = [held(), held(), held("id-2")]
    stand(lines, *cases)
    assert lines.dissolve() == cases
    assert lines.waiting() == [] and lines.next_alarm() is None and lines.due(9.0) == []


def test_pauses_double_from_50_ms_to_5_s(lines: Lines) -> None:
    """Each within a fifth of twice the one before, for jitter."""
    case = held()
    pauses = [lines.pause(case, denied(3_600_000)) for _ in range(12)]
    for number, pause in enumerate(pauses):
        middle = FIRST_PAUSE * 2**number
        assert min(0.8 * middle, LONGEST_PAUSE) <= pause <= min(1.2 * middle, LONGEST_PAUSE)
    assert pauses[-1] == LONGEST_PAUSE


def test_holders_of_one_task_do_not_ask_together() -> None:
    """Jitter differs from worker to worker."""
    pauses = {Lines(random.Random(seed)).pause(held(), denied()) for seed in range(20)}
    assert len(pauses) == 20


@given(remaining=st.integers(-10_000, 7_200_000), pauses=st.integers(0, 10_000))
def test_no_pause_outlasts_the_reported_lease(remaining: int, pauses: int) -> None:
    """It asks when the lease can be over, and a moment later so that it is."""
    case = held()
    case.pauses = pauses
    pause = Lines(random.Random(7)).pause(case, denied(remaining))
    assert FIRST_PAUSE / 2 <= pause <= LONGEST_PAUSE
    assert pause <= max(remaining, 0) / 1000 + FIRST_PAUSE / 2
