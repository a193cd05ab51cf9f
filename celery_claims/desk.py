"""The decisions of one worker about its deliveries. Pure: events in, actions out.

No I/O, no threads, and ``now`` (monotonic seconds) is an argument: the adapters in ``gate``,
``pool`` and ``heartbeat`` carry the events in and the actions out, under one lock, and a
simulation can do the same with a seed. ``case`` draws the states of a delivery.

Of the deliveries of one task only one is *active*; the others stand in a line (``holding``), and
while the active one is here they wait for its end without asking.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .case import Action, Case, Do, Incoming, Key, Phase
from .config import BEATS_PER_LEASE
from .holding import FIRST_PAUSE, LONGEST_PAUSE, Lines, Patience
from .protocol import (
    AlreadyClaimed,
    ClaimAnswer,
    ClaimRequest,
    ClaimToken,
    Ended,
    Exhausted,
    Finished,
    Outcome,
    RenewAnswer,
    Renewal,
    Renewed,
    Settlement,
    Superseded,
    TookOver,
    trust_until,
)
from .settling import Decision, Ending, on_acknowledged, on_rejected, on_returned

__all__ = ["Desk"]

#: First pause after the store did not answer, in seconds; it doubles up to ``LONGEST_PAUSE``.
OUTAGE_PAUSE = 0.5
#: Seconds between tries to record an end that the store did not take.
RECORD_PAUSE = 1.0


@dataclass(slots=True)
class Outage:
    """A circuit breaker: after a failed call the store is left alone for a while."""

    failures: int = 0
    until: float = 0.0

    def begin(self, now: float) -> None:
        pause = min(OUTAGE_PAUSE * 2.0 ** min(self.failures, 8), LONGEST_PAUSE)
        self.failures += 1
        self.until = now + pause

    def end(self) -> None:
        self.failures = 0
        self.until = 0.0


@dataclass(slots=True)
class Desk:
    """The deliveries of one worker.

    Parameters:
        owner: this worker's identity in the store; new with every start.
        new_grant: makes a grant id.
        run_when_down: ``claims_on_store_down = "run"``.
        can_stop: bodies can be killed (prefork).
        max_wait: seconds that a delivery may be held; None: no limit.
        rng: for jitter.
    """

    owner: str
    new_grant: Callable[[], str]
    run_when_down: bool = False
    can_stop: bool = False
    max_wait: float | None = None
    rng: random.Random = field(default_factory=random.Random)
    connection: int = 0
    outage: Outage = field(default_factory=Outage)
    lines: Lines = field(init=False)
    patience: Patience = field(init=False)
    _active: dict[Key, Case] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lines = Lines(self.rng)
        self.patience = Patience(self.max_wait)

    # deliveries and the store's answers

    def receive(self, incoming: Incoming, now: float) -> tuple[Case, list[Action]]:
        """A message arrived."""
        case = Case(incoming, self.connection, self.new_grant(), received_at=now)
        if incoming.key in self._active or incoming.key in self.lines:
            return case, self._hold(case, now + LONGEST_PAUSE)
        if now < self.outage.until:
            return case, self._cannot_ask(case, self.outage.until)
        self.lines.join(case)
        return case, [Action(Do.ASK, case)]

    def request(self, case: Case) -> ClaimRequest:
        """The question that ``Do.ASK`` puts to the store."""
        incoming = case.incoming
        assert incoming.options.max_deliveries is not None
        return ClaimRequest(
            queue=incoming.queue,
            task_id=incoming.task_id,
            owner=self.owner,
            lease_ms=round(incoming.lease * 1000),
            grant_id=case.grant_id,
            root_id=incoming.root_id,
            attempt=incoming.attempt,
            deaths=incoming.deaths,
            max_deliveries=incoming.options.max_deliveries,
            delivery=incoming.delivery,
        )

    def answered(
        self, case: Case, answer: ClaimAnswer, asked_at: float, now: float
    ) -> list[Action]:
        """The store answered a question that was put at ``asked_at``."""
        self.outage.end()
        case.unreadable = False
        if case.phase not in (Phase.ASKING, Phase.HELD):
            return []
        if isinstance(answer, AlreadyClaimed):
            case.denied = True
            case.token = None
            return self._hold(case, now + self.lines.pause(case, answer), answer)
        self.lines.leave(case, now)
        case.held = False
        if isinstance(answer, (Finished, Superseded)):
            case.phase = Phase.DONE
            return [Action(Do.SKIP, case, answer)]
        self._granted(case, answer.token, asked_at)
        if isinstance(answer, Exhausted):
            case.phase = Phase.ENDED
            case.deliveries = answer.deliveries
            return [Action(Do.REPORT, case, answer)]
        case.deliveries = answer.deliveries
        # A grant that is asked for again is plain success, whatever it was the first time.
        took_over = isinstance(answer, TookOver) or answer.orphaned or case.unheard
        case.mark_start = took_over or answer.deliveries > 0
        case.orphan = answer.previous if isinstance(answer, TookOver) else None
        return [Action(Do.RUN, case, answer)]

    def unanswered(self, case: Case, now: float) -> list[Action]:
        """The store did not answer; the same grant id asks again, in case it had been granted."""
        if now >= self.outage.until:
            self.outage.begin(now)
        if case.phase not in (Phase.ASKING, Phase.HELD):
            return []
        case.unheard = True
        return self._cannot_ask(case, self.outage.until)

    def unreadable(self, case: Case, now: float) -> list[Action]:
        """The store answers, but not for this task: that is no outage, and nobody else waits."""
        self.outage.end()
        case.unreadable = True
        if case.phase not in (Phase.ASKING, Phase.HELD):
            return []
        return self._cannot_ask(case, now + self.lines.doubled(case))

    def due(self, now: float) -> list[Case]:
        """Cases whose time to ask again has come; while one of their task is active it is not."""
        cases = [case for case in self.lines.due(now) if case.key not in self._active]
        if now >= self.outage.until:
            return cases
        for case in cases:
            self.lines.set_alarm(case, self.outage.until)
        return []

    def overdue(self, now: float) -> list[Action]:
        """Deliveries that were held for as long as they may be.

        Nothing is known of their attempts: they are neither acknowledged nor dropped, but wait in
        their queue, or wherever it delivers them next.
        """
        actions = []
        for case in self.patience.over(now):
            self.lines.leave(case, now)
            case.phase = Phase.DONE
            actions.append(Action(Do.RETURN, case))
        return actions

    def giving_up(self, actions: list[Action]) -> list[tuple[Case, Settlement]]:
        """What to give back with the deliveries of ``overdue``."""
        return list(self._give_back(self._unsure([action.case for action in actions])))

    def next_alarm(self) -> float | None:
        """When ``due`` or ``overdue`` may have something to say again."""
        alarms = (self.lines.next_alarm(), self.patience.next_end())
        return min((at for at in alarms if at is not None), default=None)

    # the run

    def submitted(self, case: Case) -> bool:
        """Celery hands the body to the pool; False: it must not, for the claim is lost."""
        if case.lost or case.phase is not Phase.CLAIMED:
            return False
        case.phase = Phase.SUBMITTED
        return True

    def unsubmitted(self, case: Case) -> None:
        """The pool gave up a body that it had not begun, and never will."""
        if case.phase is Phase.SUBMITTED:
            case.phase = Phase.CLAIMED

    def accepted(self, case: Case, now: float) -> None:
        """The pool began the body."""
        if case.phase is Phase.SUBMITTED:
            case.phase = Phase.RUNNING
            case.accepted_at = now

    def ended(self, case: Case, ending: Ending, *, recorded: bool) -> None:
        """The pool reports the body's end; ``recorded``: its process told the store."""
        if case.in_executor:
            case.phase = Phase.ENDED
            case.ending = ending
            case.silent = case.silent or recorded

    def acknowledging(self, case: Case) -> Settlement | None:
        """The message is about to be acknowledged: what to record before."""
        running = case.phase is Phase.RUNNING
        decision = on_acknowledged(late=case.incoming.late, running=running, ending=case.ending)
        return self._settlement(case, decision)

    def rejecting(self, case: Case, *, requeue: bool) -> Settlement | None:
        """The message is about to be rejected: what to record before."""
        return self._settlement(case, on_rejected(requeue=requeue, ending=case.ending))

    def returning(self, case: Case, *, cancelled: bool) -> Settlement | None:
        """The pool's callback is over: what is left to record."""
        if case.phase is not Phase.ENDED or case.unrecorded is not None or case.ending is None:
            return None
        late = case.incoming.late
        decision = on_returned(late=late, ending=case.ending, cancelled=cancelled)
        return self._settlement(case, decision)

    def recorded(self, case: Case, now: float) -> None:
        """The store has the end of the run, or refused it for good."""
        if case.phase is Phase.DONE:
            return
        case.phase = Phase.DONE
        case.unrecorded = None
        self._deactivate(case, now)

    def refused(self, case: Case, now: float) -> None:
        """The store refused the end, for somebody else was granted it since."""
        case.lost = True
        case.unrecorded = None
        if not case.in_executor:
            self._deactivate(case, now)

    def unrecorded(self, case: Case, settlement: Settlement, now: float) -> None:
        """The store did not take the end; it is told again."""
        case.unrecorded = settlement
        case.record_at = now + RECORD_PAUSE

    def to_record(self, now: float) -> list[tuple[Case, Settlement]]:
        """Ends that the store shall be told now."""
        return [
            (case, case.unrecorded)
            for case in self._active.values()
            if case.unrecorded is not None and case.record_at <= now
        ]

    def returned(
        self, case: Case, now: float, *, at_broker: bool = True, unsure: bool = False
    ) -> list[Action]:
        """The body of a lost or hung case has stopped: the delivery waits like any duplicate.

        Parameters:
            at_broker: its message is not acknowledged.
            unsure: the body did not begin, for the store did not confirm a claim that may well be
                held: the same grant asks again, so that nobody waits for its end, or takes a body
                that never was for one that died.
        """
        case.at_broker = at_broker
        self._deactivate(case, now)
        case.phase = Phase.HELD
        unsure = case.unheard = unsure and not case.lost
        if not unsure:
            case.grant_id = self.new_grant()
            case.token = None
        case.ending = case.unrecorded = None
        case.lost = case.hung = case.silent = case.start_known = False
        case.pauses = 0
        case.denied = True
        if case.connection != self.connection:
            case.phase = Phase.DONE
            return []
        if unsure:
            # Its claim is what the others of its line would wait for.
            self.lines.join(case, first=True)
        return self._hold(case, now + FIRST_PAUSE)

    # leases

    def beat(self, now: float) -> tuple[list[tuple[Case, Renewal]], list[Action]]:
        """Time to renew: which leases, and which bodies have run too long."""
        actions = [Action(Do.STOP, case) for case in self._hung(now)]
        renewals = [
            (case, self.renewal(case)) for case in self._active.values() if self._renews(case, now)
        ]
        return renewals, actions

    def renewed(
        self, case: Case, renewal: Renewal, answer: RenewAnswer, asked_at: float
    ) -> list[Action]:
        """The store answered a renewal that was asked for at ``asked_at``."""
        self.outage.end()
        if renewal.token is not case.token or case.phase is Phase.HELD:
            return []
        case.unreadable = False
        if isinstance(answer, Renewed):
            case.renewed_at = asked_at
            case.trusted_until = trust_until(asked_at, case.incoming.lease)
            case.start_known = case.start_known or renewal.started
            return []
        if isinstance(answer, Ended):
            case.silent = True
            return []
        return self._lose(case)

    def renewal(self, case: Case) -> Renewal:
        """What to ask the store for a case under a claim."""
        assert case.token is not None
        started = case.phase is Phase.RUNNING and not case.start_known
        return Renewal(case.token, round(case.incoming.lease * 1000), started=started)

    def unrenewed(self, now: float) -> list[Action]:
        """The store did not answer a renewal: strict bodies stop when their trust is over."""
        return [
            action
            for case in list(self._active.values())
            if case.incoming.options.strict and now >= case.trusted_until and case.in_executor
            for action in self._lose(case)
        ]

    def deadline(self) -> float | None:
        """When the first body must be stopped: the trust of a strict one is over unless it is
        renewed before, or one has run for ``max_hold``."""
        ends = [
            end
            for case in self._active.values()
            if case.in_executor and not (case.lost or case.hung or case.silent)
            for end in self._ends(case)
        ]
        return min(ends, default=None)

    def stopping(self) -> list[Case]:
        """Cases of which a body shall stop, and has not."""
        return [
            case for case in self._active.values() if (case.lost or case.hung) and case.in_executor
        ]

    def shortest_lease(self) -> float | None:
        """Of the cases that are renewed, in seconds."""
        return min((case.incoming.lease for case in self._active.values()), default=None)

    # the ends of connections and of the worker

    def disconnected(self) -> list[tuple[Case, Settlement]]:
        """The connection is gone: its waiting messages come again; what runs goes on.

        Returns:
            what to give back, for it never reached the pool.
        """
        self.connection += 1
        unstarted = [case for case in self._active.values() if case.phase is Phase.CLAIMED]
        unstarted += self._unsure(self.lines.waiting())
        for case in self.lines.dissolve():
            case.phase = Phase.DONE
        self.patience.forget_all()
        return list(self._give_back(unstarted))

    def closing(self, survives: Callable[[Case], bool]) -> list[tuple[Case, Settlement]]:
        """The worker ends: what to give back.

        Parameters:
            survives: whether a body may still be running; such a claim is left to its lease.
        """
        left = [
            case
            for case in self._active.values()
            if case.unrecorded is None and not case.silent and not case.lost and not survives(case)
        ]
        return list(self._give_back(left + self._unsure(self.lines.waiting())))

    def unbegun(self, case: Case) -> Settlement | None:
        """The body did not begin, for the store did not confirm its claim, and its message has
        gone to somebody with its connection: what to give back; None: the message is here."""
        if case.lost or case.connection == self.connection:
            return None
        case.phase = Phase.ENDED
        return self._settle(case, Decision(Outcome.NACKED))

    def active(self) -> list[Case]:
        """Cases under a claim of this worker, and lost ones whose body has not stopped."""
        return list(self._active.values())

    def has_claims(self, number: int) -> bool:
        """Whether there are so many active cases at least."""
        return len(self._active) >= number

    # helpers

    def _granted(self, case: Case, token: ClaimToken, asked_at: float) -> None:
        case.phase = Phase.CLAIMED
        case.token = token
        case.renewed_at = asked_at
        case.trusted_until = trust_until(asked_at, case.incoming.lease)
        self._active[case.key] = case

    def _hold(self, case: Case, ask_at: float, answer: ClaimAnswer | None = None) -> list[Action]:
        self.lines.join(case)
        case.phase = Phase.HELD
        self.lines.set_alarm(case, ask_at)
        if case.held:
            return []
        case.held = True
        self.patience.begin(case)
        return [Action(Do.HOLD, case, answer)]

    def _unsure(self, waiting: list[Case]) -> list[Case]:
        """Those whose claim may be held; see ``returned``."""
        return [case for case in waiting if case.token is not None]

    def _cannot_ask(self, case: Case, ask_at: float) -> list[Action]:
        if not self.run_when_down or case.denied:
            return self._hold(case, ask_at)
        self.lines.leave(case, ask_at)
        case.phase = Phase.DONE
        return [Action(Do.RUN_UNCLAIMED, case)]

    def _deactivate(self, case: Case, now: float) -> None:
        if self._active.get(case.key) is case:
            del self._active[case.key]
            self.lines.wake(case.key, now)

    def _settlement(self, case: Case, decision: Decision | None) -> Settlement | None:
        settled = case.phase in (Phase.ASKING, Phase.HELD, Phase.DONE) or case.silent
        if decision is None or settled or case.lost or case.token is None:
            return None
        if case.unrecorded is not None:
            return case.unrecorded
        return self._settle(case, decision)

    def _settle(self, case: Case, decision: Decision) -> Settlement:
        assert case.token is not None
        assert case.incoming.options.keep_finished is not None
        back = decision.outcome is Outcome.NACKED
        keep = case.incoming.keep_free if back else case.incoming.options.keep_finished
        return Settlement(case.token, decision.outcome, round(keep * 1000), decision.counted)

    def _give_back(self, cases: list[Case]) -> Iterator[tuple[Case, Settlement]]:
        for case in cases:
            yield case, self._settle(case, Decision(Outcome.NACKED))

    def exhausted_settlement(self, case: Case) -> Settlement:
        """The failure of ``Do.REPORT`` is reported."""
        return self._settle(case, Decision(Outcome.EXHAUSTED))

    def hung_settlement(self, case: Case) -> Settlement:
        """A body that was stopped for running too long counts like one that died."""
        return self._settle(case, Decision(Outcome.NACKED, counted=True))

    def _renews(self, case: Case, now: float) -> bool:
        if case.silent or case.lost or case.token is None or (case.hung and not self.can_stop):
            return False
        return now - case.renewed_at >= case.incoming.lease / (2 * BEATS_PER_LEASE)

    def _ends(self, case: Case) -> Iterator[float]:
        if case.incoming.options.strict:
            yield case.trusted_until
        if case.incoming.options.max_hold is not None and case.phase is Phase.RUNNING:
            yield case.accepted_at + case.incoming.options.max_hold

    def _hung(self, now: float) -> list[Case]:
        hung = []
        for case in self._active.values():
            limit = case.incoming.options.max_hold
            if limit is None or case.hung or case.phase is not Phase.RUNNING:
                continue
            if now >= case.accepted_at + limit:
                case.hung = True
                hung.append(case)
        return hung

    def _lose(self, case: Case) -> list[Action]:
        if case.lost or case.phase is Phase.DONE:
            return []
        case.lost = True
        case.trusted_until = 0.0
        return [Action(Do.STOP, case)]
