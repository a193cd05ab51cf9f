"""A claimed run: when it may begin, go on and extend, and what it learns from its worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from celery.exceptions import Ignore
from celery_claims import ClaimLost
from celery_claims.case import Case
from celery_claims.errors import ExtensionLimit, InvalidArgument, StoreUnavailable
from celery_claims.headers import Passport
from celery_claims.host import Host
from celery_claims.manager import LeaseConfig
from celery_claims.protocol import Attempt, ClaimRequest, Outcome, Record, Success, TookOver
from celery_claims.run import Claim, Run, here
from celery_claims.stores.memory import MemoryStore
from celery_claims.testing import FakeClock

from tests.unit.factories import LEASE, FlakyStore, incoming, moment

LEASE_MS = round(LEASE * 1000)
TRUST_MS = round(0.9 * LEASE_MS)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FlakyStore:
    return FlakyStore(MemoryStore(clock=clock, private=True))


@pytest.fixture
def passport(store: FlakyStore, clock: FakeClock) -> Passport:
    (answer,) = store.store.claim([request("w1")])
    assert isinstance(answer, Success)
    return Passport(
        token=answer.token,
        lease=LEASE,
        strict=False,
        keep_finished=7200.0,
        deliveries=3,
        mark_start=False,
        trusted_until=clock.now_us / 1e6 + 0.9 * LEASE,
        worker=1,
    )


Make = Callable[..., Run]


@pytest.fixture
def make(passport: Passport, store: FlakyStore, clock: FakeClock) -> Make:
    def make(case: Case | None = None, **given: object) -> Run:
        passed: Passport = replace(passport, **given)  # type: ignore[arg-type]
        return Run(passed, lambda: store, case, lambda: clock.now_us / 1e6)

    return make


def request(owner: str) -> ClaimRequest:
    return ClaimRequest("celery", "id-1", owner, LEASE_MS, f"g-{owner}", "id-1", Attempt(0, 1))


def take_over(store: FlakyStore, clock: FakeClock) -> None:
    clock.advance(LEASE_MS)
    (answer,) = store.store.claim([request("w2")])
    assert isinstance(answer, TookOver)


def record(store: FlakyStore) -> Record:
    (found,) = store.store.lookup([("celery", "id-1")])
    assert found is not None
    return found


def test_the_loss_passes_through_celery() -> None:
    """As ``Ignore``: else it would be retried, or written over the new owner's result."""
    assert issubclass(ClaimLost, Ignore)


# begin


def test_it_begins_within_its_trust_without_asking(make: Make, store: FlakyStore) -> None:
    assert make().begin()
    assert store.calls == []


@pytest.mark.parametrize("late_ms", [TRUST_MS, LEASE_MS, 10 * LEASE_MS])
def test_after_its_trust_it_begins_if_the_store_confirms(
    make: Make, store: FlakyStore, clock: FakeClock, late_ms: int
) -> None:
    """Also after the lease, if nobody else was granted it: the token decides."""
    clock.advance(late_ms)
    run = make()
    assert run.begin()
    assert record(store).started and record(store).is_live(clock.now_ms)
    assert run.trusted_until == moment(clock.now_us / 1e6 + 0.9 * LEASE)


def test_it_does_not_begin_without_the_store_when_its_trust_is_over(
    make: Make, store: FlakyStore, clock: FakeClock
) -> None:
    """Not strict or strict: before the first line nothing is lost by waiting."""
    clock.advance(TRUST_MS)
    store.fail("renew", after=True)
    assert not make().begin()


def test_it_does_not_begin_after_a_takeover(
    make: Make, store: FlakyStore, clock: FakeClock
) -> None:
    take_over(store, clock)
    run = make()
    assert not run.begin() and run.lost
    assert record(store).owner == "w2"


def test_it_does_not_begin_when_its_worker_knows_of_a_loss(make: Make, store: FlakyStore) -> None:
    """In the worker's own process the case says so before the store is asked."""
    case = Case(incoming(), 0, "g", lost=True)
    assert not make(case).begin()
    assert store.calls == []


def test_a_slow_confirmation_does_not_extend_trust(
    make: Make, store: FlakyStore, clock: FakeClock
) -> None:
    clock.advance(TRUST_MS)
    asked_at = clock.now_us / 1e6
    store.before["renew"] = lambda: clock.advance(5_000)
    run = make()
    assert run.begin()
    assert run.trusted_until == moment(asked_at + 0.9 * LEASE)


# check


def test_a_check_within_the_trust_asks_nobody(
    make: Make, store: FlakyStore, clock: FakeClock
) -> None:
    run = make()
    clock.advance(TRUST_MS - 1)
    run.ensure()
    assert store.calls == []


def test_a_check_after_the_trust_asks_once(make: Make, store: FlakyStore, clock: FakeClock) -> None:
    run = make()
    clock.advance(TRUST_MS)
    run.ensure()
    run.ensure()
    assert store.count("renew") == 1


def test_a_check_after_a_takeover_raises_for_ever(
    make: Make, store: FlakyStore, clock: FakeClock
) -> None:
    """Swallowing it once does not help; the message says what is the matter."""
    run = make()
    take_over(store, clock)
    for _ in range(2):
        with pytest.raises(ClaimLost, match=r"id-1.*another worker"):
            run.ensure()
    assert store.count("renew") == 1


def test_a_check_finds_what_the_worker_was_told(make: Make) -> None:
    """Promise 7 for threads: the heartbeat learns it, the body's next check raises."""
    case = Case(incoming(), 0, "g")
    run = make(case)
    run.ensure()
    case.lost = True
    with pytest.raises(ClaimLost):
        run.ensure()


