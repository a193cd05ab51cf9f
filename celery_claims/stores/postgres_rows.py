"""What goes to the PostgreSQL store's functions, and what comes back from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from ..checks import MAX_TOKEN
from ..protocol import (
    EXHAUSTED_LEASE_MS,
    AlreadyClaimed,
    Attempt,
    ClaimAnswer,
    ClaimRequest,
    ClaimToken,
    Delivery,
    Ended,
    Exhausted,
    Expiry,
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
)
from .postgres_arrays import Flags, Numbers, Texts, Words
from .reading import check_record

__all__ = [
    "FORGOTTEN_ANSWER",
    "UnreadableRow",
    "as_record",
    "claim_answer",
    "claim_parameters",
    "expire_parameters",
    "key_of",
    "key_range",
    "pack",
    "renew_answer",
    "renew_parameters",
    "settle_answer",
    "settle_parameters",
]

#: What renew and settle answer where the store would need all of the token to go on.
FORGOTTEN_ANSWER = "forgotten"

_FIRST_KEY, _LAST_KEY = UUID(int=0), UUID(int=2**128 - 1)

#: Of the key, from the queue.
_QUEUE_DIGITS = 8

Row = Sequence[Any]


class UnreadableRow(Exception):
    """A row that this package did not write."""


def pack(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unpack(packed: bytes) -> str:
    return packed.decode("utf-8", "surrogatepass")


def key_range(queue: str | None) -> tuple[UUID, UUID]:
    """The keys of a queue's records are above the first and not above the second."""
    if queue is None:
        return _FIRST_KEY, _LAST_KEY
    digits = hashlib.sha256(pack(queue)).hexdigest()[:_QUEUE_DIGITS]
    rest = 32 - _QUEUE_DIGITS
    return UUID(digits + rest * "0"), UUID(digits + rest * "f")


def key_of(queue: str, task_id: str) -> UUID:
    """The key of a record: what the schema's key_v1 makes of the two."""
    return _key_of_packed(pack(queue), pack(task_id))


def _key_of_packed(queue: bytes, task_id: bytes) -> UUID:
    of_queue = hashlib.sha256(queue).digest()
    return UUID(bytes=of_queue[:4] + hashlib.sha256(of_queue + task_id).digest()[:12])


def claim_parameters(batch: Sequence[ClaimRequest]) -> dict[str, Any]:
    return {
        "queues": Texts(pack(each.queue) for each in batch),
        "task_ids": Texts(pack(each.task_id) for each in batch),
        "owners": Texts(pack(each.owner) for each in batch),
        "grant_ids": Texts(pack(each.grant_id) for each in batch),
        "root_ids": Texts(pack(each.root_id) for each in batch),
        "leases": Numbers(each.lease_ms for each in batch),
        "nestings": Numbers(each.attempt.nesting for each in batch),
        "retries": Numbers(each.attempt.retries for each in batch),
        "deaths": Numbers(each.deaths for each in batch),
        "caps": Numbers(each.max_deliveries for each in batch),
        **_delivery_parameters([each.delivery for each in batch]),
        "exhausted_lease": EXHAUSTED_LEASE_MS,
    }


def _delivery_parameters(deliveries: Sequence[Delivery]) -> dict[str, Any]:
    return {
        "tasks": Texts(pack(each.task) for each in deliveries),
        "tags": Texts(pack(each.tag) for each in deliveries),
        "from_queues": Texts(pack(each.queue) for each in deliveries),
        "priorities": Numbers(each.priority for each in deliveries),
    }


def renew_parameters(batch: Sequence[Renewal], *, whole: bool) -> dict[str, Any]:
    """``whole``: with what a record is made of that the store forgot."""
    return {
        **_token_parameters([each.token for each in batch], whole),
        "leases": Numbers(each.lease_ms for each in batch),
        "extends": Flags(each.extend for each in batch),
        "starts": Flags(each.started for each in batch),
    }


def settle_parameters(batch: Sequence[Settlement], *, whole: bool) -> dict[str, Any]:
    """``whole`` as in ``renew_parameters``."""
    return {
        **_token_parameters([each.token for each in batch], whole),
        "outcomes": Words(each.outcome.value.encode() for each in batch),
        "keeps": Numbers(each.keep_ms for each in batch),
        "counts": Flags(each.counted for each in batch),
    }


#: Only sent when the store asks for it.
_REST = (
    "owners",
    "grant_ids",
    "root_ids",
    "nestings",
    "retries",
    "deaths",
    "claimed",
    "tasks",
    "tags",
    "from_queues",
    "priorities",
)


