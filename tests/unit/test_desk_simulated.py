"""Workers, a broker and a store through random events: what no order of them may break."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from celery_claims.case import Case, Phase
from celery_claims.protocol import Attempt
from celery_claims.settling import Ending
from celery_claims.sweep import Sweeper
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.simulation import LEASE_MS, Call, Worker, World

calls = st.sampled_from([Call.ANSWERED, Call.ANSWERED, Call.ANSWERED, Call.REPLY_LOST, Call.LOST])
delays = st.sampled_from([0, 0, 10, LEASE_MS // 2])
numbers = st.integers(0, 5)

Pairs = list[tuple[Worker, Case]]


def some(pairs: Pairs, number: int) -> tuple[Worker, Case]:
    return pairs[number % len(pairs)]


class Workers(RuleBasedStateMachine):
    """See ``World`` for what must hold. Rules that would do nothing are not tried."""

    @initialize(workers=st.integers(2, 3), copies=st.integers(1, 3), others=st.integers(0, 1))
    def begin(self, workers: int, copies: int, others: int) -> None:
        self.world = World(workers)
        for task_id in ["a"] * copies + ["b"] * others:
            self.world.publish(task_id, Attempt())

    def pairs(self, select: Callable[[Worker], Iterable[Case]]) -> Pairs:
        return [
            (worker, case)
            for worker in self.world.workers
            for case in sorted(select(worker), key=lambda case: case.grant_id)
        ]

    def some_worker(self, number: int, able: Callable[[Worker], object]) -> Worker:
        workers = [worker for worker in self.world.workers if able(worker)]
        return workers[number % len(workers)]

    def any_worker(self, able: Callable[[Worker], object]) -> bool:
        return any(able(worker) for worker in self.world.workers)

    def reserved(self) -> Pairs:
        return self.pairs(lambda w: w.cases(Phase.CLAIMED))

    def running(self) -> Pairs:
        return self.pairs(lambda w: w.bodies)

    def to_stop(self) -> Pairs:
        return self.pairs(lambda w: w.to_stop)

    @precondition(lambda self: self.world.waiting())
    @rule(number=numbers, who=numbers, call=calls, delay=delays)
    def deliver(self, number: int, who: int, call: Call, delay: int) -> None:
        waiting = self.world.waiting()
        worker = self.some_worker(who, lambda _: True)
        worker.deliver(waiting[number % len(waiting)], call, delay)

    @precondition(lambda self: self.any_worker(Worker.may_ask))
    @rule(who=numbers, call=calls, delay=delays)
    def ask_again(self, who: int, call: Call, delay: int) -> None:
        self.some_worker(who, Worker.may_ask).ask_due(call, delay)

    @precondition(lambda self: self.reserved())
    @rule(number=numbers, call=calls)
    def start(self, number: int, call: Call) -> None:
        worker, case = some(self.reserved(), number)
        worker.start(case, call)

    @precondition(lambda self: self.running())
    @rule(
        number=numbers,
        ending=st.sampled_from([Ending.SUCCESS, Ending.FAILURE, Ending.REQUEUED]),
        call=calls,
    )
    def end(self, number: int, ending: Ending, call: Call) -> None:
        worker, case = some(self.running(), number)
        worker.end(case, ending, call)

    @precondition(lambda self: self.running())
    @rule(number=numbers, call=calls, ends=st.booleans())
    def retry(self, number: int, call: Call, ends: bool) -> None:
        """``retry()`` publishes the next attempt; the body may go on, or die, after it."""
        worker, case = some(self.running(), number)
        attempt = case.incoming.attempt
        if case.lost or attempt.retries >= 2:
            return
        self.world.publish(case.incoming.task_id, Attempt(0, attempt.retries + 1))
        if ends:
            worker.end(case, Ending.RETRY, call)

    @precondition(lambda self: self.to_stop())
    @rule(number=numbers)
    def stop(self, number: int) -> None:
        worker, case = some(self.to_stop(), number)
        worker.stop(case)

    @rule(ms=st.sampled_from([60, 5_000, LEASE_MS // 2, LEASE_MS]))
    def wait(self, ms: int) -> None:
        self.world.clock.advance(ms)

    @precondition(lambda self: self.any_worker(Worker.has_claims))
    @rule(who=numbers, call=calls, delay=delays)
    def beat(self, who: int, call: Call, delay: int) -> None:
        self.some_worker(who, Worker.has_claims).beat(call, delay)

    @precondition(lambda self: self.any_worker(Worker.may_record))
    @rule(who=numbers, call=calls)
    def record(self, who: int, call: Call) -> None:
        self.some_worker(who, Worker.may_record).record(call)

    @precondition(lambda self: self.any_worker(Worker.has_messages))
    @rule(who=numbers, call=calls, crashes=st.booleans())
    def cut_off(self, who: int, call: Call, crashes: bool) -> None:
        worker = self.some_worker(who, Worker.has_messages)
        if crashes:
            worker.crash()
        else:
            worker.disconnect(call)

    @precondition(lambda self: self.world.store.census().orphaned)
    @rule()
    def sweep(self) -> None:
        Sweeper(self.world.store, keep_ms=7_200_000).run_once()

    @invariant()
    def one_trusts_at_most(self) -> None:
        self.world.check_trust()

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        self.world.check_nobody_waits_for_ever()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(
    max_examples=2 * settings.default.max_examples, stateful_step_count=30
)
