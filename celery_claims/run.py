"""A claimed run in the process that executes it, and what its task may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from celery import current_task
from celery.app.task import Task
from celery.exceptions import Ignore

from .case import Case
from .checks import check_duration
from .errors import ExtensionLimit, StoreError
from .headers import Passport
from .host import HOST, Host
from .manager import LeaseConfig
from .protocol import Attempt, ClaimToken, Lost, Outcome, Renewal, Renewed, Settlement, trust_until
from .seams import actual
from .stores import Store

__all__ = ["Claim", "ClaimLost", "Run", "current_claim", "run_of"]

_current: ContextVar[Run | None] = ContextVar("celery_claims_run", default=None)


class ClaimLost(Ignore):  # type: ignore[misc]
    """The run lost its claim: another worker has the task now.

    It derives from Celery's ``Ignore`` so that nothing of the run reaches the result backend,
    the callbacks or the broker. Let it pass through the task.
    """


class Run:
    """One run under one grant.

    Parameters:
        passport: what came with the request.
        open_store: gives this process's store.
        case: the worker's own view of the delivery, where it lives in this process.
        clock: monotonic seconds of the host.
    """

    def __init__(
        self,
        passport: Passport,
        open_store: Callable[[], Store],
        case: Case | None,
        clock: Callable[[], float] = HOST.clock,
    ) -> None:
        self.passport = passport
        self._clock = clock
        self._open_store = open_store
        self._case = case
        self._trusted_until = passport.trusted_until
        self._lost = False
        self._extensions = 0

    @property
    def token(self) -> ClaimToken:
        return self.passport.token

    @property
    def lost(self) -> bool:
        case = self._case
        return self._lost or (case is not None and (case.lost or case.hung))

    @property
    def trusted_until(self) -> float:
        shared = self._case.trusted_until if self._case is not None else 0.0
        return max(self._trusted_until, shared)

    @property
    def remaining(self) -> float:
        """Seconds of trust that are left."""
        return 0.0 if self.lost else max(0.0, self.trusted_until - self._clock())

    def begin(self) -> bool:
        """Whether the body may start: never on a lease that is gone or cannot be confirmed."""
        if self.lost:
            return False
        if not self.passport.mark_start and self._clock() < self.trusted_until:
            return True
        try:
            return self._confirm()
        except StoreError:
            return False

    def ensure(self) -> None:
        """Return if the claim is still held.

        Raises:
            ClaimLost: it is not; or, for a strict task, the store cannot say.
        """
        if self.lost:
            raise ClaimLost(self._loss("another worker has the task now"))
        if self._clock() < self.trusted_until:
            return
        try:
            held = self._confirm()
        except StoreError as error:
            if self.passport.strict:
                raise ClaimLost(self._loss("the store does not answer")) from error
            return
        if not held:
            raise ClaimLost(self._loss("another worker has the task now"))

    def extend(self, additional_ms: int, limits: LeaseConfig) -> None:
        """Add to the lease beyond what the worker renews.

        Raises:
            ExtensionLimit, ClaimLost, StoreError, InvalidArgument.
        """
        check_duration("additional_ms", additional_ms)
        if self._extensions >= limits.max_extensions:
            raise ExtensionLimit(self.token.queue, self.token.task_id, self.token.token)
        asked_at = self._clock()
        additional_ms = min(additional_ms, limits.max_ms)
        renewal = Renewal(self.token, additional_ms, extend=True, started=True)
        answer = self._open_store().renew([renewal])[0]
        if not isinstance(answer, Renewed):
            self._lost = True
            raise ClaimLost(self._loss("another worker has the task now"))
        self._extensions += 1
        left = (answer.expires_at - answer.now) / 1000
        self._trusted_until = max(self._trusted_until, trust_until(asked_at, left))

    def finish(self, outcome: Outcome) -> bool | None:
        """Record the end.

        Returns:
            True: recorded. False: the store did not answer. None: the claim was lost.
        """
        keep_ms = round(self.passport.keep_finished * 1000)
        try:
            answer = self._open_store().settle([Settlement(self.token, outcome, keep_ms)])[0]
        except StoreError:
            return False
        return None if isinstance(answer, Lost) else True

    def _confirm(self) -> bool:
        """Renew; once more if the process stood still for so long that the answer is old."""
        while self._renew(started=True):
            if self._clock() < self.trusted_until:
                # The worker may have found it lost meanwhile.
                return not self.lost
        return False

    def _renew(self, *, started: bool) -> bool:
        asked_at = self._clock()
        lease_ms = round(self.passport.lease * 1000)
        answer = self._open_store().renew([Renewal(self.token, lease_ms, started=started)])[0]
        if isinstance(answer, Renewed):
            self._trusted_until = trust_until(asked_at, self.passport.lease)
            return True
        self._lost = isinstance(answer, Lost)
        return False

    def _loss(self, why: str) -> str:
        return f"task {self.token.task_id!r}, token {self.token.token}: {why}"


class Claim:
    """The claim under which the current task runs."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def queue(self) -> str:
        """The queue of the claim."""
        return self._run.token.queue

    @property
    def task_id(self) -> str:
        return self._run.token.task_id

    @property
    def owner(self) -> str:
        """The worker that holds the claim."""
        return self._run.token.owner

    @property
    def token(self) -> int:
        """The fencing token: higher than that of any earlier grant of this task."""
        return self._run.token.token

    @property
    def attempt(self) -> Attempt:
        """(replacements, retries) of this run."""
        return self._run.token.attempt

    @property
    def deliveries(self) -> int:
        """How many started runs of this attempt died before this one."""
        return self._run.passport.deliveries

    @property
    def remaining(self) -> float:
        """Seconds for which the claim can be trusted without asking the store; 0 if none."""
        return self._run.remaining

    def check(self) -> None:
        """Go on only if the claim is held; asks the store only when the lease may be over.

        Raises:
            ClaimLost: let it pass through the task.
        """
        self._run.ensure()

    def extend(self, additional_ms: int) -> None:
        """Lengthen the lease beyond the worker's own renewals, e.g. before a call that stops
        the whole process for longer than a lease.

        Parameters:
            additional_ms: milliseconds to add to what is left, at most ``LeaseConfig.max_ms`` of
                them, an hour: a dead worker's task must not wait longer.
        Raises:
            ExtensionLimit: after ``LeaseConfig.max_extensions`` of them in this run.
            ClaimLost, StoreError, InvalidArgument.
        """
        self._run.extend(additional_ms, LeaseConfig())

    def __repr__(self) -> str:
        return f"<Claim {self.queue!r} {self.task_id!r} token={self.token}>"


def run_of(task: Task) -> Run | None:
    """The claimed run that this task's body belongs to; None for direct and eager calls."""
    run = _current.get()
    request = task.request_stack.top
    if run is None or request is None or request.is_eager or request.called_directly:
        return None
    return run if request.id == run.token.task_id else None


def current_claim() -> Claim | None:
    """The claim of the task that runs here; None in eager and direct calls and unclaimed tasks."""
    task: Any = actual(current_task) if current_task else None
    run = run_of(task) if task is not None else None
    return Claim(run) if run is not None else None


def enter(run: Run) -> Any:
    """Make ``run`` the current one; give what this returns to ``leave``."""
    return _current.set(run)


def leave(mark: Any) -> None:
    _current.reset(mark)


def here(passport: Passport, host: Host) -> bool:
    """Whether the worker that claimed is this very process."""
    return passport.worker == host.pid()
