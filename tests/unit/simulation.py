"""Workers without Celery: desks, a broker that redelivers, bodies, one store and one clock.

Does what the adapters do with a desk's actions, and lets its caller decide what goes wrong.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from celery_claims.case import Action, Case, Do, Incoming, Phase
from celery_claims.desk import Desk
from celery_claims.protocol import Attempt, Lost, Renewal, SettleAnswer, Settled, Settlement
from celery_claims.settling import Ending
from celery_claims.stores.memory import MemoryStore
from celery_claims.testing import FakeClock

from tests.unit.factories import incoming

LEASE_MS = 30_000
#: Seconds that a delivery is held at most.
MAX_WAIT = 40.0


class Call(enum.Enum):
    """How a call to the store goes."""

    ANSWERED = "answered"
    #: its effect is there, its answer is not
    REPLY_LOST = "reply lost"
    #: it never arrived
    LOST = "lost"


@dataclass(eq=False)
class Message:
    """One copy of a task message at the broker."""

    task_id: str
    attempt: Attempt
    at_worker: bool = False
    gone: bool = False

    def incoming(self) -> Incoming:
        return incoming(self.task_id, attempt=self.attempt, lease=LEASE_MS / 1000)


@dataclass(eq=False)
class Worker:
    """One desk, and which message each of its cases is."""

    world: World
    name: str
    desk: Desk
    messages: dict[Case, Message] = field(default_factory=dict)
    bodies: set[Case] = field(default_factory=set)
    to_stop: set[Case] = field(default_factory=set)

    # what the gate does

    def deliver(self, message: Message, call: Call, delay_ms: int) -> None:
        message.at_worker = True
        case, actions = self.desk.receive(message.incoming(), self.world.now)
        self.messages[case] = message
        self.perform(actions, call, delay_ms)

    def ask_due(self, call: Call, delay_ms: int) -> None:
        self.perform(self.desk.overdue(self.world.now), call, delay_ms)
        for case in self.desk.due(self.world.now):
            self.ask(case, call, delay_ms)

    def perform(self, actions: list[Action], call: Call, delay_ms: int) -> None:
        for do, case, _ in actions:
            if do is Do.ASK:
                self.ask(case, call, delay_ms)
            elif do is Do.SKIP:
                self.acknowledge(case)
            elif do is Do.RETURN:
                self.give_to_broker(case)
            elif do is Do.STOP:
                self.to_stop.add(case)
            elif do is Do.REPORT:
                self.settle(case, self.desk.exhausted_settlement(case), call)

    def ask(self, case: Case, call: Call, delay_ms: int) -> None:
        asked_at = self.world.now
        request = self.desk.request(case)
        answers = self.world.call(call, delay_ms, lambda store: store.claim([request]))
        if answers is None:
            actions = self.desk.unanswered(case, self.world.now)
        else:
            actions = self.desk.answered(case, answers[0], asked_at, self.world.now)
        self.perform(actions, call, delay_ms)

    # what Celery and the pool do

    def start(self, case: Case, call: Call) -> None:
        """Hand the body to the pool, which checks the lease before it begins."""
        if not self.desk.submitted(case):
            self.come_back(case)
            return
        if self.world.now >= case.trusted_until:
            assert case.token is not None
            renewal = Renewal(case.token, LEASE_MS, started=True)
            answers = self.world.call(call, 0, lambda store: store.renew([renewal]))
            if answers is None or isinstance(answers[0], Lost):
                self.come_back(case)
                return
            self.desk.renewed(case, renewal, answers[0], self.world.now)
        self.desk.accepted(case, self.world.now)
        self.bodies.add(case)

    def end(self, case: Case, ending: Ending, call: Call) -> None:
        """The body is over; late acknowledgement, or a rejection that gives it back."""
        self.bodies.discard(case)
        self.to_stop.discard(case)
        if case.lost:
            self.come_back(case)
            return
        self.desk.ended(case, ending, recorded=False)
        if ending is Ending.REQUEUED:
            settlement = self.desk.rejecting(case, requeue=True)
        else:
            settlement = self.desk.acknowledging(case)
        assert settlement is not None
        self.settle(case, settlement, call)

    def stop(self, case: Case) -> None:
        """A lost body has stopped, or never was one."""
        self.to_stop.discard(case)
        if case in self.bodies:
            self.bodies.discard(case)
            self.come_back(case)

    def settle(self, case: Case, settlement: Settlement, call: Call) -> None:
        answers = self.world.call(call, 0, lambda store: self.world.settle(store, settlement))
        if answers is None:
            self.desk.unrecorded(case, settlement, self.world.now)
        elif isinstance(answers[0], Lost):
            case.lost = True
            self.come_back(case)
        else:
            self.settled(case, settlement)

    def settled(self, case: Case, settlement: Settlement) -> None:
        self.desk.recorded(case, self.world.now)
        if settlement.gives_back:
            self.give_to_broker(case)
        else:
            self.acknowledge(case)

    def come_back(self, case: Case) -> None:
        self.perform(self.desk.returned(case, self.world.now), Call.LOST, 0)
        if case.phase is Phase.DONE:
            self.messages.pop(case, None)

    def acknowledge(self, case: Case) -> None:
        message = self.messages.pop(case)
        # After a disconnection the broker does not know this delivery any more.
        if case.connection == self.desk.connection:
            self.world.acknowledged(message)

    def give_to_broker(self, case: Case) -> None:
        message = self.messages.pop(case, None)
        if message is not None and case.connection == self.desk.connection:
            message.at_worker = False

    # what the heartbeat does

    def beat(self, call: Call, delay_ms: int) -> None:
        renewals, actions = self.desk.beat(self.world.now)
        asked_at = self.world.now
        batch = [renewal for _, renewal in renewals]
        answers = self.world.call(call, delay_ms, lambda store: store.renew(batch))
        if answers is None:
            actions += self.desk.unrenewed(self.world.now)
        else:
            for (case, renewal), answer in zip(renewals, answers, strict=True):
                actions += self.desk.renewed(case, renewal, answer, asked_at)
        self.perform(actions, call, 0)

    def record(self, call: Call) -> None:
        for case, settlement in self.desk.to_record(self.world.now):
            self.settle(case, settlement, call)

    # ends

    def disconnect(self, call: Call) -> None:
        """The broker gives every unacknowledged message out again; bodies go on."""
        given_back = self.desk.disconnected()
        if given_back:
            batch = [settlement for _, settlement in given_back]
            self.world.call(call, 0, lambda store: store.settle(batch))
        for case, _ in given_back:
            self.desk.recorded(case, self.world.now)
        for case, message in list(self.messages.items()):
            if case.connection == self.desk.connection - 1:
                message.at_worker = False
            if case.phase is Phase.DONE:
                del self.messages[case]

    def crash(self) -> None:
        """All of it is gone but what the store knows."""
        for case, message in self.messages.items():
            if case.connection == self.desk.connection:
                message.at_worker = False
        self.messages.clear()
        self.bodies.clear()
        self.to_stop.clear()
        self.desk = self.world.new_desk(self.name)

    # what there is to do

    def may_ask(self) -> bool:
        at = self.desk.next_alarm()
        return at is not None and at <= self.world.now

    def may_record(self) -> bool:
        return bool(self.desk.to_record(self.world.now))

    def has_claims(self) -> bool:
        return bool(self.desk.active())

    def has_messages(self) -> bool:
        return bool(self.messages)

    def cases(self, *phases: Phase) -> list[Case]:
        return [case for case in self.messages if case.phase in phases]


class World:
    """A store, a clock, a broker and some workers.

    Parameters:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock, private=True)
        self.messages: list[Message] = []
        self.finished: set[tuple[str, Attempt]] = set()
        self._boots = 0
        self._grants = 0
        self.workers = []
        for number in range(workers):
            name = f"w{number}"
            self.workers.append(Worker(self, name, self.new_desk(name)))

    @property
    def now(self) -> float:
        """Monotonic seconds; one clock serves for store and workers."""
        return self.clock.now_us / 1e6

    def new_desk(self, name: str) -> Desk:
        self._boots += 1
        rng = random.Random(self._boots)
        return Desk(f"{name}/{self._boots}", self._new_grant, max_wait=MAX_WAIT, rng=rng)

    def _new_grant(self) -> str:
        self._grants += 1
        return f"grant-{self._grants}"

    def publish(self, task_id: str, attempt: Attempt) -> None:
        self.messages.append(Message(task_id, attempt))

    def waiting(self) -> list[Message]:
        """Messages that the broker has to give out."""
        return [message for message in self.messages if not (message.at_worker or message.gone)]

    def acknowledged(self, message: Message) -> None:
        """Promise 5: nothing is acknowledged whose attempt is not finished.

        An attempt whose successor was published has ended by that.
        """
        attempts = {message.attempt} | {
            other.attempt
            for other in self.messages
            if other.task_id == message.task_id and other.attempt > message.attempt
        }
        assert any((message.task_id, attempt) in self.finished for attempt in attempts) or (
            len(attempts) > 1
        ), f"{message} was acknowledged and never finished"
        message.gone = True

    def call(self, call: Call, delay_ms: int, effect: Callable[[MemoryStore], Any]) -> Any:
        """A call that takes its time on the way back; None: no answer came."""
        answer = None if call is Call.LOST else effect(self.store)
        self.clock.advance(delay_ms)
        return answer if call is Call.ANSWERED else None

    def settle(self, store: MemoryStore, settlement: Settlement) -> list[SettleAnswer]:
        """Also notes what is finished from now on, whether its worker hears of it or not."""
        (answer,) = store.settle([settlement])
        if isinstance(answer, Settled) and not settlement.gives_back:
            self.finished.add((settlement.token.task_id, settlement.token.attempt))
        return [answer]

    # what must hold at any moment

    def check_trust(self) -> None:
        """Promise 1 as the workers see it: nobody trusts a lease beside somebody else's."""
        trusting: dict[str, list[str]] = {}
        for worker in self.workers:
            for case in worker.desk.active():
                live = case.phase in (Phase.CLAIMED, Phase.SUBMITTED, Phase.RUNNING)
                if live and not case.lost and self.now < case.trusted_until:
                    trusting.setdefault(case.incoming.task_id, []).append(worker.name)
        assert all(len(names) == 1 for names in trusting.values()), trusting

    def check_nobody_waits_for_ever(self) -> None:
        """Every held case has an alarm ahead in its line, or a case that its end wakes it."""
        for worker in self.workers:
            desk = worker.desk
            active = {case.key: case for case in desk.active()}
            alarmed = {case.key for at, _, case in desk.lines._alarms if at == case.ask_at}
            for case in worker.cases(Phase.HELD):
                assert case in desk.lines.waiting(), "held and in no line"
                assert case.key in active or case.key in alarmed, f"{case.key} waits for nothing"
            for case in active.values():
                assert self._moves(worker, case), f"nothing ends {case}"

    def _moves(self, worker: Worker, case: Case) -> bool:
        if case.phase is Phase.CLAIMED:
            return case in worker.messages
        if case.phase in (Phase.SUBMITTED, Phase.RUNNING):
            return case in worker.bodies
        return case.phase is Phase.ENDED and case.unrecorded is not None

    # and at last

    def drain(self) -> None:
        """All goes well from now on: every message is acknowledged within bounded time."""
        for _ in range(400):
            if all(message.gone for message in self.messages):
                return
            for message in self.waiting():
                self.workers[0].deliver(message, Call.ANSWERED, 0)
            for worker in self.workers:
                self._drain(worker)
            self.check_nobody_waits_for_ever()
            self.check_trust()
            self.clock.advance(500)
        raise AssertionError([message for message in self.messages if not message.gone])

    def _drain(self, worker: Worker) -> None:
        for case in worker.cases(Phase.CLAIMED):
            worker.start(case, Call.ANSWERED)
        for case in list(worker.to_stop):
            worker.stop(case)
        for case in list(worker.bodies):
            worker.end(case, Ending.SUCCESS, Call.ANSWERED)
        worker.beat(Call.ANSWERED, 0)
        worker.record(Call.ANSWERED)
        worker.ask_due(Call.ANSWERED, 0)


__all__ = ["LEASE_MS", "Call", "Message", "Worker", "World"]
