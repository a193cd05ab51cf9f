"""The names and forms in which kombu's Redis transport keeps messages. Pure.

Kombu's own functions for this belong to a channel, and a channel is made by connecting.
"""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Entry", "Names", "read_entry", "read_names"]

#: Priorities that kombu knows.
LOWEST, HIGHEST = 0, 9


@dataclass(frozen=True, slots=True)
class Names:
    """What one broker calls its keys.

    Parameters:
        prefix: of every key.
        unacked: the hash of unacknowledged messages by delivery tag.
        index: the sorted set of their tags, by when they were last touched.
        binding: the set of an exchange's bindings, with ``%s`` for its name.
        sep: between a queue and its priority, and within a binding.
        steps: priorities that have a list of their own, in rising order.
        touched: ours, beside ``index``: what a worker told to be in its hands, by the time until
            which that is believed.
    """

    prefix: str
    unacked: str
    index: str
    binding: str
    sep: str
    steps: tuple[int, ...]

    @property
    def touched(self) -> str:
        return f"{self.index}.celery_claims"

    def key(self, name: str) -> bytes:
        return f"{self.prefix}{name}".encode("utf-8", "surrogatepass")

    def list_of(self, queue: str, priority: int) -> bytes:
        """The key of the list in which messages of this priority wait."""
        step = self.steps[bisect(self.steps, priority) - 1]
        return self.key(f"{queue}{self.sep}{step}" if step else queue)


def read_names(options: dict[str, Any], channel: Any) -> Names:
    """The names that a channel of this class uses under these transport options."""

    def value(name: str) -> Any:
        return options.get(name, getattr(channel, name))

    return Names(
        prefix=value("global_keyprefix") or "",
        unacked=value("unacked_key"),
        index=value("unacked_index_key"),
        binding=channel.keyprefix_queue,
        sep=value("sep"),
        steps=tuple(value("priority_steps")),
    )


class Entry(NamedTuple):
    """An unacknowledged message.

    Parameters:
        exchange, routing_key: as it was published; of an unnamed exchange the routing key is the
            queue.
        priority: from ``LOWEST`` to ``HIGHEST``.
        redelivered: the message as kombu puts it back.
    """

    exchange: str
    routing_key: str
    priority: int
    redelivered: str

    def queues(self, bindings: Iterable[str], sep: str) -> set[str]:
        """The queues that the exchange delivers it to."""
        found = set()
        for binding in bindings:
            key, pattern, queue = binding.split(sep)
            if _matches(pattern, self.routing_key) if pattern else key == self.routing_key:
                found.add(queue)
        return found


def _matches(pattern: str, routing_key: str) -> bool:
    try:
        return re.match(pattern, routing_key) is not None
    except re.error as error:
        raise ValueError(f"not a pattern of a binding: {pattern!r:.100}") from error


def read_entry(stored: bytes) -> Entry:
    """What the hash of unacknowledged messages has under a delivery tag.

    Raises:
        ValueError: nothing that kombu wrote.
    """
    try:
        # Not kombu's JSON, which makes objects of some values; here all stay as they are.
        message, exchange, routing_key = json.loads(stored)
        properties = message["properties"]
        for place in (message.get("headers"), properties.get("delivery_info")):
            if isinstance(place, dict):
                place["redelivered"] = True
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not an unacknowledged message: {stored[:200]!r}") from error
    if {type(exchange), type(routing_key)} - {str, type(None)}:
        raise ValueError(f"not an unacknowledged message: {stored[:200]!r}")
    return Entry(
        exchange=exchange or "",
        routing_key=routing_key or "",
        priority=_priority(properties),
        redelivered=json.dumps(message),
    )


def _priority(properties: dict[str, Any]) -> int:
    try:
        return max(min(int(properties["priority"]), HIGHEST), LOWEST)
    except (KeyError, TypeError, ValueError):
        return LOWEST
