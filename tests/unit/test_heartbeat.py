"""One beat after another, without its thread but for a few tests: what is renewed, and when."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from celery_claims import heartbeat as heartbeat_module
from celery_claims.brokers import InHand
from celery_claims.case import Action, Case, Do, Incoming
from celery_claims.events import ClaimEvent, add_hook, remove_hook
from celery_claims.heartbeat import HURRY, SHORTEST, Beat, Heartbeat
from celery_claims.host import Host
from celery_claims.keeper import Keeper
from celery_claims.protocol import Attempt, ClaimRequest, Delivery, Outcome, Record, TookOver
from celery_claims.settling import Ending
from celery_claims.stores.memory import MemoryStore
from celery_claims.sweep import Sweep, Sweeper
from celery_claims.testing import FakeClock
from celery_claims.touching import Touching

from tests.unit.factories import LEASE, FakeDeliveries, FlakyStore, incoming, kinds, moment

LEASE_MS = round(LEASE * 1000)
#: Long enough to be a failure, not a wait.
PATIENCE = 30.0


@pytest.fixture
def clock() -> FakeClock:
    """One clock for the store and for the worker."""
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FlakyStore:
    return FlakyStore(MemoryStore(clock=clock, private=True))


@pytest.fixture
def keeper(store: FlakyStore, clock: FakeClock) -> Keeper:
    host = Host(clock=lambda: clock.now_us / 1e6)
    return Keeper("w1@host", store.store, run_when_down=False, can_stop=True, host=host)


@pytest.fixture
def acted() -> list[Action]:
    return []


Make = Callable[..., Heartbeat]


@pytest.fixture
def make(keeper: Keeper, store: FlakyStore, acted: list[Action]) -> Iterator[Make]:
    made = []

    def make(**given: Any) -> Heartbeat:
        of = given.pop("store", store)
        beating = Heartbeat(
            given.pop("keeper", keeper),
            of,
            shortest_lease=given.pop("shortest_lease", LEASE),
            sweeper=given.pop("sweeper", Sweeper(of, 7_200_000)),
            sweep_every=given.pop("sweep_every", 10.0),
            act=given.pop("act", acted.extend),
            touching=given.pop("touching", None),
        )
        assert not given
        made.append(beating)
        return beating

    yield make
    for beating in made:
        beating.stop()


@pytest.fixture
def heartbeat(make: Make) -> Heartbeat:
    return make()


@pytest.fixture
def events() -> Iterator[list[ClaimEvent]]:
    seen: list[ClaimEvent] = []
    add_hook(seen.append)
    yield seen
    remove_hook(seen.append)


def running(keeper: Keeper, message: Incoming | None = None) -> Case:
    case, _ = keeper.receive(message or incoming())
    assert kinds(keeper.ask([case])) == [Do.RUN]
    assert keeper.submitted(case)
    keeper.accepted(case)
    return case


def unrecorded(keeper: Keeper, store: FlakyStore, task_id: str = "id-1") -> Case:
    """A run whose end the store did not take."""
    case = running(keeper, incoming(task_id))
    keeper.ended(case, Ending.SUCCESS, recorded=False)
    store.fail("settle")
    keeper.store = store
    assert keeper.acknowledging(case) is False
    return case


def record(store: FlakyStore, task_id: str = "id-1") -> Record:
    (found,) = store.store.lookup([("celery", task_id)])
    assert found is not None
    return found


def take_over(store: FlakyStore, clock: FakeClock) -> None:
    clock.advance(LEASE_MS)
    (answer,) = store.store.claim([ClaimRequest("celery", "id-1", "w2", LEASE_MS, "g2", "id-1")])
    assert isinstance(answer, TookOver)


# renewing


def test_a_beat_renews_every_lease_in_one_call(
    heartbeat: Heartbeat, keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """Promise 3, and one round trip for all of them; the starts are marked with it."""
    for number in range(3):
        running(keeper, incoming(f"id-{number}"))
    clock.advance(10_000)
    assert heartbeat.run_once().renewed == 3
    assert store.count("renew") == 1
    for number in range(3):
        found = record(store, f"id-{number}")
        assert found.expires_at == clock.now_ms + LEASE_MS and found.started


def test_nothing_to_renew_is_no_call(heartbeat: Heartbeat, store: FlakyStore) -> None:
    assert heartbeat.run_once() == Beat(0, 0, 0)
    assert store.count("renew") == 0


def test_a_lease_outlives_any_number_of_beats(
    heartbeat: Heartbeat, keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """Promise 3: however long the run is."""
    running(keeper)
    for _ in range(100):
        clock.advance(LEASE_MS // 3)
        heartbeat.run_once()
        assert record(store).is_live(clock.now_ms)


def test_many_leases_are_renewed_in_bounded_calls(
    make: Make,
    keeper: Keeper,
    store: FlakyStore,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One slow call must not delay all of them."""
    monkeypatch.setattr(heartbeat_module, "BATCH", 2)
    for number in range(5):
        running(keeper, incoming(f"id-{number}"))
    clock.advance(10_000)
    assert make().run_once().renewed == 5
    assert [len(batch) for verb, batch in store.calls if verb == "renew"] == [2, 2, 1]


