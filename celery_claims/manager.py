"""The claim manager: the protocol for code that claims by hand, without Celery.

Workers use the stores directly, in batches; both see the same claims.
"""

from __future__ import annotations

import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial

from .checks import MAX_DURATION_MS, check_count, check_duration, check_flag, check_name
from .errors import ClaimError, ClaimNotFound, ExtensionLimit, InvalidArgument, StaleToken
from .native import across_forks, allocate_lock
from .parts import ask_in_parts
from .protocol import (
    AlreadyClaimed,
    Attempt,
    ClaimAnswer,
    ClaimRequest,
    ClaimToken,
    Delivery,
    Ended,
    Exhausted,
    Finished,
    Lost,
    Outcome,
    Record,
    RenewAnswer,
    Renewal,
    Renewed,
    SettleAnswer,
    Settled,
    Settlement,
    State,
    Success,
    Superseded,
    TookOver,
    check_token,
)
from .stores.arguments import check_batch
from .stores.base import MAX_PAGE, Store, View

__all__ = ["AtomicClaimManager", "ClaimStats", "LeaseConfig"]

#: Grants whose extensions are counted at once; the one that was extended longest ago goes first.
MAX_COUNTED = 10_000

#: Claims that ``cleanup_expired`` handles in one step.
CLEANUP_PAGE = 100


@dataclass(frozen=True, slots=True)
class LeaseConfig:
    """How long leases may be. All but the last in milliseconds.

    Parameters:
        default_ms: of a claim that names none.
        min_ms, max_ms: what a wish is brought to.
        cleanup_interval_ms: how often expired claims are to be cleaned up.
        max_extensions: how often ``extend`` may be called for one grant; 0 forbids it.
    """

    default_ms: int = 30_000
    min_ms: int = 1_000
    max_ms: int = 3_600_000
    cleanup_interval_ms: int = 5_000
    max_extensions: int = 10

    def __post_init__(self) -> None:
        for name in ("default_ms", "min_ms", "max_ms", "cleanup_interval_ms"):
            check_duration(name, getattr(self, name))
        check_count("max_extensions", self.max_extensions, least=0)
        if not self.min_ms <= self.default_ms <= self.max_ms:
            raise InvalidArgument(
                "default_ms",
                f"must lie between min_ms ({self.min_ms}) and max_ms ({self.max_ms}), "
                f"got {self.default_ms}",
            )

    def clamp(self, lease_ms: int | None) -> int:
        """The nearest allowed lease; the default for None.

        Raises:
            InvalidArgument: not a positive number of milliseconds, or beyond ten years.
        """
        if lease_ms is None:
            return self.default_ms
        check_duration("lease_ms", lease_ms)
        return max(self.min_ms, min(self.max_ms, lease_ms))


@dataclass(frozen=True, slots=True)
class ClaimStats:
    """What one manager was answered so far. Calls that raised ``StoreError`` are not in it.

    Parameters:
        attempts: claims answered: ``successes + contentions + skips + exhausted``.
        successes: claims granted to run, takeovers included.
        contentions: claims denied because somebody holds them.
        takeovers: claims granted after another owner's lease ran out.
        acks: releases recorded, repeated ones too.
        nacks: claims given back, repeated ones too.
        expirations: expired claims cleaned up.
        extensions: extensions granted.
        skips: claims denied because the attempt is over (``Finished``, ``Superseded``).
        exhausted: claims granted only to report that their runs died too often.
        losses: renewals, extensions, releases and nacks refused.
    """

    attempts: int = 0
    successes: int = 0
    contentions: int = 0
    takeovers: int = 0
    acks: int = 0
    nacks: int = 0
    expirations: int = 0
    extensions: int = 0
    skips: int = 0
    exhausted: int = 0
    losses: int = 0


_COUNTED_AS: dict[type, tuple[str, ...]] = {
    Success: ("attempts", "successes"),
    TookOver: ("attempts", "successes", "takeovers"),
    AlreadyClaimed: ("attempts", "contentions"),
    Finished: ("attempts", "skips"),
    Superseded: ("attempts", "skips"),
    Exhausted: ("attempts", "exhausted"),
    Lost: ("losses",),
}


