"""What a worker takes from the machine that it runs on: clocks, chance, processes, threads.

All of it that decides anything is asked for here, so that a worker can run on another machine:
one whose time, threads and dice are a simulation's.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .native import Wakeup, monotonic, start_thread

__all__ = ["HOST", "Alarm", "Host", "Thread"]


class Thread(Protocol):
    """See ``native.NativeThread``."""

    def join(self, timeout: float | None = None) -> bool: ...


class Alarm(Protocol):
    """See ``native.Wakeup``."""

    def set(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...


def is_running(pid: int) -> bool:
    """Whether there is a process, as far as this one may know."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True)
class Host:
    """The machine.

    Parameters:
        clock: seconds on a clock that is never set; the same for every process of the host.
        new_id: so many random bytes, as hexadecimal digits.
        rng: for jitter.
        pid: of this process.
        is_running: whether there is a process with this pid.
        start_thread: calls a function on a thread of its own, with a name for logs.
        alarm: makes what wakes one waiting thread.
    """

    clock: Callable[[], float] = monotonic
    new_id: Callable[[int], str] = secrets.token_hex
    rng: random.Random = field(default_factory=random.Random)
    pid: Callable[[], int] = os.getpid
    is_running: Callable[[int], bool] = is_running
    start_thread: Callable[[Callable[[], None], str], Thread] = start_thread
    alarm: Callable[[], Alarm] = Wakeup


#: The real one.
HOST = Host()
