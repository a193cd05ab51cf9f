"""When the gate asks for a message, and what it does when the answer is not what it hoped for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, call

import pytest
from celery.exceptions import TaskRevokedError
from celery_claims import gate as module
from celery_claims.case import Action, Case, Do
from celery_claims.delivered import Delivered
from celery_claims.gate import Gate
from celery_claims.gathering import BURST, LONGEST, SHORT
from celery_claims.headers import HEADER
from celery_claims.keeper import Keeper
from celery_claims.protocol import ClaimAnswer, ClaimRequest
from celery_claims.stores.memory import MemoryStore
from kombu import Queue

from tests.unit.factories import OPTIONS, incoming


@pytest.mark.parametrize(
    ("recorded", "rejected"),
    [(True, True), (False, True), (None, False)],
    ids=["recorded", "told later", "refused"],
)
def test_a_report_that_comes_too_late_leaves_the_message_to_the_next_owner(
    monkeypatch: pytest.MonkeyPatch, recorded: bool | None, rejected: bool
) -> None:
    """Promise 5: a message is dropped only under a claim that is still this worker's."""
    monkeypatch.setattr(module, "fail", MagicMock())
    keeper = MagicMock()
    keeper.exhausted.return_value = recorded
    gate = Gate(MagicMock(), keeper, MagicMock(), MagicMock(), max_held=10)
    delivered = Delivered(MagicMock(), None, MagicMock(), MagicMock(), None, MagicMock())
    delivered.case = Case(incoming(), connection=0, grant_id="grant")
    gate._delivered[delivered.case] = delivered
    keeper.next_alarm.return_value = None
    gate.perform([Action(Do.REPORT, delivered.case)])
    assert delivered._reject.called is rejected
    assert keeper.returned.called is not rejected
    delivered._acknowledge.assert_not_called()


class Burst:
    """A gate with a consumer of two processes; messages are handed in, timers fire by hand."""

    def __init__(self, *, hub: bool = True) -> None:
        self.store = CountingStore(private=True)
        self.keeper = Keeper("w1@host", self.store, run_when_down=False, can_stop=True)
        self.consumer = MagicMock()
        self.consumer.pool.num_processes = 2
        self.consumer.event_dispatcher = None
        self.consumer.app.tasks = {"proj.add": SimpleNamespace(name="proj.add", acks_late=True)}
        if not hub:
            self.consumer.hub = None
        self.gate = Gate(self.consumer, self.keeper, lambda _: OPTIONS, lambda _: 60.0, 10)
        self.gate.set_queue(Queue("celery"))
        self.strategy = MagicMock()
        self.gated = self.gate.wrap("proj.add", self.strategy)

    def receive(self, *task_ids: str) -> None:
        for task_id in task_ids:
            message = MagicMock(
                headers={"id": task_id},
                payload=[[], {}, {}],
                properties={},
                delivery_tag=task_id,
                delivery_info={},
            )
            message.properties = {}
            self.gated(message, None, MagicMock(), MagicMock(), None)

    @property
    def pauses(self) -> list[float]:
        """How long what is gathered may wait, of each time that it began to."""
        delays = [made.args[0] for made in self.consumer.timer.call_after.call_args_list]
        return [delay for delay in delays if delay in (LONGEST, SHORT)]

    def fire(self) -> None:
        """What the loop does once the time of a timer has come."""
        for made in self.consumer.timer.call_after.call_args_list:
            delay, callback = made.args
            if delay in (LONGEST, SHORT):
                callback()
        self.consumer.timer.call_after.reset_mock()

    def end(self, number: int) -> None:
        """The end of a task: Celery acknowledges its message."""
        acknowledge = self.strategy.call_args_list[number].args[2]
        acknowledge(None, None)

    def turn(self) -> None:
        """What the loop does when it is woken."""
        self.gate.loop._run()

    def keep_busy(self) -> None:
        """Enough for two processes, while others are gathered."""
        self.receive(*BUSY)
        self.fire()
        self.store.sizes.clear()


