"""Bugs that are put into the package on purpose: a simulation that does not find them is worth
nothing. Each breaks one promise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from celery_claims import desk, run, tracer
from celery_claims.case import Case, Phase
from celery_claims.delivered import Delivered
from celery_claims.desk import Desk
from celery_claims.gate import Gate
from celery_claims.heartbeat import Heartbeat
from celery_claims.holding import Lines
from celery_claims.keeper import Keeper
from celery_claims.pool import Watch
from celery_claims.protocol import Outcome, State
from celery_claims.run import Run
from celery_claims.settling import Decision, Ending, on_rejected
from celery_claims.stopping import Stopper
from celery_claims.stores import memory
from celery_claims.sweep import Sweeper
from celery_claims.touching import Touching

from .plan import Plan, Work, plan_of
from .tasks import one_app

__all__ = ["HUNTS", "Hunt"]

Bug = Callable[..., Any]


def held_copies_are_acknowledged() -> Any:
    hold = Gate._hold

    def held(self: Gate, delivered: Any, action: Any) -> None:
        hold(self, delivered, action)
        delivered.acknowledge(None, ())

    return mock.patch.object(Gate, "_hold", held)


def renewals_stop() -> Any:
    return mock.patch.object(Desk, "_renews", lambda self, case, now: case.phase is Phase.CLAIMED)


def a_stale_token_settles() -> Any:
    decide = memory.decide_settle

    def settle(record: Any, settlement: Any, now: int, high_water: int) -> Any:
        if record is not None:
            token = replace(settlement.token, token=record.token)
            settlement = replace(settlement, token=token)
        return decide(record, settlement, now, high_water)

    return mock.patch.object(memory, "decide_settle", settle)


def acknowledged_before_it_is_recorded() -> Any:
    def after(self: Gate, delivered: Any, send: Any, record: Any) -> None:
        send()
        if record(delivered.case):
            self._forget(delivered.case)

    return mock.patch.object(Gate, "_after", after)


def an_unanswered_end_counts_as_recorded() -> Any:
    settle = Keeper._settle

    def settled(self: Keeper, case: Case, settlement: Any) -> Any:
        told = settle(self, case, settlement)
        return True if told is False else told

    return mock.patch.object(Keeper, "_settle", settled)


def nothing_is_given_back_when_disconnected() -> Any:
    disconnected = Desk.disconnected

    def kept(self: Desk) -> list[Any]:
        disconnected(self)
        return []

    return mock.patch.object(Desk, "disconnected", kept)


def the_attempt_is_forgotten() -> Any:
    """A retry is taken for a copy of what has finished."""
    request = Desk.request
    first = (0, 0)

    def asked(self: Desk, case: Case) -> Any:
        made = request(self, case)
        return replace(made, attempt=type(made.attempt)(*first))

    return mock.patch.object(Desk, "request", asked)


def what_leaves_is_not_touched() -> Any:
    return mock.patch.object(Touching, "leave", return_value=True)


def what_was_not_touched_is_forgotten() -> Any:
    """When the broker does not answer as the connection ends."""
    leave = Touching.leave

    def left(self: Touching, cases: Any) -> bool:
        told = leave(self, cases)
        self._untold.clear()
        return told

    return mock.patch.object(Touching, "leave", left)


def a_message_whose_claim_was_taken_over_is_forgotten() -> Any:
    return _never_set(Case, "orphan")


def the_broker_is_told_twice() -> Any:
    """Of an early acknowledgement whose run was taken over before it began."""
    acknowledge = Delivered.acknowledge

    def twice(self: Delivered, log: Any, errors: Any) -> None:
        self.answered = False
        acknowledge(self, log, errors)

    return mock.patch.object(Delivered, "acknowledge", twice)


def trust_runs_from_the_answer() -> Any:
    answered, renewed = Keeper._answered, Keeper.renewed

    def answered_now(self: Keeper, case: Case, answer: Any, asked_at: float) -> Any:
        return answered(self, case, answer, self.host.clock())

    def renewed_now(self: Keeper, case: Case, renewal: Any, answer: Any, asked_at: float) -> Any:
        return renewed(self, case, renewal, answer, self.host.clock())

    return _all(
        mock.patch.object(Keeper, "_answered", answered_now),
        mock.patch.object(Keeper, "renewed", renewed_now),
    )


def a_body_starts_without_looking() -> Any:
    return mock.patch.object(Run, "begin", return_value=True)


def an_old_answer_confirms_a_start() -> Any:
    """Of a renewal during which the process stood still."""
    return mock.patch.object(Run, "_confirm", lambda self: self._renew(started=True))


def a_loss_is_ignored() -> Any:
    return mock.patch.object(Desk, "_lose", return_value=[])


def the_alarm_of_a_lost_connection_is_waited_for() -> Any:
    connected, set_alarm = Gate.connected, Gate._set_alarm

    def kept(self: Gate) -> None:
        alarm, self._alarm = self._alarm, None
        connected(self)
        self._alarm = alarm

    def waited_for(self: Gate) -> None:
        at = self._keeper.next_alarm()
        if at is None or self._alarm is None or self._alarm_at > at:
            set_alarm(self)

    return _all(
        mock.patch.object(Gate, "connected", kept),
        mock.patch.object(Gate, "_set_alarm", waited_for),
    )


def what_came_back_to_the_gate_is_forgotten() -> Any:
    """When a run learns at its end that it has lost its claim."""
    end = Watch._end

    def forgetting(self: Watch, *args: Any, **kwargs: Any) -> None:
        end(self, *args, **kwargs)
        self._gate.over(self._case)

    return mock.patch.object(Watch, "_end", forgetting)


def an_end_that_is_told_again_is_dropped() -> Any:
    """When a renewal says meanwhile that the store has it."""
    returning = Keeper.returning

    def dropped(self: Keeper, case: Case, *, cancelled: bool) -> Any:
        told = returning(self, case, cancelled=cancelled)
        if case.silent:
            self._recorded(case)
        return told

    return mock.patch.object(Keeper, "returning", dropped)


def a_start_that_was_not_confirmed_is_a_death() -> Any:
    returned = Desk.returned

    def as_lost(self: Desk, case: Case, now: float, *, at_broker: bool = True, unsure: bool) -> Any:
        return returned(self, case, now, at_broker=at_broker)

    return mock.patch.object(Desk, "returned", as_lost)


def a_retry_counts_as_a_death() -> Any:
    settle = Desk._settle

    def counted(self: Desk, case: Case, decision: Any) -> Any:
        return replace(settle(self, case, decision), counted=True)

    return mock.patch.object(Desk, "_settle", counted)


def no_death_is_counted() -> Any:
    grant = memory.decide_claim

    def claim(record: Any, request: Any, now: int, token: int) -> Any:
        if record is not None:
            record = replace(record, deliveries=0, started=False)
        return grant(record, request, now, token)

    return mock.patch.object(memory, "decide_claim", claim)


def tokens_begin_anew() -> Any:
    return mock.patch.object(memory, "next_token", return_value=1)


def a_finished_attempt_is_granted() -> Any:
    decide = memory.decide_claim

    def claim(record: Any, request: Any, now: int, token: int) -> Any:
        finished = record is not None and record.outcome not in (None, Outcome.EXPIRED)
        return decide(None if finished else record, request, now, token)

    return mock.patch.object(memory, "decide_claim", claim)


def a_live_lease_is_taken_over() -> Any:
    decide = memory.decide_claim

    def claim(record: Any, request: Any, now: int, token: int) -> Any:
        if record is not None and record.is_live(now) and record.owner != request.owner:
            record = replace(record, expires_at=0)
        return decide(record, request, now, token)

    return mock.patch.object(memory, "decide_claim", claim)


def the_first_of_a_line_is_not_woken() -> Any:
    return mock.patch.object(Lines, "wake", return_value=None)


def claims_are_cleaned_up_before_their_messages_are_back() -> Any:
    return mock.patch.object(Sweeper, "_give_back", lambda self, records: [0] * len(records))


def nothing_is_touched() -> Any:
    return mock.patch.object(Heartbeat, "_touch", return_value=None)


def a_lost_child_is_finished() -> Any:
    """Where its message is delivered again."""
    rejecting = Desk.rejecting

    def finished(self: Desk, case: Case, *, requeue: bool) -> Any:
        return rejecting(self, case, requeue=False)

    return mock.patch.object(Desk, "rejecting", finished)


def what_is_given_back_is_revoked() -> Any:
    """Nobody would run it."""

    def ended(self: Desk, cases: list[Case]) -> Iterator[Any]:
        for case in cases:
            yield case, self._settle(case, Decision(Outcome.REVOKED))

    return mock.patch.object(Desk, "_give_back", ended)


def a_lost_child_ends_what_is_delivered_again() -> Any:
    def rejected(*, requeue: bool, ending: Ending | None) -> Decision:
        if requeue and ending is Ending.WORKER_LOST:
            return Decision(Outcome.WORKER_LOST)
        return on_rejected(requeue=requeue, ending=ending)

    return mock.patch.object(desk, "on_rejected", rejected)


def a_success_is_recorded_as_a_failure() -> Any:
    outcome = tracer._outcome

    def failed(task: Any, info: Any) -> Any:
        return Outcome.FAILURE if info is None else outcome(task, info)

    return mock.patch.object(tracer, "_outcome", failed)


def an_end_is_told_without_looking() -> Any:
    def guarded(task: Any, body: Any) -> Any:
        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> Any:
            return body(*args, **kwargs)

        run.claims_guard = True  # type: ignore[attr-defined]
        return run

    return _guarding_anew("_guarded_body", guarded)


def a_retry_is_sent_without_looking() -> Any:
    return _guarding_anew("_guarded_call", lambda task, method: method)


def a_strict_task_goes_on_without_an_answer() -> Any:
    ensure = Run.ensure

    def lenient(self: Run) -> None:
        passport, self.passport = self.passport, replace(self.passport, strict=False)
        try:
            ensure(self)
        finally:
            self.passport = passport

    return mock.patch.object(Run, "ensure", lenient)


def a_task_is_given_up_a_death_too_early() -> Any:
    decide = memory.decide_claim

    def claim(record: Any, request: Any, now: int, token: int) -> Any:
        most = max(1, request.max_deliveries - 1)
        return decide(record, replace(request, max_deliveries=most), now, token)

    return mock.patch.object(memory, "decide_claim", claim)


def every_second_death_is_not_counted() -> Any:
    claim, expire, settle = memory.decide_claim, memory.decide_expire, memory.decide_settle

    def forget(record: Any) -> Any:
        if record is None or not record.started or record.token % 2:
            return record
        return replace(record, started=False)

    def half_settled(record: Any, settlement: Any, *args: Any) -> Any:
        counted = settlement.counted and settlement.token.token % 2 == 1
        return settle(record, replace(settlement, counted=counted), *args)

    return _all(
        mock.patch.object(memory, "decide_claim", lambda record, *a: claim(forget(record), *a)),
        mock.patch.object(memory, "decide_expire", lambda record, *a: expire(forget(record), *a)),
        mock.patch.object(memory, "decide_settle", half_settled),
    )


def a_cleanup_counts_no_death() -> Any:
    decide = memory.decide_expire

    def expire(record: Any, *args: Any) -> Any:
        made = decide(record, *args)
        if not made.changed:
            return made
        return replace(made, record=replace(made.record, deliveries=record.deliveries))

    return mock.patch.object(memory, "decide_expire", expire)


def a_cleanup_forgets_the_record() -> Any:
    decide = memory.decide_expire

    def expire(record: Any, expiry: Any, now: int, _: int) -> Any:
        return decide(record, expiry, now, 0)

    return mock.patch.object(memory, "decide_expire", expire)


def a_start_after_a_takeover_is_not_marked() -> Any:
    return _never_set(Case, "mark_start")


def a_takeover_that_was_not_heard_of_is_forgotten() -> Any:
    return _never_set(Case, "unheard")


def out_of_deliveries_is_not_recorded() -> Any:
    def exhausted(self: Keeper, case: Case) -> bool:
        self._recorded(case)
        return True

    return mock.patch.object(Keeper, "exhausted", exhausted)


def sweeps_are_rare() -> Any:
    """Ten times rarer than they should be."""
    init = Heartbeat.__init__

    def rarely(self: Heartbeat, *args: Any, sweep_every: float, **given: Any) -> None:
        init(self, *args, sweep_every=10 * sweep_every, **given)

    return mock.patch.object(Heartbeat, "__init__", rarely)


def leases_are_honoured_too_long() -> Any:
    """Two leases longer."""
    decide = memory.decide_claim

    def claim(record: Any, request: Any, now: int, token: int) -> Any:
        if record is not None and record.state is State.CLAIMED:
            record = replace(record, expires_at=record.expires_at + 2 * request.lease_ms)
        return decide(record, request, now, token)

    return mock.patch.object(memory, "decide_claim", claim)


def strict_bodies_are_not_stopped() -> Any:
    """When their trust is over."""
    return mock.patch.object(Desk, "unrenewed", return_value=[])


def the_loop_alone_stops_bodies() -> Any:
    """So that nobody does while the worker connects anew."""
    return mock.patch.object(Stopper, "at_once", return_value=None)


def the_loop_alone_stops_bodies_of_a_drain() -> Any:
    """Of a worker that ends."""
    return the_loop_alone_stops_bodies()


def a_grant_is_not_recognised() -> Any:
    """By the claim that is asked for again."""
    decide = memory.decide_claim

    def claim(record: Any, request: Any, now: int, token: int) -> Any:
        if record is not None:
            record = replace(record, grant_id="")
        return decide(record, request, now, token)

    return mock.patch.object(memory, "decide_claim", claim)


def an_end_without_an_answer_is_taken_for_recorded() -> Any:
    """By the process that ran the body."""
    finish = Run.finish

    def finished(self: Run, outcome: Outcome) -> bool | None:
        return None if finish(self, outcome) is None else True

    return mock.patch.object(Run, "finish", finished)


def a_late_end_without_an_answer_is_taken_for_recorded() -> Any:
    """By the heartbeat."""

    def recorded(self: Keeper, case: Case, settlement: Any, error: Any = None) -> None:
        self.record_late(case, settlement, lost=False)

    still = Keeper.still_unrecorded

    def later(self: Keeper, case: Case, settlement: Any) -> bool:
        still(self, case, settlement)
        self.wake_heartbeat()
        return False

    return _all(
        mock.patch.object(Keeper, "still_unrecorded", recorded),
        mock.patch.object(Keeper, "_later", later),
    )


def nothing_is_given_back_at_shutdown() -> Any:
    return mock.patch.object(Desk, "closing", return_value=[])


def claims_are_cleaned_up_without_comparing() -> Any:
    """Whatever they are by now, also live ones."""
    decide = memory.decide_expire

    def expire(record: Any, expiry: Any, now: int, keep_ms: int) -> Any:
        if record is not None:
            expiry = replace(expiry, token=record.token, expires_at=0)
            record = replace(record, expires_at=0)
        return decide(record, expiry, now, keep_ms)

    return mock.patch.object(memory, "decide_expire", expire)


def trust_leaves_nothing_for_clocks() -> Any:
    def until(asked_at: float, lease: float) -> float:
        return asked_at + lease

    return _all(
        mock.patch.object(desk, "trust_until", until),
        mock.patch.object(run, "trust_until", until),
    )


def a_parent_tells_without_looking() -> Any:
    """Of a child that was lost."""
    return mock.patch.object(Keeper, "holds", return_value=True)


def _never_set(kind: type, name: str) -> Any:
    return mock.patch.object(kind, name, property(lambda _: None, lambda *_: None))


@contextmanager
def _guarding_anew(name: str, bug: Bug) -> Iterator[None]:
    """The tasks are guarded when their app is made."""
    one_app.cache_clear()
    with mock.patch.object(tracer, name, bug):
        one_app()
        yield
    one_app.cache_clear()


@contextmanager
def _all(*patches: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


@dataclass(frozen=True)
class Hunt:
    """A bug, and where to look for it.

    Parameters:
        bug: puts it in, as a context.
        promise: what it breaks, as a failure begins.
        plan: what the plan of each seed has instead of its own.
    """

    bug: Bug
    promise: str
    plan: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.bug.__name__

    def plan_of(self, seed: int) -> Plan:
        plan = plan_of(seed)
        changes = dict(self.plan)
        deadly = changes.pop("deadly", "")
        if deadly:
            changes["work"] = _deadly(plan, deadly)
        kind = changes.pop("kind", "")
        if kind:
            work = {task_id: replace(one, kind=kind) for task_id, one in plan.work.items()}
            changes["work"] = work
        for name in ("every", "visibility"):
            if name in changes:
                changes[name] *= plan.lease
        return replace(plan, **changes)


def _deadly(plan: Plan, deadly: str) -> dict[str, Work]:
    work = list(plan.work.items())
    return {
        task_id: replace(one, deadly=deadly) if place % 2 and one.kind != "sim.early" else one
        for place, (task_id, one) in enumerate(work)
    }


def _faults(*names: str, **given: Any) -> dict[str, Any]:
    """Parameters: ``every``, ``visibility``: in leases."""
    return {"faults": frozenset(names), "every": 0.1, **given}


CALM = {"faults": frozenset({"duplicate"})}
#: Every second task takes its worker with it.
DEADLY = {"faults": frozenset({"crash"}), "deadly": "worker"}
LOST, BACK, TWICE = "nothing lost", "back soon", "not twice while alive"
AGAIN, FENCED, TOLD = "not again when finished", "fenced", "told"
POISON, EXCLUSIVE = "poison stops", "exclusive"

#: Every bug that the simulation must find.
HUNTS: tuple[Hunt, ...] = (
    Hunt(held_copies_are_acknowledged, LOST),
    Hunt(renewals_stop, TWICE, CALM),
    Hunt(a_stale_token_settles, FENCED, _faults("pause", pool="threads")),
    Hunt(acknowledged_before_it_is_recorded, LOST, _faults("store down")),
    Hunt(an_unanswered_end_counts_as_recorded, LOST, _faults("store down")),
    Hunt(nothing_is_given_back_when_disconnected, BACK, _faults("disconnect")),
    Hunt(the_attempt_is_forgotten, LOST),
    Hunt(what_leaves_is_not_touched, BACK, _faults("disconnect", broker="redis")),
    Hunt(what_was_not_touched_is_forgotten, BACK, _faults("broker down", broker="redis")),
    Hunt(
        a_message_whose_claim_was_taken_over_is_forgotten,
        BACK,
        _faults("crash", broker="redis", workers=4, lease=30.0, every=0.3),
    ),
    Hunt(trust_runs_from_the_answer, EXCLUSIVE, _faults("pause", every=0.05)),
    Hunt(
        the_broker_is_told_twice,
        "MessageStateError",
        _faults("pause", kind="sim.early", every=0.05),
    ),
    Hunt(a_body_starts_without_looking, TOLD, _faults("pause")),
    Hunt(an_old_answer_confirms_a_start, TOLD, _faults("pause", "store lost", pool="threads")),
    Hunt(a_loss_is_ignored, TOLD, _faults("pause", pool="prefork", workers=3)),
    Hunt(
        the_alarm_of_a_lost_connection_is_waited_for,
        BACK,
        _faults("disconnect", clears_timers=True),
    ),
    Hunt(what_came_back_to_the_gate_is_forgotten, BACK, _faults("store lost", broker="amqp")),
    Hunt(an_end_that_is_told_again_is_dropped, BACK, _faults("store lost", broker="amqp")),
    Hunt(a_start_that_was_not_confirmed_is_a_death, POISON, _faults("store lost")),
    Hunt(a_retry_counts_as_a_death, POISON),
    Hunt(no_death_is_counted, POISON, _faults("child", pool="prefork")),
    Hunt(tokens_begin_anew, FENCED),
    Hunt(a_finished_attempt_is_granted, AGAIN, CALM),
    Hunt(a_live_lease_is_taken_over, EXCLUSIVE, CALM),
    Hunt(the_first_of_a_line_is_not_woken, BACK, CALM),
    Hunt(
        claims_are_cleaned_up_before_their_messages_are_back,
        BACK,
        _faults("crash", broker="redis"),
    ),
    Hunt(nothing_is_touched, TWICE, {**CALM, "broker": "redis", "visibility": 3.0}),
    Hunt(a_lost_child_is_finished, LOST, _faults("child", pool="prefork")),
    Hunt(what_is_given_back_is_revoked, LOST, _faults("disconnect")),
    Hunt(a_lost_child_ends_what_is_delivered_again, LOST, _faults("child", pool="prefork")),
    Hunt(a_success_is_recorded_as_a_failure, LOST, CALM),
    Hunt(an_end_is_told_without_looking, TOLD, _faults("pause")),
    Hunt(a_retry_is_sent_without_looking, TOLD, _faults("pause")),
    Hunt(a_task_is_given_up_a_death_too_early, POISON, DEADLY),
    Hunt(every_second_death_is_not_counted, POISON, DEADLY),
    Hunt(a_cleanup_counts_no_death, POISON, DEADLY),
    Hunt(a_cleanup_forgets_the_record, POISON, DEADLY),
    Hunt(a_start_after_a_takeover_is_not_marked, POISON, DEADLY),
    Hunt(
        a_takeover_that_was_not_heard_of_is_forgotten, POISON, {**DEADLY, **_faults("store lost")}
    ),
    Hunt(out_of_deliveries_is_not_recorded, LOST, DEADLY),
    Hunt(
        a_parent_tells_without_looking,
        TOLD,
        _faults("pause", "child", pool="prefork", workers=3, kind="sim.kept"),
    ),
    Hunt(sweeps_are_rare, BACK, _faults("crash", broker="redis")),
    Hunt(
        leases_are_honoured_too_long,
        BACK,
        # Often enough alone for nothing else to be to blame; a cleanup would free it too.
        _faults("crash", broker="amqp", every=3.0, sweep_every=60.0, workers=4),
    ),
    Hunt(
        strict_bodies_are_not_stopped,
        TOLD,
        _faults("store down", pool="prefork", every=1.0, kind="sim.strict", lease=30.0),
    ),
    Hunt(
        the_loop_alone_stops_bodies,
        TOLD,
        _faults(
            "store down", "broker down", pool="prefork", every=0.4, kind="sim.strict", lease=30.0
        ),
    ),
    Hunt(
        the_loop_alone_stops_bodies_of_a_drain,
        TOLD,
        _faults("pause", "restart", pool="prefork", every=0.4, lease=10.0),
    ),
    Hunt(a_grant_is_not_recognised, BACK, _faults("store lost")),
    Hunt(an_end_without_an_answer_is_taken_for_recorded, LOST, _faults("store lost")),
    Hunt(
        a_late_end_without_an_answer_is_taken_for_recorded, LOST, _faults("store down", every=0.4)
    ),
    Hunt(nothing_is_given_back_at_shutdown, BACK, _faults("restart")),
    Hunt(claims_are_cleaned_up_without_comparing, FENCED, _faults("crash", "store lost")),
    Hunt(trust_leaves_nothing_for_clocks, EXCLUSIVE, _faults("pause", "drift")),
    Hunt(a_strict_task_goes_on_without_an_answer, TOLD, _faults("store down")),
)
