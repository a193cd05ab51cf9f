"""A held message eats no prefetch, in either way that Celery limits it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from celery_claims.config import MAX_PREFETCH
from celery_claims.room import FreshRoom, SharedRoom
from kombu.common import QoS


class Message:
    """What a room needs of kombu's."""

    def __init__(self) -> None:
        self.acknowledged = False


def sending_to(sent: list[int]) -> Callable[..., None]:
    def send(prefetch_count: int) -> None:
        sent.append(prefetch_count)

    return send


def messages(count: int) -> list[Message]:
    return [Message() for _ in range(count)]


class TestSharedRoom:
    @pytest.fixture
    def sent(self) -> list[int]:
        return []

    @pytest.fixture
    def qos(self, sent: list[int]) -> QoS:
        return QoS(sending_to(sent), 4)

    def test_the_count_that_is_sent_has_one_more_for_each_held_message(
        self, qos: QoS, sent: list[int]
    ) -> None:
        room = SharedRoom(qos, max_held=10)
        qos.update()
        one, two = messages(2)
        assert room.hold(one) and room.hold(two)
        qos.update()
        room.go_on(one)
        qos.update()
        assert sent == [4, 6, 5]

    def test_a_message_that_is_held_while_the_count_is_sent_counts(self) -> None:
        """RabbitMQ's answer is waited for, and messages that come first are received meanwhile."""
        arriving, sent = messages(2), list[int]()

        def send(prefetch_count: int) -> None:
            sent.append(prefetch_count)
            if arriving:
                room.hold(arriving.pop())

        qos = QoS(send, 4)
        room = SharedRoom(qos, max_held=10)
        qos.update()
        assert sent == [4, 5, 6]

    def test_the_loop_sees_that_there_is_a_count_to_send(self, qos: QoS) -> None:
        """Celery's loops compare these two."""
        room = SharedRoom(qos, max_held=10)
        qos.update()
        assert qos.prev == qos.value
        room.hold(Message())
        assert qos.prev != qos.value

    def test_celerys_own_count_is_left_alone(self, qos: QoS, sent: list[int]) -> None:
        """After a reconnect Celery sets it anew: what was added there would be lost, and then be
        taken away for good when the message goes on."""
        room = SharedRoom(qos, max_held=10)
        held = Message()
        room.hold(held)
        qos.value = 2
        qos.update()
        room.go_on(held)
        qos.update()
        assert qos.value == 2 and sent == [3, 2]

    def test_no_room_is_made_for_more_than_max_held(self, qos: QoS, sent: list[int]) -> None:
        room = SharedRoom(qos, max_held=2)
        assert [room.hold(each) for each in messages(3)] == [True, True, False]
        qos.update()
        assert sent == [6]

    def test_no_limit_stays_none(self, sent: list[int]) -> None:
        qos = QoS(sending_to(sent), 0)
        room = SharedRoom(qos, max_held=10)
        room.hold(Message())
        qos.update()
        assert sent == [0]

    def test_a_limit_stays_one_beyond_what_amqp_can_say(self, sent: list[int]) -> None:
        qos = QoS(sending_to(sent), MAX_PREFETCH - 1)
        room = SharedRoom(qos, max_held=10)
        for each in messages(5):
            room.hold(each)
        qos.update()
        assert sent == [MAX_PREFETCH]


class Broker:
    """What RabbitMQ does with subscriptions that have a credit of their own.

    Parameters:
        prefetch_count: what Celery asks for.
        max_held: of the room.
    """

    def __init__(self, prefetch_count: int, max_held: int = 1000) -> None:
        self.prefetch_count = prefetch_count
        self.limit = prefetch_count
        self.taken: set[Message] = set()
        self.subscribed: list[tuple[str, int, int]] = []
        self.queue = SimpleNamespace(name="celery")
        self._calls: list[Callable[[], None]] = []
        loop = MagicMock()
        loop.call = lambda function, *args: self._calls.append(lambda: function(*args))
        self.room = FreshRoom(lambda: self.prefetch_count, self._subscribe, loop, max_held)

    def _subscribe(self, queue: Any, limit: int, usual: int, begin: Callable[[], None]) -> None:
        self.subscribed.append((queue.name, limit, usual))
        begin()
        self.limit, self.taken = limit, set()

    def deliver(self) -> Message | None:
        """The next message, if there is credit for one."""
        if self.limit and len(self.taken) >= self.limit:
            return None
        message = Message()
        self.taken.add(message)
        self.room.received(self.queue, message)
        return message

    def answer(self, message: Message | None) -> None:
        assert message is not None
        self.room.answered(message)
        message.acknowledged = True
        self.taken.discard(message)
        self.turn()

    def hold(self, message: Message | None) -> bool:
        answer = self.room.hold(message)
        self.turn()
        return answer

    def go_on(self, message: Message | None) -> None:
        self.room.go_on(message)
        self.turn()

    def turn(self) -> None:
        """One turn of the loop."""
        calls, self._calls = self._calls, []
        for call in calls:
            call()


