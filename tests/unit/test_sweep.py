"""Sweeping: in bounded pages, in two steps, and never what is alive."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from celery_claims.errors import StoreUnavailable
from celery_claims.events import ClaimEvent, add_hook, remove_hook
from celery_claims.protocol import (
    Attempt,
    ClaimRequest,
    ClaimToken,
    Outcome,
    Record,
    Renewal,
    Renewed,
    State,
    Success,
)
from celery_claims.stores.memory import MemoryStore
from celery_claims.sweep import LONGEST_PAUSE, MAX_PAGES, PAGE, Sweep, Sweeper
from celery_claims.testing import FakeClock

from tests.unit.factories import FakeDeliveries, FlakyStore

KEEP_MS = 7_200_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FlakyStore:
    return FlakyStore(MemoryStore(clock=clock, private=True))


@pytest.fixture
def claim(store: FlakyStore) -> Callable[..., ClaimToken]:
    def claim(task_id: str, lease_ms: int = 1_000) -> ClaimToken:
        request = ClaimRequest("q", task_id, "w1", lease_ms, f"g-{task_id}", "r", Attempt(0, 1))
        (answer,) = store.store.claim([request])
        assert isinstance(answer, Success)
        return answer.token

    return claim


def states(store: FlakyStore, *task_ids: str) -> list[State]:
    records = store.store.lookup([("q", task_id) for task_id in task_ids])
    return [record.state for record in records if record is not None]


def test_only_expired_claims_are_cleaned_up(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    """Trap 13: a sweeper must never remove a live claim. The counters of a dead one stay."""
    claim("dead")
    claim("alive", lease_ms=60_000)
    clock.advance(1_000)
    assert Sweeper(store, KEEP_MS).run_once() == Sweep(seen=1, cleaned=1)
    assert states(store, "dead", "alive") == [State.FREE, State.CLAIMED]
    (record,) = store.store.lookup([("q", "dead")])
    assert record is not None
    assert (record.attempt, record.outcome) == (Attempt(0, 1), Outcome.EXPIRED)


def test_a_quiet_store_is_only_told_to_forget(store: FlakyStore) -> None:
    """Records that were kept long enough go, though nothing has expired."""
    assert Sweeper(store, KEEP_MS).run_once() == Sweep(0, 0)
    assert store.count("expire") == 1


def test_many_pages(store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]) -> None:
    number = 2 * PAGE + 1
    for index in range(number):
        claim(f"id-{index}")
    clock.advance(1_000)
    assert Sweeper(store, KEEP_MS).run_once() == Sweep(number, number)
    assert store.count("scan") == 3


def test_others_have_the_store_between_two_pages_and_nothing_waits_after_the_last(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    """A sweep without pauses made claims beside it wait three times as long as usual."""
    pauses: list[float] = []
    sweeper = Sweeper(store, KEEP_MS, pause=pauses.append)
    claim("one")
    clock.advance(1_000)
    sweeper.run_once()
    assert pauses == []
    for index in range(2 * PAGE + 1):
        claim(f"id-{index}")
    clock.advance(1_000)
    sweeper.run_once()
    assert len(pauses) == 2
    assert all(0 < pause <= LONGEST_PAUSE for pause in pauses)


def test_one_run_is_bounded_and_the_next_goes_on(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    most = PAGE * MAX_PAGES
    for index in range(most + 1):
        claim(f"id-{index}")
    clock.advance(1_000)
    sweeper = Sweeper(store, KEEP_MS)
    assert [sweeper.run_once().cleaned for _ in range(3)] == [most, 1, 0]


def test_the_message_is_given_back_before_its_claim_is_cleaned_up(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    """A crash between the steps loses nothing: the next sweep gives it back again."""
    claim("dead")
    clock.advance(1_000)
    given_back: list[str] = []

    def give_back(record: Record) -> bool:
        assert states(store, "dead") == [State.CLAIMED]
        given_back.append(record.task_id)
        return True

    store.fail("expire")
    sweeper = Sweeper(store, KEEP_MS, FakeDeliveries(give_back))
    with pytest.raises(StoreUnavailable):
        sweeper.run_once()
    assert states(store, "dead") == [State.CLAIMED]
    assert sweeper.run_once() == Sweep(1, 1, 1)
    assert given_back == ["dead", "dead"]


def test_a_claim_that_is_renewed_meanwhile_stays(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    """Its owner was late, not dead: seen, and not cleaned up."""
    token = claim("late")
    clock.advance(1_000)

    def give_back(_: Record) -> bool:
        (answer,) = store.store.renew([Renewal(token, 30_000)])
        return isinstance(answer, Renewed)

    assert Sweeper(store, KEEP_MS, FakeDeliveries(give_back)).run_once() == Sweep(1, 0, 1)
    assert states(store, "late") == [State.CLAIMED]


def test_two_sweepers_clean_each_claim_up_once(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    """Another one comes between this one's two steps."""
    for index in range(3):
        claim(f"id-{index}")
    clock.advance(1_000)
    other = Sweeper(store.store, KEEP_MS)
    swept: list[Sweep] = []

    def give_back(_: Record) -> bool:
        swept.append(other.run_once())
        return True

    assert Sweeper(store, KEEP_MS, FakeDeliveries(give_back)).run_once() == Sweep(3, 0, 3)
    assert swept == [Sweep(3, 3), Sweep(0, 0), Sweep(0, 0)]


