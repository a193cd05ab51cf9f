"""What goes to the PostgreSQL store's functions, and what comes back from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
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
from .base import FORGOTTEN
from .packing import CODES, OUTCOMES, pack_text, state_of, unpack_text
from .postgres_arrays import Flags, Keys, Numbers, Texts
from .reading import check_record

__all__ = [
    "FORGOTTEN_ANSWER",
    "UnreadableRow",
    "as_record",
    "claim_answer",
    "claim_parameters",
    "expire_parameters",
    "key_of",
    "key_parameters",
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

#: Of the key, from the queue and from both.
_QUEUE_BYTES, _REST_BYTES = 4, 12

Row = Sequence[Any]


class UnreadableRow(Exception):
    """A row that this package did not write."""


def pack(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unpack(packed: bytes) -> str:
    return packed.decode("utf-8", "surrogatepass")


@lru_cache(maxsize=1024)
def _queue(queue: str) -> tuple[bytes, bytes]:
    """A queue as it is kept, and its hash."""
    packed = pack(queue)
    return packed, hashlib.sha256(packed).digest()


def _place(queue: str, task_id: str) -> tuple[bytes, bytes, bytes]:
    """The key of a record, which the schema's key_v1 makes too, its queue and its task id."""
    packed, digest = _queue(queue)
    text = pack_text(task_id)
    rest = hashlib.sha256(digest + text).digest()
    return digest[:_QUEUE_BYTES] + rest[:_REST_BYTES], packed, text


def _root(grant: ClaimRequest | ClaimToken) -> bytes | None:
    return None if grant.root_id == grant.task_id else pack_text(grant.root_id)


def key_range(queue: str | None) -> tuple[UUID, UUID]:
    """The keys of a queue's records are above the first and not above the second."""
    if queue is None:
        return _FIRST_KEY, _LAST_KEY
    first = _queue(queue)[1][:_QUEUE_BYTES]
    return UUID(bytes=first + bytes(_REST_BYTES)), UUID(bytes=first + _REST_BYTES * b"\xff")


def key_of(queue: str, task_id: str) -> UUID:
    """The key of a record."""
    return UUID(bytes=_place(queue, task_id)[0])


def key_parameters(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What leads to the records of (queue, task id) pairs."""
    places = [_place(*pair) for pair in pairs]
    return {
        "keys": Keys(key for key, _, _ in places),
        "queues": Texts(queue for _, queue, _ in places),
        "task_ids": Texts(task_id for _, _, task_id in places),
    }


def claim_parameters(batch: Sequence[ClaimRequest]) -> dict[str, Any]:
    return {
        **key_parameters([(each.queue, each.task_id) for each in batch]),
        "owners": Texts(pack(each.owner) for each in batch),
        "grant_ids": Texts(pack(each.grant_id) for each in batch),
        "root_ids": Texts(_root(each) for each in batch),
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
        "outcomes": Numbers(CODES[each.outcome] for each in batch),
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
    parameters |= key_parameters([(token.queue, token.task_id) for token in tokens])
    parameters["tokens"] = Numbers(token.token for token in tokens)
    if whole:
        parameters |= {
            "owners": Texts(pack(token.owner) for token in tokens),
            "grant_ids": Texts(pack(token.grant_id) for token in tokens),
            "root_ids": Texts(_root(token) for token in tokens),
            "nestings": Numbers(token.attempt.nesting for token in tokens),
            "retries": Numbers(token.attempt.retries for token in tokens),
            "deaths": Numbers(token.deaths for token in tokens),
            "claimed": Numbers(token.created_at for token in tokens),
            **_delivery_parameters([token.delivery for token in tokens]),
        }
    return parameters


def expire_parameters(batch: Sequence[Expiry]) -> dict[str, Any]:
    return {
        **key_parameters([(each.queue, each.task_id) for each in batch]),
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
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise UnreadableRow from error


def _record(row: Row) -> Record:
    token, expires_at, forget_at, claimed_at, *counts, priority, code, started, keep = row[:12]
    queue, packed, root_id, *of_a_claim = row[12:20]
    nesting, retries, deaths, deliveries = (count or 0 for count in counts)
    task_id = unpack_text(packed)
    if pack_text(task_id) != packed:
        raise ValueError("no call finds it, by its task id")
    outcome = _outcome(code)
    state = state_of(outcome)
    if state is State.FINISHED:
        if any(part is not None for part in (expires_at, *of_a_claim)):
            raise ValueError("a finished record has what only a claim needs")
        expires_at, owner, grant_id, delivery = 0, FORGOTTEN, FORGOTTEN, Delivery()
    else:
        owner, grant_id, task, tag, from_queue = map(_unpack, of_a_claim)
        delivery = Delivery(task, tag, from_queue, priority)
    settled_at = 0
    if state is not State.CLAIMED:
        settled_at = forget_at - _whole(keep)
    elif forget_at is not None or keep is not None:
        raise ValueError("a claim has what only a settled record needs")
    return check_record(
        Record(
            queue=_unpack(queue),
            task_id=task_id,
            owner=owner,
            grant_id=grant_id,
            token=token,
            root_id=task_id if root_id is None else unpack_text(root_id),
            attempt=Attempt(nesting, retries),
            deaths=deaths,
            claimed_at=token // 1000 if claimed_at is None else claimed_at,
            expires_at=expires_at,
            started=False if started is None else started,
            deliveries=deliveries,
            state=state,
            outcome=outcome,
            settled_at=settled_at,
            forget_at=0 if forget_at is None else forget_at,
            delivery=delivery,
        )
    )


def _whole(number: Decimal) -> int:
    whole = int(number)
    if whole != number or whole < 0:
        raise ValueError(f"expected a count, found {number}")
    return whole


def claim_answer(request: ClaimRequest, row: Row) -> ClaimAnswer:
    """Raises: UnreadableRow."""
    _, answer, now, holder, *facts = row
    expires_at, deliveries, orphaned, outcome, settled_at = facts[4:9]
    if answer == "already claimed":
        return AlreadyClaimed(_text(holder), expires_at, now)
    if answer == "finished":
        return Finished(_end(outcome), settled_at, now)
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
    root = request.task_id if root_id is None else _text(root_id, unpack_text)
    return replace(
        grant, owner=_text(owner), root_id=root, deaths=deaths, delivery=_delivery(facts)
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
        return Ended(_end(outcome), now)
    return _lost(owner, outcome, now)


def settle_answer(row: Row) -> SettleAnswer:
    """Raises: UnreadableRow."""
    _, answer, now, outcome, owner = row
    if answer == "settled":
        return Settled(now)
    if answer == "ended":
        return Ended(_end(outcome), now)
    return _lost(owner, outcome, now)


def _lost(owner: bytes | None, outcome: int | None, now: int) -> Lost:
    if outcome is not None:
        return Lost(FORGOTTEN, now)
    return Lost(None if owner is None else _text(owner), now)


def _text(packed: bytes, unpack: Callable[[bytes], str] = _unpack) -> str:
    try:
        return unpack(packed)
    except (AttributeError, ValueError) as error:
        raise UnreadableRow from error


def _outcome(code: int) -> Outcome | None:
    """Raises: ValueError."""
    if not 0 <= code < len(OUTCOMES):
        raise ValueError(f"no outcome has the code {code}")
    return OUTCOMES[code]


def _end(code: int) -> Outcome:
    """Of a finished record."""
    try:
        outcome = _outcome(code)
    except (TypeError, ValueError) as error:
        raise UnreadableRow from error
    if outcome is None:
        raise UnreadableRow from ValueError("a claim has no outcome")
    return outcome
