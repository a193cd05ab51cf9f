"""The decisions of one worker: every path through the states that ``case`` draws."""

from __future__ import annotations

import pytest
from celery_claims.case import Case, Do, Phase
from celery_claims.desk import OUTAGE_PAUSE, RECORD_PAUSE, Desk
from celery_claims.holding import FIRST_PAUSE, LONGEST_PAUSE
from celery_claims.protocol import (
    Attempt,
    Delivery,
    Ended,
    Exhausted,
    Finished,
    Lost,
    Outcome,
    Renewed,
    Settlement,
    Superseded,
)
from celery_claims.settling import Ending

from tests.unit.factories import (
    LEASE,
    claimed_case,
    denied,
    held_case,
    incoming,
    kinds,
    make_desk,
    running_case,
    success,
    token_of,
    took_over,
)

#: When the trust in a lease granted at 0 is over.
TRUST = 0.9 * LEASE


@pytest.fixture
def desk() -> Desk:
    return make_desk()


def lose(desk: Desk, case: Case, now: float = 10.0) -> list[Do]:
    """The store says that somebody else was granted it."""
    renewals, _ = desk.beat(now)
    (renewal,) = [renewal for beating, renewal in renewals if beating is case]
    return kinds(desk.renewed(case, renewal, Lost("w2", 1_000), now))


def finish(desk: Desk, case: Case, now: float = 1.0) -> Settlement:
    """The body succeeds and its message is acknowledged."""
    desk.ended(case, Ending.SUCCESS, recorded=False)
    settlement = desk.acknowledging(case)
    assert settlement is not None
    desk.recorded(case, now)
    return settlement


# asking


def test_a_delivery_is_asked_for_and_runs_when_granted(desk: Desk) -> None:
    """asking -> claimed -> submitted -> running -> ended -> done."""
    case, actions = desk.receive(incoming(), 0.0)
    assert kinds(actions) == [Do.ASK] and case.phase is Phase.ASKING
    assert kinds(desk.answered(case, success(case), 0.0, 0.1)) == [Do.RUN]
    assert case.phase is Phase.CLAIMED
    assert desk.submitted(case) and case.phase is Phase.SUBMITTED
    desk.accepted(case, 0.2)
    assert case.phase is Phase.RUNNING
    desk.ended(case, Ending.SUCCESS, recorded=False)
    assert case.phase is Phase.ENDED
    assert desk.acknowledging(case) == Settlement(token_of(case), Outcome.SUCCESS, 7_200_000)
    desk.recorded(case, 1.0)
    assert case.phase is Phase.DONE and desk.active() == []


def test_the_question_is_the_message(desk: Desk) -> None:
    """What the store is asked has every field of the message and of the task's options."""
    message = incoming(attempt=Attempt(1, 2), deaths=3, lease=12.0, max_deliveries=4)
    case, _ = desk.receive(message, 0.0)
    request = desk.request(case)
    assert (request.queue, request.task_id, request.root_id) == ("celery", "id-1", "id-1")
    assert (request.owner, request.grant_id) == ("w1", case.grant_id)
    assert (request.lease_ms, request.max_deliveries) == (12_000, 4)
    assert (request.attempt, request.deaths) == (Attempt(1, 2), 3)
    assert request.delivery is message.delivery


@pytest.mark.parametrize(
    "answer",
    [Finished(Outcome.SUCCESS, 900, 1_000), Superseded(Attempt(0, 1), 1_000)],
    ids=["finished", "superseded"],
)
@pytest.mark.parametrize("held", [False, True])
def test_a_finished_attempt_is_skipped(desk: Desk, held: bool, answer: object) -> None:
    """Promise 4: acknowledged and not run, whether it came now or waited."""
    case = held_case(desk) if held else desk.receive(incoming(), 0.0)[0]
    actions = desk.answered(case, answer, 1.0, 1.0)  # type: ignore[arg-type]
    assert kinds(actions) == [Do.SKIP] and actions[0].answer is answer
    assert case.phase is Phase.DONE and desk.lines.waiting() == []


def test_a_denied_delivery_is_held_once(desk: Desk) -> None:
    """Promise 5: it waits; asking again and being denied again says nothing new."""
    case, _ = desk.receive(incoming(), 0.0)
    assert kinds(desk.answered(case, denied(), 0.0, 0.0)) == [Do.HOLD]
    assert case.phase is Phase.HELD
    for second in range(1, 9):
        assert desk.answered(case, denied(), float(second), float(second)) == []
    assert desk.lines.waiting() == [case]