class CountingStore(MemoryStore):
    """Remembers the size of each call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sizes: list[int] = []

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        self.sizes.append(len(requests))
        return super().claim(requests)


#: As many as keep two processes busy while others are gathered.
BUSY = [f"busy-{number}" for number in range(4)]


def test_an_idle_worker_asks_at_once() -> None:
    """No message waits for company that may never come."""
    burst = Burst()
    burst.receive("a")
    assert burst.store.sizes == [1] and burst.pauses == []
    assert burst.strategy.call_count == 1


def test_a_worker_that_has_a_task_waits_for_what_comes_with_a_message() -> None:
    burst = Burst()
    burst.receive("a", "b", "c")
    assert burst.store.sizes == [1] and burst.pauses == [SHORT]
    burst.fire()
    assert burst.store.sizes == [1, 2]


def test_a_busy_worker_asks_for_a_burst_in_one_call() -> None:
    burst = Burst()
    burst.keep_busy()
    burst.receive("a", "b", "c")
    assert burst.store.sizes == [] and burst.pauses == [LONGEST]
    burst.fire()
    assert burst.store.sizes == [3]
    assert burst.strategy.call_count == 7


def test_what_is_gathered_does_not_wait_when_the_pool_has_little_left_to_do() -> None:
    burst = Burst()
    burst.keep_busy()
    burst.receive("a", "b", "c")
    burst.end(0)
    burst.turn()
    assert burst.store.sizes == [3]


def test_an_end_hurries_nobody_while_the_pool_has_enough() -> None:
    burst = Burst()
    burst.keep_busy()
    burst.receive("a", "b")
    burst.fire()
    burst.receive("c")
    burst.end(0)
    burst.turn()
    assert burst.store.sizes == [2]


def test_a_full_burst_does_not_wait() -> None:
    burst = Burst()
    burst.keep_busy()
    burst.receive(*[f"id-{number}" for number in range(BURST + 1)])
    assert burst.store.sizes == [BURST]
    burst.fire()
    assert burst.store.sizes == [BURST, 1]


def test_a_loop_without_a_hub_asks_at_once() -> None:
    """Its timers are late by seconds."""
    burst = Burst(hub=False)
    burst.receive(*BUSY, "a", "b")
    assert burst.store.sizes == [1] * 6


def test_what_is_gathered_when_the_connection_breaks_is_not_claimed() -> None:
    """It comes again: a claim would only make the next delivery wait for its end."""
    burst = Burst()
    burst.keep_busy()
    burst.receive("a")
    burst.gate.disconnected()
    burst.receive("b")
    burst.fire()
    assert burst.store.lookup([("celery", "a")]) == [None]
    assert burst.store.lookup([("celery", "b")]) != [None]


def test_a_timer_that_ended_with_its_connection_is_not_waited_for() -> None:
    burst = Burst()
    burst.keep_busy()
    burst.receive("a")
    burst.gate.disconnected()
    burst.consumer.timer.call_after.reset_mock()
    burst.gate.connected()
    burst.receive(*BUSY, "b", "c")
    burst.fire()
    assert burst.store.lookup([("celery", "c")]) != [None]


def test_what_is_gathered_when_the_worker_ends_is_not_claimed() -> None:
    burst = Burst()
    burst.keep_busy()
    burst.receive("a")
    burst.gate.closing()
    burst.fire()
    assert burst.store.lookup([("celery", "a")]) == [None]


def test_a_copy_of_a_gathered_message_is_held() -> None:
    burst = Burst()
    burst.keep_busy()
    burst.receive("a", "a")
    burst.fire()
    assert burst.store.sizes == [1]
    assert len(burst.keeper.snapshot()[1]) == 1


class Request:
    """What Celery's strategy makes of a message, as far as it refers to the gate."""

    def __init__(self, message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        self.request_dict = dict(message.headers)
        self.acknowledge = partial(ack, None, None)


def test_a_task_that_is_over_leaves_nothing_to_the_garbage_collector() -> None:
    """A cycle of each task made it cost a busy worker a tenth of its time."""
    burst = Burst()
    requests: list[Request] = []
    strategy: Any = lambda *args: requests.append(Request(*args))  # noqa: E731
    burst.gated = burst.gate.wrap("proj.add", strategy)
    burst.receive("a")
    request = requests.pop()
    case = burst.gate.submit(request)  # type: ignore[arg-type]
    assert case is not None
    kept = weakref.ref(request)
    gc.disable()
    try:
        request.acknowledge()
        del request, case
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("enabled", "groups", "sent"),
    [(True, set(), True), (True, {"worker"}, False), (False, set(), False)],
    ids=["with -E", "without -E", "off"],
)
def test_events_are_only_made_where_they_are_sent(
    enabled: bool, groups: set[str], sent: bool
) -> None:
    """Without -E a worker tells of itself alone: a claim's event would be dropped on the loop."""
    burst = Burst()
    burst.consumer.event_dispatcher = MagicMock(enabled=enabled, groups=groups)
    burst.receive("a")
    burst.turn()
    assert burst.consumer.event_dispatcher.send.called is sent


@pytest.fixture
def gate() -> Gate:
    keeper = MagicMock()
    keeper.next_alarm.return_value = None
    return Gate(MagicMock(), keeper, MagicMock(), MagicMock(), max_held=10)


def deliver(gate: Gate) -> Delivered:
    delivered = Delivered(MagicMock(), None, MagicMock(), MagicMock(), None, MagicMock())
    delivered.case = Case(incoming(), connection=0, grant_id="grant")
    gate._delivered[delivered.case] = delivered
    return delivered


