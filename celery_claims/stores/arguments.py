"""What every store checks before it does anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from ..checks import MAX_DURATION_MS, check_count, check_duration, check_name
from ..errors import ConfigurationError, InvalidArgument
from .base import MAX_PAGE, View

__all__ = [
    "check_batch",
    "check_duty",
    "check_keep",
    "check_keys",
    "check_scan",
    "decode_cursor",
    "encode_cursor",
    "split_url",
]

T = TypeVar("T")


def check_batch(argument: str, values: Iterable[T], kind: type[T]) -> list[T]:
    """The elements of a batch as a list.

    Raises:
        InvalidArgument: naming ``argument``.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InvalidArgument(argument, f"expected a list of {kind.__name__}, got {values!r}")
    batch = list(values)
    for value in batch:
        if not isinstance(value, kind):
            raise InvalidArgument(argument, f"expected a {kind.__name__}, got {value!r}")
    return batch


def check_keys(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(queue, task id) pairs as a list.

    Raises:
        InvalidArgument: naming ``keys`` or its part.
    """
    pairs = check_batch("keys", keys, tuple)
    for pair in pairs:
        try:
            queue, task_id = pair
        except ValueError as error:
            raise InvalidArgument("keys", f"expected (queue, task id), got {pair!r}") from error
        check_name("queue", queue)
        check_name("task_id", task_id)
    return pairs


def check_scan(view: View, queue: str | None, limit: int) -> None:
    """The arguments of ``Store.scan`` but its cursor.

    Raises:
        InvalidArgument: naming the argument.
    """
    if not isinstance(view, View):
        raise InvalidArgument("view", f"expected a View, got {view!r}")
    if queue is not None:
        check_name("queue", queue)
    check_count("limit", limit, least=1, most=MAX_PAGE)


def check_keep(keep_ms: int) -> None:
    """How long something is kept, in milliseconds; 0 is allowed.

    Raises:
        InvalidArgument: naming ``keep_ms``.
    """
    check_count("keep_ms", keep_ms, least=0, most=MAX_DURATION_MS)


def check_duty(duty: str, interval_ms: int) -> None:
    """The arguments of ``Store.elect``.

    Raises:
        InvalidArgument: naming the argument.
    """
    check_name("duty", duty)
    check_duration("interval_ms", interval_ms)


def split_url(url: str) -> SplitResult:
    """The parts of a URL.

    Raises:
        ConfigurationError: naming ``claims_url``; without the URL, which may hold a password.
    """
    try:
        return urlsplit(url)
    except ValueError:
        raise ConfigurationError(
            "claims_url", "not a URL: look at the brackets and the characters of its host"
        ) from None


def encode_cursor(view: View, queue: str | None, *position: str | int) -> str:
    """A position in one view; refused elsewhere by ``decode_cursor``."""
    return json.dumps([view.value, queue, *position])


def decode_cursor(
    cursor: str | None, view: View, queue: str | None, *kinds: type
) -> tuple[str | int, ...] | None:
    """The position in a cursor of this view and queue, of these types; None at the beginning.

    Raises:
        InvalidArgument: naming ``cursor``.
    """
    if cursor is None:
        return None
    try:
        parts = json.loads(cursor)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("cursor", f"not a cursor of a scan: {cursor!r}") from error
    if not isinstance(parts, list) or parts[:2] != [view.value, queue]:
        raise InvalidArgument("cursor", f"not a cursor of this scan: {cursor!r}")
    position = parts[2:]
    if [type(part) for part in position] != list(kinds):
        raise InvalidArgument("cursor", f"not a cursor of this store: {cursor!r}")
    return tuple(position)