def test_an_exhausted_task_is_reported_and_not_run(desk: Desk) -> None:
    """Promise 8: a grant only to report under, then finished as exhausted."""
    case, _ = desk.receive(incoming(), 0.0)
    actions = desk.answered(case, Exhausted(20, token_of(case), 1_000), 0.0, 0.0)
    assert kinds(actions) == [Do.REPORT] and case.deliveries == 20
    assert desk.active() == [case]
    assert desk.exhausted_settlement(case).outcome is Outcome.EXHAUSTED
    desk.recorded(case, 0.5)
    assert desk.active() == []


@pytest.mark.parametrize(
    ("answer", "marked"),
    [
        (success, False),
        (lambda case: success(case, deliveries=1), True),
        (lambda case: success(case, orphaned=True), True),
        (took_over, True),
        (lambda case: took_over(case, deliveries=2), True),
    ],
    ids=["first", "died before", "cleaned up", "taken over", "taken over from a dead one"],
)
def test_only_a_task_that_died_before_marks_its_start_first(
    desk: Desk, answer: object, marked: bool
) -> None:
    """A first grant leaves the mark to the next beat; one with a past makes it count surely."""
    case, _ = desk.receive(incoming(), 0.0)
    given = answer(case)  # type: ignore[operator]
    desk.answered(case, given, 0.0, 0.0)
    assert case.mark_start is marked
    assert case.deliveries == given.deliveries


def test_a_grant_that_may_have_been_a_takeover_marks_its_start(desk: Desk) -> None:
    """Asked again, the store says only that it is held: the death before it would not count."""
    case, _ = desk.receive(incoming(), 0.0)
    desk.unanswered(case, 0.0)
    desk.answered(case, success(case), 1.0, 1.0)
    assert case.mark_start


def test_a_body_that_did_not_begin_unsure_marks_its_next_start(desk: Desk) -> None:
    case, _ = desk.receive(incoming(), 0.0)
    desk.answered(case, took_over(case), 0.0, 0.0)
    desk.submitted(case)
    desk.accepted(case, 0.0)
    desk.returned(case, 1.0, unsure=True)
    desk.answered(case, success(case), 2.0, 2.0)
    assert case.mark_start


def test_an_answer_for_a_delivery_that_is_gone_changes_nothing(desk: Desk) -> None:
    """Its connection is gone; the broker gives the message to somebody again."""
    case, _ = desk.receive(incoming(), 0.0)
    desk.disconnected()
    assert desk.answered(case, success(case), 0.0, 1.0) == []
    assert desk.unanswered(case, 1.0) == []
    assert case.phase is Phase.DONE and desk.active() == []


# trust


def test_trust_counts_from_the_start_of_the_call(desk: Desk) -> None:
    """A reply that was slow does not add its own delay to the lease."""
    case, _ = desk.receive(incoming(), 0.0)
    desk.answered(case, success(case), 0.0, 8.0)
    assert case.trusted_until == pytest.approx(TRUST)


def test_a_slow_successful_renewal_does_not_extend_trust(desk: Desk) -> None:
    """Trust runs from when the renewal was asked for, however late its answer is."""
    case = running_case(desk)
    ((_, renewal),), _ = desk.beat(10.0)
    desk.renewed(case, renewal, Renewed(41_000, 11_000), 10.0)
    assert case.trusted_until == pytest.approx(10.0 + TRUST)


def test_only_what_was_not_renewed_lately_is_renewed(desk: Desk) -> None:
    """A claim made just before the beat is left to the next one."""
    case = claimed_case(desk)
    assert desk.beat(LEASE / 6 - 0.01) == ([], [])
    ((renewed, renewal),), _ = desk.beat(LEASE / 6)
    assert renewed is case and renewal.token is case.token
    assert (renewal.lease_ms, renewal.started, renewal.extend) == (30_000, False, False)


def test_the_start_is_marked_by_a_beat_until_the_store_knows(desk: Desk) -> None:
    """Promise 8 counts started runs only: waiting is not marked, a start is, once."""
    case = claimed_case(desk)
    assert desk.submitted(case)
    ((_, waiting),), _ = desk.beat(10.0)
    assert not waiting.started
    desk.accepted(case, 10.0)
    for _ in range(2):
        ((_, renewal),), _ = desk.beat(10.0)
        assert renewal.started
    desk.renewed(case, renewal, Renewed(41_000, 11_000), 10.0)
    ((_, renewal),), _ = desk.beat(20.0)
    assert not renewal.started


