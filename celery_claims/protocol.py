"""The claim protocol: what every store answers, as functions without I/O and without a clock.

Identity
    A record belongs to one ``(queue, task_id)``. A *run* is one publish: (task id, ``root_id``);
    an *attempt* of it is the pair (replacements, retries), compared in that order. A *grant* is
    one answer to one delivery: ``grant_id`` is random per delivery, ``token`` its fencing number.

Authority
    The store's clock alone decides whether a lease is over. A worker only bounds how long it may
    *trust* its lease without hearing from the store (``trust_until``), on its own monotonic clock.

States
    ::

                     claim                    release
          (none) ────────────▶ claimed ────────────────────▶ finished
                     ▲   ▲        │  ▲                           │
               claim │   │        │  │ renew (only after         │ claim by a higher attempt,
                     │   │ nack,  │  │ expire, same token)       │ another run, or a newer death
                     │   └────────┤  │                           │
                   free ◀── expire┴──┘ ◀─────────────────────────┘ (through claimed)

    ``free`` remembers the token, the attempt and the deliveries; so does ``finished``.

Fencing
    Every write after a grant carries its token and changes nothing unless the record still has it.
    Tokens of a shard rise for ever: ``next_token`` takes the higher of the last one plus one and
    the clock in microseconds, so that a store that lost its memory goes on above what it gave out.

Failure handling
    A lost reply is repaired by repeating the call: the same grant id gets the same token, a second
    release or nack answers as the first did. An expired lease is taken over by the next claim;
    the old owner may still renew or finish as long as nobody else was granted.

Each rule here has a test of the same name in the conformance suite (``celery_claims.testing``).
Sources: the lease of Gray and Cheriton (1989); fencing tokens after Kleppmann's critique of
Redlock (2016) and Chubby's sequencers (Burrows, 2006).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from .checks import (
    MAX_DURATION_MS,
    MAX_TOKEN,
    are_counts,
    are_names,
    check_count,
    check_duration,
    check_flag,
    check_name,
    check_text,
)
from .errors import InvalidArgument

__all__ = [
    "AlreadyClaimed",
    "Attempt",
    "ClaimAnswer",
    "ClaimRequest",
    "ClaimToken",
    "Delivery",
    "Ended",
    "Exhausted",
    "Expiry",
    "Finished",
    "Lost",
    "Outcome",
    "Record",
    "RenewAnswer",
    "Renewal",
    "Renewed",
    "SettleAnswer",
    "Settled",
    "Settlement",
    "State",
    "Success",
    "Superseded",
    "TookOver",
    "Transition",
    "decide_claim",
    "decide_expire",
    "decide_renew",
    "decide_settle",
    "next_token",
    "trust_until",
    "turn_is_due",
]

#: How long a claim that is out of deliveries stays with the worker that reports it, in ms.
EXHAUSTED_LEASE_MS = 30_000


class Attempt(NamedTuple):
    """Which attempt of a run: compared as a pair, replacements first."""

    nesting: int = 0
    retries: int = 0


class State(str, Enum):
    """What a record says of its task now."""

    CLAIMED = "claimed"
    FREE = "free"
    FINISHED = "finished"


class Outcome(str, Enum):
    """How a finished attempt ended, or why a free record is free."""

    SUCCESS = "success"
    FAILURE = "failure"
    RETRY = "retry"
    IGNORED = "ignored"
    REJECTED = "rejected"
    REVOKED = "revoked"
    TIMED_OUT = "timed out"
    WORKER_LOST = "worker lost"
    EXHAUSTED = "exhausted"
    #: free: given back by its owner
    NACKED = "nacked"
    #: free: the lease ran out and cleanup noticed
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a sweeper needs to give a dead worker's message back; the protocol never reads it.

    Parameters:
        task: the task's name.
        tag: the broker's delivery tag.
        queue: the queue that the message came from, where it differs from the claim's.
        priority: the message's priority, None where it has none.
    """

    task: str = ""
    tag: str = ""
    queue: str = ""
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class ClaimToken:
    """The proof of one grant.

    Parameters:
        queue, task_id: what is claimed.
        owner: who holds it.
        token: the fencing number; higher than of any earlier grant of this claim.
        attempt: the attempt of the run that it was granted for.
        created_at, expires_at: milliseconds of the store's clock.
        grant_id: the delivery that it was granted to.
        root_id: the run.
        deaths: how often the message was rejected to a dead-letter exchange before this delivery.
        delivery: where the message came from.
    """

    queue: str
    task_id: str
    owner: str
    token: int
    attempt: Attempt
    created_at: int
    expires_at: int
    grant_id: str
    root_id: str
    deaths: int = 0
    delivery: Delivery = field(default_factory=Delivery)

    def remaining_ms(self, now_ms: int) -> int:
        """Milliseconds of the lease left at ``now_ms`` of the store's clock; 0 once it is over."""
        return max(0, self.expires_at - now_ms)

    def is_valid(self, now_ms: int) -> bool:
        """Whether the lease is unexpired at ``now_ms`` of the store's clock."""
        return now_ms < self.expires_at


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """One question: may this delivery run?

    Parameters:
        queue, task_id, owner, lease_ms, grant_id, root_id, attempt: see ``ClaimToken``.
        deaths: how often the message was rejected to a dead-letter exchange (``x-death``).
        max_deliveries: how many started runs of this attempt may die before it is exhausted.
        delivery: kept for the sweeper.
    """

    queue: str
    task_id: str
    owner: str
    lease_ms: int
    grant_id: str
    root_id: str
    attempt: Attempt = Attempt()  # noqa: RUF009 - an immutable tuple
    deaths: int = 0
    max_deliveries: int = 20
    delivery: Delivery = field(default_factory=Delivery)

    def __post_init__(self) -> None:
        _check_names("", self)
        check_duration("lease_ms", self.lease_ms)
        check_count("deaths", self.deaths, least=0)
        check_count("max_deliveries", self.max_deliveries, least=1)
        check_attempt("attempt", self.attempt)
        check_delivery("delivery", self.delivery)


