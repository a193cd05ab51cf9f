"""A history that has no order, made small and readable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from celery_claims.protocol import (
    AlreadyClaimed,
    ClaimRequest,
    Ended,
    Exhausted,
    Finished,
    Lost,
    Outcome,
    Record,
    Renewal,
    Renewed,
    Settled,
    Settlement,
    State,
    Success,
    Superseded,
    TookOver,
)

from .history import FAR, UNKNOWN, Amnesia, Cleanup, Look, Operation, Sight
from .linearizability import Allows, Verdict, check, only_reads
from .specification import Known

__all__ = ["explain", "minimize", "tell"]

#: Steps of the best order that are shown before the one that is impossible.
SHOWN = 12

#: Configurations after which a smaller history is not tried any longer.
PATIENCE = 20_000


def minimize(operations: Sequence[Operation], specification: Allows) -> list[Operation]:
    """A part of the history that has no order either.

    Only what may be left out is: all that came after the first contradiction, and then operations
    that changed nothing. Without one that changed something, even a good history would be bad.
    """
    ends = sorted({each.returned for each in operations if each.is_known})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if _is_bad(_until(operations, ends[middle]), specification):
            high = middle
        else:
            low = middle + 1
    smallest = _until(operations, ends[high])
    readers = [each for each in smallest if each.is_known and only_reads(each)]
    for some in [readers, *_halves(readers)]:
        left_out = {id(each) for each in some}
        fewer = [each for each in smallest if id(each) not in left_out]
        if len(fewer) < len(smallest) and _is_bad(fewer, specification):
            smallest = fewer
    return smallest


def _is_bad(operations: Sequence[Operation], specification: Allows) -> bool:
    return check(operations, specification, budget=PATIENCE).linearizable is False


def _until(operations: Sequence[Operation], moment: int) -> list[Operation]:
    """The history as it was at a moment: what had not returned is unknown."""
    return [
        each
        if each.returned <= moment
        else replace(each, answer=UNKNOWN, returned=FAR, high=FAR, after=None)
        for each in operations
        if each.called <= moment and not (each.returned > moment and _is_seen(each))
    ]


def _is_seen(operation: Operation) -> bool:
    return isinstance(operation.call, (Look, Sight, Amnesia))


def _halves(items: Sequence[Operation]) -> Iterator[Sequence[Operation]]:
    """Smaller and smaller parts, down to each alone."""
    size = len(items) // 2
    while size:
        for start in range(0, len(items), size):
            yield items[start : start + size]
        size //= 2


def explain(operations: Sequence[Operation], specification: Allows) -> str:
    """The timeline of a history that has no order, made as small as it may be.

    Parameters:
        operations: of one record.
    """
    smallest = minimize(operations, specification)
    verdict = check(smallest, specification, budget=PATIENCE)
    start = min(each.called for each in smallest)
    queue, task_id = smallest[0].key
    lines = [
        (
            f"task {task_id!r} in queue {queue!r}: {len(smallest)} of {len(operations)} operations "
            "have no order that the protocol allows."
        ),
        "Times are milliseconds from the first call to its return.",
        "",
        "The longest order that it allows ends with",
    ]
    lines += _steps(verdict, start)
    lines += ["", "and then none of these may come next:"]
    lines += [f"  {_line(each, start)}" for each in verdict.stuck]
    unheard = [each for each in smallest if not each.is_known]
    if unheard:
        lines += ["", "Without an answer, tried at every place:"]
        lines += [f"  {_line(each, start)}" for each in unheard[-SHOWN:]]
    return "\n".join(lines)


def _steps(verdict: Verdict, start: int) -> Iterator[str]:
    left_out = max(0, len(verdict.steps) - SHOWN)
    if left_out:
        yield f"  ({left_out} operations before)"
    elif not verdict.steps:
        yield "  (nothing)"
    for operation, state in verdict.steps[left_out:]:
        yield f"  {_line(operation, start)}"
        yield f"      so: {_state(state)}"


def _line(operation: Operation, start: int) -> str:
    begun = (operation.called - start) / 1e6
    ended = f"{(operation.returned - start) / 1e6:.3f}" if operation.is_known else "?"
    return f"[{begun:.3f} .. {ended}] {operation.client}: {tell(operation)}"


def _state(state: Known) -> str:
    loose = ", ".join(name for each in state.loose for name in each.fields)
    return _record(state.record) + (f" (at least: {loose})" if loose else "")


def _record(record: Record | None) -> str:
    if record is None:
        return "no record"
    text = f"{record.state.value}, token {record.token}, {record.owner}, until {record.expires_at}"
    if record.state is not State.CLAIMED and record.outcome is not None:
        text += f", {record.outcome.value} at {record.settled_at}, kept until {record.forget_at}"
    attempt = f"{record.attempt.nesting}.{record.attempt.retries}"
    started = ", started" if record.started else ""
    return f"{text}, run {record.root_id} attempt {attempt}, {record.deliveries} died{started}"


def tell(operation: Operation) -> str:
    """One operation in words."""
    return f"{_asked(operation)} -> {_answered(operation.answer)}"


def _asked(operation: Operation) -> str:
    call = operation.call
    if isinstance(call, ClaimRequest):
        attempt = f"{call.attempt.nesting}.{call.attempt.retries}"
        return (
            f"claim by {call.owner}, grant {call.grant_id}, run {call.root_id} attempt {attempt}, "
            f"for {call.lease_ms} ms"
        )
    if isinstance(call, Renewal):
        verb = "extend" if call.extend else "renew"
        started = ", started" if call.started else ""
        return f"{verb} token {call.token.token} by {call.lease_ms} ms{started}"
    if isinstance(call, Settlement):
        verb = "nack" if call.outcome is Outcome.NACKED else f"release as {call.outcome.value}"
        counted = ", counted" if call.counted else ""
        return f"{verb} token {call.token.token}, keep {call.keep_ms} ms{counted}"
    if isinstance(call, Cleanup):
        expiry = call.expiry
        return f"clean up token {expiry.token} that ended at {expiry.expires_at}"
    if isinstance(call, Sight):
        return f"seen as orphaned at {call.now}"
    return "the store lost its memory" if isinstance(call, Amnesia) else "look"


def _answered(answer: object) -> str:
    if isinstance(answer, (Success, TookOver, Exhausted)):
        token = answer.token
        kind = type(answer).__name__
        return f"{kind}: token {token.token} until {token.expires_at}, at {answer.now}"
    if isinstance(answer, AlreadyClaimed):
        return f"AlreadyClaimed: by {answer.owner} until {answer.expires_at}, at {answer.now}"
    if isinstance(answer, Renewed):
        return f"Renewed: until {answer.expires_at}, at {answer.now}"
    if isinstance(answer, Lost):
        return f"Lost: to {answer.owner}, at {answer.now}"
    if isinstance(answer, (Ended, Finished)):
        return f"{type(answer).__name__}: as {answer.outcome.value}, at {answer.now}"
    if isinstance(answer, (Settled, Superseded)):
        return f"{type(answer).__name__}, at {answer.now}"
    if isinstance(answer, Record):
        return _record(answer)
    return {None: "no record", True: "yes", False: "no"}.get(answer, repr(answer))  # type: ignore[call-overload, no-any-return]