def test_a_renewal_of_an_earlier_grant_says_nothing(desk: Desk) -> None:
    """The delivery was held and granted again while the answer was on its way."""
    case = running_case(desk)
    ((_, old),), _ = desk.beat(10.0)
    lose(desk, case)
    desk.returned(case, 11.0)
    desk.answered(case, success(case, number=200), 12.0, 12.0)
    assert desk.renewed(case, old, Lost("w2", 1_000), 10.0) == []
    assert not case.lost and case.trusted_until == pytest.approx(12.0 + TRUST)


# one question per task id


def test_copies_of_one_task_ask_one_question(desk: Desk) -> None:
    """Fifty copies cost one question, and the others are held at once."""
    asked = [desk.receive(incoming(), 0.0)[1] for _ in range(50)]
    assert [kinds(actions) for actions in asked] == [[Do.ASK], *[[Do.HOLD]] * 49]


def test_copies_wait_for_the_run_of_this_worker_without_asking(desk: Desk) -> None:
    """Promise 3 on one worker: however long it runs, nobody asks."""
    running_case(desk)
    copy, actions = desk.receive(incoming(), 0.0)
    assert kinds(actions) == [Do.HOLD] and copy.phase is Phase.HELD
    assert [case for hour in range(1, 25) for case in desk.due(hour * 3600.0)] == []


def test_other_tasks_and_queues_do_not_wait(desk: Desk) -> None:
    """A claim is of one (queue, task id)."""
    running_case(desk)
    assert kinds(desk.receive(incoming("id-2"), 0.0)[1]) == [Do.ASK]
    assert kinds(desk.receive(incoming(queue="other"), 0.0)[1]) == [Do.ASK]


def test_the_end_of_the_run_wakes_the_first_copy(desk: Desk) -> None:
    """Woken at once, not when its own alarm would ring."""
    case = running_case(desk)
    first, _ = desk.receive(incoming(), 0.1)
    second, _ = desk.receive(incoming(), 0.2)
    assert desk.due(0.9) == []
    finish(desk, case, now=1.0)
    assert desk.due(1.0) == [first]
    desk.answered(first, Finished(Outcome.SUCCESS, 1_000, 1_000), 1.0, 1.0)
    assert desk.due(1.0) == [second]


def test_the_next_attempt_starts_when_this_one_is_released(desk: Desk) -> None:
    """Trap 2: a retry that arrives before the end of its own run waits for exactly that."""
    case = running_case(desk)
    retry, _ = desk.receive(incoming(attempt=Attempt(0, 1)), 0.5)
    desk.ended(case, Ending.RETRY, recorded=False)
    settlement = desk.acknowledging(case)
    assert settlement is not None and settlement.outcome is Outcome.RETRY
    desk.recorded(case, 1.0)
    assert desk.due(1.0) == [retry]
    assert kinds(desk.answered(retry, success(retry, number=101), 1.0, 1.0)) == [Do.RUN]


def test_a_copy_that_came_while_its_task_was_asked_for_asks_next(desk: Desk) -> None:
    """The line moves up when the first of it is answered, whatever the answer was."""
    first, _ = desk.receive(incoming(), 0.0)
    second, _ = desk.receive(incoming(), 0.0)
    desk.answered(first, Finished(Outcome.SUCCESS, 900, 1_000), 0.0, 0.1)
    assert desk.due(0.1) == [second]


# the store is down


def test_a_delivery_waits_for_the_store(desk: Desk) -> None:
    """Policy ``wait``: held, and asked for again under the same grant id."""
    case, _ = desk.receive(incoming(), 0.0)
    grant_id = case.grant_id
    assert kinds(desk.unanswered(case, 2.0)) == [Do.HOLD]
    assert desk.due(2.0 + OUTAGE_PAUSE - 0.01) == []
    assert desk.due(2.0 + OUTAGE_PAUSE) == [case]
    assert desk.request(case).grant_id == grant_id


def test_a_lost_reply_is_repaired_by_asking_again(desk: Desk) -> None:
    """The store had granted it: the same grant id gets the same token."""
    case, _ = desk.receive(incoming(), 0.0)
    desk.unanswered(case, 2.0)
    assert kinds(desk.answered(case, success(case), 2.5, 2.6)) == [Do.RUN]
    assert case.trusted_until == pytest.approx(2.5 + TRUST)


def test_while_the_store_is_left_alone_deliveries_are_held_unasked(desk: Desk) -> None:
    """The breaker: a worker must not wait for one time-out per delivery."""
    case, _ = desk.receive(incoming(), 0.0)
    desk.unanswered(case, 2.0)
    other, actions = desk.receive(incoming("id-2"), 2.1)
    assert kinds(actions) == [Do.HOLD]
    assert desk.due(2.0 + OUTAGE_PAUSE) == [case, other]