@dataclass(frozen=True, slots=True)
class Success:
    """Granted: nobody held it. ``now`` is the store's clock in milliseconds, as in every answer.

    Parameters:
        deliveries: started runs of this attempt that died.
        orphaned: the last grant's lease ran out and cleanup noticed before this claim.
    """

    token: ClaimToken
    now: int
    deliveries: int = 0
    orphaned: bool = False


@dataclass(frozen=True, slots=True)
class TookOver:
    """Granted: the lease of ``previous_owner`` had run out; ``deliveries`` as in ``Success``.

    Parameters:
        previous: the previous owner's message: nothing else tells a sweeper of it from now on.
    """

    previous_owner: str
    token: ClaimToken
    now: int
    deliveries: int = 0
    previous: Delivery = field(default_factory=Delivery)


@dataclass(frozen=True, slots=True)
class AlreadyClaimed:
    """Denied for now: ``owner`` holds it until ``expires_at``, or longer if it renews."""

    owner: str
    expires_at: int
    now: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Denied for good: this attempt of this run ended at ``finished_at``."""

    outcome: Outcome
    finished_at: int
    now: int


@dataclass(frozen=True, slots=True)
class Superseded:
    """Denied for good: a later ``attempt`` of this run is known, so this one has ended."""

    attempt: Attempt
    now: int


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Granted only to report: ``deliveries`` started runs of this attempt died. Do not run it."""

    deliveries: int
    token: ClaimToken
    now: int


ClaimAnswer = Success | TookOver | AlreadyClaimed | Finished | Superseded | Exhausted


