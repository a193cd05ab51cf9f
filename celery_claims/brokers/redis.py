"""The unacknowledged messages of kombu's Redis transport.

Kombu keeps them in a hash by delivery tag, and the time of delivery in a sorted set; after the
visibility timeout another worker puts them back. Here that time is kept fresh while a worker
lives, and a dead worker's messages are put back as soon as it is old.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any

from ..protocol import Record
from ..stores.redis_link import Call, Link, Script
from ..stores.redis_url import parse_url
from . import Fate, InHand
from .redis_address import options_of, url_of
from .redis_names import Entry, read_entry, read_names

__all__ = ["RedisDeliveries"]

logger = logging.getLogger("celery_claims")

#: Touches within one visibility timeout: two may fail before kombu puts a message back.
TOUCHES_PER_TIMEOUT = 3
#: Shortest time between two touches, in seconds, whatever the visibility timeout is.
SHORTEST = 0.1
#: Messages of one script call: a few milliseconds of the server, which does nothing else then.
CHUNK = 1000
#: Untouched messages read at a time.
PAGE = 100
#: Pages of one ``give_back_untouched``; the next one goes on with what is left.
MAX_PAGES = 50


class RedisDeliveries:
    """See ``Deliveries``.

    Parameters:
        connection: a kombu connection on a Redis transport.
        timeout: seconds for a connection, and for an answer.
        stale_after: seconds without a touch after which a worker is dead.
    """

    def __init__(self, connection: Any, *, timeout: float, stale_after: float) -> None:
        options, channel = connection.transport_options, connection.transport.Channel
        visibility = float(options.get("visibility_timeout", channel.visibility_timeout))
        self.touch_every = max(visibility / TOUCHES_PER_TIMEOUT, SHORTEST)
        self._names = read_names(options, channel)
        self._age = stale_after
        self._link = Link(parse_url(url_of(connection), options_of(connection)), timeout)

    def touch(self, mine: Sequence[InHand], dropped: Sequence[InHand] = ()) -> None:
        calls = [self._touch(chunk, ()) for chunk in _chunks(mine)]
        calls += [self._touch((), chunk) for chunk in _chunks(dropped)]
        if calls:
            self._link.run(calls)

    def give_back(self, records: Sequence[Record]) -> list[Fate]:
        wanted = [InHand(r.delivery.tag, r.delivery.queue or r.queue) for r in records]
        return self._give_back(wanted)

    def give_back_untouched(self) -> int:
        count = 0
        for _ in range(MAX_PAGES):
            call = Call(_UNTOUCHED, [self._names.key(self._names.touched)], [PAGE])
            (members,) = self._link.run([call])
            fates = self._give_back(list(self._read(members)))
            count += fates.count(Fate.PUT_BACK)
            if len(members) < PAGE:
                break
        return count

    def _read(self, members: Sequence[bytes]) -> Iterator[InHand]:
        """What is no member of ours is taken out, for it would come first every time."""
        touched = self._names.key(self._names.touched)
        for member in members:
            try:
                yield _unpack(member)
            except ValueError:
                logger.warning("%r held no message, and is taken out of %r", member[:200], touched)
                self._link.ask("ZREM", touched, member)

    def close(self) -> None:
        self._link.close()

    def _keys(self) -> list[bytes]:
        names = self._names
        return [names.key(name) for name in (names.index, names.unacked, names.touched)]

    def _touch(self, mine: Sequence[InHand], dropped: Sequence[InHand]) -> Call:
        pairs = [part for each in (*mine, *dropped) for part in (_tag(each), _pack(each))]
        return Call(_TOUCH, self._keys(), [self._age, len(mine), *pairs])

    def _give_back(self, wanted: Sequence[InHand]) -> list[Fate]:
        if not wanted:
            return []
        unacked = self._names.key(self._names.unacked)
        found = self._link.ask("HMGET", unacked, *(_tag(each) for each in wanted))
        calls = [self._call(each, stored) for each, stored in zip(wanted, found, strict=True)]
        return [Fate(answer) for answer in self._link.run(calls)]

    def _call(self, in_hand: InHand, stored: bytes | None) -> Call:
        lists: list[bytes] = []
        expected, redelivered = b"", ""
        if stored is not None:
            try:
                entry = read_entry(stored)
                lists = self._lists(in_hand, entry)
                expected, redelivered = stored, entry.redelivered
            except ValueError:
                # The script finds another message than it expects, and leaves it.
                expected = stored + b"?"
                logger.exception("cannot put %s back in queue %s", in_hand.tag, in_hand.queue)
        arguments = [_tag(in_hand), expected, redelivered, self._age, _pack(in_hand)]
        return Call(_GIVE_BACK, [*self._keys(), *lists], arguments)

    def _lists(self, in_hand: InHand, entry: Entry) -> list[bytes]:
        """Where a message goes back to."""
        queues = sorted({in_hand.queue, *self._bound(entry)})
        return [self._names.list_of(queue, entry.priority) for queue in queues]

    def _bound(self, entry: Entry) -> Iterable[str]:
        """All queues that an exchange brought the message to: its copies share one delivery tag,
        so that only one of them is in the hash."""
        if not entry.exchange:
            return ()
        names = self._names
        bindings = self._link.ask("SMEMBERS", names.key(names.binding % entry.exchange))
        return entry.queues((binding.decode() for binding in bindings), names.sep)


def _pack(in_hand: InHand) -> bytes:
    return json.dumps(in_hand).encode()


def _unpack(member: bytes) -> InHand:
    """Raises: ValueError."""
    parts = json.loads(member)
    if not isinstance(parts, list) or [type(part) for part in parts] != [str, str]:
        raise ValueError(f"expected a tag and a queue, found {parts!r:.100}")
    return InHand(*parts)


def _tag(in_hand: InHand) -> bytes:
    return in_hand.tag.encode("utf-8", "surrogatepass")


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    for first in range(0, len(items), CHUNK):
        yield items[first : first + CHUNK]


def _script(name: str) -> Script:
    return Script(files(__package__).joinpath("lua").joinpath(f"{name}.lua").read_text("utf-8"))


_TOUCH = _script("touch")
_GIVE_BACK = _script("give_back")
_UNTOUCHED = _script("untouched")
