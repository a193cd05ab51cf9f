"""Commands on the wire: packed at once, and exchanged over a connection that is kept.

The driver does as much for a command as the server does: it takes a connection from its pool,
counts it, packs each argument by itself, wraps the call into its retries and measures it. A claim
is one command among those of a task that may do nothing, so here only what is needed is done, with
the driver's own connections. It makes them and reads the answers to AUTH and SELECT; later answers
are read here, in the second version of the protocol.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import InvalidResponse

from ..native import new_poll

__all__ = ["Wire"]

#: Most bytes that are read at once: more than a batch of answers has, as a rule.
CHUNK = 65_536
#: What the answer to one command is ended by, and a line of it.
END = b"\r\n"

#: A command of a script: the digest or source, how many keys, the keys and the arguments.
Command = Sequence[Any]


class Wire:
    """Connections of one server, each in use by one caller at a time.

    Safe in every thread; with gevent in every greenlet of one thread.

    Parameters:
        pool: the driver's, which knows how connections are made.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._idle: list[_Kept] = []

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to commands, in one round trip; an error that is an answer is in its place.

        Raises:
            RedisError, OSError: the connection's; any of the commands may have been carried out.
        """
        kept = self._take()
        try:
            answers = kept.exchange(b"".join(map(_packed, commands)), len(commands))
        except BaseException:
            # An answer that was not read must not become another caller's.
            kept.connection.disconnect()
            raise
        self._idle.append(kept)
        return answers

    def close(self) -> None:
        """Close what is not in use. Idempotent."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().connection.disconnect()

    def _take(self) -> _Kept:
        """A connection with nothing left to be read."""
        with contextlib.suppress(IndexError):
            while True:
                kept = self._idle.pop()
                if kept.is_clean():
                    return kept
                kept.connection.disconnect()
        # Not by the pool, which would count it and, in the end, refuse to make more.
        return _Kept(self._pool.connection_class(**self._pool.connection_kwargs))


class _Kept:
    """A connection of the driver."""

    __slots__ = ("_poll", "_polled", "connection")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._polled: Any = None
        self._poll: Any = None

    def exchange(self, packed: bytes, count: int) -> list[Any]:
        """The answers to so many commands."""
        self.connection.send_packed_command([packed])
        reader = _Reader(self.connection)
        answers = [reader.answer() for _ in range(count)]
        if not reader.is_empty():
            raise DriverConnectionError("the server answered more than it was asked")
        return answers

    def is_clean(self) -> bool:
        """Whether the server did not end the connection while it was idle."""
        sock = self.connection._sock
        if sock is None:
            return False
        if sock is not self._polled:
            self._polled, self._poll = sock, new_poll(sock)
        try:
            # What TLS says of itself is nothing to be read: then the driver knows.
            return not self._poll(0) or not self.connection.can_read()
        except (DriverConnectionError, OSError):
            return False


class _Reader:
    """Reads answers from a connection that has nothing left of earlier ones."""

    __slots__ = ("_at", "_connection", "_data")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._data = b""
        self._at = 0

    def is_empty(self) -> bool:
        return self._at == len(self._data)

    def answer(self) -> Any:
        """The next answer; an error of the command is one.

        Raises:
            RedisError, OSError: the connection's.
        """
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            length = _number(rest)
            return None if length < 0 else self._take(length)
        if kind == b":":
            return _number(rest)
        if kind == b"*":
            count = _number(rest)
            return None if count < 0 else [self.answer() for _ in range(count)]
        if kind == b"+":
            return rest
        if kind == b"-":
            return self._error(rest)
        raise InvalidResponse(f"Protocol Error: {line!r:.100}")

    def _error(self, text: bytes) -> Exception:
        error: Exception = self._connection._parser.parse_error(text.decode(errors="replace"))
        if isinstance(error, DriverConnectionError):
            raise error
        return error

    def _line(self) -> bytes:
        while (end := self._data.find(END, self._at)) < 0:
            self._receive()
        line = self._data[self._at : end]
        self._at = end + len(END)
        return line

    def _take(self, length: int) -> bytes:
        end = self._at + length
        while len(self._data) < end + len(END):
            self._receive()
        taken = self._data[self._at : end]
        self._at = end + len(END)
        return taken

    def _receive(self) -> None:
        received = self._connection._sock.recv(CHUNK)
        if not received:
            raise DriverConnectionError("Connection closed by server.")
        self._data += received


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InvalidResponse(f"Protocol Error: {text!r:.100} is no number") from error


def _packed(command: Command) -> bytes:
    parts = [b"*%d\r\n" % len(command)]
    for each in command:
        raw = each if type(each) is bytes else str(each).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)