@dataclass(frozen=True, slots=True)
class Renewal:
    """A wish for more time.

    Parameters:
        token: the grant.
        lease_ms: the lease becomes at least this long from now.
        extend: instead, add ``lease_ms`` to what is left.
        started: also note that the task's body was started.
    """

    token: ClaimToken
    lease_ms: int
    extend: bool = False
    started: bool = False

    def __post_init__(self) -> None:
        check_token(self.token)
        check_flag("extend", self.extend)
        check_flag("started", self.started)
        check_duration("additional_ms" if self.extend else "lease_ms", self.lease_ms)


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease now ends at ``expires_at``."""

    expires_at: int
    now: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The grant's own owner released it before, with ``outcome``; not an error."""

    outcome: Outcome
    now: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Refused, nothing was changed: ``owner`` was granted it since (None: nobody is known)."""

    owner: str | None
    now: int


RenewAnswer = Renewed | Ended | Lost


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a grant: finished with ``outcome``, or given back (``Outcome.NACKED``).

    Parameters:
        token: the grant.
        outcome: how it ended.
        counted: given back because its worker or child died: counts as a delivery.
        keep_ms: how long the record outlives the end; 0 forgets it at once.
    """

    token: ClaimToken
    outcome: Outcome
    keep_ms: int
    counted: bool = False

    def __post_init__(self) -> None:
        check_token(self.token)
        check_flag("counted", self.counted)
        check_count("keep_ms", self.keep_ms, least=0, most=MAX_DURATION_MS)
        if not isinstance(self.outcome, Outcome) or self.outcome is Outcome.EXPIRED:
            raise InvalidArgument("outcome", f"no settlement can end as {self.outcome!r}")

    @property
    def gives_back(self) -> bool:
        return self.outcome is Outcome.NACKED


@dataclass(frozen=True, slots=True)
class Settled:
    """The settlement is recorded, by this call or by an earlier one of the same grant."""

    now: int


SettleAnswer = Settled | Ended | Lost


@dataclass(frozen=True, slots=True)
class Expiry:
    """One expired claim as a sweeper read it; cleaned up only if it is still exactly this."""

    queue: str
    task_id: str
    token: int
    expires_at: int

    def __post_init__(self) -> None:
        check_name("queue", self.queue)
        check_name("task_id", self.task_id)
        check_count("token", self.token, least=1)
        check_count("expires_at", self.expires_at, least=0)


@dataclass(frozen=True, slots=True)
class Record:
    """What a store keeps for one (queue, task id). Times are milliseconds of the store's clock.

    Parameters:
        started: the body of the last grant is known to have been started.
        deliveries: started grants of this attempt that died.
        settled_at: when it became finished or free; 0 while claimed.
        forget_at: when it may be forgotten; 0 while claimed.
    """

    queue: str
    task_id: str
    owner: str
    grant_id: str
    token: int
    root_id: str
    attempt: Attempt
    deaths: int
    claimed_at: int
    expires_at: int
    started: bool
    deliveries: int
    state: State
    outcome: Outcome | None
    settled_at: int
    forget_at: int
    delivery: Delivery

    def as_token(self) -> ClaimToken:
        """The token of the last grant."""
        return ClaimToken(
            queue=self.queue,
            task_id=self.task_id,
            owner=self.owner,
            token=self.token,
            attempt=self.attempt,
            created_at=self.claimed_at,
            expires_at=self.expires_at,
            grant_id=self.grant_id,
            root_id=self.root_id,
            deaths=self.deaths,
            delivery=self.delivery,
        )

    def is_live(self, now: int) -> bool:
        """Claimed under an unexpired lease."""
        return self.state is State.CLAIMED and now < self.expires_at

    def is_orphan(self, now: int) -> bool:
        """Claimed under a lease that is over."""
        return self.state is State.CLAIMED and now >= self.expires_at

    def as_expiry(self) -> Expiry:
        return Expiry(self.queue, self.task_id, self.token, self.expires_at)