def test_trust_runs_from_before_the_call(
    heartbeat: Heartbeat, keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """A slow successful renewal does not extend trust."""
    case = running(keeper)
    clock.advance(10_000)
    asked_at = clock.now_us / 1e6
    store.before["renew"] = lambda: clock.advance(8_000)
    heartbeat.run_once()
    assert case.trusted_until == moment(asked_at + 0.9 * LEASE)


def test_a_loss_stops_the_body(
    heartbeat: Heartbeat,
    keeper: Keeper,
    store: FlakyStore,
    clock: FakeClock,
    acted: list[Action],
) -> None:
    """Promise 7."""
    case = running(keeper)
    take_over(store, clock)
    heartbeat.run_once()
    assert [(action.do, action.case) for action in acted] == [(Do.STOP, case)]
    clock.advance(10_000)
    assert heartbeat.run_once().renewed == 0
    assert len(acted) == 1


# the store is down


@pytest.mark.parametrize("reply_lost", [False, True])
def test_a_renewal_that_fails_is_tried_again_by_the_next_beat(
    heartbeat: Heartbeat,
    keeper: Keeper,
    store: FlakyStore,
    clock: FakeClock,
    acted: list[Action],
    events: list[ClaimEvent],
    reply_lost: bool,
) -> None:
    """Two may fail before the lease is over; nothing is stopped for it."""
    running(keeper)
    store.fail("renew", times=2, after=reply_lost)
    beats = []
    for _ in range(3):
        clock.advance(LEASE_MS // 3 - 1)
        beats.append(heartbeat.run_once().renewed)
    assert beats == [0, 0, 1]
    assert acted == [] and record(store).is_live(clock.now_ms)
    assert [event.name for event in events] == ["store_down", "store_up"]


@pytest.mark.parametrize("strict", [False, True])
def test_an_outage_that_outlasts_the_trust_stops_strict_bodies_only(
    heartbeat: Heartbeat,
    keeper: Keeper,
    store: FlakyStore,
    clock: FakeClock,
    acted: list[Action],
    strict: bool,
) -> None:
    """Others are stopped only if a takeover is found when the store is back."""
    running(keeper, incoming(strict=strict))
    store.fail("renew", times=3)
    for _ in range(3):
        clock.advance(LEASE_MS // 3)
        heartbeat.run_once()
    assert kinds(acted) == ([Do.STOP] if strict else [])


def test_a_batch_that_fails_does_not_undo_the_one_before(
    make: Make,
    keeper: Keeper,
    store: FlakyStore,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat_module, "BATCH", 1)
    running(keeper, incoming("id-1"))
    running(keeper, incoming("id-2"))
    clock.advance(10_000)
    store.before["renew"] = lambda: store.fail("renew", times=store.count("renew") - 1)
    heartbeat = make()
    assert heartbeat.run_once().renewed == 1
    expiries = [record(store, task_id).expires_at for task_id in ("id-1", "id-2")]
    assert expiries[0] == clock.now_ms + LEASE_MS
    assert expiries[1] == clock.now_ms - 10_000 + LEASE_MS


# late ends


def test_an_end_that_the_store_did_not_take_is_recorded_by_a_later_beat(
    heartbeat: Heartbeat, keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """And its acknowledgement, which waited for that, may go on."""
    told: list[tuple[Case, bool]] = []
    keeper.late_end = lambda case, lost: told.append((case, lost))
    case = unrecorded(keeper, store)
    assert heartbeat.run_once().recorded == 0
    clock.advance(1_000)
    store.fail("settle")
    assert heartbeat.run_once().recorded == 0 and told == []
    clock.advance(1_000)
    assert heartbeat.run_once().recorded == 1
    assert told == [(case, False)]
    assert record(store).outcome is Outcome.SUCCESS


def test_a_late_end_under_a_lost_claim_is_refused(
    heartbeat: Heartbeat, keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """Told as lost: the message is not acknowledged for it."""
    told: list[tuple[Case, bool]] = []
    keeper.late_end = lambda case, lost: told.append((case, lost))
    case = unrecorded(keeper, store)
    take_over(store, clock)
    heartbeat.run_once()
    assert told == [(case, True)] and not keeper.unrecorded()
    assert record(store).owner == "w2"


def test_late_ends_stop_at_the_first_failure(
    heartbeat: Heartbeat, keeper: Keeper, store: FlakyStore, clock: FakeClock
) -> None:
    """A store that is down costs one time-out per beat, not one per end."""
    for number in range(3):
        unrecorded(keeper, store, f"id-{number}")
    clock.advance(1_000)
    before = store.count("settle")
    store.fail("settle")
    assert heartbeat.run_once().recorded == 0
    assert store.count("settle") == before + 1
    clock.advance(1_000)
    assert heartbeat.run_once().recorded == 3


# sweeping


def orphan(store: FlakyStore, clock: FakeClock, task_id: str) -> None:
    store.store.claim(
        [ClaimRequest("celery", task_id, "dead", 1_000, f"g-{task_id}", task_id, Attempt())]
    )
    clock.advance(1_000)


def test_one_worker_sweeps_at_a_time(
    make: Make, store: FlakyStore, clock: FakeClock, events: list[ClaimEvent]
) -> None:
    """Promise 6 without beat: elected by the store, once per interval among all workers."""
    one, other = make(), make()
    orphan(store, clock, "a")
    assert [one.run_once().cleaned, other.run_once().cleaned] == [1, 0]
    assert [event.name for event in events] == ["swept"]
    orphan(store, clock, "b")
    assert [one.run_once().cleaned, other.run_once().cleaned] == [0, 0]
    clock.advance(10_000)
    assert [other.run_once().cleaned, one.run_once().cleaned] == [1, 0]


@pytest.mark.parametrize("verb", ["elect", "scan", "expire"])
def test_a_sweep_that_fails_leaves_the_beat_alone(
    heartbeat: Heartbeat, keeper: Keeper, store: FlakyStore, clock: FakeClock, verb: str
) -> None:
    running(keeper)
    clock.advance(10_000)
    store.fail(verb)
    assert heartbeat.run_once() == Beat(renewed=1, recorded=0, cleaned=0)
    orphan(store, clock, "a")
    clock.advance(20_000)
    assert heartbeat.run_once().cleaned == 1


# the time between beats, as the loop takes it


@pytest.fixture
def beats(clock: FakeClock, keeper: Keeper) -> Callable[[Heartbeat, int, int], Iterator[float]]:
    def beats(heartbeat: Heartbeat, number: int, seed: int) -> Iterator[float]:
        """Beat as often, with the pauses that the loop would make; the seconds since the start."""
        keeper.host.rng.seed(seed)
        start = clock.now_us
        for _ in range(number):
            clock.advance(round(heartbeat._pause() * 1000))
            heartbeat.run_once()
            yield (clock.now_us - start) / 1e6

    return beats


@pytest.mark.parametrize("seed", range(5))
def test_a_lease_is_renewed_three_times_with_jitter(
    heartbeat: Heartbeat, beats: Callable[..., Iterator[float]], seed: int
) -> None:
    times = [0.0, *beats(heartbeat, 20, seed)]
    pauses = [after - before for before, after in pairwise(times)]
    assert max(pauses) <= LEASE / 3 + 0.001
    assert len({round(pause, 3) for pause in pauses}) > 10


def test_ends_that_wait_hurry_the_beat(
    heartbeat: Heartbeat, keeper: Keeper, store: FlakyStore
) -> None:
    """An acknowledgement waits for it."""
    unrecorded(keeper, store)
    assert heartbeat._pause() <= HURRY


@pytest.mark.parametrize("seed", range(10))
def test_a_strict_body_is_stopped_before_its_lease_is_over(
    heartbeat: Heartbeat,
    keeper: Keeper,
    store: FlakyStore,
    acted: list[Action],
    beats: Callable[..., Iterator[float]],
    seed: int,
) -> None:
    """Then another worker may begin: the beat must not come after the end of the trust."""
    running(keeper, incoming(strict=True))
    store.fail("renew", times=1000)
    stopped_at = next(at for at in beats(heartbeat, 100, seed) if acted)
    assert 0.9 * LEASE <= stopped_at < LEASE


@pytest.mark.parametrize("seed", range(5))
def test_a_hung_body_is_stopped_when_its_time_is_over(
    make: Make,
    keeper: Keeper,
    acted: list[Action],
    beats: Callable[..., Iterator[float]],
    seed: int,
) -> None:
    """Not at the next renewal of a long lease."""
    running(keeper, incoming(max_hold=5.0))
    heartbeat = make(shortest_lease=3600.0, sweep_every=3600.0)
    stopped_at = next(at for at in beats(heartbeat, 10, seed) if acted)
    assert 5.0 <= stopped_at <= 5.1


def test_long_leases_do_not_delay_sweeps(
    make: Make, store: FlakyStore, clock: FakeClock, beats: Callable[..., Iterator[float]]
) -> None:
    """Promise 6: within one cleanup interval after the lease, however long leases are."""
    heartbeat = make(shortest_lease=3600.0)
    orphan(store, clock, "a")
    cleaned_at = next(
        at for at in beats(heartbeat, 10, 1) if not record(store, "a").is_orphan(clock.now_ms)
    )
    assert cleaned_at <= 10.0


class NotedSweeps:
    """A sweeper that only says when it swept, in seconds."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.times: list[float] = []

    def run_once(self) -> Sweep:
        self.times.append(self._clock.now_us / 1e6)
        return Sweep(0, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lease", [1.0, 30.0, 3600.0])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_no_interval_passes_without_a_sweep(
    store: FlakyStore, clock: FakeClock, lease: float, number: int, seed: int
) -> None:
    """Promise 6: whichever workers are left, whenever they started and beat, and though the one
    whose turn it was is killed right after it."""
    rng = random.Random(seed)
    sweeps = NotedSweeps(clock)
    due: dict[Heartbeat, float] = {}
    for name in map(str, range(number)):
        host = Host(clock=lambda: clock.now_us / 1e6, rng=rng)
        keeper = Keeper(name, store.store, run_when_down=False, can_stop=True, host=host)
        beating = Heartbeat(
            keeper,
            store,
            shortest_lease=lease,
            sweeper=sweeps,  # type: ignore[arg-type]
            sweep_every=10.0,
            act=lambda _: None,
        )
        due[beating] = host.clock() + rng.uniform(0.0, 10.0)
    for _ in range(100):
        beating = min(due, key=due.__getitem__)
        clock.advance(round((due[beating] - clock.now_us / 1e6) * 1000))
        before = len(sweeps.times)
        beating.run_once()
        due[beating] = clock.now_us / 1e6 + beating._pause()
        if len(sweeps.times) > max(before, 10) and len(due) > 1:
            del due[beating]
    gaps = [after - before for before, after in pairwise(sweeps.times)]
    assert gaps
    assert max(gaps) <= 10.0 + SHORTEST


# the thread


def test_the_loop_survives_any_error(make: Make, store: FlakyStore, clock: FakeClock) -> None:
    """Every lease of the worker hangs on the next beat, so there is one, whatever happened."""
    store.fail("elect", error=RuntimeError("a defect"))
    second = threading.Event()

    def elected() -> None:
        clock.advance(10)
        if store.count("elect") > 1:
            second.set()

    store.before["elect"] = elected
    heartbeat = make(shortest_lease=0.003, sweep_every=0.001)
    heartbeat.start()
    _tick_until(second, heartbeat)


def test_the_loop_survives_an_error_of_what_it_calls(
    keeper: Keeper, make: Make, store: FlakyStore, clock: FakeClock
) -> None:
    """Also of the consumer that shall stop a body."""
    running(keeper)
    take_over(store, clock)
    swept = threading.Event()
    store.before["elect"] = swept.set

    def broken(actions: list[Action]) -> None:
        raise RuntimeError("the consumer is gone")

    heartbeat = make(shortest_lease=0.003, act=broken)
    heartbeat.start()
    _tick_until(swept, heartbeat)


def _tick_until(happened: threading.Event, heartbeat: Heartbeat) -> None:
    assert happened.wait(PATIENCE)
    heartbeat.stop()


def test_a_waiting_end_wakes_the_loop(keeper: Keeper, make: Make, store: FlakyStore) -> None:
    """It does not wait for a third of a long lease."""
    beat = threading.Event()
    store.before["elect"] = beat.set
    heartbeat = make(shortest_lease=3600.0, sweep_every=3600.0)
    heartbeat.start()
    keeper.wake_heartbeat()
    _tick_until(beat, heartbeat)


def test_starting_and_stopping_are_idempotent(make: Make, store: FlakyStore) -> None:
    """Also never started: a worker that fails to start stops its steps all the same."""
    never = make()
    never.stop()
    heartbeat = make(shortest_lease=3600.0)
    heartbeat.start()
    thread = heartbeat._thread
    heartbeat.start()
    assert heartbeat._thread is thread
    assert thread is not None
    heartbeat.stop()
    heartbeat.stop()
    assert not thread.is_alive()
    assert store.closed == 3


class TestTouching:
    """On a broker that gives untouched messages away."""

    @pytest.fixture
    def deliveries(self) -> FakeDeliveries:
        return FakeDeliveries()

    @pytest.fixture
    def touching(self, make: Make, deliveries: FakeDeliveries) -> Heartbeat:
        return make(touching=Touching(deliveries, FakeDeliveries(), LEASE / 3))

    def test_whatever_is_in_the_workers_hands_is_touched(
        self, touching: Heartbeat, keeper: Keeper, deliveries: FakeDeliveries
    ) -> None:
        """Running, reserved and held; before the leases are renewed."""
        running(keeper)
        keeper.receive(incoming(delivery=Delivery(tag="copy", queue="celery")))
        touching.run_once()
        touched = [InHand("copy", "celery"), InHand("tag-1", "celery")]
        assert deliveries.touches == [(touched, [])]

    @pytest.mark.parametrize("failed", [False, True])
    def test_a_touch_comes_before_the_renewal(
        self,
        touching: Heartbeat,
        keeper: Keeper,
        store: FlakyStore,
        clock: FakeClock,
        deliveries: FakeDeliveries,
        failed: bool,
    ) -> None:
        """And after it once the broker failed, for the lease must not wait for its timeout."""
        running(keeper)
        deliveries.up = not failed
        touching.run_once()
        order: list[str] = []
        store.before["renew"] = lambda: order.append("renew")
        deliveries.touch = lambda *_: order.append("touch")  # type: ignore[method-assign]
        clock.advance(LEASE_MS // 3)
        touching.run_once()
        assert order == (["renew", "touch"] if failed else ["touch", "renew"])

    def test_a_broker_that_is_down_delays_no_renewal(
        self, touching: Heartbeat, keeper: Keeper, clock: FakeClock, deliveries: FakeDeliveries
    ) -> None:
        case = running(keeper)
        deliveries.up = False
        for _ in range(2):
            clock.advance(LEASE_MS // 3)
            assert touching.run_once().renewed == 1
        deliveries.up = True
        clock.advance(LEASE_MS // 3)
        touching.run_once()
        assert deliveries.touches == [([InHand("tag-1", case.incoming.queue)], [])]

    def test_a_hold_wakes_the_thread(
        self, touching: Heartbeat, keeper: Keeper, deliveries: FakeDeliveries
    ) -> None:
        """A worker that is killed soon after must not take what it holds with it."""
        told = threading.Event()
        touching.run_once()
        deliveries.touch = lambda *_: told.set()  # type: ignore[method-assign]
        touching.start()
        case, _ = keeper.receive(incoming())
        keeper.wake_to_touch(case)
        assert told.wait(PATIENCE)

    def test_the_pause_is_not_longer_than_the_visibility_timeout_allows(
        self, make: Make, deliveries: FakeDeliveries
    ) -> None:
        deliveries.touch_every = 0.5
        beating = make(touching=Touching(deliveries, FakeDeliveries(), LEASE / 3))
        beating.run_once()
        assert beating._pause() <= 0.5

    def test_its_connection_is_closed_at_the_end(
        self, touching: Heartbeat, deliveries: FakeDeliveries
    ) -> None:
        touching.start()
        touching.stop()
        assert deliveries.closed


# a record that cannot be read


def test_one_record_that_cannot_be_read_costs_no_other_lease(
    heartbeat: Heartbeat,
    keeper: Keeper,
    store: FlakyStore,
    clock: FakeClock,
    acted: list[Action],
    events: list[ClaimEvent],
) -> None:
    """Promise 3 for all the others; the one is told of once, and is no outage."""
    for number in range(20):
        running(keeper, incoming(f"id-{number}"))
    store.unreadable.add("id-7")
    for _ in range(4):
        clock.advance(LEASE_MS // 3)
        assert heartbeat.run_once().renewed == 19
    assert all(record(store, f"id-{n}").is_live(clock.now_ms) for n in range(20) if n != 7)
    told = [event.name for event in events if event.task_id]
    assert told == ["unreadable"] and not keeper.is_down
    assert acted == [] and not any(event.name.startswith("store") for event in events)


def test_a_strict_body_whose_record_cannot_be_read_is_stopped_when_its_trust_is_over(
    heartbeat: Heartbeat,
    keeper: Keeper,
    store: FlakyStore,
    clock: FakeClock,
    acted: list[Action],
) -> None:
    case = running(keeper, incoming("bad", strict=True))
    running(keeper, incoming("good", strict=True))
    store.unreadable.add("bad")
    for _ in range(3):
        clock.advance(LEASE_MS // 3)
        heartbeat.run_once()
    assert [(action.do, action.case) for action in acted] == [(Do.STOP, case)]


def test_a_record_that_can_be_read_again_is_renewed_and_may_be_told_of_anew(
    heartbeat: Heartbeat,
    keeper: Keeper,
    store: FlakyStore,
    clock: FakeClock,
    events: list[ClaimEvent],
) -> None:
    running(keeper)
    for broken in (True, False, True):
        store.unreadable = {"id-1"} if broken else set()
        clock.advance(LEASE_MS // 4)
        assert heartbeat.run_once().renewed == (not broken)
    assert [event.name for event in events] == ["unreadable", "unreadable"]


def test_an_end_that_cannot_be_recorded_holds_no_other_up(
    heartbeat: Heartbeat,
    keeper: Keeper,
    store: FlakyStore,
    clock: FakeClock,
    events: list[ClaimEvent],
) -> None:
    """It is tried again, and recorded once its record can be read."""
    for task_id in ("bad", "good"):
        unrecorded(keeper, store, task_id)
    events.clear()
    store.unreadable.add("bad")
    for recorded in (1, 0, 0):
        clock.advance(1_000)
        assert heartbeat.run_once().recorded == recorded
    assert record(store, "good").outcome is Outcome.SUCCESS
    assert [event.name for event in events] == ["unreadable", "released"]
    store.unreadable.clear()
    clock.advance(1_000)
    assert heartbeat.run_once().recorded == 1
    assert record(store, "bad").outcome is Outcome.SUCCESS
