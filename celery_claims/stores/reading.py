"""What a store may believe of a record that it reads: it may be damaged, or somebody else's. Pure.

Counts that no caller could have given would be refused far from here, as an argument of a call that
also serves others; a record without its outcome would look finished and tell nobody how.
"""

from __future__ import annotations

from ..checks import MAX_TOKEN, check_count, check_flag, check_name
from ..errors import InvalidArgument
from ..protocol import Outcome, Record, State, check_attempt, check_delivery

__all__ = ["check_record"]

#: Which outcomes each state may have.
_OUTCOMES: dict[State, frozenset[Outcome | None]] = {
    State.CLAIMED: frozenset({None}),
    State.FREE: frozenset({Outcome.NACKED, Outcome.EXPIRED}),
    State.FINISHED: frozenset(Outcome) - {Outcome.NACKED, Outcome.EXPIRED},
}


def check_record(record: Record) -> Record:
    """The record, if a store of this package can have written it.

    Raises:
        ValueError: naming the field.
    """
    try:
        _check_fields(record)
    except InvalidArgument as error:
        raise ValueError(str(error)) from error
    if record.outcome not in _OUTCOMES[record.state]:
        raise ValueError(f"outcome: a {record.state.value} record has {record.outcome}")
    return record


def _check_fields(record: Record) -> None:
    for name in ("queue", "task_id", "owner", "grant_id", "root_id"):
        check_name(name, getattr(record, name))
    check_count("token", record.token, least=1, most=MAX_TOKEN - 1)
    check_attempt("attempt", record.attempt)
    check_flag("started", record.started)
    for name in ("deaths", "deliveries", "claimed_at", "expires_at", "settled_at", "forget_at"):
        check_count(name, getattr(record, name), least=0)
    check_delivery("delivery", record.delivery)