def test_the_trust_of_the_worker_is_that_of_its_bodies(
    make: Make, store: FlakyStore, clock: FakeClock
) -> None:
    """In one process a check need not ask while the heartbeat renews."""
    case = Case(incoming(), 0, "g", trusted_until=clock.now_us / 1e6 + 1_000)
    run = make(case)
    clock.advance(900_000)
    run.ensure()
    assert store.calls == []


def test_a_body_that_ran_too_long_does_not_renew_its_own_lease(
    make: Make, store: FlakyStore, clock: FakeClock
) -> None:
    """``max_hold`` where a body cannot be killed: its lease runs out, and its checks tell it.

    A check that renewed the lease would keep it for ever, and the task would never run again.
    """
    case = Case(incoming(max_hold=60.0), 0, "g", hung=True)
    run = make(case)
    clock.advance(LEASE_MS)
    with pytest.raises(ClaimLost):
        run.ensure()
    assert record(store).is_orphan(clock.now_ms)


@pytest.mark.parametrize("reply_lost", [False, True])
def test_without_the_store_only_a_strict_run_ends(
    make: Make, store: FlakyStore, clock: FakeClock, reply_lost: bool
) -> None:
    """It cannot be trusted, and is not known to be lost: asked again by the next check."""
    strict, lenient = make(strict=True), make()
    clock.advance(TRUST_MS)
    store.fail("renew", times=2, after=reply_lost)
    lenient.ensure()
    with pytest.raises(ClaimLost, match="does not answer") as caught:
        strict.ensure()
    assert isinstance(caught.value.__cause__, StoreUnavailable)
    lenient.ensure()
    assert store.count("renew") == 3


# extend


def test_extending_adds_to_what_is_left(make: Make, store: FlakyStore, clock: FakeClock) -> None:
    """And to the trust: so many seconds without any renewal are safe."""
    run = make()
    claim = Claim(run)
    claim.extend(600_000)
    assert record(store).expires_at == clock.now_ms + LEASE_MS + 600_000
    assert claim.remaining == pytest.approx(0.9 * (LEASE + 600))


def test_an_extension_is_an_hour_at_most(make: Make, store: FlakyStore, clock: FakeClock) -> None:
    """Promise 6: a slip of units must not keep a dead worker's task for years."""
    Claim(make()).extend(5 * 365 * 86_400_000)
    assert record(store).expires_at == clock.now_ms + LEASE_MS + LeaseConfig().max_ms


def test_extensions_have_a_limit(make: Make, store: FlakyStore) -> None:
    """A task's own, not the heartbeat's: ``LeaseConfig.max_extensions``."""
    claim = Claim(make())
    for _ in range(LeaseConfig().max_extensions):
        claim.extend(1_000)
    before = record(store).expires_at
    with pytest.raises(ExtensionLimit):
        claim.extend(1_000)
    assert record(store).expires_at == before


def test_an_extension_that_failed_was_none(make: Make, store: FlakyStore) -> None:
    """An error of the store uses nothing up."""
    claim = Claim(make())
    store.fail("renew")
    with pytest.raises(StoreUnavailable):
        claim.extend(1_000)
    for _ in range(LeaseConfig().max_extensions):
        claim.extend(1_000)


def test_extending_a_lost_claim_tells_of_the_loss(
    make: Make, store: FlakyStore, clock: FakeClock
) -> None:
    claim = Claim(make())
    take_over(store, clock)
    with pytest.raises(ClaimLost):
        claim.extend(1_000)
    assert claim.remaining == 0.0
    with pytest.raises(ClaimLost):
        claim.check()


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "1000", None, True])
def test_extending_takes_whole_milliseconds(make: Make, store: FlakyStore, wrong: object) -> None:
    with pytest.raises(InvalidArgument, match="additional_ms"):
        Claim(make()).extend(wrong)  # type: ignore[arg-type]
    assert store.calls == []


# the end


def test_the_end_is_recorded(make: Make, store: FlakyStore, clock: FakeClock) -> None:
    run = make(keep_finished=60.0)
    assert run.finish(Outcome.SUCCESS) is True
    assert record(store).outcome is Outcome.SUCCESS
    assert record(store).forget_at == clock.now_ms + 60_000


def test_the_end_may_be_told_twice(make: Make, store: FlakyStore) -> None:
    """A reply was lost: the worker tells it again."""
    run = make()
    store.fail("settle", after=True)
    assert run.finish(Outcome.SUCCESS) is False
    assert run.finish(Outcome.SUCCESS) is True


def test_the_end_of_a_lost_run_is_refused(make: Make, store: FlakyStore, clock: FakeClock) -> None:
    run = make()
    take_over(store, clock)
    assert run.finish(Outcome.SUCCESS) is None
    assert record(store).owner == "w2"


# what the body may ask


def test_the_claim_shows_its_grant(make: Make, passport: Passport, clock: FakeClock) -> None:
    claim = Claim(make())
    assert (claim.queue, claim.task_id, claim.owner) == ("celery", "id-1", "w1")
    assert (claim.token, claim.attempt, claim.deliveries) == (passport.token.token, (0, 1), 3)
    assert claim.remaining == pytest.approx(0.9 * LEASE)
    clock.advance(10 * LEASE_MS)
    assert claim.remaining == 0.0
    assert "id-1" in repr(claim) and str(claim.token) in repr(claim)


def test_the_worker_may_be_this_process(passport: Passport) -> None:
    """By its pid, which a forked child does not share."""
    assert here(passport, Host(pid=lambda: 1))
    assert not here(passport, Host(pid=lambda: 2))