def test_while_the_store_is_left_alone_held_deliveries_do_not_ask_either(desk: Desk) -> None:
    """The breaker holds for those whose own alarm rings meanwhile: they ask when it closes."""
    waiting = [held_case(desk, incoming(f"held-{n}"), now=n / 100) for n in range(5)]
    case, _ = desk.receive(incoming(), 0.04)
    desk.unanswered(case, 0.045)
    assert desk.due(0.045 + OUTAGE_PAUSE - 0.01) == []
    assert set(desk.due(0.045 + OUTAGE_PAUSE)) == {case, *waiting}


def test_the_breaker_opens_longer_up_to_a_bound(desk: Desk) -> None:
    """0.5 s, doubling, at most 5 s; the first answer closes it."""
    case, _ = desk.receive(incoming(), 0.0)
    now, pauses = 0.0, []
    for _ in range(7):
        desk.unanswered(case, now)
        pauses.append(desk.outage.until - now)
        now = desk.outage.until
        assert desk.due(now) == [case]
    assert pauses == [0.5, 1.0, 2.0, 4.0, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    desk.answered(case, denied(), now, now)
    assert kinds(desk.receive(incoming("id-2"), now)[1]) == [Do.ASK]


def test_one_failed_call_opens_the_breaker_once(desk: Desk) -> None:
    """A batch that was not answered is one failure, not one per case."""
    cases = [desk.receive(incoming(f"id-{n}"), 0.0)[0] for n in range(4)]
    for case in cases:
        desk.unanswered(case, 1.0)
    assert desk.outage.until == 1.0 + OUTAGE_PAUSE


def test_any_renewal_that_is_answered_closes_the_breaker(desk: Desk) -> None:
    """The store is there again, whoever noticed."""
    case = running_case(desk)
    other, _ = desk.receive(incoming("id-2"), 9.9)
    desk.unanswered(other, 9.9)
    ((_, renewal),), _ = desk.beat(10.0)
    desk.renewed(case, renewal, Renewed(41_000, 11_000), 10.0)
    assert kinds(desk.receive(incoming("id-3"), 10.0)[1]) == [Do.ASK]


def test_fail_open_runs_without_a_claim() -> None:
    """Policy ``run``: what could not be asked, and what the breaker forbids to ask."""
    desk = make_desk(run_when_down=True)
    case, _ = desk.receive(incoming(), 0.0)
    assert kinds(desk.unanswered(case, 2.0)) == [Do.RUN_UNCLAIMED]
    other, actions = desk.receive(incoming("id-2"), 2.1)
    assert kinds(actions) == [Do.RUN_UNCLAIMED]
    assert case.phase is other.phase is Phase.DONE
    assert desk.active() == [] and desk.lines.waiting() == []


def test_fail_open_does_not_run_what_is_known_to_be_claimed() -> None:
    """A copy of a run on this worker, and one whose claim another worker was seen to have."""
    desk = make_desk(run_when_down=True)
    running_case(desk)
    assert kinds(desk.receive(incoming(), 0.1)[1]) == [Do.HOLD]
    elsewhere = held_case(desk, incoming("id-2"), now=0.1)
    assert desk.unanswered(elsewhere, 1.0) == []
    assert elsewhere.phase is Phase.HELD and desk.lines.next_alarm() is not None


def test_fail_open_lets_the_next_copy_try() -> None:
    """Nothing waits for ever: who stood behind the one that left asks in its turn."""
    desk = make_desk(run_when_down=True)
    case, _ = desk.receive(incoming(), 0.0)
    copy, _ = desk.receive(incoming(), 0.0)
    desk.unanswered(case, 2.0)
    assert desk.due(2.0 + OUTAGE_PAUSE) == [copy]


# losses


def test_a_claim_lost_before_the_pool_has_it_does_not_run(desk: Desk) -> None:
    """Promise 7: a run does not start on a lease that is gone; it waits like any duplicate."""
    case = claimed_case(desk)
    assert lose(desk, case) == [Do.STOP]
    assert not desk.submitted(case)
    assert kinds(desk.returned(case, 11.0)) == [Do.HOLD]
    assert case.phase is Phase.HELD and desk.active() == []
    assert desk.due(11.0 + FIRST_PAUSE) == [case]


def test_a_lost_run_is_stopped_once_and_held_when_it_has_stopped(desk: Desk) -> None:
    """Until then copies still wait for it, and its lease is not renewed."""
    case = running_case(desk)
    assert lose(desk, case) == [Do.STOP]
    assert desk.beat(20.0) == ([], [])
    assert desk.active() == [case]
    assert kinds(desk.receive(incoming(), 20.0)[1]) == [Do.HOLD]
    assert kinds(desk.returned(case, 21.0)) == [Do.HOLD]
    assert not case.lost and case.token is None and case.ending is None


def test_a_second_notice_of_the_same_loss_stops_nothing_again(desk: Desk) -> None:
    """The body is being stopped already."""
    case = running_case(desk, incoming(strict=True))
    ((_, renewal),), _ = desk.beat(10.0)
    assert kinds(desk.renewed(case, renewal, Lost("w2", 1_000), 10.0)) == [Do.STOP]
    assert desk.renewed(case, renewal, Lost("w2", 1_000), 10.0) == []
    assert desk.unrenewed(100.0) == []


def test_a_loss_found_at_the_end_records_nothing(desk: Desk) -> None:
    """The new owner's record is the one that counts: no acknowledgement, no rejection."""
    case = running_case(desk)
    lose(desk, case)
    desk.ended(case, Ending.SUCCESS, recorded=False)
    assert desk.acknowledging(case) is None
    assert desk.rejecting(case, requeue=False) is None
    assert desk.returning(case, cancelled=False) is None


def test_after_a_loss_it_asks_as_somebody_new(desk: Desk) -> None:
    """A new grant id: the old one must not be answered with the old token."""
    case = running_case(desk)
    before = desk.request(case).grant_id
    lose(desk, case)
    desk.returned(case, 11.0)
    assert desk.request(case).grant_id != before
    assert kinds(desk.answered(case, success(case, number=200), 11.1, 11.1)) == [Do.RUN]
    assert case.token is not None and case.token.token == 200


def test_a_body_that_stopped_after_its_connection_is_gone_is_done(desk: Desk) -> None:
    """The broker has given its message to somebody else: nothing to hold."""
    case = running_case(desk)
    lose(desk, case)
    desk.disconnected()
    assert desk.returned(case, 12.0) == []
    assert case.phase is Phase.DONE and desk.active() == []


def test_the_store_knew_the_end_first(desk: Desk) -> None:
    """``Ended``: the child told the store; nothing is renewed, recorded or stopped any more."""
    case = running_case(desk)
    ((_, renewal),), _ = desk.beat(10.0)
    assert desk.renewed(case, renewal, Ended(Outcome.SUCCESS, 1_000), 10.0) == []
    assert desk.beat(20.0) == ([], []) and not case.lost
    desk.ended(case, Ending.SUCCESS, recorded=True)
    assert desk.acknowledging(case) is None
    desk.recorded(case, 21.0)
    assert desk.active() == []


def test_an_end_that_the_child_recorded_is_not_recorded_twice(desk: Desk) -> None:
    """Nor does closing give it back."""
    case = running_case(desk)
    desk.ended(case, Ending.SUCCESS, recorded=True)
    assert desk.acknowledging(case) is None
    assert desk.returning(case, cancelled=False) is None
    assert desk.closing(lambda _: False) == []


def test_silence_after_ended_outlives_the_death_of_the_child(desk: Desk) -> None:
    """The child recorded its end and died before it could report: the record stands."""
    case = running_case(desk)
    ((_, renewal),), _ = desk.beat(10.0)
    desk.renewed(case, renewal, Ended(Outcome.SUCCESS, 1_000), 10.0)
    desk.ended(case, Ending.WORKER_LOST, recorded=False)
    assert desk.rejecting(case, requeue=True) is None


# strict tasks


@pytest.mark.parametrize(("strict", "expected"), [(True, [Do.STOP]), (False, [])])
def test_only_strict_bodies_stop_when_the_store_is_down(
    desk: Desk, strict: bool, expected: list[Do]
) -> None:
    """Others go on, and are stopped if a takeover is found when the store is back."""
    case = running_case(desk, incoming(strict=strict))
    assert desk.unrenewed(TRUST - 0.01) == []
    assert kinds(desk.unrenewed(TRUST)) == expected
    assert case.lost is strict


def test_a_strict_body_goes_on_while_the_store_answers(desk: Desk) -> None:
    """Only an outage ends its trust; a beat alone stops nothing."""
    case = running_case(desk, incoming(strict=True))
    _, actions = desk.beat(TRUST + 1)
    assert actions == [] and not case.lost


def test_a_strict_task_that_waits_is_not_stopped(desk: Desk) -> None:
    """There is no body to stop: the check before its start decides."""
    claimed_case(desk, incoming(strict=True))
    assert desk.unrenewed(TRUST + 1) == []


# hung tasks


def test_a_hung_body_is_stopped_once_and_renewed_until_it_has_stopped() -> None:
    """Prefork: first the body, then the renewals; then it counts like one that died."""
    desk = make_desk(can_stop=True)
    case = running_case(desk, incoming(max_hold=60.0))
    assert desk.beat(59.9)[1] == []
    assert kinds(desk.beat(60.0)[1]) == [Do.STOP]
    renewals, actions = desk.beat(70.0)
    assert [beating for beating, _ in renewals] == [case] and actions == []
    settlement = desk.hung_settlement(case)
    assert settlement.gives_back and settlement.counted


def test_what_shall_stop_is_asked_for_until_it_has(desk: Desk) -> None:
    """Where the order to stop it was lost with the loop that it was for."""
    case = running_case(desk, incoming(strict=True))
    assert desk.stopping() == []
    desk.unrenewed(1000.0)
    assert desk.stopping() == [case]
    desk.returned(case, 1001.0)
    assert desk.stopping() == []


def test_a_hung_body_that_cannot_be_stopped_is_not_renewed(desk: Desk) -> None:
    """Threads: its lease runs out and another worker takes over."""
    running_case(desk, incoming(max_hold=60.0))
    assert desk.beat(60.0)[0] == []
    assert desk.beat(600.0) == ([], [])


def test_waiting_does_not_count_as_holding(desk: Desk) -> None:
    """``max_hold`` bounds a run: an ETA or a full pool may take as long as it likes."""
    case = claimed_case(desk, incoming(max_hold=60.0))
    assert desk.beat(1000.0)[1] == []
    desk.submitted(case)
    assert desk.beat(2000.0)[1] == []
    desk.accepted(case, 2000.0)
    assert desk.beat(2059.0)[1] == []
    assert kinds(desk.beat(2060.0)[1]) == [Do.STOP]


# ends


def test_the_last_of_the_settlement_depends_on_how_it_ended(desk: Desk) -> None:
    """Kept for ``keep_finished`` when finished, for ``keep_free`` when given back."""
    case = running_case(desk, incoming(keep_finished=0.0, keep_free=60.0))
    desk.ended(case, Ending.FAILURE, recorded=False)
    acknowledged, rejected = desk.acknowledging(case), desk.rejecting(case, requeue=True)
    assert acknowledged is not None and rejected is not None
    assert (acknowledged.outcome, acknowledged.keep_ms) == (Outcome.FAILURE, 0)
    assert (rejected.outcome, rejected.keep_ms) == (Outcome.NACKED, 60_000)


def test_an_early_acknowledgement_says_nothing_about_the_run(desk: Desk) -> None:
    """The body goes on; its end is settled when the pool's callback is over."""
    case = running_case(desk, incoming(late=False))
    assert desk.acknowledging(case) is None and case.phase is Phase.RUNNING
    desk.ended(case, Ending.SUCCESS, recorded=False)
    settlement = desk.returning(case, cancelled=False)
    assert settlement is not None and settlement.outcome is Outcome.SUCCESS


def test_an_acknowledgement_before_any_start_is_a_revocation(desk: Desk) -> None:
    """Revoked, expired or swallowed: finished, or every copy of it would run."""
    case = claimed_case(desk)
    settlement = desk.acknowledging(case)
    assert settlement is not None and settlement.outcome is Outcome.REVOKED


def test_the_callback_of_a_late_task_that_did_neither_gives_it_back(desk: Desk) -> None:
    """Celery leaves the message to the broker: the claim goes with it."""
    case = running_case(desk)
    desk.ended(case, Ending.WORKER_LOST, recorded=False)
    settlement = desk.returning(case, cancelled=False)
    assert settlement is not None and settlement.gives_back and settlement.counted


def test_a_callback_before_any_end_settles_nothing(desk: Desk) -> None:
    """A soft time limit, for example: the body goes on."""
    case = running_case(desk)
    assert desk.returning(case, cancelled=False) is None


def test_a_takeover_takes_the_dead_owners_message_along(desk: Desk) -> None:
    """Nothing but its record told of it; a grant after a cleanup knows that it is back."""
    message = Delivery(tag="theirs", queue="celery")
    for answer, orphan in ((took_over, message), (success, None)):
        case, _ = desk.receive(incoming(f"t-{answer.__name__}"), 0.0)
        given = {"previous": message} if answer is took_over else {"orphaned": True}
        desk.answered(case, answer(case, **given), 0.0, 0.0)
        assert case.orphan == orphan


def test_an_end_that_the_store_did_not_take_is_told_again(desk: Desk) -> None:
    """The same settlement, after a pause, until it is taken; copies wait as long."""
    case = running_case(desk)
    copy, _ = desk.receive(incoming(), 0.5)
    desk.ended(case, Ending.SUCCESS, recorded=False)
    settlement = desk.acknowledging(case)
    assert settlement is not None
    desk.unrecorded(case, settlement, 1.0)
    assert desk.to_record(1.0 + RECORD_PAUSE - 0.01) == []
    assert desk.to_record(1.0 + RECORD_PAUSE) == [(case, settlement)]
    assert desk.due(100.0) == []
    assert desk.returning(case, cancelled=False) is None
    assert desk.acknowledging(case) is settlement
    desk.recorded(case, 101.0)
    assert desk.to_record(200.0) == [] and desk.due(101.0) == [copy]


def test_an_end_that_waits_is_still_renewed(desk: Desk) -> None:
    """Until the store has the end, nobody else may begin the task."""
    case = running_case(desk)
    desk.ended(case, Ending.SUCCESS, recorded=False)
    settlement = desk.acknowledging(case)
    assert settlement is not None
    desk.unrecorded(case, settlement, 1.0)
    assert [beating for beating, _ in desk.beat(10.0)[0]] == [case]


def test_what_is_recorded_twice_ends_once(desk: Desk) -> None:
    """The second report must not wake or free what came after it."""
    case = running_case(desk)
    finish(desk, case, now=1.0)
    again = running_case(desk, incoming(attempt=Attempt(0, 1)), now=2.0)
    desk.recorded(case, 3.0)
    assert desk.active() == [again]


def test_done_is_the_end(desk: Desk) -> None:
    """What was given back must not be handed to the pool under its old claim."""
    case = claimed_case(desk)
    desk.disconnected()
    desk.recorded(case, 1.0)
    assert not desk.submitted(case)
    assert case.phase is Phase.DONE


@pytest.mark.parametrize("phase", [Phase.CLAIMED, Phase.ENDED])
def test_an_end_is_of_a_body_only(desk: Desk, phase: Phase) -> None:
    """A report for what the pool does not have is not believed."""
    case = claimed_case(desk) if phase is Phase.CLAIMED else running_case(desk)
    if phase is Phase.ENDED:
        desk.ended(case, Ending.SUCCESS, recorded=False)
    desk.ended(case, Ending.FAILURE, recorded=True)
    assert case.phase is phase
    assert case.ending is (None if phase is Phase.CLAIMED else Ending.SUCCESS)


# connections and shutdown


def test_a_lost_connection_gives_back_what_the_pool_does_not_have(desk: Desk) -> None:
    """Trap 5: unstarted claims are given back, waiting copies forgotten, running ones kept."""
    reserved = claimed_case(desk, incoming("reserved"))
    submitted = claimed_case(desk, incoming("submitted"))
    desk.submitted(submitted)
    running = running_case(desk, incoming("running"))
    copy, _ = desk.receive(incoming("running"), 0.1)
    given_back = desk.disconnected()
    assert [case for case, _ in given_back] == [reserved]
    assert given_back[0][1].gives_back and not given_back[0][1].counted
    assert copy.phase is Phase.DONE and desk.lines.waiting() == []
    desk.recorded(reserved, 1.0)
    assert desk.active() == [submitted, running]


def test_a_message_of_the_new_connection_waits_for_the_old_run(desk: Desk) -> None:
    """The broker gives the running task's message out again: it must not start beside it."""
    case = running_case(desk)
    desk.disconnected()
    again, actions = desk.receive(incoming(), 1.0)
    assert kinds(actions) == [Do.HOLD]
    finish(desk, case, now=5.0)
    assert desk.due(5.0) == [again]


def test_closing_gives_back_what_no_executor_has(desk: Desk) -> None:
    """Trap 5: never what may still run, what is lost, or whose end is known."""
    reserved = claimed_case(desk, incoming("reserved"))
    killed = running_case(desk, incoming("killed"))
    surviving = running_case(desk, incoming("surviving"))
    lost = running_case(desk, incoming("lost"))
    lose(desk, lost)
    ended = running_case(desk, incoming("ended"))
    desk.ended(ended, Ending.SUCCESS, recorded=False)
    settlement = desk.acknowledging(ended)
    assert settlement is not None
    desk.unrecorded(ended, settlement, 1.0)
    told = running_case(desk, incoming("told"))
    desk.ended(told, Ending.SUCCESS, recorded=True)
    given_back = desk.closing(lambda case: case is surviving)
    assert [case for case, _ in given_back] == [reserved, killed]
    assert all(s.gives_back and not s.counted for _, s in given_back)


def test_the_shortest_lease_is_of_what_is_renewed(desk: Desk) -> None:
    assert desk.shortest_lease() is None
    claimed_case(desk, incoming("long", lease=60.0))
    claimed_case(desk, incoming("short", lease=5.0))
    held_case(desk, incoming("held", lease=1.0))
    assert desk.shortest_lease() == 5.0


# how long a delivery may be held


def test_a_held_delivery_goes_back_after_max_wait() -> None:
    """A broker may close the channel of one that waits for longer; each goes back by its age."""
    desk = make_desk(max_wait=900.0)
    first = held_case(desk)
    second, _ = desk.receive(incoming(), 100.0)
    assert desk.overdue(899.9) == []
    (action,) = desk.overdue(900.0)
    assert (action.do, action.case, first.phase) == (Do.RETURN, first, Phase.DONE)
    assert desk.lines.waiting() == [second]
    assert desk.due(900.0) == [second], "whoever is first now asks"
    assert [action.case for action in desk.overdue(1_000.0)] == [second]
    assert desk.overdue(9_999.0) == [] and desk.lines.waiting() == []


def test_a_delivery_that_no_longer_waits_stays() -> None:
    desk = make_desk(max_wait=900.0)
    case = held_case(desk)
    desk.answered(case, success(case), 10.0, 10.0)
    assert desk.overdue(1_000.0) == [] and case.phase is Phase.CLAIMED


def test_a_lost_run_is_held_for_what_is_left_of_its_time() -> None:
    """The broker counts from the arrival of the message, whatever was done with it since."""
    desk = make_desk(max_wait=900.0)
    case = running_case(desk)
    lose(desk, case)
    desk.returned(case, 800.0)
    assert desk.next_alarm() is not None and desk.overdue(899.0) == []
    assert [action.case for action in desk.overdue(900.0)] == [case]


def test_an_acknowledged_message_is_not_given_back() -> None:
    """The broker does not have it: it waits here for as long as it takes."""
    desk = make_desk(max_wait=900.0)
    case = running_case(desk)
    lose(desk, case)
    desk.returned(case, 800.0, at_broker=False)
    assert desk.overdue(9_999.0) == [] and desk.lines.waiting() == [case]


def test_the_end_of_the_wait_has_an_alarm_of_its_own() -> None:
    """While a run of this worker is on, its copies ask nothing and wait for nothing else."""
    desk = make_desk(max_wait=900.0)
    running_case(desk)
    copy, _ = desk.receive(incoming(), 1.0)
    desk.due(1e9)
    assert desk.next_alarm() == 901.0
    assert [action.case for action in desk.overdue(901.0)] == [copy]


def test_without_max_wait_a_delivery_is_held_as_long_as_it_takes(desk: Desk) -> None:
    held_case(desk)
    assert desk.overdue(1e9) == []


def test_a_body_that_the_pool_gave_up_is_given_back(desk: Desk) -> None:
    """Else its claim would be renewed for ever, and its message never run."""
    case = claimed_case(desk)
    desk.submitted(case)
    desk.unsubmitted(case)
    assert [given_back for given_back, _ in desk.disconnected()] == [case]


@pytest.mark.parametrize("phase", [Phase.CLAIMED, Phase.RUNNING, Phase.ENDED])
def test_only_a_submitted_body_can_be_given_up(desk: Desk, phase: Phase) -> None:
    case = claimed_case(desk) if phase is Phase.CLAIMED else running_case(desk)
    if phase is Phase.ENDED:
        desk.ended(case, Ending.SUCCESS, recorded=False)
    desk.unsubmitted(case)
    assert case.phase is phase


def test_a_start_that_was_not_confirmed_asks_again_under_its_grant() -> None:
    """Promise 8: its claim may be held and its start be marked; taken over by the next copy, it
    would count as a death. It stands before the copies, which wait for its end."""
    desk = make_desk()
    case = running_case(desk)
    copy, _ = desk.receive(incoming(), 1.0)
    grant_id = case.grant_id
    assert kinds(desk.returned(case, 2.0, unsure=True)) == [Do.HOLD]
    assert case.grant_id == grant_id
    assert desk.due(100.0) == [case]
    assert kinds(desk.answered(case, success(case), 100.0, 100.0)) == [Do.RUN]
    assert copy.phase is Phase.HELD


def test_a_claim_that_may_be_held_is_given_back_with_its_connection() -> None:
    desk = make_desk()
    case = running_case(desk)
    desk.returned(case, 2.0, unsure=True)
    ((given_back, settlement),) = desk.disconnected()
    assert given_back is case
    assert (settlement.outcome, settlement.counted) == (Outcome.NACKED, False)


def test_a_claim_that_another_has_is_not_given_back() -> None:
    desk = make_desk()
    case = running_case(desk)
    desk.returned(case, 2.0, unsure=True)
    desk.answered(case, denied(), 3.0, 3.0)
    assert desk.disconnected() == []
