"""Claimed runs in the process that executes them, by Celery's own tracer."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chain
from celery.app.task import Task
from celery.exceptions import Ignore, Reject
from celery_claims import ClaimLost, current_claim
from celery_claims.headers import HEADER
from celery_claims.protocol import Attempt, Outcome, State
from celery_claims.run import _current
from celery_claims.testing import FakeClock
from celery_claims.tracer import LostRun, NotRun, Recorded, guard

from tests.unit.apps import Bench, claimed_app, published


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def app() -> Celery:
    return claimed_app()


@pytest.fixture
def bench(app: Celery, clock: FakeClock) -> Bench:
    return Bench(app, clock)


@pytest.fixture
def task_id() -> str:
    return uuid.uuid4().hex


# ends


def test_a_success_is_recorded_after_its_result(app: Celery, bench: Bench, task_id: str) -> None:
    """Promise 5: before the broker hears of it, and after the result is out."""

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    bench.store.before["settle"] = lambda: states.append(app.AsyncResult(task_id).state)
    states: list[str] = []
    traced = bench.run(add, 2, 3, id=task_id)
    assert isinstance(traced.runtime, Recorded) and traced.info is None
    assert states == ["SUCCESS"]
    found = bench.record(task_id)
    assert (found.state, found.outcome) == (State.FINISHED, Outcome.SUCCESS)
    assert found.forget_at == bench.clock.now_ms + 7_200_000


def raise_error(task: Task) -> None:
    raise ValueError("broken")


def ignore(task: Task) -> None:
    raise Ignore


def reject(task: Task) -> None:
    raise Reject(requeue=False)


def retry(task: Task) -> None:
    raise task.retry(countdown=1)


@pytest.mark.parametrize(
    ("body", "options", "outcome"),
    [
        (raise_error, {}, Outcome.FAILURE),
        (raise_error, {"acks_late": True}, Outcome.FAILURE),
        (
            raise_error,
            {"acks_late": True, "acks_on_failure_or_timeout": False},
            Outcome.REJECTED,
        ),
        (raise_error, {"acks_on_failure_or_timeout": False}, Outcome.FAILURE),
        (ignore, {}, Outcome.IGNORED),
        (reject, {}, Outcome.REJECTED),
        (retry, {}, Outcome.RETRY),
    ],
)
def test_every_other_end_is_recorded_as_what_it_is(
    app: Celery,
    bench: Bench,
    task_id: str,
    body: Callable[[Task], Any],
    options: dict[str, Any],
    outcome: Outcome,
) -> None:
    @app.task(bind=True, **options)
    def task(self: Task) -> None:
        body(self)

    traced = bench.run(task, id=task_id)
    assert isinstance(traced.runtime, Recorded)
    assert bench.record(task_id).outcome is outcome


def test_a_requeue_is_left_to_the_worker(app: Celery, bench: Bench, task_id: str) -> None:
    """Only it gives the message back; until then the claim stays."""

    @app.task
    def task() -> None:
        raise Reject(requeue=True)

    traced = bench.run(task, id=task_id)
    assert not isinstance(traced.runtime, (Recorded, LostRun, NotRun))
    assert bench.record(task_id).state is State.CLAIMED


def test_an_end_without_memory_is_left_to_the_worker(
    app: Celery, bench: Bench, task_id: str
) -> None:
    """``keep_finished`` 0: a record that is gone would look lost to the next renewal."""

    @app.task
    def task() -> None: ...

    traced = bench.run(task, passport=bench.passport(task_id, keep_finished=0.0))
    assert isinstance(traced.runtime, float) and not isinstance(traced.runtime, Recorded)
    assert bench.record(task_id).state is State.CLAIMED


def test_an_end_that_the_store_does_not_take_is_left_to_the_worker(
    app: Celery, bench: Bench, task_id: str
) -> None:
    """Not recorded, and not lost either."""

    @app.task
    def task() -> None: ...

    bench.store.fail("settle")
    traced = bench.run(task, id=task_id)
    assert isinstance(traced.runtime, float)
    assert not isinstance(traced.runtime, (Recorded, LostRun))


def test_an_end_that_comes_too_late_is_lost(app: Celery, bench: Bench, task_id: str) -> None:
    """The process was frozen between its last check and the record."""

    @app.task
    def task() -> None: ...

    bench.store.before["settle"] = lambda: bench.lose(task_id)
    traced = bench.run(task, id=task_id)
    assert isinstance(traced.runtime, LostRun)
    assert bench.record(task_id).owner == "w2"


@pytest.mark.parametrize(
    ("inside", "after"),
    [(SystemExit, None), (KeyboardInterrupt, None), (None, MemoryError), (None, SystemExit)],
)
def test_what_escapes_the_tracer_leaves_no_claim_behind(
    app: Celery,
    bench: Bench,
    task_id: str,
    inside: type[BaseException] | None,
    after: type[BaseException] | None,
) -> None:
    """Trap 14: not recorded, and the next run in this thread is not taken for it."""

    class Escaping(Task):
        def after_return(self, *args: Any) -> None:
            if after is not None:
                raise after

    @app.task(base=Escaping)
    def task() -> None:
        if inside is not None:
            raise inside

    with pytest.raises(inside or after):  # type: ignore[arg-type]
        bench.run(task, id=task_id)
    assert _current.get() is None
    assert bench.record(task_id).state is State.CLAIMED


# starts


def test_a_run_within_its_trust_asks_nobody(app: Celery, bench: Bench) -> None:
    @app.task
    def task() -> None: ...

    bench.run(task)
    assert [verb for verb, _ in bench.store.calls] == ["settle"]


def test_a_run_whose_trust_is_over_is_confirmed_first(
    app: Celery, bench: Bench, task_id: str
) -> None:
    """It waited long in the pool: renewed once, and marked as started with it."""
    seen = []

    @app.task
    def task() -> None:
        seen.append(bench.record(task_id))

    passport = bench.passport(task_id)
    bench.clock.advance(28_000)
    traced = bench.run(task, passport=passport)
    assert isinstance(traced.runtime, Recorded)
    assert seen[0].started and seen[0].expires_at == bench.clock.now_ms + 30_000


@pytest.mark.parametrize("problem", ["taken over", "given back", "finished", "store down"])
def test_a_body_does_not_start_on_a_lease_that_is_gone(
    app: Celery, bench: Bench, task_id: str, problem: str
) -> None:
    """Promise 7: nor on one that cannot be confirmed. Nothing is recorded or published."""
    ran: list[bool] = []

    @app.task
    def task() -> None:
        ran.append(True)

    passport = bench.passport(task_id)
    bench.clock.advance(28_000)
    if problem == "taken over":
        bench.lose(task_id)
    elif problem == "store down":
        bench.store.fail("renew")
    else:
        outcome = Outcome.NACKED if problem == "given back" else Outcome.SUCCESS
        bench.settle(passport.token, outcome)
    with published() as messages:
        traced = bench.run(task, passport=passport)
    assert isinstance(traced.runtime, NotRun)
    assert ran == [] and messages == []
    assert bench.store.count("settle") == 0
    assert app.AsyncResult(task_id).state == "PENDING"


def test_a_start_after_a_death_is_marked_before_the_body(
    app: Celery, bench: Bench, task_id: str
) -> None:
    """Promise 8: a task that kills its process at once is counted all the same."""
    seen = []

    @app.task
    def task() -> None:
        seen.append(bench.record(task_id).started)

    bench.run(task, passport=bench.passport(task_id, mark_start=True, deliveries=1))
    assert seen == [True]


def test_a_start_that_cannot_be_marked_does_not_happen(
    app: Celery, bench: Bench, task_id: str
) -> None:
    @app.task
    def task() -> None:
        raise AssertionError("started")

    bench.store.fail("renew")
    traced = bench.run(task, passport=bench.passport(task_id, mark_start=True))
    assert isinstance(traced.runtime, NotRun)


# losses


def returns(task: Task) -> str:
    return "too late"


def replaces(task: Task) -> None:
    raise task.replace(task.app.signature("unit.other"))


def retries_and_goes_on(task: Task) -> None:
    task.retry(countdown=1, throw=False)


def swallows(task: Task) -> str:
    claim = current_claim()
    assert claim is not None
    with pytest.raises(ClaimLost):
        claim.check()
    return "went on"


def swallows_and_fails(task: Task) -> None:
    swallows(task)
    raise ValueError("after all")


@pytest.mark.parametrize(
    "body",
    [
        returns,
        raise_error,
        ignore,
        reject,
        retry,
        retries_and_goes_on,
        replaces,
        swallows,
        swallows_and_fails,
    ],
    ids=lambda body: body.__name__,
)
@pytest.mark.parametrize("options", [{}, {"autoretry_for": (Exception,)}], ids=["", "autoretry"])
def test_nothing_of_a_lost_run_reaches_anybody(
    app: Celery,
    bench: Bench,
    task_id: str,
    body: Callable[[Task], Any],
    options: dict[str, Any],
) -> None:
    """Promise 7: no result, no callback, no chain, no retry, no replacement, no record."""

    @app.task(bind=True, **options)
    def task(self: Task) -> Any:
        bench.lose(task_id)
        return body(self)

    link = app.signature("unit.link").set(task_id="link")
    following = app.signature("unit.next").set(task_id="next")
    with published() as messages:
        traced = bench.run(
            task, id=task_id, callbacks=[dict(link)], errbacks=[dict(link)], chain=[dict(following)]
        )
    assert isinstance(traced.runtime, LostRun)
    assert messages == []
    assert app.AsyncResult(task_id).state == "PENDING"
    found = bench.record(task_id)
    assert (found.owner, found.state) == ("w2", State.CLAIMED)


def test_what_a_kept_run_sends_does_go_out(app: Celery, bench: Bench, task_id: str) -> None:
    """The test above looks where something is to be seen."""

    @app.task
    def task() -> int:
        return 1

    link = app.signature("unit.link").set(task_id="link")
    following = app.signature("unit.next").set(task_id="next")
    with published() as messages:
        bench.run(task, id=task_id, callbacks=[dict(link)], chain=[dict(following)])
    assert {message["id"] for message in messages} == {"link", "next"}
    assert app.AsyncResult(task_id).state == "SUCCESS"


def test_the_next_attempt_carries_the_first_queue_and_no_claim(
    app: Celery, bench: Bench, task_id: str
) -> None:
    """``retry()`` sends custom headers on: the token of this attempt is not among them."""

    @app.task(bind=True)
    def task(self: Task) -> None:
        raise self.retry(countdown=1)

    with published() as messages:
        bench.run(task, id=task_id)
    (message,) = messages
    assert (message["id"], message["retries"]) == (task_id, 1)
    assert message[HEADER] == {"queue": "first"}


def test_a_chain_that_goes_on_carries_no_claim(app: Celery, bench: Bench) -> None:
    """What a task sends is another task: its first queue is its own."""

    @app.task
    def task() -> None:
        chain(app.signature("unit.a"), app.signature("unit.b")).apply_async()

    with published() as messages:
        bench.run(task)
    assert len(messages) == 1
    assert HEADER not in messages[0]


# who has a claim


def test_the_body_sees_its_claim(app: Celery, bench: Bench, task_id: str) -> None:
    seen: list[Any] = []

    @app.task(bind=True)
    def task(self: Task) -> None:
        claim = current_claim()
        assert claim is not None
        claim.check()
        seen.append((claim.queue, claim.task_id, claim.token, claim.attempt, claim.deliveries))
        seen.append((claim.owner, claim.remaining))

    passport = bench.passport(task_id, attempt=Attempt(0, 2), deliveries=1)
    bench.run(task, passport=passport)
    assert seen[0] == ("first", task_id, passport.token.token, (0, 2), 1)
    assert seen[1] == ("w1", pytest.approx(27.0))
    assert current_claim() is None


def test_an_unclaimed_request_has_none(app: Celery, bench: Bench, task_id: str) -> None:
    """No header, or only the first queue of an earlier attempt: it runs as without claims."""
    seen: list[object] = []

    @app.task
    def task() -> int:
        seen.append(current_claim())
        return 1

    for header in (None, {"queue": "first"}):
        request = {HEADER: header, "headers": None}
        traced = bench.run(task, id=uuid.uuid4().hex, **request)
        assert traced.info is None and not isinstance(traced.runtime, (Recorded, NotRun))
    assert seen == [None, None]
    assert bench.store.calls == []


def test_direct_and_eager_calls_have_none(app: Celery, bench: Bench) -> None:
    """Trap 10: alone and inside a claimed run, whose own claim is there again after them."""
    seen: dict[str, object] = {}

    @app.task
    def inner(where: str) -> None:
        seen[where] = current_claim()

    @app.task
    def outer() -> None:
        inner("direct, inside")
        inner.apply(args=("eager, inside",))
        claim = current_claim()
        seen["outer"] = claim is not None and claim.task_id

    inner("direct")
    inner.apply(args=("eager",))
    bench.run(outer, id="outer-id")
    assert seen.pop("outer") == "outer-id"
    assert seen == dict.fromkeys(["direct", "eager", "direct, inside", "eager, inside"])


def test_always_eager_makes_no_claim(app: Celery, bench: Bench) -> None:
    app.conf.task_always_eager = True
    seen: list[object] = []

    @app.task(bind=True)
    def task(self: Task) -> None:
        seen.append(current_claim())
        if self.request.retries == 0:
            raise self.retry(countdown=0)

    task.delay()
    assert seen == [None, None] and bench.store.calls == []


def test_a_task_with_its_own_call_is_guarded_too(app: Celery, bench: Bench, task_id: str) -> None:
    """Celery then calls the task itself, not its body."""

    class Timed(Task):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.run(*args, **kwargs)

    @app.task(base=Timed)
    def task() -> str:
        assert current_claim() is not None
        bench.lose(task_id)
        return "too late"

    assert isinstance(bench.run(task, id=task_id).runtime, LostRun)
    assert app.AsyncResult(task_id).state == "PENDING"


def test_a_body_goes_on_where_trust_is_over_and_the_claim_is_not(
    app: Celery, bench: Bench, task_id: str
) -> None:
    """The worker renewed meanwhile; a forked child asks the store once and knows."""

    @app.task
    def task() -> str:
        bench.clock.advance(28_000)
        return "in time"

    assert isinstance(bench.run(task, id=task_id).runtime, Recorded)
    assert [verb for verb, _ in bench.store.calls] == ["renew", "settle"]


@pytest.mark.parametrize(("strict", "kind"), [(True, LostRun), (False, float)])
def test_only_a_strict_body_ends_when_the_store_cannot_say(
    app: Celery, bench: Bench, task_id: str, strict: bool, kind: type
) -> None:
    @app.task
    def task() -> str:
        bench.clock.advance(28_000)
        bench.store.fail("renew", "settle")
        return "done"

    traced = bench.run(task, passport=bench.passport(task_id, strict=strict))
    assert type(traced.runtime) is kind
    assert app.AsyncResult(task_id).state == ("PENDING" if strict else "SUCCESS")


def test_guarding_twice_is_guarding_once(app: Celery, bench: Bench) -> None:
    """The parent guards before Celery builds a tracer, a child when it starts, both again later."""

    @app.task
    def task() -> None: ...

    bench.run(task)
    body, again = task.run, task.retry
    guard(task._get_current_object())
    bench.run(task)
    assert (task.run, task.retry) == (body, again)
    assert bench.store.count("settle") == 2