def _token_parameters(tokens: Sequence[ClaimToken], whole: bool) -> dict[str, Any]:
    parameters: dict[str, Any] = dict.fromkeys(_REST)
    parameters["queues"] = Texts(pack(token.queue) for token in tokens)
    parameters["task_ids"] = Texts(pack(token.task_id) for token in tokens)
    parameters["tokens"] = Numbers(token.token for token in tokens)
    if whole:
        parameters |= {
            "owners": Texts(pack(token.owner) for token in tokens),
            "grant_ids": Texts(pack(token.grant_id) for token in tokens),
            "root_ids": Texts(pack(token.root_id) for token in tokens),
            "nestings": Numbers(token.attempt.nesting for token in tokens),
            "retries": Numbers(token.attempt.retries for token in tokens),
            "deaths": Numbers(token.deaths for token in tokens),
            "claimed": Numbers(token.created_at for token in tokens),
            **_delivery_parameters([token.delivery for token in tokens]),
        }
    return parameters


def expire_parameters(batch: Sequence[Expiry]) -> dict[str, Any]:
    return {
        "queues": Texts(pack(each.queue) for each in batch),
        "task_ids": Texts(pack(each.task_id) for each in batch),
        "tokens": Numbers(each.token for each in batch),
        "expected": Numbers(each.expires_at for each in batch),
    }


def as_record(row: Row) -> Record:
    """A row of the table, its columns in their order there.

    Raises:
        UnreadableRow.
    """
    try:
        return _record(row)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UnreadableRow from error


def _record(row: Row) -> Record:
    if row[0] != _key_of_packed(row[14], row[15]):
        raise ValueError("its key is not that of its queue and task id")
    return check_record(
        Record(
            token=row[1],
            attempt=Attempt(row[2], row[3]),
            deaths=row[4],
            claimed_at=row[5],
            expires_at=row[6],
            deliveries=row[7],
            settled_at=row[8],
            forget_at=row[9],
            started=row[11],
            state=State(row[12]),
            outcome=None if row[13] is None else Outcome(row[13]),
            queue=_unpack(row[14]),
            task_id=_unpack(row[15]),
            owner=_unpack(row[16]),
            grant_id=_unpack(row[17]),
            root_id=_unpack(row[18]),
            delivery=Delivery(_unpack(row[19]), _unpack(row[20]), _unpack(row[21]), row[10]),
        )
    )


def claim_answer(request: ClaimRequest, row: Row) -> ClaimAnswer:
    """Raises: UnreadableRow."""
    _, answer, now, holder, *facts = row
    expires_at, deliveries, orphaned, outcome, settled_at = facts[4:9]
    if answer == "already claimed":
        return AlreadyClaimed(_text(holder), expires_at, now)
    if answer == "finished":
        return Finished(_outcome(outcome), settled_at, now)
    if answer == "superseded":
        return Superseded(Attempt(facts[1], facts[2]), now)
    token = _granted(request, facts)
    if answer == "exhausted":
        return Exhausted(deliveries, token, now)
    if answer == "took over":
        return TookOver(_text(holder), token, now, deliveries, _delivery(facts))
    return Success(token, now, deliveries, orphaned)


def _granted(request: ClaimRequest, facts: Row) -> ClaimToken:
    token, nesting, retries, claimed_at, expires_at, *_ = facts
    if not 0 < token < MAX_TOKEN:
        raise UnreadableRow from ValueError(f"its token is {token}")
    owner, root_id, deaths = facts[9:12]
    grant = ClaimToken(
        queue=request.queue,
        task_id=request.task_id,
        owner=request.owner,
        token=token,
        attempt=Attempt(nesting, retries),
        created_at=claimed_at,
        expires_at=expires_at,
        grant_id=request.grant_id,
        root_id=request.root_id,
        deaths=request.deaths,
        delivery=request.delivery,
    )
    if owner is None:
        return grant
    # The same grant again: what was asked for the first time counts.
    return replace(
        grant,
        owner=_text(owner),
        root_id=_text(root_id),
        deaths=deaths,
        delivery=_delivery(facts),
    )


def _delivery(facts: Row) -> Delivery:
    task, tag, from_queue, priority = facts[12:]
    return Delivery(_text(task), _text(tag), _text(from_queue), priority)


def renew_answer(row: Row) -> RenewAnswer:
    """Raises: UnreadableRow."""
    _, answer, now, expires_at, outcome, owner = row
    if answer == "renewed":
        return Renewed(expires_at, now)
    if answer == "ended":
        return Ended(_outcome(outcome), now)
    return Lost(None if owner is None else _text(owner), now)


def settle_answer(row: Row) -> SettleAnswer:
    """Raises: UnreadableRow."""
    _, answer, now, outcome, owner = row
    if answer == "settled":
        return Settled(now)
    if answer == "ended":
        return Ended(_outcome(outcome), now)
    return Lost(None if owner is None else _text(owner), now)


def _text(packed: bytes) -> str:
    try:
        return _unpack(packed)
    except ValueError as error:
        raise UnreadableRow from error


def _outcome(value: str) -> Outcome:
    try:
        return Outcome(value)
    except ValueError as error:
        raise UnreadableRow from error
