"""What the end of a run means for its claim: the table, whole."""

from __future__ import annotations

from itertools import product

import pytest
from celery_claims.protocol import Outcome
from celery_claims.settling import (
    Decision,
    Ending,
    on_acknowledged,
    on_rejected,
    on_returned,
    outcome_of,
)

FINISHED = {
    Ending.SUCCESS: Outcome.SUCCESS,
    Ending.FAILURE: Outcome.FAILURE,
    Ending.RETRY: Outcome.RETRY,
    Ending.IGNORED: Outcome.IGNORED,
    Ending.REJECTED: Outcome.REJECTED,
    Ending.TIMED_OUT: Outcome.TIMED_OUT,
    Ending.WORKER_LOST: Outcome.WORKER_LOST,
    Ending.TERMINATED: Outcome.REVOKED,
}
BACK = Decision(Outcome.NACKED)
BACK_COUNTED = Decision(Outcome.NACKED, counted=True)
DEADLY = {Ending.WORKER_LOST, Ending.TIMED_OUT}
BOTH = (False, True)

endings = pytest.mark.parametrize("ending", list(Ending))


def test_the_table_knows_every_ending() -> None:
    """A new ending has to be given a meaning here too."""
    assert set(FINISHED) | {Ending.REQUEUED} == set(Ending)


@endings
@pytest.mark.parametrize(("late", "running"), list(product(BOTH, BOTH)))
def test_an_acknowledgement_after_the_end_finishes(
    ending: Ending, late: bool, running: bool
) -> None:
    """Also of a lost child, when Celery acknowledges it; a requeue is given back all the same."""
    expected = Decision(FINISHED[ending]) if ending in FINISHED else BACK
    assert on_acknowledged(late=late, running=running, ending=ending) == expected


@pytest.mark.parametrize(
    ("late", "running", "expected"),
    [
        (False, True, None),
        (True, True, Decision(Outcome.REVOKED)),
        (False, False, Decision(Outcome.REVOKED)),
        (True, False, Decision(Outcome.REVOKED)),
    ],
)
def test_an_acknowledgement_before_the_end(
    late: bool, running: bool, expected: Decision | None
) -> None:
    """An early one says nothing while the body goes on; without a body it was revoked."""
    assert on_acknowledged(late=late, running=running, ending=None) == expected


@pytest.mark.parametrize("ending", [None, *Ending])
def test_a_rejection_finishes_or_gives_back(ending: Ending | None) -> None:
    """Dropped: nobody shall run it, or every held copy would. Requeued: never finished."""
    assert on_rejected(requeue=False, ending=ending) == Decision(Outcome.REJECTED)
    expected = BACK_COUNTED if ending in DEADLY else BACK
    assert on_rejected(requeue=True, ending=ending) == expected


@endings
@pytest.mark.parametrize(("late", "cancelled"), list(product(BOTH, BOTH)))
def test_a_callback_that_did_neither(ending: Ending, late: bool, cancelled: bool) -> None:
    """Late: the message is still at the broker. Early: this was the end, unless it comes again."""
    decision = on_returned(late=late, ending=ending, cancelled=cancelled)
    if late or cancelled or ending is Ending.REQUEUED:
        assert decision == (BACK_COUNTED if ending is Ending.WORKER_LOST else BACK)
    else:
        assert decision == Decision(FINISHED[ending])


@pytest.mark.parametrize(("late", "running", "cancelled"), list(product(BOTH, BOTH, BOTH)))
def test_a_requeue_is_never_finished(late: bool, running: bool, cancelled: bool) -> None:
    """Whatever comes first or last: a message that the broker gives out again must run."""
    requeued = Ending.REQUEUED
    decisions = [
        on_acknowledged(late=late, running=running, ending=requeued),
        on_returned(late=late, ending=requeued, cancelled=cancelled),
        *(on_rejected(requeue=True, ending=ending) for ending in [None, *Ending]),
    ]
    assert {decision.outcome for decision in decisions if decision} == {Outcome.NACKED}


@endings
def test_what_is_given_back_counts_only_if_it_killed_something(ending: Ending) -> None:
    """Promise 8: retries, deploys and cancellations do not use deliveries up."""
    decisions = [
        on_acknowledged(late=True, running=True, ending=ending),
        on_rejected(requeue=True, ending=ending),
        on_rejected(requeue=False, ending=ending),
        on_returned(late=True, ending=ending, cancelled=False),
    ]
    for decision in decisions:
        assert decision is not None
        assert not decision.counted or (ending in DEADLY and decision.outcome is Outcome.NACKED)


@endings
def test_the_outcome_of_an_ending(ending: Ending) -> None:
    assert outcome_of(ending) == FINISHED.get(ending, Outcome.NACKED)
