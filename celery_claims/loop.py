"""The consumer's event loop: how what must run there gets there, from any thread, and soon.

Celery's own ``call_soon`` is not enough. What a timer's callback hands to it waits until the loop
has something else to do, up to ten seconds; so does, before kombu 5.7, what another thread hands
to it. A byte through a pair of sockets that the loop reads wakes it in every case.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["Loop"]

#: Bytes read at once; more than can pile up, for one is enough.
CHUNK = 4096


class Loop:
    """The loop of one consumer, over all its connections.

    Parameters:
        consumer: Celery's.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._calls: deque[Callable[[], Any]] = deque()
        self._reader: socket.socket | None = None
        self._writer: socket.socket | None = None

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function on the loop soon, in the order of the calls."""
        self._calls.append(partial(function, *args))
        if self._consumer.hub is None:
            self._consumer.call_soon(self._run)
        else:
            self.wake()

    def wake(self) -> None:
        """Let the loop go round; where it is not reached this way, it does so every two seconds."""
        writer = self._writer
        if writer is not None:
            # A full buffer holds a byte that is not read yet; a closed one needs none: another
            # thread ended the worker.
            with contextlib.suppress(OSError):
                writer.send(b"!")

    def register(self, hub: Any) -> None:
        """The loop begins, for the first time or on a new connection."""
        if self._reader is None:
            self._reader, self._writer = socket.socketpair()
            self._reader.setblocking(False)
            self._writer.setblocking(False)
        hub.add_reader(self._reader, self._read)
        self.call(_nothing)

    def close(self) -> None:
        """The worker ends, and with it what was not called. Idempotent."""
        for end in (self._reader, self._writer):
            if end is not None:
                end.close()
        self._reader = self._writer = None

    def _read(self) -> None:
        if self._reader is not None:
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(CHUNK)
        self._run()

    def _run(self) -> None:
        # What is added meanwhile has its own turn.
        for left in range(len(self._calls), 0, -1):
            function = self._calls.popleft()
            try:
                function()
            except BaseException:
                # The error is the loop's, e.g. to connect again; the other calls are made later.
                if left > 1:
                    self.call(_nothing)
                raise


def _nothing() -> None:
    """Called only so that others are."""
