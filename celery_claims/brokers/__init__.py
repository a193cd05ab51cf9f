"""What a broker needs of us that does not notice by itself that a worker is gone."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from ..protocol import Record

__all__ = ["Deliveries", "Fate", "InHand", "open_deliveries"]


class InHand(NamedTuple):
    """A message in a worker's hands: its delivery tag, and the queue that it came from."""

    tag: str
    queue: str


class Fate(IntEnum):
    """What ``give_back`` did to a message."""

    #: some worker touched it within a lease
    IN_HAND = -1
    #: nothing: it is in its queue already, or acknowledged
    NOBODYS = 0
    #: it is in its queue again
    PUT_BACK = 1


class Deliveries(Protocol):
    """The unacknowledged messages of a broker. For one thread at a time.

    Every method raises ``StoreError`` if the broker does not answer, and may be repeated.
    """

    #: Most seconds between two touches for nothing to be redelivered while its worker lives.
    touch_every: float

    def touch(self, mine: Sequence[InHand], dropped: Sequence[InHand] = ()) -> None:
        """Tell the broker that the worker with these messages lives.

        Parameters:
            mine: what the worker has claimed or holds.
            dropped: what was touched and is not in the worker's hands any more.
        Atomicity: each message by itself. A message that is acknowledged is left alone.
        """

    def give_back(self, records: Sequence[Record]) -> list[Fate]:
        """Put the messages of expired claims back into their queues.

        Returns:
            of each record what became of its message.
        Atomicity: each message is at any moment in its queue or where it was. Who repeats this,
        or does it at the same time, puts nothing back twice.
        """

    def give_back_untouched(self) -> int:
        """Put messages back that their worker touched once, and then no more for a lease.

        Returns:
            how many.
        Atomicity: as ``give_back``.
        """

    def close(self) -> None:
        """Close the connection. Idempotent; the next call opens another."""


def open_deliveries(connection: Any, *, timeout: float, stale_after: float) -> Deliveries | None:
    """The deliveries of a broker that has to be touched; None: it knows when a worker is gone.

    Parameters:
        connection: a kombu connection, connected or not.
        timeout: seconds for an answer.
        stale_after: seconds without a touch after which a worker is dead.
    """
    transport = connection.transport
    if transport.driver_type != "redis":
        return None
    from .redis import RedisDeliveries

    return RedisDeliveries(connection, timeout=timeout, stale_after=stale_after)
