"""When to touch a worker's messages at a broker that gives untouched ones away."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from .brokers import Deliveries, InHand
from .case import Case
from .errors import StoreError

__all__ = ["Touching"]

logger = logging.getLogger("celery_claims")


class Touching:
    """The touches of one worker; its heartbeat calls it.

    Parameters:
        deliveries: the broker's, for the heartbeat's thread alone.
        leaving: the same for all other threads: with gevent a connection belongs to its thread.
        every: most seconds between two touches of a message.
    """

    def __init__(self, deliveries: Deliveries, leaving: Deliveries, every: float) -> None:
        self.deliveries = deliveries
        self.leaving = leaving
        #: the last touch did not reach the broker
        self.failed = False
        self._every = min(every, deliveries.touch_every)
        self._at = 0.0
        self._known: set[InHand] = set()
        # From one thread to the other: what the broker was told of, and what it was not.
        self._left: deque[InHand] = deque()
        self._untold: deque[InHand] = deque()
        self._owed: set[InHand] = set()

    def leave(self, cases: Sequence[Case]) -> bool:
        """These go out of the worker's hands with their connection, or with the worker, and may
        never have been touched: do it now, so that a sweep finds them if kombu does not put them
        back. On any thread but the heartbeat's.

        Returns:
            False: it did not reach the broker, and only their claims tell of their messages, until
            a later beat reaches it.
        """
        left = _in_hand(cases)
        try:
            self.leaving.touch(sorted(left))
        except StoreError as error:
            logger.warning("the broker is not told of %d messages: %s", len(left), error)
            self._untold.extend(left)
            return False
        self._left.extend(left)
        return True

    def inherit(self, case: Case) -> None:
        """Touch the message of the dead owner that a case took over from, also if the case should
        be over by the next beat: nothing else tells of that message. On any thread."""
        if case.orphan is not None:
            self._untold.append(InHand(case.orphan.tag, case.orphan.queue))

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self.deliveries.close()
        self.leaving.close()

    def pause(self, now: float) -> float:
        """Seconds until the next touch."""
        return max(self._at - now, 0.0)

    def run_once(self, cases: Sequence[Case], now: float) -> int:
        """Touch everything if it is time to, else only what is new.

        Parameters:
            cases: what the worker has claimed or holds.
            now: monotonic seconds.
        Returns:
            how many messages were touched.
        """
        mine = _in_hand(cases)
        while self._left:
            self._known.add(self._left.popleft())
        while self._untold:
            self._owed.add(self._untold.popleft())
        mine |= self._owed
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
        self._owed.clear()
        self._known = known
        return len(mine)


def _in_hand(cases: Sequence[Case]) -> set[InHand]:
    """Their messages, and those of dead owners whose claims they took over: once this worker
    touches these no more, a sweep finds them."""
    deliveries = [case.incoming.delivery for case in cases]
    deliveries += [case.orphan for case in cases if case.orphan is not None]
    return {InHand(each.tag, each.queue) for each in deliveries}