def test_a_message_in_a_workers_hands_hides_no_other(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    """Trap 13: stuck rows must not hide the rest, and stay until their message is back."""
    for task_id in ("stuck", "fine"):
        claim(task_id)
        clock.advance(1)
    clock.advance(1_000)
    deliveries = FakeDeliveries(lambda record: record.task_id != "stuck")
    assert Sweeper(store, KEEP_MS, deliveries).run_once() == Sweep(2, 1, 1)
    assert states(store, "stuck", "fine") == [State.CLAIMED, State.FREE]
    assert deliveries.untouched == 1


def test_claims_stay_while_the_broker_does_not_answer(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    """Cleaned up, nobody would know any more which message to give back. Old records still go."""
    claim("dead")
    clock.advance(1_000)
    deliveries = FakeDeliveries()
    deliveries.up = False
    sweeper = Sweeper(store, KEEP_MS, deliveries)
    assert sweeper.run_once() == Sweep(1, 0)
    assert states(store, "dead") == [State.CLAIMED]
    assert store.count("expire") == 1
    deliveries.up = True
    assert sweeper.run_once() == Sweep(1, 1, 1)


def test_a_broker_that_fails_between_two_pages(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    """What is back is cleaned up; what is not stays."""
    for index in range(PAGE + 1):
        claim(f"id-{index:03}")
    clock.advance(1_000)
    deliveries = FakeDeliveries()

    def give_back(_: Record) -> bool:
        deliveries.up = False
        return True

    deliveries.is_back = give_back
    assert Sweeper(store, KEEP_MS, deliveries).run_once() == Sweep(PAGE + 1, PAGE, PAGE)


def test_a_store_that_fails_is_told_of(store: FlakyStore) -> None:
    """The caller decides what a failed sweep means."""
    store.fail("scan")
    with pytest.raises(StoreUnavailable):
        Sweeper(store, KEEP_MS).run_once()


def test_what_cannot_be_read_hides_no_other_and_is_told_of_once_a_run(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    """Trap 13: the sweep gets past it, page after page."""
    number = PAGE + 20
    for index in range(number):
        claim(f"id-{index}")
    clock.advance(1_000)
    store.unreadable = {"id-3", "id-4", f"id-{PAGE + 5}"}
    events: list[ClaimEvent] = []
    add_hook(events.append)
    try:
        assert Sweeper(store, KEEP_MS).run_once() == Sweep(number - 3, number - 3, unreadable=3)
    finally:
        remove_hook(events.append)
    (event,) = events
    assert (event.name, event.task_id) == ("unreadable", "")
    assert "to delete it: rm id-" in event.detail and "2 more" in event.detail


def test_a_claim_that_cannot_be_cleaned_up_costs_no_other(
    store: FlakyStore, clock: FakeClock, claim: Callable[..., ClaimToken]
) -> None:
    """It was damaged after the scan."""
    for index in range(5):
        claim(f"id-{index}")
    clock.advance(1_000)
    store.before["expire"] = lambda: store.unreadable.add("id-2")
    sweep = Sweeper(store, KEEP_MS).run_once()
    assert (sweep.seen, sweep.unreadable) == (5, 1)
    assert states(store, "id-1", "id-2", "id-3") == [State.FREE, State.CLAIMED, State.FREE]
