"""A worker's claims and its store: what is recorded, told, freed, when calls fail or come late."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from celery_claims.case import Case, Do, Incoming, Phase
from celery_claims.errors import StoreUnavailable
from celery_claims.events import ClaimEvent, add_hook, remove_hook
from celery_claims.holding import LONGEST_PAUSE
from celery_claims.host import Host
from celery_claims.keeper import Keeper, new_owner
from celery_claims.protocol import (
    Attempt,
    ClaimRequest,
    Outcome,
    Record,
    Renewal,
    Settlement,
    State,
    Success,
    TookOver,
)
from celery_claims.settling import Ending
from celery_claims.stores.memory import MemoryStore
from celery_claims.testing import FakeClock

from tests.unit.factories import LEASE, FlakyStore, incoming, kinds

LEASE_MS = round(LEASE * 1000)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FlakyStore:
    return FlakyStore(MemoryStore(clock=clock, private=True))


@pytest.fixture
def keeper(store: FlakyStore) -> Keeper:
    return Keeper("w1@host", store, run_when_down=False, can_stop=False)


@pytest.fixture
def events() -> Iterator[list[ClaimEvent]]:
    seen: list[ClaimEvent] = []
    add_hook(seen.append)
    yield seen
    remove_hook(seen.append)


def claimed(keeper: Keeper, message: Incoming | None = None) -> Case:
    case, actions = keeper.receive(message or incoming())
    assert kinds(actions) == [Do.ASK]
    assert kinds(keeper.ask([case])) == [Do.RUN]
    return case


def running(keeper: Keeper, message: Incoming | None = None) -> Case:
    case = claimed(keeper, message)
    assert keeper.submitted(case)
    keeper.accepted(case)
    return case


def ended(keeper: Keeper, ending: Ending, message: Incoming | None = None) -> Case:
    case = running(keeper, message)
    keeper.ended(case, ending, recorded=False)
    return case


def take_over(store: FlakyStore, clock: FakeClock, task_id: str = "id-1") -> None:
    """The lease runs out and another worker is granted the task."""
    clock.advance(LEASE_MS)
    request = ClaimRequest("celery", task_id, "w2", LEASE_MS, f"theirs-{task_id}", task_id)
    (answer,) = store.store.claim([request])
    assert isinstance(answer, TookOver)


class TestHolds:
    """What a worker may tell of a run whose end its own process did not live to tell."""

    @pytest.fixture
    def keeper(self, store: FlakyStore, clock: FakeClock) -> Keeper:
        host = Host(clock=lambda: clock.now_us / 1e6)
        return Keeper("w1@host", store, run_when_down=False, can_stop=True, host=host)

    def test_within_its_trust_it_does_not_ask(self, keeper: Keeper, store: FlakyStore) -> None:
        case = running(keeper)
        store.fail("renew")
        assert keeper.holds(case)

    def test_past_it_the_store_says_so(
        self, keeper: Keeper, store: FlakyStore, clock: FakeClock
    ) -> None:
        case = running(keeper)
        clock.advance(LEASE_MS)
        assert keeper.holds(case)
        assert record(store).expires_at == clock.now_ms + LEASE_MS

    def test_what_another_worker_was_granted_is_lost(
        self, keeper: Keeper, store: FlakyStore, clock: FakeClock, events: list[ClaimEvent]
    ) -> None:
        case = running(keeper)
        take_over(store, clock)
        assert not keeper.holds(case)
        assert not keeper.holds(case)
        assert [event.name for event in events] == ["lost"]

    def test_an_end_that_is_recorded_is_nobody_elses(
        self, keeper: Keeper, store: FlakyStore, clock: FakeClock
    ) -> None:
        case = running(keeper)
        assert case.token is not None
        store.store.settle([Settlement(case.token, Outcome.SUCCESS, 1_000)])
        clock.advance(LEASE_MS)
        assert keeper.holds(case)

    @pytest.mark.parametrize("strict", [False, True])
    def test_without_an_answer_only_a_strict_task_says_nothing(
        self, keeper: Keeper, store: FlakyStore, clock: FakeClock, strict: bool
    ) -> None:
        case = running(keeper, incoming(strict=strict))
        clock.advance(LEASE_MS)
        store.fail("renew")
        assert keeper.holds(case) is not strict


def record(store: FlakyStore, task_id: str = "id-1") -> Record:
    (found,) = store.store.lookup([("celery", task_id)])
    assert found is not None
    return found


def names(events: list[ClaimEvent]) -> list[str]:
    return [event.name for event in events]


def assert_free_for_the_next_delivery(keeper: Keeper) -> None:
    """Nothing is left that a later delivery of the task would wait for on this worker."""
    assert keeper.desk.active() == []
    _, actions = keeper.receive(incoming())
    assert kinds(actions) == [Do.ASK]


def test_no_two_starts_of_a_worker_are_one_owner() -> None:
    """A restarted worker of the same name is another owner."""
    assert new_owner("w1@host") != new_owner("w1@host")
    assert new_owner("w1@host").startswith("w1@host/")


# asking


def test_the_questions_of_many_cases_are_one_call(keeper: Keeper, store: FlakyStore) -> None:
    cases = [keeper.receive(incoming(f"id-{n}"))[0] for n in range(3)]
    assert kinds(keeper.ask(cases)) == [Do.RUN] * 3
    assert store.count("claim") == 1
    assert [keeper.case(case.grant_id) for case in cases] == cases


def test_a_lost_reply_is_repaired(keeper: Keeper, store: FlakyStore) -> None:
    """Asked again under the same grant id, the store gives the same token."""
    store.fail("claim", after=True)
    case, _ = keeper.receive(incoming())
    assert kinds(keeper.ask([case])) == [Do.HOLD]
    granted = record(store).token
    assert kinds(keeper.ask([case])) == [Do.RUN]
    assert case.token is not None and case.token.token == granted


def test_an_outage_is_told_once_at_each_end(
    keeper: Keeper, store: FlakyStore, events: list[ClaimEvent]
) -> None:
    store.fail("claim", times=2)
    case, _ = keeper.receive(incoming())
    for _ in range(4):
        keeper.ask([case])
    assert names(events) == ["store_down", "store_up"]
    assert "deliveries wait" in events[0].detail and "out of reach" in events[0].detail


def test_the_policy_is_told_with_the_outage(store: FlakyStore, events: list[ClaimEvent]) -> None:
    keeper = Keeper("w1@host", store, run_when_down=True, can_stop=False)
    store.fail("claim")
    case, _ = keeper.receive(incoming())
    assert kinds(keeper.ask([case])) == [Do.RUN_UNCLAIMED]
    assert "run unclaimed" in events[0].detail


def test_the_passport_is_the_grant(keeper: Keeper) -> None:
    case = claimed(keeper, incoming(strict=True, keep_finished=60.0))
    passport = keeper.passport(case)
    assert passport.token is case.token
    assert (passport.lease, passport.strict, passport.keep_finished) == (LEASE, True, 60.0)
    assert (passport.deliveries, passport.mark_start) == (0, False)
    assert passport.trusted_until == case.trusted_until


# ends


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        (Ending.SUCCESS, Outcome.SUCCESS),
        (Ending.FAILURE, Outcome.FAILURE),
        (Ending.RETRY, Outcome.RETRY),
        (Ending.TIMED_OUT, Outcome.TIMED_OUT),
    ],
)
def test_the_end_is_in_the_store_before_the_broker_hears_of_it(
    keeper: Keeper,
    store: FlakyStore,
    events: list[ClaimEvent],
    ending: Ending,
    outcome: Outcome,
) -> None:
    """Promise 5: True, the acknowledgement may go on, comes after the record."""
    case = ended(keeper, ending)
    assert keeper.acknowledging(case) is True
    assert (record(store).state, record(store).outcome) == (State.FINISHED, outcome)
    assert names(events) == ["released"]
    assert keeper.case(case.grant_id) is None
    assert_free_for_the_next_delivery(keeper)


def test_a_requeue_is_given_back(
    keeper: Keeper, store: FlakyStore, events: list[ClaimEvent]
) -> None:
    case = ended(keeper, Ending.WORKER_LOST)
    assert keeper.rejecting(case, requeue=True) is True
    assert (record(store).state, record(store).deliveries) == (State.FREE, 1)
    assert names(events) == ["given_back"]


def test_the_end_of_a_run_rings_for_those_that_wait(keeper: Keeper) -> None:
    rung: list[bool] = []
    keeper.ring = lambda: rung.append(True)
    case = ended(keeper, Ending.SUCCESS)
    copy, _ = keeper.receive(incoming())
    keeper.acknowledging(case)
    assert rung == [True] and keeper.due() == [copy]


def test_an_end_that_nobody_waits_for_wakes_nobody(keeper: Keeper) -> None:
    """It would cost the consumer's loop a round for each task."""
    rung: list[bool] = []
    keeper.ring = lambda: rung.append(True)
    keeper.receive(incoming("another"))
    keeper.acknowledging(ended(keeper, Ending.SUCCESS))
    assert rung == []