def test_a_delivery_that_waited_too_long_goes_back_to_its_queue(gate: Gate) -> None:
    """Promise 5: rejected to be delivered again, not acknowledged and not dropped."""
    delivered = deliver(gate)
    gate.perform([Action(Do.RETURN, delivered.case)])
    delivered._reject.assert_called_once()
    assert delivered._reject.call_args.args[2] is True
    delivered._acknowledge.assert_not_called()
    assert gate._delivered == {}


def test_at_the_end_an_acknowledgement_does_not_take_the_loops_way(gate: Gate) -> None:
    """The loop has ended by then, and would never send it."""
    delivered = deliver(gate)
    delivered.pending = partial(delivered.acknowledge, "log", "errors")
    gate.closing()
    delivered.message.ack_log_error.assert_called_once_with("log", "errors")
    delivered._acknowledge.assert_not_called()


def test_at_the_end_a_lost_run_acknowledges_nothing(gate: Gate) -> None:
    """Nothing lost: its message, or a copy of it, is what another worker runs."""
    delivered = deliver(gate)
    delivered.pending = partial(delivered.acknowledge, "log", "errors")
    delivered.case.lost = True
    gate.closing()
    delivered.message.ack_log_error.assert_not_called()
    delivered._acknowledge.assert_not_called()


def test_a_request_whose_claim_was_given_back_does_not_run(gate: Gate) -> None:
    """An older Celery lets the ETA timers of a lost connection go on."""
    gate._keeper.case.return_value = None
    request = MagicMock(id="id-1", request_dict={HEADER: {"grant_id": "of another connection"}})
    with pytest.raises(TaskRevokedError):
        gate.submit(request)


def test_a_request_without_a_claim_is_celerys_own(gate: Gate) -> None:
    assert gate.submit(MagicMock(request_dict={})) is None
    assert gate.submit(MagicMock(request_dict={HEADER: {"queue": "first"}})) is None


def test_what_a_room_has_yet_to_do_ends_with_its_connection() -> None:
    """On the channel that is gone it would raise, and the worker would connect anew once more."""
    burst = Burst()
    burst.gate._room = room = MagicMock()
    burst.gate.disconnected()
    room.close.assert_called_once_with()
    burst.receive("a")
    assert burst.store.lookup([("celery", "a")]) != [None]
    assert room.method_calls == [call.close()]


class TestAlarm:
    """When held deliveries are asked for again; the soak found what comes of a second alarm."""

    @pytest.fixture
    def alarms(self, gate: Gate) -> list[tuple[float, MagicMock]]:
        """Every alarm that was set: for when, and what the timer gave for it."""
        made: list[tuple[float, MagicMock]] = []

        def call_after(delay: float, function: object) -> MagicMock:
            made.append((gate._keeper.host.clock() + delay, MagicMock()))
            return made[-1][1]

        gate._consumer.timer.call_after.side_effect = call_after
        gate._keeper.due.return_value = []
        self.at(gate, 100.0)
        return made

    def at(self, gate: Gate, now: float, alarm: float | None = None) -> None:
        gate._keeper.host.clock.return_value = now
        gate._keeper.next_alarm.return_value = alarm
        gate.pump()

    def test_however_often_the_gate_looks_there_is_one(
        self, gate: Gate, alarms: list[tuple[float, MagicMock]]
    ) -> None:
        for step in range(50):
            self.at(gate, 100 + step / 100, 105 + step)
        assert [at for at, _ in alarms] == [105]

    def test_when_it_has_come_the_next_one_is_set(
        self, gate: Gate, alarms: list[tuple[float, MagicMock]]
    ) -> None:
        """Also after one that was lost with its timer."""
        for now, alarm in ((100, 105), (105, 108), (200, 203)):
            self.at(gate, now, alarm)
        assert [at for at, _ in alarms] == [105, 108, 203]

    def test_with_a_connection_there_are_none(
        self, gate: Gate, alarms: list[tuple[float, MagicMock]]
    ) -> None:
        """Celery may have ended them with the last one, and what is held is held anew."""
        self.at(gate, 100, 105)
        gate.connected()
        self.at(gate, 101, 107)
        assert [(at, entry.cancel.called) for at, entry in alarms] == [(105, True), (107, False)]

    def test_an_earlier_one_takes_its_place(
        self, gate: Gate, alarms: list[tuple[float, MagicMock]]
    ) -> None:
        self.at(gate, 100, 105)
        self.at(gate, 101, 102)
        assert [(at, entry.cancel.called) for at, entry in alarms] == [(105, True), (102, False)]


def test_the_broker_is_told_of_a_message_once() -> None:
    """Kombu raises at the second time, which ends the worker: an early acknowledgement of a run
    that was taken over before it began is followed by the skipping of a finished attempt."""
    delivered = Delivered(MagicMock(), None, MagicMock(), MagicMock(), None, MagicMock())
    delivered.acknowledge("log", "errors")
    delivered.acknowledge("log", "errors")
    delivered.reject("log", "errors", True)
    delivered._acknowledge.assert_called_once_with("log", "errors")
    delivered._reject.assert_not_called()
