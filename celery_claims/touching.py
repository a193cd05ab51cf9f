"""When to touch a worker's messages at a broker that gives untouched ones away."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from .brokers import Deliveries, InHand
from .case import Case
from .errors import StoreError
from .native import allocate_lock

__all__ = ["Touching"]

logger = logging.getLogger("celery_claims")


class Touching:
    """The touches of one worker; its heartbeat calls it.

    Parameters:
        deliveries: the broker's, for nobody else.
        every: most seconds between two touches of a message.
    """

    def __init__(self, deliveries: Deliveries, every: float) -> None:
        self.deliveries = deliveries
        #: the last touch did not reach the broker
        self.failed = False
        self._every = min(every, deliveries.touch_every)
        self._at = 0.0
        self._known: set[InHand] = set()
        self._lock = allocate_lock()

    def leave(self, cases: Iterable[Case]) -> bool:
        """These go out of the worker's hands with their connection, or with the worker, and may
        never have been touched: do it now, so that a sweep finds them if kombu does not put them
        back. From any thread.

        Returns:
            False: it did not reach the broker, and only their claims tell of their messages.
        """
        left = {_in_hand(case) for case in cases}
        with self._lock:
            try:
                self.deliveries.touch(sorted(left))
            except StoreError as error:
                logger.warning("the broker is not told of %d messages: %s", len(left), error)
                return False
            self._known |= left
        return True

    def pause(self, now: float) -> float:
        """Seconds until the next touch."""
        return max(self._at - now, 0.0)

    def run_once(self, cases: Iterable[Case], now: float) -> int:
        """Touch everything if it is time to, else only what is new.

        Parameters:
            cases: what the worker has claimed or holds.
            now: monotonic seconds.
        Returns:
            how many messages were touched.
        """
        mine = {_in_hand(case) for case in cases}
        with self._lock:
            return self._run_once(mine, now)

    def _run_once(self, mine: set[InHand], now: float) -> int:
        if now >= self._at:
            # Also after a failure, so that a broker that is down is not asked all the time.
            self._at = now + self._every
            return self._touch(mine, self._known - mine, known=mine)
        if self.failed:
            return 0
        new = mine - self._known
        return self._touch(new, set(), known=self._known | new)

    def _touch(self, mine: set[InHand], dropped: set[InHand], *, known: set[InHand]) -> int:
        if not mine and not dropped:
            return 0
        try:
            self.deliveries.touch(sorted(mine), sorted(dropped))
        except StoreError as error:
            if not self.failed:
                logger.warning("the broker may give this worker's messages away: %s", error)
            self.failed = True
            return 0
        if self.failed:
            logger.info("the broker knows of this worker's messages again")
        self.failed = False
        self._known = known
        return len(mine)


def _in_hand(case: Case) -> InHand:
    delivery = case.incoming.delivery
    return InHand(delivery.tag, delivery.queue)