class TestFreshRoom:
    def test_a_spent_credit_is_renewed_when_a_message_is_held(self) -> None:
        broker = Broker(1)
        for _ in range(50):
            assert broker.hold(broker.deliver())
        assert broker.subscribed == [("celery", 1, 1)] * 50
        assert broker.deliver() is not None
        assert broker.deliver() is None

    def test_where_there_is_credit_nothing_is_done(self) -> None:
        broker = Broker(4)
        for _ in range(3):
            broker.hold(broker.deliver())
        assert broker.subscribed == []

    def test_the_worker_is_given_no_more_than_it_may_take(self) -> None:
        """Two run, two are held: two more may come, and then no other."""
        broker = Broker(4)
        one, two, *held = [broker.deliver() for _ in range(4)]
        for message in held:
            broker.hold(message)
        assert broker.subscribed == [("celery", 1, 4)]
        assert broker.deliver() is not None
        assert broker.deliver() is None
        broker.answer(one)
        broker.answer(two)
        assert broker.deliver() is not None

    def test_a_busy_worker_takes_nothing_until_it_is_done(self) -> None:
        broker = Broker(2)
        one, held = broker.deliver(), broker.deliver()
        broker.hold(held)
        assert broker.subscribed == [("celery", 1, 2)]
        two = broker.deliver()
        assert broker.deliver() is None
        broker.answer(one)
        # The credit of the second subscription is spent, and one of two is done.
        assert broker.subscribed == [("celery", 1, 2), ("celery", 1, 2)]
        assert broker.deliver() is not None
        assert broker.deliver() is None
        broker.answer(two)
        assert broker.deliver() is not None

    def test_a_held_message_that_runs_counts_again(self) -> None:
        broker = Broker(1)
        held = broker.deliver()
        broker.hold(held)
        other = broker.deliver()
        broker.go_on(held)
        broker.answer(other)
        assert broker.deliver() is not None, "the subscription that is, has its own credit"
        assert broker.subscribed == [("celery", 1, 1)]

    def test_without_held_messages_the_subscription_is_celerys(self) -> None:
        broker = Broker(1)
        for _ in range(3):
            broker.answer(broker.deliver())
        assert broker.subscribed == []

    def test_no_limit_needs_no_room(self) -> None:
        broker = Broker(0)
        broker.hold(broker.deliver())
        assert broker.subscribed == []

    def test_no_room_is_made_for_more_than_max_held(self) -> None:
        broker = Broker(1, max_held=1)
        assert broker.hold(broker.deliver())
        assert not broker.hold(broker.deliver())
        assert broker.deliver() is None

    def test_what_celery_refused_itself_is_not_counted(self) -> None:
        """It answers messages of which it can make no task, past what the room is told."""
        broker = Broker(2)
        refused = broker.deliver()
        assert refused is not None
        refused.acknowledged = True
        broker.taken.discard(refused)
        held, _busy = broker.deliver(), broker.deliver()
        broker.hold(held)
        assert broker.subscribed == [("celery", 1, 2)]

    def test_each_queue_has_its_own_credit(self) -> None:
        broker = Broker(1)
        elsewhere = Message()
        broker.room.received(SimpleNamespace(name="other"), elsewhere)
        broker.hold(broker.deliver())
        broker.room.hold(elsewhere)
        broker.turn()
        assert broker.subscribed == [("celery", 1, 1), ("other", 1, 1)]

    def test_nothing_is_done_on_a_connection_that_is_gone(self) -> None:
        broker = Broker(1)
        held = broker.deliver()
        broker.room.hold(held)
        broker.room.close()
        broker.turn()
        assert broker.subscribed == []
