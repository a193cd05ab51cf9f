"""Room for other messages beside those that are held: a delivery that waits eats no prefetch.

Celery limits what a worker takes by the prefetch count, and has two ways to do so:

- One count for all that the worker has, which can be raised and lowered at any time. That is the
  rule, on every transport (``SharedRoom``).
- On RabbitMQ with quorum queues, a count for each subscription that is fixed when it begins. There
  a queue whose subscription has no credit left is subscribed to anew (``FreshRoom``).

Both last as long as one connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from .config import MAX_PREFETCH
from .loop import Loop

__all__ = ["FreshRoom", "Room", "SharedRoom", "Subscription"]


class Room(ABC):
    """The room of one connection.

    Parameters:
        max_held: for how many messages room is made.
    """

    #: Every message has to be reported, not only those that are held.
    follows_all = False

    def __init__(self, max_held: int) -> None:
        self._max_held = max_held
        self._held: set[Any] = set()

    def received(self, queue: Any, message: Any) -> None:
        """A message arrived from a queue."""

    def answered(self, message: Any) -> None:
        """It is about to be acknowledged or rejected; from any thread."""

    @abstractmethod
    def hold(self, message: Any) -> bool:
        """It waits: make room for another; False: there are too many that wait."""

    @abstractmethod
    def go_on(self, message: Any) -> None:
        """It waits no longer, and room was made for it."""

    def close(self) -> None:
        """The connection is gone."""


class SharedRoom(Room):
    """The prefetch count that is sent to the broker has one more for each held message.

    It is added where Celery sends its own, which goes up and down for reasons of its own (ETA, the
    size of the pool, a reconnect) and is set anew by some of them.

    Parameters:
        qos: Celery's, of this connection.
        max_held: see ``Room``.
    """

    def __init__(self, qos: Any, max_held: int) -> None:
        super().__init__(max_held)
        self._qos = qos
        self._send = qos.callback
        qos.callback = self._send_with_held

    def hold(self, message: Any) -> bool:
        if len(self._held) >= self._max_held:
            return False
        self._held.add(message)
        self._send_soon()
        return True

    def go_on(self, message: Any) -> None:
        self._held.discard(message)
        self._send_soon()

    def _send_soon(self) -> None:
        # The loop sends the count when it has read all messages, and it is not what was sent last.
        self._qos.prev = None

    def _send_with_held(self, prefetch_count: int) -> Any:
        # While RabbitMQ's answer is waited for, messages arrive, and what ``_send_soon`` notes of
        # them is forgotten when it has come.
        while True:
            held = len(self._held)
            # None at all is no limit, and so is more than AMQP can say.
            count = min(prefetch_count + held, MAX_PREFETCH) if prefetch_count else 0
            answer = self._send(prefetch_count=count)
            if len(self._held) == held:
                return answer


class Subscription:
    """What a worker has of one queue.

    Parameters:
        limit: the prefetch count that the present subscription began with; 0: no limit.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: of the present subscription, and not answered
        self.taken: set[Any] = set()
        #: of any subscription, and neither answered nor held
        self.busy: set[Any] = set()

    def answered(self, message: Any) -> None:
        self.taken.discard(message)
        self.busy.discard(message)

    def begin_anew(self, limit: int) -> None:
        """A new subscription begins; what the one before delivered is still here."""
        self.limit = limit
        self.taken = set()

    def fresh_limit(self, prefetch_count: int) -> int | None:
        """The prefetch count of a new subscription, where one is needed: the broker sends nothing
        more on this one, and the worker does less than it may."""
        if not self.limit or len(self.taken) < self.limit:
            return None
        free = prefetch_count - len(self.busy)
        return free if free > 0 else None

    def forget_refused(self) -> None:
        """Celery itself answers what it cannot make a task of."""
        for messages in (self.taken, self.busy):
            messages.difference_update([one for one in messages if one.acknowledged])


class FreshRoom(Room):
    """Subscribes anew to a queue whose subscription has spent its credit on held deliveries.

    RabbitMQ counts unanswered deliveries by subscription, and leaves those of an ended one with
    their channel: a new one begins with all of its credit. It is given what the worker may take
    beside what it is doing.

    Parameters:
        prefetch_count: what Celery wants now, in messages.
        subscribe: ends a queue's subscription and begins another: the queue, its prefetch count,
            the usual one, and what to call between the two.
        loop: the consumer's.
        max_held: see ``Room``.
    """

    follows_all = True

    def __init__(
        self,
        prefetch_count: Callable[[], int],
        subscribe: Callable[[Any, int, int, Callable[[], None]], None],
        loop: Loop,
        max_held: int,
    ) -> None:
        super().__init__(max_held)
        self._prefetch_count = prefetch_count
        self._subscribe = subscribe
        self._loop = loop
        self._initial = prefetch_count()
        self._queues: dict[str, Any] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._of: dict[Any, Subscription] = {}
        self._closed = False

    def received(self, queue: Any, message: Any) -> None:
        subscription = self._subscriptions.get(queue.name)
        if subscription is None:
            subscription = self._subscriptions[queue.name] = Subscription(self._initial)
            self._queues[queue.name] = queue
        self._of[message] = subscription
        subscription.taken.add(message)
        subscription.busy.add(message)

    def answered(self, message: Any) -> None:
        self._loop.call(self._answered, message)

    def hold(self, message: Any) -> bool:
        subscription = self._of.get(message)
        if subscription is None or len(self._held) >= self._max_held:
            return False
        subscription.busy.discard(message)
        self._held.add(message)
        self._loop.call(self._look)
        return True

    def go_on(self, message: Any) -> None:
        self._held.discard(message)
        subscription = self._of.get(message)
        if subscription is not None:
            subscription.busy.add(message)

    def close(self) -> None:
        self._closed = True

    def _answered(self, message: Any) -> None:
        self._held.discard(message)
        subscription = self._of.pop(message, None)
        if subscription is None:
            return
        subscription.answered(message)
        # Where nothing is held, now and before, the credit is Celery's own affair.
        if self._held or subscription.limit != self._initial:
            self._look()

    def _look(self) -> None:
        if self._closed:
            return
        usual = self._prefetch_count()
        for name, subscription in list(self._subscriptions.items()):
            subscription.forget_refused()
            limit = subscription.fresh_limit(usual)
            if limit is not None:
                begin = partial(subscription.begin_anew, limit)
                self._subscribe(self._queues[name], limit, usual, begin)
