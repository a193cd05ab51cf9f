"""Which shards there are in Redis: what a scan without a queue asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import StoreCorrupt
from ..native import monotonic
from .redis_link import Call, Link, load_script
from .redis_record import Shard

__all__ = ["Registry"]

#: Seconds after which a shard is written down again: a flushed server may have forgotten it.
REGISTER_EVERY = 60.0

#: Milliseconds after which a shard in which nobody wrote may be forgotten, if nothing is claimed
#: in it: no scan asks it any more. Far beyond ``REGISTER_EVERY``: nobody writes there unnoted.
RETIRE_AFTER = 86_400_000
#: Seconds between two looks at such shards, and how many are looked at.
RETIRE_EVERY, RETIRE_AT_ONCE = 300.0, 100


class Registry:
    """The shards in use.

    Parameters:
        prefix: of every key.
        offset: milliseconds to add to the server's clock.
    """

    def __init__(self, link: Link, prefix: bytes, offset: Callable[[], int]) -> None:
        self._link = link
        self._prefix = prefix
        self._offset = offset
        self._key = prefix + b"shards"
        self._noted: dict[bytes, float] = {}
        self._retired_at = -math.inf

    def shards(self) -> list[Shard]:
        """All in which something may be claimed."""
        tags = self._link.ask("ZRANGE", self._key, 0, -1)
        return [Shard(self._prefix, tag) for tag in tags]

    def is_due(self, shard: Shard) -> bool:
        """Whether to ``note`` a shard before writing in it."""
        return monotonic() - self._noted.get(shard.name, -math.inf) >= REGISTER_EVERY

    def note(self, shards: Sequence[Shard]) -> None:
        """Write shards down for scans, before anything is claimed in them."""
        if shards:
            names = [shard.name for shard in shards]
            self._link.run([Call(_REGISTER, [self._key], [self._offset(), *names])])
            self._noted.update(dict.fromkeys(names, monotonic()))

    def retire(self) -> None:
        """Forget shards that nobody uses, if it is time to: queues come and go."""
        if monotonic() - self._retired_at < RETIRE_EVERY:
            return
        self._retired_at = monotonic()
        stale = iter(self._exchange())
        seen: list[Any] = []
        for name, noted in zip(stale, stale, strict=True):
            seen += [name, noted, int(self._is_empty(Shard(self._prefix, name)))]
        if seen:
            self._exchange(*seen)

    def _exchange(self, *seen: Any) -> list[Any]:
        arguments = [self._offset(), RETIRE_AFTER, RETIRE_AT_ONCE, *seen]
        found: list[Any] = self._link.run([Call(_RETIRE, [self._key], arguments)])[0]
        return found

    def _is_empty(self, shard: Shard) -> bool:
        try:
            return bool(self._link.ask("HLEN", shard.fixed[1]) == 0)
        except StoreCorrupt:
            # Somebody else's: a scan tells of it.
            return False


_REGISTER = load_script("register")
_RETIRE = load_script("retire")