def test_what_the_child_recorded_is_not_recorded_again(keeper: Keeper, store: FlakyStore) -> None:
    case = running(keeper)
    keeper.ended(case, Ending.SUCCESS, recorded=True)
    assert keeper.acknowledging(case) is True
    assert keeper.returning(case, cancelled=False) is None
    assert store.count("settle") == 0
    assert keeper.desk.active() == []


@pytest.mark.parametrize("reply_lost", [False, True])
def test_an_end_that_the_store_did_not_take_waits(
    keeper: Keeper, store: FlakyStore, reply_lost: bool
) -> None:
    """False: the acknowledgement waits. It is told again until there is an answer."""
    woken: list[bool] = []
    late: list[tuple[Case, bool]] = []
    keeper.wake_heartbeat = lambda: woken.append(True)
    keeper.late_end = lambda case, lost: late.append((case, lost))
    case = ended(keeper, Ending.SUCCESS)
    store.fail("settle", after=reply_lost)
    assert keeper.acknowledging(case) is False
    assert woken == [True] and keeper.unrecorded()
    settlement = case.unrecorded
    assert settlement is not None
    keeper.record_late(case, settlement, lost=False)
    assert late == [(case, False)]
    assert not keeper.unrecorded() and keeper.desk.active() == []


def test_an_end_under_a_lost_claim_is_told_as_lost(
    keeper: Keeper, store: FlakyStore, clock: FakeClock, events: list[ClaimEvent]
) -> None:
    """None: neither acknowledge nor reject; the new owner's record is untouched."""
    case = ended(keeper, Ending.SUCCESS)
    take_over(store, clock)
    assert keeper.acknowledging(case) is None
    assert case.lost and names(events) == ["lost"]
    assert (record(store).owner, record(store).state) == ("w2", State.CLAIMED)


