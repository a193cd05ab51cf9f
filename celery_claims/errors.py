"""Every error that celery-claims raises.

::

    ClaimsError
    ├── ConfigurationError      a setting or a store URL is wrong (also a ValueError)
    │   └── InvalidArgument     an argument of a call is wrong
    ├── ClaimError              a claim is not what the caller believed
    │   ├── ClaimNotFound       no record of that claim is left
    │   ├── StaleToken          somebody else was granted the claim since
    │   └── ExtensionLimit      the task used up its own extensions
    ├── StoreError              the store failed; ``store`` says which
    │   ├── StoreUnavailable    it did not answer in time: the call may be repeated
    │   ├── StoreCorrupt        what it holds cannot be read
    │   ├── StoreReadOnly       it may not be written to
    │   └── StoreFull           it has no room left
    └── DeliveriesExhausted     a task killed its worker too often

``celery_claims.ClaimLost`` is not in this tree: it derives from Celery's ``Ignore``, because any
other exception that leaves a task body is recorded as its result, over the new owner's.

Errors of drivers never leave a store: they are the ``__cause__`` of one of these.
"""

from __future__ import annotations

__all__ = [
    "ClaimError",
    "ClaimNotFound",
    "ClaimsError",
    "ConfigurationError",
    "DeliveriesExhausted",
    "ExtensionLimit",
    "InvalidArgument",
    "StaleToken",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreUnavailable",
]


class ClaimsError(Exception):
    """The root of the tree."""


class ConfigurationError(ClaimsError, ValueError):
    """A setting, a store URL or their combination cannot work.

    Parameters:
        setting: the name as the user wrote it, e.g. ``claims_lease``.
        problem: what is wrong and what to do about it.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(setting, problem)
        self.setting = setting
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}"


class InvalidArgument(ConfigurationError):
    """An argument of a call is of the wrong type or out of its range; ``setting`` names it."""

    @property
    def argument(self) -> str:
        return self.setting


class ClaimError(ClaimsError):
    """A claim is not what the caller believed.

    Parameters:
        queue, task_id: the claim.
        token: the fencing token that the caller holds.
    """

    problem = "the claim is not yours"

    def __init__(self, queue: str, task_id: str, token: int) -> None:
        super().__init__(queue, task_id, token)
        self.queue = queue
        self.task_id = task_id
        self.token = token

    def __str__(self) -> str:
        return f"task {self.task_id!r} in queue {self.queue!r}, token {self.token}: {self.problem}"


class ClaimNotFound(ClaimError):
    """No record of the claim is left, or it was given back: claim again before going on."""

    problem = "no such claim is held; it was given back or never made"


class StaleToken(ClaimError):
    """The claim was granted to somebody else since: stop the work, its writes must not count."""

    problem = "the claim was granted to another owner since"


class ExtensionLimit(ClaimError):
    """The task asked for more extensions than ``LeaseConfig.max_extensions`` allows."""

    problem = "no extension is left (LeaseConfig.max_extensions)"


class StoreError(ClaimsError):
    """The store failed; the driver's own error is the ``__cause__``.

    Parameters:
        store: the store's URL without its password.
        problem: what happened and what to do about it.
    """

    def __init__(self, store: str, problem: str) -> None:
        super().__init__(store, problem)
        self.store = store
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.store}: {self.problem}"


class StoreUnavailable(StoreError):
    """No answer in time. The call may have been carried out; repeating it is safe."""


class StoreCorrupt(StoreError):
    """The store's content is not what this version, or any version, wrote."""


class StoreReadOnly(StoreError):
    """The store exists and may not be written to."""


class StoreFull(StoreError):
    """The store has no room left; nothing was changed."""


class DeliveriesExhausted(ClaimsError):
    """The result of a task whose runs ended in a dead worker or child too often.

    Parameters:
        task_id: the task.
        deliveries: how many started runs died.
    """

    def __init__(self, task_id: str, deliveries: int) -> None:
        super().__init__(task_id, deliveries)
        self.task_id = task_id
        self.deliveries = deliveries

    def __str__(self) -> str:
        return (
            f"task {self.task_id!r} was not run again: {self.deliveries} of its runs "
            "ended in a dead worker (claims_max_deliveries)"
        )
