"""A delivery while a worker has it, and what may be done with it. Pure data.

::

    asking ──granted──▶ claimed ──▶ submitted ──▶ running ──▶ ended ──settled──▶ done
      │  ▲                 │            │            │
      │  └── time to ask   │            └── lost ────┤
      ▼        again       │                         ▼
     held ◀────────────────┴──────── lost ── (its body has stopped)
      │
      ├── finished elsewhere ──▶ done (acknowledged and skipped)
      └── waited too long ─────▶ done (back in its queue)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .config import TaskOptions
from .protocol import Attempt, ClaimAnswer, ClaimToken, Delivery, Settlement
from .settling import Ending

__all__ = ["Action", "Case", "Do", "Incoming", "Key", "Phase"]

#: (queue, task id)
Key = tuple[str, str]


class Phase(Enum):
    """Where a delivery stands; see the module."""

    ASKING = "asking"
    HELD = "held"
    CLAIMED = "claimed"
    SUBMITTED = "submitted"
    RUNNING = "running"
    ENDED = "ended"
    DONE = "done"


class Do(Enum):
    """What an adapter shall do with a case."""

    #: put the case's request to the store and report ``answered`` or ``unanswered``
    ASK = "ask"
    #: hand the delivery to Celery under its claim
    RUN = "run"
    #: hand the delivery to Celery without a claim (``claims_on_store_down = "run"``)
    RUN_UNCLAIMED = "run unclaimed"
    #: keep the delivery unacknowledged and give the prefetch count room for another
    HOLD = "hold"
    #: acknowledge the delivery without running it
    SKIP = "skip"
    #: give the delivery back to its queue, for it has waited long enough
    RETURN = "return"
    #: record FAILURE with DeliveriesExhausted, settle, reject
    REPORT = "report"
    #: stop the running body and report ``returned`` once it has stopped
    STOP = "stop"


class Action(NamedTuple):
    """One thing to do; ``answer`` is what the store said, where that is the reason."""

    do: Do
    case: Case
    answer: ClaimAnswer | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    """What the gate reads from a message.

    Parameters:
        queue, task_id, root_id, attempt, deaths, delivery: see ``protocol.ClaimRequest``.
        late: the task acknowledges late.
        options: how the task is claimed, filled in.
        keep_free: seconds that the record outlives a claim that was given back.
    """

    queue: str
    task_id: str
    root_id: str
    attempt: Attempt
    deaths: int
    late: bool
    options: TaskOptions
    keep_free: float
    delivery: Delivery

    @property
    def key(self) -> Key:
        return self.queue, self.task_id

    @property
    def lease(self) -> float:
        assert self.options.lease is not None
        return self.options.lease


@dataclass(slots=True, eq=False)
class Case:
    """One delivery while this worker has it. Only the desk writes to it."""

    incoming: Incoming
    connection: int
    grant_id: str
    received_at: float = 0.0
    at_broker: bool = True
    phase: Phase = Phase.ASKING
    held: bool = False
    pauses: int = 0
    denied: bool = False
    ask_at: float = 0.0
    token: ClaimToken | None = None
    #: the message of the dead owner that it took the claim over from
    orphan: Delivery | None = None
    deliveries: int = 0
    #: an answer to this grant was not heard; it may have been that it took over
    unheard: bool = False
    mark_start: bool = False
    trusted_until: float = 0.0
    renewed_at: float = 0.0
    accepted_at: float = 0.0
    start_known: bool = False
    lost: bool = False
    hung: bool = False
    silent: bool = False
    ending: Ending | None = None
    unrecorded: Settlement | None = None
    record_at: float = 0.0
    unreadable: bool = False

    @property
    def key(self) -> Key:
        return self.incoming.key

    @property
    def in_executor(self) -> bool:
        return self.phase in (Phase.SUBMITTED, Phase.RUNNING)