def test_a_lost_body_goes_back_to_the_gate(
    keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """Held, and it asks as somebody new."""
    case = ended(keeper, Ending.SUCCESS)
    old = case.grant_id
    take_over(store, clock)
    keeper.acknowledging(case)
    assert kinds(keeper.returned(case, at_broker=True)) == [Do.HOLD]
    assert keeper.case(old) is None and case.grant_id != old


# nothing blocks a task for ever


def test_an_early_acknowledged_run_that_ended_too_late_blocks_nobody(
    keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """Nothing comes after the pool's callback: its loss is its end."""
    case = ended(keeper, Ending.SUCCESS, incoming(late=False))
    take_over(store, clock)
    keeper.returning(case, cancelled=False)
    assert record(store).owner == "w2"
    assert_free_for_the_next_delivery(keeper)


def test_a_cancelled_run_that_ended_too_late_blocks_nobody(
    keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """Killed with the connection; its message is with another worker already."""
    case = ended(keeper, Ending.TERMINATED)
    take_over(store, clock)
    keeper.returning(case, cancelled=True)
    assert_free_for_the_next_delivery(keeper)


def test_an_end_refused_late_blocks_nobody(
    keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """The store came back, and somebody else had been granted the task meanwhile."""
    case = ended(keeper, Ending.SUCCESS, incoming(late=False))
    store.fail("settle")
    keeper.returning(case, cancelled=False)
    settlement = case.unrecorded
    assert settlement is not None
    keeper.record_late(case, settlement, lost=True)
    assert_free_for_the_next_delivery(keeper)


def test_a_report_of_exhaustion_that_comes_too_late_blocks_nobody(
    keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    case, _ = keeper.receive(incoming(max_deliveries=1))
    request = keeper.desk.request(case)
    _die_once(store, clock, request)
    assert kinds(keeper.ask([case])) == [Do.REPORT]
    take_over(store, clock)
    assert keeper.exhausted(case) is None
    assert_free_for_the_next_delivery(keeper)


def test_a_rejection_under_a_lost_claim_blocks_nobody(
    keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """The message could not even be made a request; Celery has rejected it itself."""
    case = claimed(keeper)
    take_over(store, clock)
    keeper.rejecting(case, requeue=False)
    assert_free_for_the_next_delivery(keeper)


def _die_once(store: FlakyStore, clock: FakeClock, request: ClaimRequest) -> None:
    """Another worker starts the task and dies."""
    (answer,) = store.store.claim([replace(request, owner="w3", grant_id="dead")])
    assert isinstance(answer, Success)
    store.store.renew([Renewal(answer.token, LEASE_MS, started=True)])
    clock.advance(LEASE_MS)


def test_a_dropped_run_is_over(keeper: Keeper, store: FlakyStore, clock: FakeClock) -> None:
    """Lost, its body stopped, its message acknowledged long ago."""
    case = ended(keeper, Ending.SUCCESS, incoming(late=False))
    take_over(store, clock)
    keeper.acknowledging(case)
    keeper.dropped(case)
    assert_free_for_the_next_delivery(keeper)


def test_a_hung_body_counts_as_one_that_died(keeper: Keeper, store: FlakyStore) -> None:
    case = running(keeper, incoming(max_hold=60.0))
    keeper.stopped_hung(case)
    assert (record(store).state, record(store).deliveries) == (State.FREE, 1)


@pytest.mark.parametrize(("max_hold", "expected"), [(60.0, 1), (None, 0)])
def test_the_heartbeat_learns_of_a_body_with_a_limit(
    keeper: Keeper, max_hold: float | None, expected: int
) -> None:
    """It may be asleep until after that body's time is over."""
    woken: list[None] = []
    keeper.wake_heartbeat = lambda: woken.append(None)
    running(keeper, incoming(max_hold=max_hold))
    assert len(woken) == expected


# connections and shutdown


def test_a_lost_connection_gives_back_in_one_call(
    keeper: Keeper, store: FlakyStore, events: list[ClaimEvent]
) -> None:
    cases = [claimed(keeper, incoming(f"id-{n}")) for n in range(3)]
    keeper.disconnected()
    assert store.count("settle") == 1
    assert {record(store, case.incoming.task_id).state for case in cases} == {State.FREE}
    assert names(events) == ["given_back"] * 3
    assert keeper.desk.active() == []


@pytest.mark.parametrize("end", ["connection", "worker"])
def test_a_claim_whose_message_the_broker_cannot_give_away_is_kept(
    keeper: Keeper, store: FlakyStore, events: list[ClaimEvent], end: str
) -> None:
    """Promise 6: given back, it would tell no sweep of the message any more."""
    case = claimed(keeper, incoming())
    left: list[list[Case]] = []
    keeper.leave = lambda cases: bool(left.append(cases))
    if end == "connection":
        keeper.disconnected()
    else:
        keeper.closing(lambda _: False)
    assert left == [[case]]
    assert record(store).state is State.CLAIMED
    assert names(events) == []
    assert keeper.desk.active() == []


def test_nothing_to_give_back_is_no_call(keeper: Keeper, store: FlakyStore) -> None:
    keeper.disconnected()
    keeper.closing(lambda _: False)
    assert store.count("settle") == 0


def test_what_cannot_be_given_back_is_left_to_its_lease_and_not_told_as_given_back(
    keeper: Keeper, store: FlakyStore, events: list[ClaimEvent]
) -> None:
    """Nothing is lost: it is taken over when the lease is over. The log must not say otherwise."""
    case = claimed(keeper)
    store.fail("settle")
    keeper.closing(lambda _: False)
    assert case.phase is Phase.DONE and keeper.desk.active() == []
    assert record(store).state is State.CLAIMED
    assert names(events) == ["store_down"]


def test_what_survives_keeps_its_claim(keeper: Keeper, store: FlakyStore) -> None:
    """Trap 5: never give back what an executor still holds."""
    case = running(keeper)
    keeper.closing(lambda _: True)
    assert record(store).state is State.CLAIMED
    assert keeper.desk.active() == [case]


# telling


def test_an_event_carries_the_claim(keeper: Keeper, events: list[ClaimEvent]) -> None:
    case = claimed(keeper, incoming(attempt=Attempt(0, 2)))
    watched: list[ClaimEvent] = []
    keeper.watch = watched.append
    keeper.tell("claimed", case, "here")
    assert case.token is not None
    expected = ClaimEvent(
        "claimed", "here", "proj.add", "id-1", "celery", case.token.token, Attempt(0, 2)
    )
    assert events == watched == [expected]
    assert keeper.counts == {"claimed": 1}


def test_a_store_error_of_any_kind_is_an_outage(keeper: Keeper, store: FlakyStore) -> None:
    """And nothing else is swallowed: a defect must be seen."""
    store.fail("claim", error=StoreUnavailable("x", "y"))
    case, _ = keeper.receive(incoming())
    assert kinds(keeper.ask([case])) == [Do.HOLD]
    store.fail("claim", error=RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        keeper.ask([case])


# a record that cannot be read


def test_one_record_that_cannot_be_read_costs_no_other_answer(
    keeper: Keeper, store: FlakyStore, events: list[ClaimEvent]
) -> None:
    """It is held, the others run, and no outage is told or acted upon."""
    store.unreadable.add("id-3")
    cases = [keeper.receive(incoming(f"id-{n}"))[0] for n in range(8)]
    actions = keeper.ask(cases)
    assert [(action.do, action.case) for action in actions] == [
        (Do.HOLD if case is cases[3] else Do.RUN, case) for case in cases
    ]
    assert [(event.name, event.task_id) for event in events] == [("unreadable", "id-3")]
    assert "id-3 cannot be read" in events[0].detail
    assert not keeper.is_down
    _, actions = keeper.receive(incoming("next"))
    assert kinds(actions) == [Do.ASK]


def test_it_is_asked_for_less_and_less_often_and_told_of_once(
    store: FlakyStore, events: list[ClaimEvent], clock: FakeClock
) -> None:
    """No hot loop; and it runs once its record can be read, or is gone."""
    host = Host(clock=lambda: clock.now_us / 1e6)
    keeper = Keeper("w1@host", store, run_when_down=False, can_stop=False, host=host)
    store.unreadable.add("id-1")
    case, _ = keeper.receive(incoming())
    actions = keeper.ask([case])
    start = clock.now_us
    for _ in range(600):
        clock.advance(100)
        for due in keeper.due():
            actions += keeper.ask([due])
    assert kinds(actions) == [Do.HOLD]
    assert 60 / LONGEST_PAUSE <= store.count("claim") <= 25
    assert clock.now_us - start == 60_000_000
    assert names(events) == ["unreadable"]
    store.unreadable.clear()
    clock.advance(round(LONGEST_PAUSE * 1000))
    assert kinds(keeper.ask(keeper.due())) == [Do.RUN]


def test_the_policy_for_a_store_that_cannot_say_is_for_one_record_too(store: FlakyStore) -> None:
    """``claims_on_store_down = "run"``; but not where another owner is known to have had it."""
    keeper = Keeper("w1@host", store, run_when_down=True, can_stop=False)
    store.unreadable.add("id-1")
    case, _ = keeper.receive(incoming())
    assert kinds(keeper.ask([case])) == [Do.RUN_UNCLAIMED]
    store.unreadable.clear()
    store.store.claim([ClaimRequest("celery", "id-2", "w2", LEASE_MS, "theirs", "id-2")])
    case, _ = keeper.receive(incoming("id-2"))
    assert kinds(keeper.ask([case])) == [Do.HOLD]
    store.unreadable.add("id-2")
    assert keeper.ask([case]) == []


def test_an_end_under_a_record_that_cannot_be_read_waits_for_it(
    keeper: Keeper, store: FlakyStore, events: list[ClaimEvent]
) -> None:
    """Promise 5: not acknowledged before it is recorded; and that is no outage."""
    case = ended(keeper, Ending.SUCCESS)
    store.unreadable.add("id-1")
    assert keeper.acknowledging(case) is False
    assert keeper.unrecorded() and not keeper.is_down
    assert names(events) == ["unreadable"]


def test_one_record_that_cannot_be_read_is_left_to_its_lease_and_the_others_are_given_back(
    keeper: Keeper, store: FlakyStore, events: list[ClaimEvent]
) -> None:
    for number in range(5):
        claimed(keeper, incoming(f"id-{number}"))
    store.unreadable.add("id-2")
    keeper.closing(lambda _: False)
    states = [record(store, f"id-{number}").state for number in range(5)]
    assert [state is State.FREE for state in states] == [True, True, False, True, True]
    assert keeper.desk.active() == []
    assert sorted(names(events)) == ["given_back"] * 4 + ["unreadable"]