A_co = TypeVar("A_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Transition(Generic[A_co]):
    """What to answer, and the record to keep (None: keep none).

    Parameters:
        changed: False spares a write.
        floor: the shard's high-water must be at least this afterwards, in the same step: no later
            token may be lower, and a grant that was settled and forgotten must not come back.
    """

    answer: A_co
    record: Record | None
    changed: bool
    floor: int = 0


def next_token(high_water: int, now_us: int) -> int:
    """The next fencing token of a shard.

    Parameters:
        high_water: the highest token that the shard remembers, 0 if none.
        now_us: the store's clock in microseconds.
    """
    return max(high_water + 1, now_us)


def trust_until(asked_at: float, lease: float) -> float:
    """Until when a worker may act on a lease without hearing from the store again.

    Counted from the *start* of the call that granted or renewed it, for the store may have
    answered at once and the reply been slow; a tenth of the lease is left for clocks that differ
    in speed and for the work between the check and its effect.

    Parameters:
        asked_at: monotonic seconds when the call began.
        lease: seconds.
    """
    return asked_at + 0.9 * lease


def decide_claim(
    record: Record | None, request: ClaimRequest, now: int, token: int
) -> Transition[ClaimAnswer]:
    """Answer a claim.

    Parameters:
        record: what the store holds.
        now: the store's clock, in milliseconds.
        token: what ``next_token`` gave; used up only if the answer is a grant.
    """
    if record is None:
        return _grant(request, now, token, deliveries=0)
    if record.state is State.CLAIMED and record.grant_id == request.grant_id:
        again = _claimed_still(record, max(record.expires_at, now + request.lease_ms))
        if record.deliveries >= request.max_deliveries:
            answer: ClaimAnswer = Exhausted(record.deliveries, again.as_token(), now)
        else:
            answer = Success(again.as_token(), now, again.deliveries)
        return Transition(answer, again, changed=True)
    same_run = record.root_id == request.root_id
    if same_run and record.attempt > request.attempt:
        return Transition(Superseded(record.attempt, now), record, changed=False)
    if record.is_live(now):
        return Transition(
            AlreadyClaimed(record.owner, record.expires_at, now), record, changed=False
        )
    same_attempt = same_run and record.attempt == request.attempt
    if record.state is State.FINISHED:
        if same_attempt and not _is_replay(record, request):
            assert record.outcome is not None
            return Transition(
                Finished(record.outcome, record.settled_at, now), record, changed=False
            )
        return _grant(request, now, token, deliveries=0)
    deliveries = record.deliveries if same_attempt else 0
    if record.state is State.CLAIMED:
        if same_attempt and record.started:
            deliveries += 1
        return _grant(request, now, token, deliveries, previous=record)
    orphaned = record.outcome is Outcome.EXPIRED
    return _grant(request, now, token, deliveries, orphaned=orphaned)


def _is_replay(record: Record, request: ClaimRequest) -> bool:
    """A message that was rejected to a dead-letter queue and sent from there again must run."""
    return record.outcome is Outcome.REJECTED and request.deaths > record.deaths


def _grant(
    request: ClaimRequest,
    now: int,
    token: int,
    deliveries: int,
    *,
    previous: Record | None = None,
    orphaned: bool = False,
) -> Transition[ClaimAnswer]:
    exhausted = deliveries >= request.max_deliveries
    record = Record(
        queue=request.queue,
        task_id=request.task_id,
        owner=request.owner,
        grant_id=request.grant_id,
        token=token,
        root_id=request.root_id,
        attempt=request.attempt,
        deaths=request.deaths,
        claimed_at=now,
        expires_at=now + (EXHAUSTED_LEASE_MS if exhausted else request.lease_ms),
        started=False,
        deliveries=deliveries,
        state=State.CLAIMED,
        outcome=None,
        settled_at=0,
        forget_at=0,
        delivery=request.delivery,
    )
    answer: ClaimAnswer
    if exhausted:
        answer = Exhausted(deliveries, record.as_token(), now)
    elif previous is not None:
        answer = TookOver(previous.owner, record.as_token(), now, deliveries, previous.delivery)
    else:
        answer = Success(record.as_token(), now, deliveries, orphaned)
    return Transition(answer, record, changed=True, floor=token)


def decide_renew(
    record: Record | None, renewal: Renewal, now: int, high_water: int
) -> Transition[RenewAnswer]:
    """Answer a renewal or an extension.

    Parameters:
        record: what the store holds.
        now: the store's clock, in milliseconds.
        high_water: the highest token of the shard; a forgotten record comes back only below it.
    """
    record = _last_grant(record, renewal.token, high_water)
    if record is None or record.token != renewal.token.token:
        return _refuse(record, now)
    if record.state is State.FINISHED:
        assert record.outcome is not None
        return Transition(Ended(record.outcome, now), record, changed=False)
    if record.outcome is Outcome.NACKED:
        return Transition(Lost(None, now), record, changed=False)
    wanted = now + renewal.lease_ms
    if renewal.extend:
        wanted = max(now, record.expires_at) + renewal.lease_ms
    alive = _claimed_still(
        record, max(record.expires_at, wanted), started=record.started or renewal.started
    )
    return Transition(
        Renewed(alive.expires_at, now), alive, changed=True, floor=renewal.token.token
    )


def decide_settle(
    record: Record | None, settlement: Settlement, now: int, high_water: int
) -> Transition[SettleAnswer]:
    """Answer a release or a nack.

    Parameters:
        record: what the store holds.
        now: the store's clock, in milliseconds.
        high_water: as in ``decide_renew``.
    """
    record = _last_grant(record, settlement.token, high_water)
    if record is None or record.token != settlement.token.token:
        return _refuse(record, now)
    if record.state is State.FINISHED:
        assert record.outcome is not None
        if settlement.gives_back:
            return Transition(Ended(record.outcome, now), record, changed=False)
        return Transition(Settled(now), record, changed=False)
    if record.outcome is Outcome.NACKED:
        answer: SettleAnswer = Settled(now) if settlement.gives_back else Lost(None, now)
        return Transition(answer, record, changed=False)
    if not settlement.keep_ms:
        return Transition(Settled(now), None, changed=True, floor=record.token + 1)
    deliveries = _undisturbed(record) + settlement.counted
    settled = _settled(record, settlement.outcome, deliveries, now, settlement.keep_ms)
    return Transition(Settled(now), settled, changed=True, floor=record.token)


def decide_expire(
    record: Record | None, expiry: Expiry, now: int, keep_ms: int
) -> Transition[bool]:
    """Clean one expired claim up, unless it changed since the sweeper read it.

    Parameters:
        record: what the store holds.
        expiry: what the sweeper read.
        now: the store's clock, in milliseconds.
        keep_ms: how long its counters outlive it.
    """
    if (
        record is None
        or not record.is_orphan(now)
        or (record.token, record.expires_at) != (expiry.token, expiry.expires_at)
    ):
        return Transition(answer=False, record=record, changed=False)
    if not keep_ms:
        return Transition(answer=True, record=None, changed=True)
    deliveries = record.deliveries + record.started
    freed = _settled(record, Outcome.EXPIRED, deliveries, now, keep_ms)
    return Transition(answer=True, record=freed, changed=True)


def turn_is_due(last: int | None, interval_ms: int, now: int) -> bool:
    """Whether the next turn at a duty may be taken.

    A turn in the future was taken before the clock stepped back: waiting for it could take hours.

    Parameters:
        last: when the last turn was taken, None if never.
        interval_ms: how long after a turn the next one may be taken.
        now: the store's clock, in milliseconds.
    """
    return last is None or now < last or now >= last + interval_ms


def _last_grant(record: Record | None, token: ClaimToken, high_water: int) -> Record | None:
    """The record, or the one that the store forgot, if nothing was granted since in its shard."""
    if record is not None or high_water > token.token:
        return record
    return Record(
        queue=token.queue,
        task_id=token.task_id,
        owner=token.owner,
        grant_id=token.grant_id,
        token=token.token,
        root_id=token.root_id,
        attempt=token.attempt,
        deaths=token.deaths,
        claimed_at=token.created_at,
        expires_at=0,
        started=False,
        deliveries=0,
        state=State.CLAIMED,
        outcome=None,
        settled_at=0,
        forget_at=0,
        delivery=token.delivery,
    )


def _refuse(record: Record | None, now: int) -> Transition[Lost]:
    return Transition(Lost(record.owner if record else None, now), record, changed=False)


def _undisturbed(record: Record) -> int:
    """The deliveries without a cleanup's: its owner was late, not dead, so that is not counted."""
    freed = record.state is not State.CLAIMED
    return record.deliveries - 1 if freed and record.started else record.deliveries


def _claimed_still(record: Record, expires_at: int, *, started: bool | None = None) -> Record:
    """Another end of the lease; a cleanup is undone."""
    return _anew(
        record,
        expires_at=expires_at,
        started=record.started if started is None else started,
        deliveries=_undisturbed(record),
        state=State.CLAIMED,
        outcome=None,
        settled_at=0,
        forget_at=0,
    )


def _settled(record: Record, outcome: Outcome, deliveries: int, now: int, keep_ms: int) -> Record:
    """Finished, or free, with this outcome."""
    gives_back = outcome is Outcome.NACKED or outcome is Outcome.EXPIRED
    return _anew(
        record,
        expires_at=record.expires_at,
        started=record.started,
        deliveries=deliveries,
        state=State.FREE if gives_back else State.FINISHED,
        outcome=outcome,
        settled_at=now,
        forget_at=now + keep_ms,
    )


def _anew(
    record: Record,
    *,
    expires_at: int,
    started: bool,
    deliveries: int,
    state: State,
    outcome: Outcome | None,
    settled_at: int,
    forget_at: int,
) -> Record:
    """The same grant after a transition; ``dataclasses.replace`` takes three times as long."""
    return Record(
        queue=record.queue,
        task_id=record.task_id,
        owner=record.owner,
        grant_id=record.grant_id,
        token=record.token,
        root_id=record.root_id,
        attempt=record.attempt,
        deaths=record.deaths,
        claimed_at=record.claimed_at,
        expires_at=expires_at,
        started=started,
        deliveries=deliveries,
        state=state,
        outcome=outcome,
        settled_at=settled_at,
        forget_at=forget_at,
        delivery=record.delivery,
    )


def check_token(value: object) -> None:
    """A grant as a store gave it out.

    Raises:
        InvalidArgument: naming ``token``.
    """
    if not isinstance(value, ClaimToken):
        raise InvalidArgument("token", f"expected a ClaimToken, got {type(value).__name__}")
    _check_names("token.", value)
    check_count("token.token", value.token, least=1)
    if not are_counts(value.created_at, value.expires_at, value.deaths):
        check_count("token.created_at", value.created_at, least=0)
        check_count("token.expires_at", value.expires_at, least=0)
        check_count("token.deaths", value.deaths, least=0)
    check_attempt("token.attempt", value.attempt)
    check_delivery("token.delivery", value.delivery)


def _check_names(prefix: str, value: ClaimRequest | ClaimToken) -> None:
    if not are_names(value.queue, value.task_id, value.owner, value.grant_id, value.root_id):
        for name in ("queue", "task_id", "owner", "grant_id", "root_id"):
            check_name(prefix + name, getattr(value, name))


def check_attempt(argument: str, value: object) -> None:
    """A pair of counts.

    Raises:
        InvalidArgument: naming ``argument``.
    """
    if not isinstance(value, Attempt):
        raise InvalidArgument(argument, f"expected an Attempt, got {value!r}")
    if are_counts(value.nesting, value.retries):
        return
    check_count(f"{argument}.nesting", value.nesting, least=0)
    check_count(f"{argument}.retries", value.retries, least=0)


def check_delivery(argument: str, value: object) -> None:
    """Texts and a number that every store can keep.

    Raises:
        InvalidArgument: naming ``argument``.
    """
    if not isinstance(value, Delivery):
        raise InvalidArgument(argument, f"expected a Delivery, got {type(value).__name__}")
    if not are_names(value.task, value.tag, value.queue):
        for name in ("task", "tag", "queue"):
            check_text(f"{argument}.{name}", getattr(value, name))
    if value.priority is not None:
        check_count(f"{argument}.priority", value.priority, least=-MAX_TOKEN)
