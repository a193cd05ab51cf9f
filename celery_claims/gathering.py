"""New deliveries that wait to be asked for together: a burst of messages costs one call.

None waits in a worker that is idle. In one that is not, the pool has something to do meanwhile, and
as soon as it has not, nothing waits any longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .case import Case, Phase
from .keeper import Keeper
from .loop import Loop

__all__ = ["BURST", "Gathering"]

#: Most deliveries that are asked for in one call of the store.
BURST = 32
#: As long as there are so many claims per process of the pool, it has plenty to do.
PLENTY = 2
#: Longest that a delivery waits for others while the pool has plenty to do, in seconds.
LONGEST = 0.005
#: The same while it has something to do.
SHORT = 0.002


class Gathering:
    """What waits in one consumer. On its loop, but for ``ended``.

    Parameters:
        consumer: Celery's.
        keeper: the worker's claims.
        loop: the consumer's.
        ask: called on the loop when what waits must be asked for; it takes it.
    """

    def __init__(self, consumer: Any, keeper: Keeper, loop: Loop, ask: Callable[[], None]) -> None:
        self._consumer = consumer
        self._keeper = keeper
        self._loop = loop
        self._ask = ask
        self._cases: list[Case] = []
        self._timer: Any = None
        # With fewer claims than that the pool waits for what is gathered.
        self._urgent_below = 0
        self._is_called = False

    def begin(self) -> None:
        """A connection is there; Celery may have ended the timers of the last one."""
        self._end_timer()
        self._is_called = False

    def add(self, case: Case) -> None:
        self._cases.append(case)

    def ready(self) -> list[Case]:
        """What to ask for now; empty while all of it can wait."""
        if len(self._cases) >= BURST or (self._cases and not self._can_wait()):
            return self.take()
        return []

    def take(self) -> list[Case]:
        """All that waits."""
        self._end_timer()
        # A connection that was lost meanwhile took its messages with it.
        cases = [case for case in self._cases if case.phase is Phase.ASKING]
        self._cases.clear()
        return cases

    def ended(self) -> None:
        """A claim of this worker is over. From any thread."""
        if self._cases and not self._is_called and not self._keeper.busy(self._urgent_below):
            self._is_called = True
            self._loop.call(self._hurry)

    def _hurry(self) -> None:
        self._is_called = False
        self._ask()

    def _can_wait(self) -> bool:
        if self._timer is not None:
            return True
        if self._consumer.hub is None:
            # Its timers are late by seconds.
            return False
        plenty = PLENTY * self._consumer.pool.num_processes
        if self._keeper.busy(plenty):
            self._urgent_below, pause = plenty, LONGEST
        elif self._keeper.busy(1):
            self._urgent_below, pause = 1, SHORT
        else:
            return False
        self._timer = self._consumer.timer.call_after(pause, self._time_is_over)
        return True

    def _time_is_over(self) -> None:
        self._timer = None
        self._ask()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
