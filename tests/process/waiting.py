"""Waiting with a deadline: the only place of the tests that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds; far above what anything here needs, for a loaded machine is not a failure.
TIMEOUT = 30.0


class WaitTimeout(AssertionError):
    """What a test waited for did not come true."""


def wait_until(
    predicate: Callable[[], T | None],
    timeout: float = TIMEOUT,
    *,
    what: str | Callable[[], str] = "",
    interval: float = 0.02,
) -> T:
    """Poll until ``predicate`` answers something true, and return that.

    Parameters:
        predicate: cheap and free of effects; its errors are not caught.
        timeout: seconds.
        what: what is waited for, in words, or a function that tells more once it is too late.
        interval: seconds between two questions.
    Raises:
        WaitTimeout: an AssertionError, so that a test fails and does not break.
    """
    deadline = time.monotonic() + timeout
    while True:
        # Read before the question, so that a slow predicate is asked once more after the deadline.
        late = time.monotonic() >= deadline
        answer = predicate()
        if answer:
            return answer
        if late:
            told = what() if callable(what) else what
            raise WaitTimeout(f"not within {timeout} s: {told or predicate!r}")
        time.sleep(interval)


def stays(predicate: Callable[[], object], seconds: float, *, interval: float = 0.02) -> bool:
    """Whether ``predicate`` stays true all the time: for what must *not* happen."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not predicate():
            return False
        time.sleep(interval)
    return bool(predicate())
