"""Locks and threads of the operating system, also where gevent has patched Python's.

A heartbeat that runs on a patched thread stops whenever a task does not yield, and a patched lock
cannot be shared between a real thread and greenlets. What is here is looked up when it is used, so
it does not matter whether gevent patches before or after this module is imported.

Objects that live through a fork register with ``across_forks``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

__all__ = [
    "ForkAware",
    "NativeLock",
    "NativeThread",
    "Wakeup",
    "across_forks",
    "allocate_lock",
    "monotonic",
    "new_poll",
    "pause",
    "start_thread",
]

logger = logging.getLogger("celery_claims")

#: Seconds on a clock that is never set; one clock for every process of a host.
monotonic: Callable[[], float] = time.monotonic


class NativeLock(Protocol):
    """What ``_thread.allocate_lock`` makes."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def locked(self) -> bool: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, *error: object) -> None: ...


class ForkAware(Protocol):
    """What ``across_forks`` calls, in the thread that forks."""

    def before_fork(self) -> None: ...
    def after_fork_in_parent(self) -> None: ...
    def after_fork_in_child(self) -> None: ...


def _original(module: str, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    __import__(module)
    return getattr(sys.modules[module], name)


def allocate_lock() -> NativeLock:
    """A lock that blocks the thread, never only the greenlet."""
    lock: NativeLock = _original("_thread", "allocate_lock")()
    return lock


def pause(seconds: float) -> None:
    """Sleep without giving way to greenlets."""
    _original("time", "sleep")(seconds)


def new_poll(file: Any) -> Callable[[float], list[Any]]:
    """Asks whether a file, or a socket, has something to be read; its argument is milliseconds."""
    poll = _original("select", "poll")()
    poll.register(file, select.POLLIN)
    asked: Callable[[float], list[Any]] = poll.poll
    return asked


class NativeThread:
    """A daemon thread of the operating system.

    Parameters:
        run: what it does; an exception that leaves it is logged.
        name: for logs.
    """

    def __init__(self, run: Callable[[], None], name: str) -> None:
        self.name = name
        self._run = run
        self._over = allocate_lock()
        self._over.acquire()
        _original("_thread", "start_new_thread")(self._main, ())

    def _main(self) -> None:
        try:
            if "gevent.monkey" not in sys.modules:
                threading.current_thread().name = self.name
            self._run()
        except Exception:
            logger.exception("thread %s ended by an error", self.name)
        finally:
            self._over.release()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its end, at most ``timeout`` seconds; whether it has ended."""
        ended = self._over.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        if ended:
            self._over.release()
        return ended

    def is_alive(self) -> bool:
        return self._over.locked()


def start_thread(run: Callable[[], None], name: str) -> NativeThread:
    """Start ``run`` on a daemon thread of the operating system."""
    return NativeThread(run, name)


class Wakeup:
    """Wakes one waiting thread; several calls of ``set`` before it wakes count as one.

    ``set`` may be called from a signal handler and from a greenlet.
    """

    def __init__(self) -> None:
        self._nothing_new = allocate_lock()
        self._nothing_new.acquire()

    def set(self) -> None:
        # Unlocked already: an earlier call has not been noticed yet, and one waking is enough.
        with contextlib.suppress(RuntimeError):
            self._nothing_new.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for ``set``, at most ``timeout`` seconds; True, and anew, once it was called."""
        return self._nothing_new.acquire(timeout=-1 if timeout is None else max(0.0, timeout))


_fork_aware: weakref.WeakSet[Any] = weakref.WeakSet()
_held: list[ForkAware] = []


class _Guard:
    """The lock of ``_fork_aware``; the child of a fork gets a fresh one."""

    lock = allocate_lock()


def across_forks(thing: ForkAware) -> None:
    """Call the three methods of ``thing`` around each fork, for as long as it lives."""
    with _Guard.lock:
        _fork_aware.add(thing)


def _before_fork() -> None:
    _Guard.lock.acquire()
    _held.extend(_fork_aware)
    for thing in _held:
        thing.before_fork()


def _after_fork_in_parent() -> None:
    try:
        for thing in reversed(_held):
            thing.after_fork_in_parent()
    finally:
        _held.clear()
        _Guard.lock.release()


def _after_fork_in_child() -> None:
    _Guard.lock = allocate_lock()
    # A fork made by C code may have told nobody before it.
    things = list(reversed(_held)) or list(_fork_aware)
    try:
        for thing in things:
            thing.after_fork_in_child()
    finally:
        _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
