"""When a worker's messages are touched. Pure but for the log."""

from __future__ import annotations

import pytest
from celery_claims.brokers import InHand
from celery_claims.case import Case
from celery_claims.protocol import Delivery
from celery_claims.touching import Touching

from tests.unit.factories import FakeDeliveries, incoming


@pytest.fixture
def deliveries() -> FakeDeliveries:
    return FakeDeliveries()


@pytest.fixture
def leaving() -> FakeDeliveries:
    return FakeDeliveries()


@pytest.fixture
def touching(deliveries: FakeDeliveries, leaving: FakeDeliveries) -> Touching:
    return Touching(deliveries, leaving, 10.0)


def in_hand(tag: str) -> InHand:
    return InHand(tag, "celery")


def case(tag: str) -> Case:
    return Case(incoming(delivery=Delivery(tag=tag, queue="celery")), 0, tag)


def test_everything_is_touched_when_it_is_time(
    touching: Touching, deliveries: FakeDeliveries
) -> None:
    cases = [case("a"), case("b")]
    assert [touching.run_once(cases, now) for now in (0.0, 9.9, 10.0)] == [2, 0, 2]
    assert deliveries.touches == 2 * [([in_hand("a"), in_hand("b")], [])]


def test_between_two_times_only_what_is_new_is_touched(
    touching: Touching, deliveries: FakeDeliveries
) -> None:
    """So that a burst of holds costs one message each, not one per message in hand."""
    touching.run_once([case("a")], 0.0)
    assert touching.run_once([case("a"), case("b")], 0.1) == 1
    assert touching.run_once([case("a"), case("b")], 0.2) == 0
    assert deliveries.touches[1:] == [([in_hand("b")], [])]


def test_what_is_gone_is_told_once(touching: Touching, deliveries: FakeDeliveries) -> None:
    touching.run_once([case("a"), case("b")], 0.0)
    touching.run_once([case("b")], 10.0)
    touching.run_once([case("b")], 20.0)
    assert deliveries.touches[1:] == [([in_hand("b")], [in_hand("a")]), ([in_hand("b")], [])]


def test_the_message_of_a_dead_owner_is_touched_as_long_as_its_claim_is_held(
    touching: Touching, deliveries: FakeDeliveries
) -> None:
    """No record tells of it any more; a sweep finds it once it is not touched."""
    heir = case("a")
    heir.orphan = Delivery(tag="b", queue="celery")
    touching.inherit(heir)
    touching.run_once([heir], 0.0)
    touching.run_once([heir], 10.0)
    touching.run_once([], 20.0)
    both = [in_hand("a"), in_hand("b")]
    assert deliveries.touches == [(both, []), (both, []), ([], both)]


def test_it_is_touched_once_if_its_heir_is_over_before(
    touching: Touching, deliveries: FakeDeliveries
) -> None:
    heir = case("a")
    touching.run_once([heir], 0.0)
    heir.orphan = Delivery(tag="b", queue="celery")
    touching.inherit(heir)
    touching.run_once([], 0.1)
    assert deliveries.touches[1:] == [([in_hand("b")], [])]


def test_a_failed_touch_is_made_good(
    touching: Touching, deliveries: FakeDeliveries, caplog: pytest.LogCaptureFixture
) -> None:
    """At the next time, with all that was to be told; the log says it once."""
    touching.run_once([case("a"), case("b")], 0.0)
    deliveries.up = False
    assert touching.run_once([case("b")], 10.0) == 0
    assert touching.run_once([case("b"), case("c")], 10.1) == 0
    assert touching.failed
    assert touching.run_once([case("b")], 20.0) == 0
    deliveries.up = True
    assert touching.run_once([case("b"), case("c")], 30.0) == 2
    assert not touching.failed
    assert deliveries.touches[-1] == ([in_hand("b"), in_hand("c")], [in_hand("a")])
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_shorter_of_two_times_counts(deliveries: FakeDeliveries) -> None:
    """A third of the lease, or of the visibility timeout."""
    deliveries.touch_every = 0.5
    touching = Touching(deliveries, FakeDeliveries(), 10.0)
    touching.run_once([], 0.0)
    assert touching.pause(0.1) == pytest.approx(0.4)
    assert touching.pause(9.0) == 0.0


def test_what_goes_out_of_hand_is_touched_at_once_and_then_told_as_gone(
    touching: Touching, deliveries: FakeDeliveries, leaving: FakeDeliveries
) -> None:
    """Promise 6: it may have been claimed since the last touch, and kombu may not put it back. It
    goes over a connection of its own, for with gevent no other thread may use the heartbeat's."""
    touching.run_once([case("a")], 0.0)
    assert touching.leave([case("b")])
    touching.run_once([case("a")], 10.0)
    touching.run_once([case("a")], 20.0)
    assert leaving.touches == [([in_hand("b")], [])]
    assert deliveries.touches[1:] == [([in_hand("a")], [in_hand("b")]), ([in_hand("a")], [])]


def test_what_the_broker_cannot_be_told_of_is_left_to_its_claim(
    touching: Touching, leaving: FakeDeliveries, caplog: pytest.LogCaptureFixture
) -> None:
    leaving.up = False
    assert not touching.leave([case("a"), case("b")])
    assert "2 messages" in caplog.text


def test_what_the_broker_could_not_be_told_of_is_told_as_soon_as_it_answers(
    touching: Touching, deliveries: FakeDeliveries, leaving: FakeDeliveries
) -> None:
    """Promise 6: kombu may not have put it back either, when the broker went."""
    leaving.up = deliveries.up = False
    assert not touching.leave([case("b")])
    assert touching.run_once([case("a")], 0.0) == 0
    deliveries.up = True
    assert touching.run_once([case("a")], 10.0) == 2
    touching.run_once([case("a")], 20.0)
    touching.run_once([case("a")], 30.0)
    assert deliveries.touches == [
        ([in_hand("a"), in_hand("b")], []),
        ([in_hand("a")], [in_hand("b")]),
        ([in_hand("a")], []),
    ]
