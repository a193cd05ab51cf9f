"""The heartbeat of a worker: one thread that renews every lease, whatever its tasks do.

A thread of the operating system with a store of its own: a greenlet that does not yield, a solo
pool's body or a busy event loop must not stop it, and a patched lock must not reach it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from .case import Action, Case
from .config import BEATS_PER_LEASE
from .errors import StoreError
from .events import ClaimEvent, emit
from .host import Thread
from .keeper import Keeper
from .parts import ask_in_parts
from .protocol import Lost
from .stores import Store
from .sweep import DUTY, Sweeper
from .touching import Touching

__all__ = ["Beat", "Heartbeat"]

logger = logging.getLogger("celery_claims")

#: Renewals of one call to the store: bounds what a slow call can delay.
BATCH = 1000
#: Seconds between tries while an end waits to be recorded.
HURRY = 1.0
#: Shortest pause, in seconds.
SHORTEST = 0.05
#: Turns at sweeping in one interval. A worker asks for one as often, and one that was taken is over
#: after as long: whichever worker is killed, the next sweep is no later than the interval.
TURNS = 2
#: Seconds to wait at the end for a beat that is under way.
PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Beat:
    """What one beat did: leases renewed, ends recorded, expired claims cleaned up."""

    renewed: int
    recorded: int
    cleaned: int


class Heartbeat:
    """Renews, records what could not be recorded, and sweeps when it is this worker's turn.

    Parameters:
        keeper: the worker's claims.
        store: for this thread alone.
        shortest_lease: of all tasks of the app, in seconds; a third of it is the interval.
        sweeper: cleans expired claims up.
        sweep_every: seconds between sweeps of all workers together, at most.
        touching: touches the worker's messages at the broker; None: it needs no touch.
        act: carries the desk's actions out, on the consumer's loop.
    """

    def __init__(
        self,
        keeper: Keeper,
        store: Store,
        *,
        shortest_lease: float,
        sweeper: Sweeper,
        sweep_every: float,
        act: Callable[[list[Action]], None],
        touching: Touching | None = None,
    ) -> None:
        self._keeper = keeper
        self._store = store
        self._interval = shortest_lease / BEATS_PER_LEASE
        self._sweeper = sweeper
        self._turn = sweep_every / TURNS
        self._sweep_at = 0.0
        self._act = act
        self._touching = touching
        self._host = keeper.host
        self._wakeup = self._host.alarm()
        self._stopping = False
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin. Idempotent."""
        if self._thread is None:
            self._stopping = False
            self._keeper.wake_heartbeat = self._wakeup.set
            if self._touching is not None:
                self._keeper.wake_to_touch = self._wake_to_touch
                self._keeper.leave = self._touching.leave
            self._thread = self._host.start_thread(self._loop, "celery-claims heartbeat")

    def stop(self) -> None:
        """End after the beat under way. Idempotent, and safe if never started."""
        self._stopping = True
        self._wakeup.set()
        if self._thread is not None:
            self._thread.join(PATIENCE)
            self._thread = None
        self._store.close()
        if self._touching is not None:
            self._touching.close()

    def _loop(self) -> None:
        while not self._stopping:
            self._wakeup.wait(self._pause())
            if self._stopping:
                return
            try:
                self.run_once()
            except Exception:
                # Whatever it was, the leases of this worker hang on the next beat.
                logger.exception("a heartbeat failed; the next one follows")

    def _pause(self) -> float:
        # Jitter, so that workers that were started together do not beat together.
        pause = self._interval * self._jitter()
        pause = min(pause, max(self._sweep_at - self._host.clock(), SHORTEST))
        if self._touching is not None:
            pause = min(pause, max(self._touching.pause(self._host.clock()), SHORTEST))
        if self._keeper.unrecorded():
            pause = min(pause, HURRY)
        deadline = self._keeper.deadline()
        if deadline is not None:
            pause = min(pause, max(deadline - self._host.clock(), SHORTEST))
        return pause

    def _jitter(self) -> float:
        return self._host.rng.uniform(0.8, 1.0)

    def run_once(self) -> Beat:
        """One beat."""
        # First, so that a message is not given away under a lease that was just renewed; but a
        # broker that does not answer must not delay the renewals.
        touch_last = self._touching is not None and self._touching.failed
        if not touch_last:
            self._touch()
        renewals, actions = self._keeper.beat()
        renewed = 0
        for first in range(0, len(renewals), BATCH):
            batch = renewals[first : first + BATCH]
            asked_at = self._host.clock()
            try:
                answers = ask_in_parts(self._store.renew, [renewal for _, renewal in batch])
            except StoreError as error:
                self._keeper.store_failed(error)
                break
            self._keeper.store_answered()
            for (case, renewal), answer in zip(batch, answers, strict=True):
                if isinstance(answer, StoreError):
                    self._keeper.unrenewable(case, renewal, answer)
                else:
                    actions += self._keeper.renewed(case, renewal, answer, asked_at)
                    renewed += 1
        if renewed < len(renewals):
            actions += self._keeper.unrenewed()
        if actions:
            self._act(actions)
        if touch_last:
            self._touch()
        return Beat(renewed, self._record(), self._sweep())

    def _wake_to_touch(self, case: Case) -> None:
        if self._touching is not None:
            self._touching.inherit(case)
        self._wakeup.set()

    def _touch(self) -> None:
        if self._touching is not None:
            active, waiting = self._keeper.snapshot()
            self._touching.run_once([*active, *waiting], self._host.clock())

    def _record(self) -> int:
        recorded = 0
        for case, settlement in self._keeper.to_record():
            try:
                (answer,) = ask_in_parts(self._store.settle, [settlement])
            except StoreError as error:
                self._keeper.store_failed(error)
                self._keeper.still_unrecorded(case, settlement)
                break
            if isinstance(answer, StoreError):
                self._keeper.still_unrecorded(case, settlement, answer)
                continue
            self._keeper.record_late(case, settlement, lost=isinstance(answer, Lost))
            recorded += 1
        return recorded

    def _sweep(self) -> int:
        now = self._host.clock()
        if now < self._sweep_at:
            return 0
        self._sweep_at = now + self._turn * self._jitter()
        try:
            if not self._store.elect(DUTY, round(self._turn * 1000)):
                return 0
            sweep = self._sweeper.run_once()
        except StoreError as error:
            self._keeper.store_failed(error)
            return 0
        if sweep.cleaned or sweep.given_back:
            emit(ClaimEvent("swept", str(sweep)))
        return sweep.cleaned
