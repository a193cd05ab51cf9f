"""A worker's claims: the desk behind one lock, and what its decisions do to the store.

Knows neither Celery nor its pools: ``gate`` and ``pool`` bring events, ``heartbeat`` the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from .case import Action, Case, Incoming
from .desk import Desk
from .errors import StoreError
from .events import ClaimEvent, emit
from .headers import Passport
from .host import HOST, Host
from .native import allocate_lock
from .parts import ask_in_parts
from .protocol import ClaimAnswer, Ended, Lost, Outcome, RenewAnswer, Renewal, Settlement
from .settling import Ending
from .stores import Store

__all__ = ["Keeper"]


def new_owner(hostname: str, host: Host = HOST) -> str:
    """An owner that no other worker, and no earlier start of this one, has or had."""
    return f"{hostname}/{host.pid()}/{host.new_id(8)}"


class Keeper:
    """What one worker holds.

    Parameters:
        hostname: the worker's node name.
        store: for the worker's own calls; safe in every thread of it.
        run_when_down: ``claims_on_store_down = "run"``.
        can_stop: the pool can kill a body.
        max_wait: ``claims_max_wait``, in seconds.
        host: what it runs on.
    """

    def __init__(
        self,
        hostname: str,
        store: Store,
        *,
        run_when_down: bool,
        can_stop: bool,
        max_wait: float | None = None,
        host: Host = HOST,
    ) -> None:
        self.host = host
        self._clock = host.clock
        self.desk = Desk(
            owner=new_owner(hostname, host),
            new_grant=lambda: host.new_id(12),
            run_when_down=run_when_down,
            can_stop=can_stop,
            max_wait=max_wait,
            rng=host.rng,
        )
        self.store = store
        self.lock = allocate_lock()
        #: Called, from any thread, when held deliveries may have something to ask.
        self.ring: Callable[[], None] = lambda: None
        #: Called, from any thread, when it has something to do before its next beat.
        self.wake_heartbeat: Callable[[], None] = lambda: None
        #: Called, on the consumer's loop, with a case that has something that was not touched yet.
        self.wake_to_touch: Callable[[Case], None] = lambda _case: None
        #: Called with unanswered deliveries that go out of this worker's hands: whether the broker
        #: will give their messages away without their claims.
        self.leave: Callable[[list[Case]], bool] = lambda _cases: True
        #: Called, from any thread, when an end that waited is recorded, or refused.
        self.late_end: Callable[[Case, bool], None] = lambda _case, _lost: None
        #: Called, from any thread, with every event of a task.
        self.watch: Callable[[ClaimEvent], None] = lambda _event: None
        #: How often each event happened to this worker's tasks.
        self.counts: Counter[str] = Counter()
        self.is_down = False
        self._by_grant: dict[str, Case] = {}

    # deliveries

    def receive(self, incoming: Incoming) -> tuple[Case, list[Action]]:
        with self.lock:
            return self.desk.receive(incoming, self._clock())

    def ask(self, cases: list[Case]) -> list[Action]:
        """Put the questions of these cases to the store in one call."""
        asked_at = self._clock()
        try:
            requests = [self.desk.request(case) for case in cases]
            answers = ask_in_parts(self.store.claim, requests)
        except StoreError as error:
            self.store_failed(error)
            with self.lock:
                return [a for case in cases for a in self.desk.unanswered(case, self._clock())]
        self.store_answered()
        return [
            action
            for case, answer in zip(cases, answers, strict=True)
            for action in (
                self._unreadable(case, answer)
                if isinstance(answer, StoreError)
                else self._answered(case, answer, asked_at)
            )
        ]

    def _unreadable(self, case: Case, error: StoreError) -> list[Action]:
        with self.lock:
            known = case.unreadable
            actions = self.desk.unreadable(case, self._clock())
        if not known:
            self.tell("unreadable", case, str(error))
        return actions

    def _answered(self, case: Case, answer: ClaimAnswer, asked_at: float) -> list[Action]:
        with self.lock:
            actions = self.desk.answered(case, answer, asked_at, self._clock())
            if case.token is not None:
                self._by_grant[case.grant_id] = case
        return actions

    def due(self) -> list[Case]:
        with self.lock:
            return self.desk.due(self._clock())

    def busy(self, claims: int) -> bool:
        """Whether this worker has so many claims at least."""
        return self.desk.has_claims(claims)

    def next_alarm(self) -> float | None:
        with self.lock:
            return self.desk.next_alarm()

    def overdue(self) -> list[Action]:
        with self.lock:
            actions = self.desk.overdue(self._clock())
            settlements = self.desk.giving_up(actions)
        self._give_back(settlements, [case for case, _ in settlements])
        return actions

    # runs

    def case(self, grant_id: str) -> Case | None:
        """The case that was granted under this id, while it is this worker's."""
        return self._by_grant.get(grant_id)

    def passport(self, case: Case) -> Passport:
        """What travels with the request."""
        options = case.incoming.options
        assert case.token is not None
        assert options.keep_finished is not None
        return Passport(
            token=case.token,
            lease=case.incoming.lease,
            strict=bool(options.strict),
            keep_finished=options.keep_finished,
            deliveries=case.deliveries,
            mark_start=case.mark_start,
            trusted_until=case.trusted_until,
            worker=self.host.pid(),
        )

    def submitted(self, case: Case) -> bool:
        with self.lock:
            return self.desk.submitted(case)

    def unsubmitted(self, case: Case) -> None:
        with self.lock:
            self.desk.unsubmitted(case)

    def accepted(self, case: Case) -> None:
        with self.lock:
            self.desk.accepted(case, self._clock())
        if case.incoming.options.max_hold is not None:
            # It sleeps past the end of this run, perhaps.
            self.wake_heartbeat()

    def holds(self, case: Case) -> bool:
        """Whether an end may be told to others: past the worker's trust only the store knows.

        As for a body, who gets no answer goes on, unless the task is strict.
        """
        # Again if the process stood still for so long that the answer is old.
        while not case.lost and (asked_at := self._clock()) >= case.trusted_until:
            with self.lock:
                renewal = self.desk.renewal(case)
            try:
                (answer,) = ask_in_parts(self.store.renew, [renewal])
            except StoreError as error:
                self.store_failed(error)
                return not case.incoming.options.strict
            self.store_answered()
            if isinstance(answer, StoreError):
                self._unreadable(case, answer)
                return not case.incoming.options.strict
            if isinstance(answer, Lost):
                self.found_lost(case)
                break
            self.renewed(case, renewal, answer, asked_at)
            if isinstance(answer, Ended):
                break
        return not case.lost

    def ended(self, case: Case, ending: Ending, *, recorded: bool) -> None:
        with self.lock:
            self.desk.ended(case, ending, recorded=recorded)

    def acknowledging(self, case: Case) -> bool | None:
        """Record what an acknowledgement means; True: it may go on, False: later, None: lost."""
        with self.lock:
            settlement = self.desk.acknowledging(case)
        return self._settle(case, settlement)

    def rejecting(self, case: Case, *, requeue: bool) -> bool | None:
        """As ``acknowledging``, for a rejection."""
        with self.lock:
            settlement = self.desk.rejecting(case, requeue=requeue)
        if requeue and settlement is not None:
            # If the connection breaks before the broker hears of it, no claim tells of its message.
            self.leave([case])
        return self._settle(case, settlement)

    def returning(self, case: Case, *, cancelled: bool) -> Outcome | None:
        """Record what is left when the pool's callback is over; the outcome, if this did it."""
        with self.lock:
            settlement = self.desk.returning(case, cancelled=cancelled)
            # An end that is told again is settled then, and its acknowledgement waits for that.
            silent = case.silent and case.unrecorded is None
        if settlement is None:
            if silent:
                self._recorded(case)
            return None
        self._settle(case, settlement)
        return settlement.outcome

    def exhausted(self, case: Case) -> bool | None:
        """The failure of a task out of deliveries has been reported: no copy of it runs again.

        Returns:
            as ``acknowledging``.
        """
        with self.lock:
            settlement = self.desk.exhausted_settlement(case)
        return self._settle(case, settlement)

    def stopped_hung(self, case: Case) -> None:
        """A body that ran too long has been stopped: give it back as one that died."""
        with self.lock:
            settlement = self.desk.hung_settlement(case)
        self._settle(case, settlement)

    def found_lost(self, case: Case) -> None:
        """The body's own process learned that the claim is gone; the heartbeat may know already."""
        with self.lock:
            known, case.lost = case.lost, True
        if not known:
            self.tell("lost", case, "at its end it found the claim gone")

    def returned(self, case: Case, *, at_broker: bool, unsure: bool = False) -> list[Action]:
        """The body is over and the delivery is still ours: back to the gate.

        Parameters:
            unsure: see ``Desk.returned``.
        """
        if unsure:
            with self.lock:
                settlement = self.desk.unbegun(case)
            if settlement is not None:
                self._settle(case, settlement)
                return []
        self._by_grant.pop(case.grant_id, None)
        with self.lock:
            actions = self.desk.returned(case, self._clock(), at_broker=at_broker, unsure=unsure)
        self.ring()
        return actions

    def dropped(self, case: Case) -> None:
        """A lost run whose message is gone has stopped: nothing is left to do."""
        self._recorded(case)

    def _settle(self, case: Case, settlement: Settlement | None) -> bool | None:
        if settlement is None:
            return True
        try:
            (answer,) = ask_in_parts(self.store.settle, [settlement])
        except StoreError as error:
            self.store_failed(error)
            return self._later(case, settlement)
        self.store_answered()
        if isinstance(answer, StoreError):
            self._unreadable(case, answer)
            return self._later(case, settlement)
        if isinstance(answer, Lost):
            self._by_grant.pop(case.grant_id, None)
            with self.lock:
                self.desk.refused(case, self._clock())
            self.ring()
            self.tell("lost", case, "somebody else was granted it before its end was recorded")
            return None
        self._recorded(case, settlement)
        return True

    def _later(self, case: Case, settlement: Settlement) -> bool:
        """The heartbeat records the end."""
        self.still_unrecorded(case, settlement)
        self.wake_heartbeat()
        return False

    def _recorded(self, case: Case, settlement: Settlement | None = None) -> None:
        if settlement is not None:
            name = "given_back" if settlement.gives_back else "released"
            self.tell(name, case, settlement.outcome.value)
        self._by_grant.pop(case.grant_id, None)
        with self.lock:
            self.desk.recorded(case, self._clock())
            awaited = case.key in self.desk.lines
        if awaited:
            self.ring()

    # the heartbeat's side

    def beat(self) -> tuple[list[tuple[Case, Renewal]], list[Action]]:
        with self.lock:
            return self.desk.beat(self._clock())

    def renewed(
        self, case: Case, renewal: Renewal, answer: RenewAnswer, asked_at: float
    ) -> list[Action]:
        with self.lock:
            return self.desk.renewed(case, renewal, answer, asked_at)

    def unrenewable(self, case: Case, renewal: Renewal, error: StoreError) -> None:
        """The store answers, but cannot read the record of this case."""
        if renewal.token is case.token:
            self._unreadable(case, error)

    def unrenewed(self) -> list[Action]:
        with self.lock:
            return self.desk.unrenewed(self._clock())

    def deadline(self) -> float | None:
        with self.lock:
            return self.desk.deadline()

    def stopping(self) -> list[Case]:
        with self.lock:
            return self.desk.stopping()

    def to_record(self) -> list[tuple[Case, Settlement]]:
        with self.lock:
            return self.desk.to_record(self._clock())

    def unrecorded(self) -> bool:
        """Whether some end waits to be recorded."""
        with self.lock:
            return any(case.unrecorded is not None for case in self.desk.active())

    def record_late(self, case: Case, settlement: Settlement, *, lost: bool) -> None:
        """The store has at last answered to an end that it had not taken."""
        if lost:
            self._by_grant.pop(case.grant_id, None)
            with self.lock:
                self.desk.refused(case, self._clock())
            self.ring()
        else:
            self._recorded(case, settlement)
        self.late_end(case, lost)

    def still_unrecorded(
        self, case: Case, settlement: Settlement, error: StoreError | None = None
    ) -> None:
        """The store did not take an end; ``error``: because it cannot read the record."""
        with self.lock:
            self.desk.unrecorded(case, settlement, self._clock())
        if error is not None:
            self._unreadable(case, error)

    # ends

    def disconnected(self) -> None:
        """The broker's connection is gone: give back what had not reached the pool."""
        with self.lock:
            in_hand = [*self.desk.active(), *self.desk.lines.waiting()]
            settlements = self.desk.disconnected()
        self._give_back(settlements, in_hand)

    def closing(self, survives: Callable[[Case], bool]) -> None:
        """The worker ends: give back what does not run any more."""
        with self.lock:
            in_hand = [*self.desk.active(), *self.desk.lines.waiting()]
            settlements = self.desk.closing(survives)
        self._give_back(settlements, in_hand)

    def _give_back(self, settlements: list[tuple[Case, Settlement]], in_hand: list[Case]) -> None:
        if not in_hand:
            return
        # What is not given back is not lost: its lease runs out and it is taken over then. That is
        # also how a sweep finds the message of a claim that the broker could not be told of.
        told = self.leave(in_hand)
        if not told or not settlements:
            for case, _ in settlements:
                self._recorded(case)
            return
        try:
            answers = ask_in_parts(self.store.settle, [settlement for _, settlement in settlements])
        except StoreError as error:
            self.store_failed(error)
            for case, _ in settlements:
                self._recorded(case)
            return
        for (case, settlement), answer in zip(settlements, answers, strict=True):
            if isinstance(answer, StoreError):
                self._unreadable(case, answer)
                self._recorded(case)
            else:
                self._recorded(case, settlement)

    # telling

    def snapshot(self) -> tuple[list[Case], list[Case]]:
        """The cases under a claim, and those that wait."""
        with self.lock:
            return self.desk.active(), self.desk.lines.waiting()

    def tell(self, name: str, case: Case, detail: str) -> None:
        incoming = case.incoming
        event = ClaimEvent(
            name,
            detail,
            task=incoming.delivery.task,
            task_id=incoming.task_id,
            queue=incoming.queue,
            token=case.token.token if case.token else 0,
            attempt=incoming.attempt,
        )
        with self.lock:
            self.counts[name] += 1
        emit(event)
        self.watch(event)

    def store_failed(self, error: StoreError) -> None:
        if not self.is_down:
            self.is_down = True
            policy = "deliveries run unclaimed" if self.desk.run_when_down else "deliveries wait"
            emit(ClaimEvent("store_down", f"{policy}: {error}"))

    def store_answered(self) -> None:
        if self.is_down:
            self.is_down = False
            emit(ClaimEvent("store_up", self.store.name))
