"""Stopping bodies: on the consumer's loop, as Celery does it, and at once while that does not turn.

A worker that connects anew to a broker that is down, or drains its pool at its end, does not come
back to its loop for as long as that takes. A body whose claim is lost must not go on until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .case import Case, Phase
from .delivered import Delivered
from .keeper import Keeper
from .native import allocate_lock
from .seams import kill_child, stop_body

__all__ = ["Stopper"]


class Stopper:
    """Stops the bodies of one worker.

    Parameters:
        consumer: Celery's.
        keeper: the worker's claims.
        delivered: its deliveries.
    """

    def __init__(self, consumer: Any, keeper: Keeper, delivered: Mapping[Case, Delivered]) -> None:
        self._consumer = consumer
        self._keeper = keeper
        self._delivered = delivered
        self._turns = False
        # The loop does not turn again before a kill that began without it is done: see ``at_once``.
        self._turning = allocate_lock()

    def on_loop(self, delivered: Delivered) -> None:
        """Stop a body, and tell Celery."""
        case, request = delivered.case, delivered.request
        if case.phase in (Phase.ENDED, Phase.DONE):
            # The child that ran it may be busy with another task by now.
            return
        self._tell(delivered)
        if request is not None and self._keeper.desk.can_stop:
            stop_body(request, self._consumer.pool)

    def at_once(self, case: Case) -> None:
        """Kill the child that has a body, from any thread, unless the loop turns.

        It tells Celery nothing, for what that would write to is the loop's: ``on_loop`` does once
        it turns again. Only the loop hands a body to a child, and takes the end of one from it: so
        while it does not turn a child that has this one gets no other, and one that has come to
        its end waits. Nor can its pid be somebody else's: it stays a zombie until the loop, or the
        pool at its end, has waited for it, and then it is in the pool's list for an instant more.
        """
        delivered = self._delivered.get(case)
        request = delivered.request if delivered is not None else None
        if delivered is None or request is None or not self._keeper.desk.can_stop:
            return
        with self._turning:
            if self._turns or not case.in_executor:
                return
            killed = kill_child(request, self._consumer.pool)
        if killed:
            self._tell(delivered)

    def turns(self) -> None:
        """The loop begins."""
        with self._turning:
            self._turns = True

    def rests(self) -> None:
        """The loop has ended, and with it what it had yet to stop."""
        with self._turning:
            self._turns = False
        for case in self._keeper.stopping():
            self.at_once(case)

    def _tell(self, delivered: Delivered) -> None:
        if delivered.stopped:
            return
        delivered.stopped = True
        case = delivered.case
        why = "it ran longer than max_hold" if case.hung else "another worker has the task now"
        self._keeper.tell("lost", case, why)
