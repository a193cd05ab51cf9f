"""What the gate reads from a message, and the claim's way to the process that runs the task.

Celery copies a request's headers to the pool, so the claim travels in one of them. ``retry()``
sends custom headers on, and a producer can write anything: the gate therefore replaces the header
of every delivery, and believes only one thing that it finds there, the first queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checks import MAX_TOKEN, check_name, shown
from .errors import InvalidArgument
from .protocol import Attempt, ClaimToken

__all__ = ["HEADER", "Identity", "Passport", "first_queue", "read_identity"]

#: The header's name; also the key in the body of a protocol 1 message.
HEADER = "celery_claims"


@dataclass(frozen=True, slots=True)
class Identity:
    """Which run and attempt a message is."""

    task_id: str
    root_id: str
    attempt: Attempt
    deaths: int


def read_identity(headers: Mapping[str, Any], fields: Mapping[str, Any]) -> Identity:
    """Read a task message.

    Parameters:
        headers: the message's headers; the broker adds ``x-death`` here.
        fields: where the task's own fields are: the headers, or the body of protocol 1.
    Raises:
        InvalidArgument: naming the field; such a message cannot be claimed.
    """
    task_id = fields.get("id")
    check_name("id", task_id)
    assert isinstance(task_id, str)
    root_id = fields.get("root_id")
    if root_id is None or root_id == "":
        root_id = task_id
    check_name("root_id", root_id)
    assert isinstance(root_id, str)
    nesting = _number("replaced_task_nesting", fields.get("replaced_task_nesting"))
    retries = _number("retries", fields.get("retries"))
    return Identity(task_id, root_id, Attempt(nesting, retries), _deaths(headers.get("x-death")))


def _number(field: str, value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKEN:
        raise InvalidArgument(field, f"expected a count, got {shown(value)}")
    return value


def _deaths(x_death: object) -> int:
    """How often the message was rejected to a dead-letter exchange, in all queues.

    Other deaths say nothing of an end: a message that waits at RabbitMQ for its ETA, or for a
    retry, expires in one queue after the other.
    """
    if not isinstance(x_death, (list, tuple)):
        return 0
    deaths = (death for death in x_death if isinstance(death, Mapping))
    counts = (death.get("count") for death in deaths if death.get("reason") == "rejected")
    return min(sum(n for n in counts if isinstance(n, int) and n > 0), MAX_TOKEN)


def first_queue(headers: Mapping[str, Any], default: str) -> str:
    """The queue of the run's first claim, so that a retry to another queue meets its record."""
    found = headers.get(HEADER)
    queue = found.get("queue") if isinstance(found, Mapping) else None
    try:
        check_name("queue", queue)
    except InvalidArgument:
        return default
    assert isinstance(queue, str)
    return queue


@dataclass(frozen=True, slots=True)
class Passport:
    """A claim on its way to the process that runs the task.

    Parameters:
        token: the grant; its ``delivery`` stays behind.
        lease: seconds.
        strict: see ``TaskOptions``.
        keep_finished: seconds.
        deliveries: started runs of this attempt that died before.
        mark_start: tell the store before the body begins.
        trusted_until: monotonic seconds of this host; without meaning on another.
        worker: pid of the worker that claimed.
    """

    token: ClaimToken
    lease: float
    strict: bool
    keep_finished: float
    deliveries: int
    mark_start: bool
    trusted_until: float
    worker: int

    def as_header(self) -> dict[str, Any]:
        """As plain data that every serializer takes."""
        token = self.token
        return {
            "queue": token.queue,
            "task_id": token.task_id,
            "owner": token.owner,
            "token": token.token,
            "attempt": list(token.attempt),
            "created_at": token.created_at,
            "expires_at": token.expires_at,
            "grant_id": token.grant_id,
            "root_id": token.root_id,
            "deaths": token.deaths,
            "lease": self.lease,
            "strict": self.strict,
            "keep_finished": self.keep_finished,
            "deliveries": self.deliveries,
            "mark_start": self.mark_start,
            "trusted_until": self.trusted_until,
            "worker": self.worker,
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Passport:
        """Back from ``as_header``; the gate saw to it that nobody else wrote it."""
        token = ClaimToken(
            queue=header["queue"],
            task_id=header["task_id"],
            owner=header["owner"],
            token=header["token"],
            attempt=Attempt(*header["attempt"]),
            created_at=header["created_at"],
            expires_at=header["expires_at"],
            grant_id=header["grant_id"],
            root_id=header["root_id"],
            deaths=header["deaths"],
        )
        return cls(
            token=token,
            lease=header["lease"],
            strict=header["strict"],
            keep_finished=header["keep_finished"],
            deliveries=header["deliveries"],
            mark_start=header["mark_start"],
            trusted_until=header["trusted_until"],
            worker=header["worker"],
        )


def onward(header: object) -> dict[str, Any] | None:
    """What a re-published message keeps of the header: the first queue alone."""
    if isinstance(header, Mapping) and "queue" in header:
        return {"queue": header["queue"]}
    return None
