"""Commands on the wire: packed at once, and exchanged over a connection that is kept.

The driver does as much for a command as the server does: it takes a connection from its pool,
counts it, packs each argument by itself, wraps the call into its retries and measures it. A claim
is one command among those of a task that may do nothing, so here only what is needed is done, with
the driver's own connection and parser.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import ResponseError

__all__ = ["Wire"]

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
        self._idle: list[Any] = []

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to commands, in one round trip; an error that is an answer is in its place.

        Raises:
            RedisError, OSError: the connection's; any of the commands may have been carried out.
        """
        connection = self._take()
        try:
            connection.send_packed_command([b"".join(map(_packed, commands))])
            answers = [_answer(connection) for _ in commands]
        except BaseException:
            # An answer that was not read must not become another caller's.
            connection.disconnect()
            raise
        self._idle.append(connection)
        return answers

    def close(self) -> None:
        """Close what is not in use. Idempotent."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().disconnect()

    def _take(self) -> Any:
        """A connection with nothing left to be read."""
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if _is_clean(connection):
                    return connection
                connection.disconnect()
        # Not by the pool, which would count it and, in the end, refuse to make more.
        return self._pool.connection_class(**self._pool.connection_kwargs)


def _is_clean(connection: Any) -> bool:
    """Whether the server did not end the connection while it was idle."""
    try:
        return not connection.can_read()
    except (DriverConnectionError, OSError):
        return False


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _packed(command: Command) -> bytes:
    parts = [b"*%d\r\n" % len(command)]
    for each in command:
        raw = each if type(each) is bytes else str(each).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)
