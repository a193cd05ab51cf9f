"""Who knows what really happened, and holds it to the promises of docs/guarantees.md.

The judge is told by the store, the broker and the bodies themselves, at the moment of each effect,
and not by the workers, who may be wrong about it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from celery_claims.case import Case
from celery_claims.errors import DeliveriesExhausted
from celery_claims.protocol import (
    Attempt,
    ClaimAnswer,
    ClaimRequest,
    Exhausted,
    Lost,
    Outcome,
    RenewAnswer,
    Renewal,
    Renewed,
    SettleAnswer,
    Settled,
    Settlement,
    Success,
    TookOver,
)
from celery_claims.run import Run

from .plan import Plan
from .world import Fate, Process, World

__all__ = ["Body", "Judge", "Part", "part_of"]

#: What kills processes of a pool, or makes them as good as dead.
KILLING = {"crash", "child", "pause"}
#: Outcomes that only a body can bring about.
OWN_ENDS = (Outcome.SUCCESS, Outcome.FAILURE, Outcome.RETRY, Outcome.REJECTED)
#: Kinds whose message is acknowledged when their child is lost.
ENDED_BY_LOSS = ("sim.kept", "sim.early")
#: Within how many seconds of being told so a worker has stopped a body.
SOON = 3.0
#: (task id, attempt)
Part = tuple[str, Attempt]


@dataclass(eq=False)
class Body:
    """One run of a task's body."""

    part: Part
    process: Process
    run: Run | None
    case: Case | None

    def is_trusted(self) -> bool:
        """Whether it may act, by what it and its worker can know."""
        run, case = self.run, self.case
        if run is None or run.lost or not self.process.alive:
            return False
        until = run.trusted_until
        parent = self.process.parent or self.process
        if case is not None and parent.alive and case.grant_id == run.token.grant_id:
            if case.lost:
                return False
            until = max(until, case.trusted_until)
        return self.process.clock() < until


class Look(NamedTuple):
    """What is so just before a body has to ask whether its claim is held.

    Parameters:
        trusted: its process may believe so without asking.
        held: it is.
        unanswered: questions of its fiber that had no answer before.
    """

    body: Body
    trusted: bool
    held: bool
    unanswered: int


