"""The gate at prefetch: every delivery of a claimed task is judged before Celery sees it.

It stands where the consumer looks a task's strategy up, so that a denied delivery costs neither a
request, nor an ETA timer, nor a token of a rate limit. All of it runs on the consumer's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.exceptions import InvalidTaskError, TaskRevokedError
from celery.worker import state
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed, DecodeError

from .case import Action, Case, Do, Phase
from .config import TaskOptions
from .delivered import Delivered, fail, set_header
from .errors import DeliveriesExhausted
from .events import ClaimEvent
from .gathering import Gathering
from .headers import HEADER
from .incoming import read_incoming
from .inspection import EVENT_GROUP, EVENT_PREFIX, SENT, event_fields
from .keeper import Keeper
from .loop import Loop
from .protocol import Finished, Superseded
from .room import FreshRoom, Room, SharedRoom
from .seams import has_fixed_prefetch, let_go, resubscribe
from .stopping import Stopper

__all__ = ["Gate", "Strategies"]

logger = logging.getLogger("celery_claims")

#: Rounds of questions that one ring of the bell may ask, so that messages get their turn too.
ROUNDS = 20
#: Shortest time that an alarm is set to, in seconds.
SHORTEST_ALARM = 0.01

#: What Celery answers by rejecting the message.
REFUSED = (InvalidTaskError, ContentDisallowed, DecodeError)

Strategy = Callable[..., Any]
Options = Callable[[str], TaskOptions | None]


class Strategies(dict[str, Strategy]):
    """The consumer's strategies by task name, each behind the gate.

    A dict of its own because the consumer fills it anew whenever the pool is reloaded.
    """

    def __init__(self, wrap: Callable[[str, Strategy], Strategy]) -> None:
        super().__init__()
        self._wrap = wrap

    def __setitem__(self, name: str, strategy: Strategy) -> None:
        super().__setitem__(name, self._wrap(name, strategy))

    def __getitem__(self, name: Any) -> Strategy:
        try:
            return super().__getitem__(name)
        except TypeError as error:
            # No name, but a list, say: Celery knows what to do with a task that is not there.
            raise KeyError(name) from error


class Gate:
    """The gate of one consumer.

    Parameters:
        consumer: Celery's.
        keeper: the worker's claims.
        options: how a task is claimed, by name; None: it is not.
        keep_free: seconds that a record outlives a claim given back, by the task's options.
        max_held: ``claims_max_held``.
    """

    def __init__(
        self,
        consumer: Any,
        keeper: Keeper,
        options: Options,
        keep_free: Callable[[TaskOptions], float],
        max_held: int,
    ) -> None:
        self._consumer = consumer
        self._keeper = keeper
        self._options = options
        self._keep_free = keep_free
        self._max_held = max_held
        self._delivered: dict[Case, Delivered] = {}
        self._stopper = Stopper(consumer, keeper, self._delivered)
        self._alarm: Any = None
        self._alarm_at = 0.0
        self._closed = False
        self.loop = Loop(consumer)
        self._gathering = Gathering(consumer, keeper, self.loop, self._ask_gathered)
        self._room: Room | None = None
        # The queue that the message now being received comes from; None: unknown.
        self._source: Any = None
        keeper.ring = self.ring
        keeper.late_end = self._late_end
        keeper.watch = self._watch

    def connected(self) -> None:
        """A connection is there, and nothing has been received on it."""
        consumer = self._consumer
        self._stopper.turns()
        # Celery ends timers together with a connection; what they were for ended with it as well.
        self._gathering.begin()
        self._end_alarm()
        if not has_fixed_prefetch(consumer):
            self._room = SharedRoom(consumer.qos, self._max_held)
            return
        qos = consumer.qos
        subscribe = partial(resubscribe, consumer.task_consumer)
        self._room = FreshRoom(lambda: qos.value, subscribe, self.loop, self._max_held)

    def rests(self) -> None:
        """The loop does not turn, until there is a connection, or for good."""
        self._stopper.rests()

    def set_queue(self, queue: Any) -> None:
        """The next message comes from this queue."""
        self._source = queue

    # receiving

    def wrap(self, name: str, strategy: Strategy) -> Strategy:
        """The gated strategy of a task."""
        options = self._options(name)
        keep_free = self._keep_free(options) if options is not None else 0.0

        def gated(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **kw: Any) -> Any:
            if self._closed:
                # Unacknowledged, it goes back to the broker with the connection.
                return None
            if self._room is not None and self._room.follows_all:
                ack, reject = (_followed(answer, self._room, message) for answer in (ack, reject))
                self._room.received(self._source, message)
            delivered = Delivered(message, body, ack, reject, callbacks, strategy)
            incoming = None
            try:
                if options is not None and not self._is_broadcast():
                    task, source = self._consumer.app.tasks[name], self._source
                    queue = None if source is None else source.name
                    incoming = read_incoming(message, body, task, queue, options, keep_free)
                if incoming is None:
                    set_header(delivered, None)
                    return strategy(message, body, ack, reject, callbacks, **kw)
            except REFUSED:
                self._refused(message)
                raise
            delivered.case, actions = self._keeper.receive(incoming)
            self._delivered[delivered.case] = delivered
            self.perform(actions)
            return None

        return gated

    def _is_broadcast(self) -> bool:
        """The queue is of a fanout exchange: every worker shall run the task."""
        return self._source is not None and self._source.exchange.type == "fanout"

    # acting

    def act(self, actions: list[Action]) -> None:
        """From the heartbeat's thread: carry out what it found, on the loop if that turns."""
        if self._keeper.desk.can_stop and self._consumer.hub is None:
            # Without a hub Celery's loop waits while the pool is full: for the body to stop.
            self.perform(actions)
            return
        for action in actions:
            if action.do is Do.STOP:
                self._stopper.at_once(action.case)
        self.loop.call(self.perform, actions)

    def perform(self, actions: list[Action]) -> None:
        """Carry out what the desk decided, and what it decides on the way."""
        for action in actions:
            self._perform(action)
        while cases := self._gathering.ready():
            for action in self._keeper.ask(cases):
                self._perform(action)
        self._set_alarm()

    def _perform(self, action: Action) -> None:
        case = action.case
        delivered = self._delivered.get(case)
        if action.do is Do.ASK:
            self._gathering.add(case)
        elif delivered is None:
            return
        elif action.do is Do.STOP:
            self._stopper.on_loop(delivered)
        elif action.do is Do.HOLD:
            self._hold(delivered, action)
        elif action.do is Do.RETURN:
            self._give_back(delivered)
        else:
            self._take_room_back(delivered)
            self._pass(delivered, action)

    def _ask_gathered(self) -> None:
        """What waited for others to be asked for with it."""
        if not self._closed and (cases := self._gathering.take()):
            self.perform(self._keeper.ask(cases))
            # What was handed to the loop meanwhile must not wait for its next event.
            self.loop.wake()

    def _pass(self, delivered: Delivered, action: Action) -> None:
        case = delivered.case
        if action.do is Do.RUN:
            self._keeper.tell("taken_over" if case.mark_start else "claimed", case, _grant(case))
            if case.orphan is not None:
                # The store knows of that message no more.
                self._keeper.wake_to_touch(case)
            self._run(delivered)
        elif action.do is Do.RUN_UNCLAIMED:
            self._forget(case)
            set_header(delivered, None)
            self._call_strategy(delivered, delivered.acknowledge, delivered.reject)
        elif action.do is Do.SKIP:
            self._forget(case)
            self._keeper.tell("skipped", case, _reason(action.answer))
            delivered.acknowledge(logger, self._consumer.connection_errors)
        elif action.do is Do.REPORT:
            self._report(delivered)

    def _run(self, delivered: Delivered) -> None:
        case = delivered.case
        delivered.stopped = False
        set_header(delivered, self._keeper.passport(case).as_header())
        try:
            self._call_strategy(
                delivered, partial(self._acknowledge, delivered), partial(self._reject, delivered)
            )
        finally:
            # A message that goes back to the broker must not carry this worker's claim.
            set_header(delivered, None)

    def _call_strategy(self, delivered: Delivered, ack: Any, reject: Any) -> None:
        """As the consumer does; a delivery that waited has no caller to catch what it raises."""
        message, body = delivered.message, delivered.body
        try:
            delivered.strategy(message, body, ack, reject, delivered.callbacks)
        except (InvalidTaskError, ContentDisallowed) as exc:
            self._unrunnable(delivered)
            self._refused(message)
            self._consumer.on_invalid_task(body, message, exc)
        except DecodeError as exc:
            self._unrunnable(delivered)
            self._refused(message)
            self._consumer.on_decode_error(message, exc)
        except Exception:
            # A solo pool's body raises through here too, when its end is settled already.
            if delivered.case.phase is Phase.CLAIMED:
                self._unrunnable(delivered, requeue=True)
            raise

    def _refused(self, message: Any) -> None:
        """Celery rejects it without asking for our leave."""
        if self._room is not None and self._room.follows_all:
            self._room.answered(message)

    def _unrunnable(self, delivered: Delivered, *, requeue: bool = False) -> None:
        if delivered.case in self._delivered:
            self._keeper.rejecting(delivered.case, requeue=requeue)
            self._forget(delivered.case)

    def _hold(self, delivered: Delivered, action: Action) -> None:
        self._keeper.tell("held", delivered.case, _holder(action))
        # A killed worker's claims are known to the store; what it holds must be known as well.
        self._keeper.wake_to_touch(delivered.case)
        if not (delivered.roomy or delivered.let_go) and self._room is not None:
            delivered.roomy = self._room.hold(delivered.message)

    def _take_room_back(self, delivered: Delivered) -> None:
        if delivered.roomy and self._room is not None:
            delivered.roomy = False
            self._room.go_on(delivered.message)

    def _give_back(self, delivered: Delivered) -> None:
        self._take_room_back(delivered)
        self._forget(delivered.case)
        self._keeper.tell("returned", delivered.case, "waits in its queue, for it was held long")
        delivered.reject(logger, self._consumer.connection_errors, True)

    def _report(self, delivered: Delivered) -> None:
        """Fail a task that keeps killing its worker: result, then store, then broker."""
        case = delivered.case
        error = DeliveriesExhausted(case.incoming.task_id, case.deliveries)
        self._keeper.tell("exhausted", case, str(error))
        fail(self._consumer, delivered, error)
        if self._keeper.exhausted(case) is None:
            # Somebody else was granted it meanwhile, and tells its message's fate.
            self.come_back(case)
            return
        self._forget(case)
        delivered.reject(logger, self._consumer.connection_errors, False)

    # what Celery does with a request

    def submit(self, request: Request) -> Case | None:
        """The case of a request that goes to the pool; None: it is not claimed.

        Raises:
            TaskRevokedError: its claim was given back with its connection, and its message has
                gone to somebody; the pool's slot is given back.
        """
        header = request.request_dict.get(HEADER)
        if not header or "grant_id" not in header:
            return None
        case = self._keeper.case(header["grant_id"])
        delivered = self._delivered.get(case) if case is not None else None
        if case is None or delivered is None:
            # Not task_ready, which would forget the request of the message's next delivery.
            state.reserved_requests.discard(request)
            raise TaskRevokedError(request.id)
        delivered.request = request
        return case

    def child_of(self, case: Case) -> int | None:
        """The pid of the process that runs a case's body, as the pool reported it."""
        delivered = self._delivered.get(case)
        return delivered.request.worker_pid if delivered and delivered.request else None

    def come_back(self, case: Case, *, started: bool = False, unsure: bool = False) -> None:
        """A body was stopped, or refused to start: its delivery waits at the gate again.

        One that was acknowledged early and had started is at its end: it runs at most once.

        Parameters:
            started: the body had begun.
            unsure: its claim may be held.
        """
        delivered = self._delivered.get(case)
        if delivered is None:
            return
        if delivered.request is not None:
            state.task_ready(delivered.request)
        delivered.request = delivered.pending = None
        if case.lost and not delivered.answered:
            # The new owner may have it under the same delivery tag.
            delivered.let_go = let_go(delivered.message)
        if started and delivered.answered:
            self._keeper.dropped(case)
            self._forget(case)
            return
        at_broker = not (delivered.answered or delivered.let_go)
        actions = self._keeper.returned(case, at_broker=at_broker, unsure=unsure)
        if actions:
            self.loop.call(self.perform, actions)
        else:
            self._forget(case)

    def over(self, case: Case) -> None:
        """The pool's callback is over and the claim is settled."""
        delivered = self._delivered.get(case)
        if delivered is not None and delivered.pending is None:
            self._forget(case)

    def _acknowledge(self, delivered: Delivered, *args: Any) -> None:
        send = partial(delivered.acknowledge, *args)
        self._after(delivered, send, self._keeper.acknowledging)

    def _reject(self, delivered: Delivered, log: Any, errors: Any, requeue: bool = False) -> None:
        send = partial(delivered.reject, log, errors, requeue)
        self._after(delivered, send, partial(self._keeper.rejecting, requeue=requeue))

    def _after(
        self, delivered: Delivered, send: Callable[[], None], record: Callable[[Case], bool | None]
    ) -> None:
        """Tell the store, then the broker; a lost claim's message is not this run's any more."""
        case = delivered.case
        recorded = None if case.lost else record(case)
        if recorded:
            send()
            if case.phase is Phase.DONE:
                self._forget(case)
        elif recorded is None:
            if not case.in_executor:
                self.come_back(case)
        else:
            delivered.pending = send

    def _late_end(self, case: Case, lost: bool) -> None:
        self.loop.call(self._send_late, case, lost)

    def _send_late(self, case: Case, lost: bool) -> None:
        delivered = self._delivered.get(case)
        if delivered is None:
            return
        if lost and delivered.pending is not None:
            self.come_back(case)
            return
        if delivered.pending is not None:
            delivered.pending()
        self._forget(case)

    def _watch(self, event: ClaimEvent) -> None:
        dispatcher = self._consumer.event_dispatcher
        if event.name in SENT and dispatcher is not None and _wants_ours(dispatcher):
            # Not from here: this may be a thread that must not touch the broker's connection.
            kind = EVENT_PREFIX + event.name.replace("_", "-")
            self.loop.call(partial(dispatcher.send, kind, **event_fields(event)))

    # time and ends

    def ring(self) -> None:
        """From any thread: look after the held deliveries soon."""
        self.loop.call(self.pump)

    def pump(self) -> None:
        """Ask for the held deliveries whose time has come."""
        if self._closed:
            return
        self.perform(self._keeper.overdue())
        for _ in range(ROUNDS):
            cases = self._keeper.due()
            if not cases:
                break
            self.perform(self._keeper.ask(cases))
        self._set_alarm()

    def _set_alarm(self) -> None:
        """One at a time: each one sets the next, so that a second one would never end."""
        at = self._keeper.next_alarm()
        now = self._keeper.host.clock()
        # One that should have come does not count: perhaps it went with its timer.
        if at is None or (self._alarm is not None and now < self._alarm_at <= at):
            return
        self._end_alarm()
        self._alarm_at = at
        self._alarm = self._consumer.timer.call_after(max(at - now, SHORTEST_ALARM), self._rang)

    def _rang(self) -> None:
        # Over, also if it came a hair before its time, by a clock that is read again.
        self._alarm = None
        self.ring()

    def _end_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def disconnected(self) -> None:
        """The connection is gone, and with it every message that waits."""
        if self._room is not None:
            # What it has yet to do is for a channel that is gone.
            self._room.close()
            self._room = None
        self._keeper.disconnected()
        kept = set(self._keeper.desk.active())
        for case in list(self._delivered):
            if case not in kept:
                self._forget(case)
            else:
                self._delivered[case].roomy = False

    def closing(self) -> None:
        """The worker ends: nothing new is asked; what ended but is not recorded is acknowledged,
        for it must not run again only because the store did not answer."""
        self._closed = True
        for delivered in list(self._delivered.values()):
            if delivered.pending is not None and not delivered.case.lost:
                delivered.directly = True
                delivered.pending()
                delivered.pending = None

    def _forget(self, case: Case) -> None:
        delivered = self._delivered.pop(case, None)
        if delivered is not None:
            # The request knows the delivery by its acknowledgement. A cycle for each task would
            # keep the garbage collector as busy as the claims.
            delivered.request = None
        self._gathering.ended()


def _followed(answer: Callable[..., Any], room: Room, message: Any) -> Callable[..., Any]:
    def follow(*args: Any) -> Any:
        room.answered(message)
        return answer(*args)

    return follow


def _wants_ours(dispatcher: Any) -> bool:
    """Without -E it sends the worker's own events alone, and would drop ours on the loop."""
    return dispatcher.enabled and (not dispatcher.groups or EVENT_GROUP in dispatcher.groups)


def _grant(case: Case) -> str:
    assert case.token is not None
    return f"token {case.token.token}, attempt {tuple(case.incoming.attempt)}"


def _holder(action: Action) -> str:
    if action.case.unreadable:
        return "waits until its record can be read"
    owner = getattr(action.answer, "owner", None)
    return f"waits, {owner} has it" if owner else "waits for the store or for a run on this worker"


def _reason(answer: object) -> str:
    if isinstance(answer, Finished):
        return f"its attempt finished as {answer.outcome.value}"
    assert isinstance(answer, Superseded)
    return f"attempt {tuple(answer.attempt)} of the same run is known"
