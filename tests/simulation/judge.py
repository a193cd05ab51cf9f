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
from celery_claims.holding import LONGEST_PAUSE
from celery_claims.protocol import (
    AlreadyClaimed,
    Attempt,
    ClaimAnswer,
    ClaimRequest,
    Exhausted,
    Expiry,
    Lost,
    Outcome,
    Record,
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
from .world import EPOCH, NEVER, Fate, Process, World

__all__ = ["Body", "Judge", "Part", "part_of"]

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

    def trusted_until(self) -> float:
        """By its host's clock, as far as it and its worker can know."""
        own = self.run.trusted_until if self.run is not None else 0.0
        return max(own, self.case.trusted_until if self.case is not None else 0.0)


@dataclass(eq=False)
class Grant:
    """What became of one token.

    Parameters:
        task_id: what it is of.
        token: its number.
        at: when it was granted.
        worker: whose it is.
        spent: it was granted only to report that nothing is left.
        expires_at: when its lease ends.
        child: of a pool of processes: what got its body.
        marked: the store knows that its body was started.
        begun: it was.
        died: it ended with its process.
        settled, counted: it was; as a death.
    """

    task_id: str
    token: int
    at: float
    worker: Fate
    spent: bool
    expires_at: float = 0.0
    child: Fate | None = None
    marked: bool = False
    begun: bool = False
    died: bool = False
    settled: bool = False
    counted: bool = False

    @property
    def was_hit(self) -> bool:
        """Whether what has it was killed, stood still or had no answer."""
        return any(fate is not None and fate.was_hit(self.at) for fate in (self.worker, self.child))

    @property
    def must_count(self) -> bool:
        """Whether the store knows, once somebody else is granted it, that it died."""
        return self.counted or (self.marked and not self.settled)

    def may_count(self, *, strict: bool, lately: float) -> bool:
        """Whether the store may put it down as a death.

        Parameters:
            strict: its task is.
            lately: since when who had no answer could not ask again.
        """
        if self.settled and not self.counted:
            return False
        return self.begun or (self.must_count and self._may_die_unbegun(strict, lately))

    def _may_die_unbegun(self, strict: bool, lately: float) -> bool:
        """Whether it can end between the mark of a start and the first line of a body."""
        return any(
            fate.struck_at >= self.at
            or max(fate.unsettled_at, fate.untouched_at) >= self.at
            or fate.unanswered_at >= (self.at if strict else max(self.at, lately))
            for fate in (self.worker, self.child)
            if fate is not None
        )


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
    #: of each task the highest attempt that was granted, and that is finished
    granted: dict[str, Attempt] = field(default_factory=dict)
    latest: dict[str, Attempt] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    #: of each attempt its grants, and each by its id
    grants: dict[Part, list[Grant]] = field(default_factory=lambda: defaultdict(list))
    by_id: dict[str, Grant] = field(default_factory=dict)
    by_token: dict[int, Grant] = field(default_factory=dict)
    bodies: dict[str, list[Body]] = field(default_factory=lambda: defaultdict(list))
    starts: Counter[Part] = field(default_factory=Counter)
    #: how bodies of attempts came to an end of their own
    completed: dict[Part, set[Outcome]] = field(default_factory=lambda: defaultdict(set))
    #: results of attempts that are stored, by the worker that did, and when; another one may have
    #: stored one as well, for it had no answer
    reported: dict[tuple[Part, Fate], tuple[str, float]] = field(default_factory=dict)
    #: attempts that were told to be out of deliveries, under what
    exhausted: dict[Part, Grant] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    #: tells the broker of messages that a claim's record names
    note: Callable[[str], None] = lambda _tag: None
    unnote: Callable[[str], None] = lambda _tag: None
    #: tells it of a message that a claim's record named until now, and who took the claim over
    taken_over: Callable[[str, Fate], None] = lambda _tag, _heir: None
    #: seconds within which a worker asks for what it is not sure of, and has an answer
    soon: float = field(init=False)

    def __post_init__(self) -> None:
        self.soon = LONGEST_PAUSE + 4 * self.plan.timeout
        # Early acknowledgements are at most once.
        lossy = self.plan.is_lossy
        work = self.plan.work.items()
        self.undone = {
            task_id: None for task_id, one in work if not (lossy and one.kind == "sim.early")
        }

    def fail(self, promise: str, what: str) -> None:
        self.world.fail(f"{promise}: {what}")

    # the store

    def unanswered(self, process: Process, what: str) -> None:
        """The store did not answer a process, or only one that asks no more."""
        process.fate.unanswered_at = self.world.now
        if what == "settle":
            process.fate.unsettled_at = self.world.now
        if self.world.fiber is not None:
            self.world.fiber.unanswered += 1

    def untold(self, process: Process, what: str) -> None:
        """The broker did not answer a process."""
        if what == "touch":
            process.fate.untouched_at = self.world.now

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
        if not isinstance(answer, (Success, TookOver, Exhausted)):
            mine = self.by_id.get(request.grant_id)
            if isinstance(answer, AlreadyClaimed) and mine is not None and self.is_held(mine):
                self.fail("back soon", f"{request.task_id} waits for the end of its own grant")
            return
        task_id, token = request.task_id, answer.token.token
        part = (task_id, request.attempt)
        self.granted[task_id] = max(self.granted.get(task_id, Attempt()), request.attempt)
        self.note(request.delivery.tag)
        before = self.tokens.get(task_id, 0)
        grant = self.by_id.get(request.grant_id)
        if grant is None or (grant.token, before) != (token, token):
            if token <= before:
                self.fail("fenced", f"{task_id} got token {token} after {before}")
            self.tokens[task_id] = token
            fate = self.world.fates[int(request.owner.split("/")[1])]
            grant = Grant(task_id, token, self.world.now, fate, isinstance(answer, Exhausted))
            self.by_id[request.grant_id] = self.by_token[token] = grant
            self.grants[part].append(grant)
            if isinstance(answer, TookOver) and answer.previous.tag != request.delivery.tag:
                self.taken_over(answer.previous.tag, fate)
        grant.expires_at = answer.token.expires_at / 1000 - EPOCH
        if part in self.finished:
            self.fail("not again when finished", f"{part} is granted to {request.owner}")
        self._check_deaths(part, grant, answer.deliveries)

    def _check_deaths(self, part: Part, grant: Grant, told: int) -> None:
        earlier = [each for each in self.grants[part] if each is not grant]
        least = sum(each.must_count for each in earlier)
        strict, lately = self.plan.work[part[0]].kind == "sim.strict", self.world.now - self.soon
        most = sum(each.may_count(strict=strict, lately=lately) for each in earlier)
        if told > most:
            self.fail("poison stops", f"{part} counts {told} deaths and had at most {most}")
        if told < least:
            self.fail("poison stops", f"{part} counts {told} deaths and had at least {least}")
        if grant.spent and told < self.plan.max_deliveries:
            self.fail("poison stops", f"{part} is out of deliveries after {told} deaths")

    def renewed(self, renewal: Renewal, answer: RenewAnswer) -> None:
        token = renewal.token
        started = ", started" if renewal.started else ""
        self.world.tell(
            "store", "renew %s %s%s: %s", token.task_id, _mark(token.token), started, _short(answer)
        )
        if isinstance(answer, Renewed):
            grant = self.by_id[token.grant_id]
            grant.marked |= renewal.started
            grant.expires_at = answer.expires_at / 1000 - EPOCH
        if isinstance(answer, Lost):
            self.world.after(SOON, self._check_told, token.task_id, token.token, self.world.now)
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
        grant = self.by_id[token.grant_id]
        if not grant.settled:
            grant.settled, grant.counted = True, settlement.counted
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
            child = self.by_id[token.grant_id].child
            struck = child is not None and child.struck_at > NEVER
            return struck and self.plan.work[token.task_id].kind in ENDED_BY_LOSS
        return outcome is Outcome.EXHAUSTED and self.by_id[token.grant_id].spent

    def is_held(self, grant: Grant) -> bool:
        """Whether it is the last one of its task and not settled."""
        return self.tokens[grant.task_id] == grant.token and not grant.settled

    def cleaned_up(self, expiry: Expiry, record: Record | None, now: int) -> None:
        """Parameters: ``record``: what the store had of the claim, at its time ``now``."""
        read = (expiry.token, expiry.expires_at)
        if record is None or not record.is_orphan(now) or read != (record.token, record.expires_at):
            self.fail("fenced", f"{expiry.task_id} is cleaned up, and is not as it was read")

    # bodies

    def given(self, grant: str, child: Process) -> None:
        """A pool has a child for the body of a grant."""
        self.by_id[grant].child = child.fate

    def begins(self, body: Body) -> None:
        task_id, attempt = body.part
        self.counts["bodies"] += 1
        self.starts[body.part] += 1
        self.bodies[task_id].append(body)
        if body.run is None:
            self.fail("exclusive", f"{body.part} runs without a claim")
            return
        self.by_id[body.run.token.grant_id].begun = True
        self.world.tell(body.process, "begins %s under %s", body.part, _mark(body.run.token.token))
        if body.part in self.finished:
            self.fail("not again when finished", f"{body.part} starts on {body.process}")
        if self.latest.get(task_id, attempt) > attempt:
            later = self.latest[task_id]
            self.fail("not again when finished", f"{body.part} starts after {later}")
        if not (body.is_trusted() or body.run.remaining):
            self.fail("told", f"{body.part} starts on {body.process} on a lease that is gone")
        self._check_poison(body.part, body.run.passport.deliveries)
        self.check(task_id)
        if self.plan.work[task_id].kind == "sim.strict" and body.process.parent is not None:
            self._check_strict(body)

    def _check_poison(self, part: Part, told: int) -> None:
        most, grants = self.plan.max_deliveries, self.grants[part]
        if told >= most:
            self.fail("poison stops", f"{part} starts after {told}")
        # The first beat tells the store of a first start, and of one after it was given back.
        unknown = 1 + sum(grant.settled and not grant.counted for grant in grants)
        died = sum(grant.died for grant in grants)
        if died >= most + unknown:
            self.fail("poison stops", f"{part} starts, and {died} of its runs died")

    def _check_told(self, task_id: str, token: int, since: float) -> None:
        """A worker was told that a claim is lost: its body must have stopped by now."""
        for body in self.bodies[task_id]:
            process, parent = body.process, body.process.parent
            if body.run is None or body.run.token.token != token or parent is None:
                continue
            # A claim is lost again with each answer that is not lost itself.
            hit = parent.fate.was_hit(since) or process.fate.was_hit(since)
            if not (hit or parent.paused or process.paused):
                self.fail("told", f"{body.part} still runs on {process} without a claim")

    def _check_strict(self, body: Body) -> None:
        """A strict body is stopped when its trust is over, whether or not the store answers."""
        process, parent = body.process, body.process.parent
        if body not in self.bodies[body.part[0]] or parent is None or not parent.alive:
            return
        window = SOON + 4 * self.plan.timeout
        recent = self.world.now - window
        struck = max(parent.fate.struck_at, process.fate.struck_at) >= recent
        left = (body.trusted_until() - process.clock()) / process.rate + window
        if left > 0 or struck or parent.paused or process.paused:
            self.world.after(max(left, window), self._check_strict, body)
            return
        self.fail("told", f"{body.part} goes on on {process} without an answer")

    def stops(self, grant_id: str) -> None:
        """A worker stops a body. Strict ones also when the store does not answer."""
        grant = self.by_id[grant_id]
        strict = self.plan.work[grant.task_id].kind == "sim.strict"
        if self.is_held(grant) and not strict:
            self.fail("told", f"{grant.task_id} is stopped, and has its claim")

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
            held = number == self.tokens[body.part[0]]
            held = held and not self.by_id[run.token.grant_id].settled
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

    def _leaves_parent(self, part: Part) -> None:
        """The result of a body that did not live to store it, by its worker."""
        fiber = self.world.running()
        fate, since = fiber.process.fate, fiber.telling_since
        grant = self._latest(part[0])
        # Who stands still after it has asked cannot know; who gets no answer goes on; and what a
        # child has recorded before it was lost Celery fails all the same, with claims and without.
        late = fate.struck_at > since or fate.unanswered_at >= since or part in self.finished
        if grant.worker is not fate and since > NEVER and not late:
            self.fail("told", f"the failure of {part} is told by {fiber.process} without a claim")

    def _latest(self, task_id: str) -> Grant:
        """The last grant of a task."""
        return self.by_token[self.tokens[task_id]]

    def is_over(self, body: Body) -> None:
        self.looks(body)
        if body.run is not None and not body.process.alive:
            self.by_id[body.run.token.grant_id].died = True
        self.world.tell(body.process, "ends %s", body.part)
        self.bodies[body.part[0]].remove(body)

    def stored(self, part: Part, state: str, result: object) -> None:
        """The result of an attempt is in its backend."""
        process = self.world.running().process
        fate = (process.parent or process).fate
        self.reported[part, fate] = state, self.world.now
        if self.world.running().ending is None and not isinstance(result, DeliveriesExhausted):
            self._leaves_parent(part)
        if not isinstance(result, DeliveriesExhausted):
            return
        grant, before = self.grants[part][-1], self.exhausted.get(part)
        if not grant.spent:
            self.fail("poison stops", f"{part} is told to be out of deliveries, and is not")
        # Who could not record that it told leaves it to the next.
        if before is not None and not (before.was_hit and not before.settled):
            self.fail("poison stops", f"{part} is told twice to be out of deliveries")
        self.exhausted[part] = grant

    # the broker

    def restored(self, part: Part, *, alive: bool) -> None:
        """The visibility timeout of a message is over, which its worker should have prevented."""
        if alive and not self.plan.faults - {"duplicate", "child", "drift"}:
            self.fail("not twice while alive", f"{part} is given out again")

    def sent(self, part: Part) -> None:
        self.world.tell("sender", "%s", part)

    def removed(self, part: Part, worker: Process, *, late: bool, leaving: bool) -> None:
        """A message is acknowledged, or rejected and gone.

        Parameters:
            late: its task acknowledges late.
            leaving: its worker is shutting down, or has been.
        """
        if part in self.finished or self.is_superseded(part) or not late:
            return
        state, at = self.reported.get((part, worker.fate), ("", 0.0))
        # The store did not answer: at a shutdown, or when it was told that nothing is left.
        silent = bool(state) and worker.fate.unsettled_at >= at
        if silent and (part in self.exhausted or leaving):
            self._note_end(part, Outcome.RETRY if state == "RETRY" else Outcome.FAILURE)
            return
        self.fail("nothing lost", f"the message of {part} is gone, and it is not finished")

    # the end

    def is_superseded(self, part: Part) -> bool:
        """Whether a later attempt is on record."""
        task_id, attempt = part
        return self.granted.get(task_id, attempt) > attempt

    def unfinished(self) -> list[str]:
        """Tasks that are not at their end."""
        return list(self.undone)

    def _note_end(self, part: Part, outcome: Outcome) -> None:
        task_id, attempt = part
        if outcome is not Outcome.RETRY or attempt.retries >= self.plan.work[task_id].retries:
            self.undone.pop(task_id, None)

    def check_calm(self) -> None:
        """Where nothing failed, every attempt ran once."""
        if self.plan.is_lossy:
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