@dataclass
class Judge:
    """Parameters: ``world``, ``plan``: of this simulation."""

    world: World
    plan: Plan
    #: tasks that are not at their end
    undone: dict[str, None] = field(init=False)
    finished: dict[Part, Outcome] = field(default_factory=dict)
    #: of each task the highest attempt that is finished, and that a worker asked for
    seen: dict[str, Attempt] = field(default_factory=dict)
    latest: dict[str, Attempt] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    grants: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, list[Body]] = field(default_factory=lambda: defaultdict(list))
    starts: Counter[Part] = field(default_factory=Counter)
    ends: Counter[Part] = field(default_factory=Counter)
    #: how bodies of attempts came to an end of their own
    completed: dict[Part, set[Outcome]] = field(default_factory=lambda: defaultdict(set))
    #: of each grant the child that got its body
    children: dict[str, Fate] = field(default_factory=dict)
    #: tokens that were granted only to report that nothing is left
    spent: set[int] = field(default_factory=set)
    #: attempts whose result is stored, and those that were told to be out of deliveries
    reported: dict[Part, str] = field(default_factory=dict)
    exhausted: set[Part] = field(default_factory=set)
    #: starts that were marked before the body began; tokens under which one began, and under which
    #: its end was recorded
    marked: Counter[Part] = field(default_factory=Counter)
    begun: set[int] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    #: tells the broker of messages that a claim's record names
    note: Callable[[str], None] = lambda _tag: None
    unnote: Callable[[str], None] = lambda _tag: None
    #: whether the store did not answer as it should within the last lease
    was_deaf: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        # Early acknowledgements are at most once.
        lossy = bool(self.plan.faults - {"duplicate", "drift"})
        work = self.plan.work.items()
        self.undone = {
            task_id: None for task_id, one in work if not (lossy and one.kind == "sim.early")
        }

    def fail(self, promise: str, what: str) -> None:
        self.world.fail(f"{promise}: {what}")

    # the store

    def unanswered(self, process: Process) -> None:
        """The store did not answer a process, or only one that asks no more."""
        process.fate.unanswered_at = self.world.now
        if self.world.fiber is not None:
            self.world.fiber.unanswered += 1

    def claimed(self, request: ClaimRequest, answer: ClaimAnswer) -> None:
        self.counts[type(answer).__name__] += 1
        self.world.tell(
            "store",
            "claim %s %s by %s: %s",
            request.task_id,
            request.grant_id[:4],
            request.owner,
            _short(answer),
        )
        seen = self.seen.get(request.task_id, request.attempt)
        self.seen[request.task_id] = max(seen, request.attempt)
        if not isinstance(answer, (Success, TookOver, Exhausted)):
            return
        task_id, token = request.task_id, answer.token.token
        if isinstance(answer, Exhausted):
            self.spent.add(token)
        part = (task_id, request.attempt)
        self.note(request.delivery.tag)
        before = self.grants.get(task_id), self.tokens.get(task_id, 0)
        if before != (request.grant_id, token):
            if token <= before[1]:
                self.fail("fenced", f"{task_id} got token {token} after {before[1]}")
            self.grants[task_id], self.tokens[task_id] = request.grant_id, token
        if part in self.finished and self.finished[part] is not Outcome.REJECTED:
            self.fail("not again when finished", f"{part} is granted to {request.owner}")
        dead = self.starts[part] - self.ends[part]
        if self._may_die_unbegun(part):
            dead += self.marked[part]
        if answer.deliveries > dead:
            self.fail(
                "poison stops",
                f"{part} counts {answer.deliveries} deaths and had at most {dead}",
            )

    def _may_die_unbegun(self, part: Part) -> bool:
        """Whether a claim can end between the mark of a start and the first line of a body."""
        strict = self.plan.work[part[0]].kind == "sim.strict"
        faults = self.plan.faults
        # What should be given back may not reach the store; nor may a question in time.
        ungiven = faults & {"restart", "disconnect", "broker down"} and self._deafening()
        late = faults & {"store down", "store slow"} and self.was_deaf()
        return bool(strict or ungiven or late or faults & KILLING)

    def renewed(self, renewal: Renewal, answer: RenewAnswer) -> None:
        token = renewal.token
        started = ", started" if renewal.started else ""
        self.world.tell(
            "store", "renew %s %s%s: %s", token.task_id, _mark(token.token), started, _short(answer)
        )
        if renewal.started and token.token not in self.begun:
            self.marked[token.task_id, token.attempt] += 1
        if isinstance(answer, Lost):
            self.world.after(SOON, self._check_told, token.task_id, token.token)
        if (
            isinstance(answer, Renewed)
            and renewal.token.token != self.tokens[renewal.token.task_id]
        ):
            self.fail("fenced", f"{renewal.token.task_id}: token {renewal.token.token} renewed")

    def settled(self, settlement: Settlement, answer: SettleAnswer) -> None:
        token = settlement.token
        part = (token.task_id, token.attempt)
        self.world.tell(
            "store",
            "settle %s %s as %s: %s",
            token.task_id,
            _mark(token.token),
            settlement.outcome.value,
            _short(answer),
        )
        if not isinstance(answer, Settled):
            return
        if token.token != self.tokens[token.task_id]:
            self.fail("fenced", f"{part}: stale token {token.token} settled")
        if settlement.counted and token.token not in self.begun and self.plan.faults & KILLING:
            self.marked[part] += 1
        if token.token not in self.closed and not settlement.counted:
            self.closed.add(token.token)
            self.ends[part] += token.token in self.begun
        if settlement.gives_back:
            self.counts["given back"] += 1
            if "crash" in self.plan.faults and self.plan.faults & {"broker down", "disconnect"}:
                # The worker is killed before it can tell a broker that was away.
                self.unnote(token.delivery.tag)
            return
        if not self._may_end_as(settlement):
            outcome = settlement.outcome.value
            self.fail("nothing lost", f"{part} is finished as {outcome} and never ended so")
        self.finished.setdefault(part, settlement.outcome)
        self._note_end(part, settlement.outcome)
        self.latest[token.task_id] = max(self.latest.get(token.task_id, Attempt()), token.attempt)

    def _may_end_as(self, settlement: Settlement) -> bool:
        """Whether something happened that ends an attempt so. Nobody revokes a task, and none has
        a time limit."""
        outcome, token = settlement.outcome, settlement.token
        part = (token.task_id, token.attempt)
        if outcome in OWN_ENDS:
            return outcome in self.completed[part]
        if outcome is Outcome.WORKER_LOST:
            child = self.children.get(token.grant_id)
            struck = child is not None and child.was_struck
            return struck and self.plan.work[token.task_id].kind in ENDED_BY_LOSS
        return outcome is Outcome.EXHAUSTED and token.token in self.spent

    # bodies

    def given(self, grant: str, child: Process) -> None:
        """A pool has a child for the body of a grant."""
        self.children[grant] = child.fate

    def begins(self, body: Body) -> None:
        task_id, attempt = body.part
        self.counts["bodies"] += 1
        self.starts[body.part] += 1
        self.bodies[task_id].append(body)
        if body.run is None:
            self.fail("exclusive", f"{body.part} runs without a claim")
            return
        self.begun.add(body.run.token.token)
        self.world.tell(body.process, "begins %s under %s", body.part, _mark(body.run.token.token))
        if body.part in self.finished and self.finished[body.part] is not Outcome.REJECTED:
            self.fail("not again when finished", f"{body.part} starts on {body.process}")
        if self.latest.get(task_id, attempt) > attempt:
            later = self.latest[task_id]
            self.fail("not again when finished", f"{body.part} starts after {later}")
        if not (body.is_trusted() or body.run.remaining):
            self.fail("told", f"{body.part} starts on {body.process} on a lease that is gone")
        if body.run.passport.deliveries >= self.plan.max_deliveries:
            self.fail("poison stops", f"{body.part} starts after {body.run.passport.deliveries}")
        self.check(task_id)

    def _check_told(self, task_id: str, token: int) -> None:
        """A worker was told that a claim is lost: its body must have stopped by now."""
        for body in self.bodies[task_id]:
            process, parent = body.process, body.process.parent
            if body.run is None or body.run.token.token != token or parent is None:
                continue
            # A claim is lost again with each answer that is not lost itself.
            if parent.alive and not (parent.paused or process.paused or self._deafening()):
                self.fail("told", f"{body.part} still runs on {process} without a claim")

    def _deafening(self) -> bool:
        return bool(self.plan.faults & {"store lost", "store slow", "store down"})

    def completes(self, part: Part, outcome: Outcome) -> None:
        """A body has come to an end of its own."""
        self.completed[part].add(outcome)

    def check(self, task_id: str) -> None:
        """Whether no two bodies of a task act under leases that they may trust."""
        trusted = [body for body in self.bodies[task_id] if body.is_trusted()]
        if len(trusted) > 1:
            where = ", ".join(f"{body.part[1]} on {body.process}" for body in trusted)
            self.fail("exclusive", f"{task_id} has two bodies at once: {where}")

    def looks(self, body: Body) -> None:
        """What the body does next may leave its process only while its claim is held."""
        fiber, run = self.world.running(), body.run
        if run is not None:
            number = run.token.token
            held = number == self.tokens[body.part[0]] and number not in self.closed
            fiber.ending = Look(body, run.remaining > 0, held, fiber.unanswered)

    def leaves(self, what: str) -> None:
        """Something of the task of the running fiber goes on or out."""
        fiber = self.world.running()
        look: Look | None = fiber.ending
        if look is None or look.trusted:
            return
        strict = self.plan.work[look.body.part[0]].kind == "sim.strict"
        silent = fiber.unanswered > look.unanswered
        # Who gets no answer goes on, and tells what it did; but not what is strict.
        if strict if silent else not look.held:
            self.fail("told", f"{what} of {look.body.part} on {fiber.process} has no claim")

    def is_over(self, body: Body) -> None:
        self.looks(body)
        self.world.tell(body.process, "ends %s", body.part)
        self.bodies[body.part[0]].remove(body)

    def stored(self, part: Part, state: str, result: object) -> None:
        """The result of an attempt is in its backend."""
        self.reported[part] = state
        if isinstance(result, DeliveriesExhausted):
            self.exhausted.add(part)

    # the broker

    def restored(self, part: Part, *, alive: bool) -> None:
        """The visibility timeout of a message is over, which its worker should have prevented."""
        if alive and not self.plan.faults - {"duplicate", "child", "drift"}:
            self.fail("not twice while alive", f"{part} is given out again")

    def sent(self, part: Part) -> None:
        self.world.tell("sender", "%s", part)

    def removed(self, part: Part, *, late: bool, leaving: bool) -> None:
        """A message is acknowledged, or rejected and gone.

        Parameters:
            late: its task acknowledges late.
            leaving: its worker is shutting down, or has been.
        """
        task_id, attempt = part
        known = part in self.finished or self.seen.get(task_id, attempt) > attempt
        if known or not late:
            return
        # Without the store's answer: at a shutdown, or with its failure.
        if part in self.exhausted or (leaving and part in self.reported):
            retries = self.reported[part] == "RETRY"
            self._note_end(part, Outcome.RETRY if retries else Outcome.FAILURE)
            return
        self.fail("nothing lost", f"the message of {part} is gone, and it is not finished")

    # the end

    def unfinished(self) -> list[str]:
        """Tasks that are not at their end."""
        return list(self.undone)

    def _note_end(self, part: Part, outcome: Outcome) -> None:
        task_id, attempt = part
        if outcome is not Outcome.RETRY or attempt.retries >= self.plan.work[task_id].retries:
            self.undone.pop(task_id, None)

    def check_calm(self) -> None:
        """Where nothing failed, every attempt ran once."""
        if self.plan.faults - {"duplicate", "drift"}:
            return
        for part, starts in self.starts.items():
            work = self.plan.work[part[0]]
            if starts > 1 + work.requeues and not work.deadly:
                self.fail("not twice while alive", f"{part} started {starts} times")


def _mark(token: int) -> str:
    """What tells one token from another in a timeline."""
    return f"#{(token // 1000) % 10_000_000}"


def _short(answer: Any) -> str:
    told = type(answer).__name__
    if isinstance(answer, (Success, TookOver, Exhausted)):
        return f"{told} {_mark(answer.token.token)}, {answer.deliveries} deaths"
    return told


def part_of(headers: dict[str, Any]) -> Part:
    """What a message is a copy of."""
    nesting, retries = headers.get("replaced_task_nesting") or 0, headers.get("retries") or 0
    return headers["id"], Attempt(nesting, retries)