class AtomicClaimManager:
    """Claims, one at a time or in batches. Safe to use from any thread and in a forked child.

    Parameters:
        store: where the claims live; see ``open_store``.
        config: how long leases may be.
        keep_finished_ms: how long a finished attempt is remembered; 0 forgets it at once.
    """

    def __init__(
        self,
        store: Store,
        config: LeaseConfig = LeaseConfig(),
        *,
        keep_finished_ms: int = 2 * 3600 * 1000,
    ) -> None:
        if not isinstance(store, Store):
            raise InvalidArgument("store", f"expected a Store, got {store!r}")
        if not isinstance(config, LeaseConfig):
            raise InvalidArgument("config", f"expected a LeaseConfig, got {config!r}")
        check_count("keep_finished_ms", keep_finished_ms, least=0, most=MAX_DURATION_MS)
        self.store = store
        self.config = config
        self.keep_finished_ms = keep_finished_ms
        self._counters = _Counters()
        self._extensions = _Extensions(config.max_extensions)

    def claim(
        self,
        queue: str,
        task_id: str,
        owner: str,
        lease_ms: int | None = None,
        *,
        grant_id: str | None = None,
        root_id: str | None = None,
        attempt: Attempt = Attempt(),  # noqa: B008 - immutable
        deaths: int = 0,
        max_deliveries: int = 20,
        delivery: Delivery = Delivery(),  # noqa: B008 - immutable
    ) -> ClaimAnswer:
        """Ask for a claim.

        Parameters:
            queue, task_id: any text up to 10 kB.
            owner: who asks; another process must use another name.
            lease_ms: milliseconds, brought into the limits of ``config``.
            grant_id: repeat a call that failed with the same one; random if None.
            root_id: the run; the task id if None.
            attempt, deaths, max_deliveries, delivery: see ``ClaimRequest``.
        Returns:
            ``Success`` or ``TookOver`` with ``.token``, or why not.
        Raises:
            InvalidArgument, StoreError.
        """
        request = ClaimRequest(
            queue=queue,
            task_id=task_id,
            owner=owner,
            lease_ms=self.config.clamp(lease_ms),
            grant_id=uuid.uuid4().hex if grant_id is None else grant_id,
            root_id=task_id if root_id is None else root_id,
            attempt=attempt,
            deaths=deaths,
            max_deliveries=max_deliveries,
            delivery=delivery,
        )
        return self.claim_many([request])[0]

    def claim_many(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        """Ask for many claims in one call of the store; leases are taken as they are."""
        answers = self.store.claim(requests)
        self._counters.add(name for answer in answers for name in _COUNTED_AS[type(answer)])
        return answers

    def renew(self, token: ClaimToken, lease_ms: int | None = None) -> Renewed | Ended:
        """Make the lease at least this long from now.

        Returns:
            ``Renewed`` with the new end, or ``Ended`` if this grant was released before: then
            there is nothing left to renew, and nobody else got it under this token.
        Raises:
            StaleToken: somebody else was granted the claim.
            ClaimNotFound: it was given back, or no record of it is left.
            InvalidArgument, StoreError.
        """
        renewal = Renewal(token, self.config.clamp(lease_ms))
        answer = self.renew_many([renewal])[0]
        if isinstance(answer, Lost):
            raise _refusal(token, answer)
        return answer

    def extend(self, token: ClaimToken, additional_ms: int) -> Renewed | Ended:
        """Add to what is left of the lease, at most ``max_extensions`` times for one grant.

        Counted in this manager: another one, and this one in another process, counts anew.
        A call that raised ``StoreUnavailable`` counts, for it may have been carried out.

        Parameters:
            additional_ms: milliseconds, at most ``LeaseConfig.max_ms`` of them.
        Returns:
            as ``renew``.
        Raises:
            ExtensionLimit: none is left.
            As ``renew``.
        """
        check_duration("additional_ms", additional_ms)
        renewal = Renewal(token, min(additional_ms, self.config.max_ms), extend=True)
        self._extensions.use(token)
        answer = self.renew_many([renewal])[0]
        if isinstance(answer, Lost):
            raise _refusal(token, answer)
        return answer

    def renew_many(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        """Renew many in one call of the store. A refusal is an answer (``Lost``), not an error.

        Extensions in the list are not limited: the limit is for a task's own ``extend``.
        """
        renewals = check_batch("renewals", renewals, Renewal)
        answers = self.store.renew(renewals)
        for renewal, answer in zip(renewals, answers, strict=True):
            if not isinstance(answer, Renewed):
                self._extensions.forget(renewal.token)
        self._counters.add(
            name
            for renewal, answer in zip(renewals, answers, strict=True)
            for name in _renewal_counts(renewal, answer)
        )
        return answers

    def release(self, token: ClaimToken, outcome: Outcome = Outcome.SUCCESS) -> Settled:
        """Record that the work is done; a later delivery of this attempt is told so.

        Idempotent. It succeeds after the lease ran out, as long as nobody else was granted.

        Raises:
            StaleToken, ClaimNotFound: as ``renew``.
            InvalidArgument, StoreError.
        """
        check_token(token)
        answer = self.release_many([token], outcome)[0]
        # Only a nack of finished work is answered by Ended.
        assert not isinstance(answer, Ended)
        if isinstance(answer, Lost):
            raise _refusal(token, answer)
        return answer

    def release_many(
        self, tokens: Sequence[ClaimToken], outcome: Outcome = Outcome.SUCCESS
    ) -> list[SettleAnswer]:
        """Release many with one outcome, in one call of the store. ``Lost`` is an answer."""
        if outcome is Outcome.NACKED:
            raise InvalidArgument("outcome", "give a claim back with nack()")
        tokens = check_batch("tokens", tokens, ClaimToken)
        return self._settle(
            [Settlement(token, outcome, self.keep_finished_ms) for token in tokens], "acks"
        )

    def nack(self, token: ClaimToken, counted: bool = False) -> Settled | Ended:
        """Give the claim back: the next claim gets it at once. Idempotent.

        Parameters:
            counted: its worker or child died, which counts as a delivery.
        Returns:
            ``Settled``, or ``Ended`` if the grant was released before: it stays finished.
        Raises:
            StaleToken, ClaimNotFound: as ``renew``.
            InvalidArgument, StoreError.
        """
        check_token(token)
        answer = self.nack_many([token], counted)[0]
        if isinstance(answer, Lost):
            raise _refusal(token, answer)
        return answer

    def nack_many(self, tokens: Sequence[ClaimToken], counted: bool = False) -> list[SettleAnswer]:
        """Give many back, in one call of the store. ``Lost`` is an answer."""
        check_flag("counted", counted)
        tokens = check_batch("tokens", tokens, ClaimToken)
        keep = self.keep_finished_ms
        return self._settle(
            [Settlement(token, Outcome.NACKED, keep, counted=counted) for token in tokens], "nacks"
        )

    def _settle(self, settlements: list[Settlement], counter: str) -> list[SettleAnswer]:
        answers = self.store.settle(settlements)
        for settlement in settlements:
            self._extensions.forget(settlement.token)
        self._counters.add(
            counter if isinstance(answer, Settled) else "losses"
            for answer in answers
            if not isinstance(answer, Ended)
        )
        return answers

    def is_claimed(self, queue: str, task_id: str) -> tuple[str, int] | None:
        """Who holds it under an unexpired lease, and until when by the store's clock.

        An answer of the moment in which the call began: it is no permission to do anything.
        """
        check_name("queue", queue)
        check_name("task_id", task_id)
        # The clock first: a lease that is over at an earlier moment was over when it was read.
        now = self.store.scan(View.LIVE, queue=queue, limit=1).now
        record = self._find(queue, task_id)
        if record is None or not record.is_live(now):
            return None
        return record.owner, record.expires_at

    def get_token(self, queue: str, task_id: str, owner: str) -> ClaimToken | None:
        """The token that this owner holds, also past its lease as long as nobody took it."""
        check_name("owner", owner)
        record = self._find(queue, task_id)
        if record is None or record.state is not State.CLAIMED or record.owner != owner:
            return None
        return record.as_token()

    def _find(self, queue: str, task_id: str) -> Record | None:
        return self.store.lookup([(queue, task_id)])[0]

    def cleanup_expired(self, limit: int | None = None) -> int:
        """Free expired claims, longest expired first, and forget what was kept long enough.

        A record that cannot be read is left as it is.

        Parameters:
            limit: at most this many; None for all of them.
        Returns:
            how many this call freed: what was renewed meanwhile is left alone.
        """
        if limit is not None:
            check_count("limit", limit, least=1)
        cleaned = seen = 0
        cursor: str | None = None
        while limit is None or seen < limit:
            most = CLEANUP_PAGE if limit is None else min(CLEANUP_PAGE, limit - seen)
            page = self.store.scan(View.ORPHANED, cursor=cursor, limit=most)
            expiries = [record.as_expiry() for record in page.records]
            expire = partial(self.store.expire, keep_ms=self.keep_finished_ms)
            done = sum(answer is True for answer in ask_in_parts(expire, expiries))
            self._counters.add(["expirations"] * done)
            cleaned += done
            seen += len(expiries)
            cursor = page.cursor
            if cursor is None:
                break
        return cleaned

    def stats(self) -> ClaimStats:
        """What this manager was answered so far, counted exactly, as of one moment."""
        return self._counters.snapshot()

    def active_claims(self, queue: str) -> int:
        """How many claims of a queue are held under an unexpired lease."""
        check_name("queue", queue)
        return self.store.census(queue).live

    def list_claims(self, queue: str) -> list[ClaimToken]:
        """The claims of a queue that are held under an unexpired lease, by task id."""
        check_name("queue", queue)
        # By task id: what is renewed between two pages may be shown on both.
        tokens: dict[str, ClaimToken] = {}
        cursor: str | None = None
        while True:
            page = self.store.scan(View.LIVE, queue=queue, cursor=cursor, limit=MAX_PAGE)
            tokens.update((record.task_id, record.as_token()) for record in page.records)
            cursor = page.cursor
            if cursor is None:
                return [tokens[task_id] for task_id in sorted(tokens)]


class _Counters:
    """Exact from any thread; a forked child goes on from a copy."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._counts: Counter[str] = Counter()
        across_forks(self)

    def add(self, names: Iterable[str]) -> None:
        with self._lock:
            for name in names:
                self._counts[name] += 1

    def snapshot(self) -> ClaimStats:
        with self._lock:
            return ClaimStats(**{each.name: self._counts[each.name] for each in fields(ClaimStats)})

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        self._lock = allocate_lock()


class _Extensions:
    """How often each grant was extended; bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = allocate_lock()
        self._used: OrderedDict[tuple[str, str, int], int] = OrderedDict()
        across_forks(self)

    def use(self, token: ClaimToken) -> None:
        """Count one more.

        Raises:
            ExtensionLimit: none is left.
        """
        key = (token.queue, token.task_id, token.token)
        with self._lock:
            used = self._used.get(key, 0)
            if used >= self._limit:
                raise ExtensionLimit(token.queue, token.task_id, token.token)
            self._used[key] = used + 1
            self._used.move_to_end(key)
            if len(self._used) > MAX_COUNTED:
                self._used.popitem(last=False)

    def forget(self, token: ClaimToken) -> None:
        with self._lock:
            self._used.pop((token.queue, token.task_id, token.token), None)

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        self._lock = allocate_lock()


def _renewal_counts(renewal: Renewal, answer: RenewAnswer) -> tuple[str, ...]:
    if isinstance(answer, Renewed):
        return ("extensions",) if renewal.extend else ()
    return _COUNTED_AS.get(type(answer), ())


def _refusal(token: ClaimToken, answer: Lost) -> ClaimError:
    kind = ClaimNotFound if answer.owner is None else StaleToken
    return kind(token.queue, token.task_id, token.token)
