"""What stands where a record of ours should, in Redis, and the command that deletes it."""

from __future__ import annotations

from ..checks import MAX_TOKEN
from ..errors import StoreCorrupt
from .base import Unreadable
from .redis_link import Link
from .redis_record import Shard

__all__ = ["damaged_bucket", "damaged_claim", "damaged_record", "damaged_shard", "removal_of"]


def quoted(key: bytes) -> str:
    """As redis-cli reads it: any bytes, between quotes."""
    return '"' + "".join(map(_character, key)) + '"'


def _character(byte: int) -> str:
    character = chr(byte)
    if character in '\\"':
        return f"\\{character}"
    return character if character.isascii() and character.isprintable() else f"\\x{byte:02x}"


def damaged_claim(shard: Shard, task: bytes, error: ValueError) -> Unreadable:
    """A claimed record."""
    removal = f"HDEL {quoted(shard.fixed[1])} {quoted(task)}"
    return Unreadable(f"claim {quoted(task)} of {quoted(shard.base)}", str(error), removal)


def damaged_record(link: Link, shard: Shard, task: bytes, problem: str) -> Unreadable:
    """A free or finished record.

    Raises:
        StoreError: other than StoreCorrupt.
    """
    removal = removal_of(link, shard, task)
    return Unreadable(f"the record {quoted(shard.key(task))}", problem, removal)


def damaged_bucket(key: bytes, problem: str) -> Unreadable:
    """What stands where a bucket of finished records should."""
    return Unreadable(f"the key {quoted(key)}", problem, f"DEL {quoted(key)}")


def damaged_shard(link: Link, shard: Shard, error: StoreCorrupt) -> Unreadable:
    """A shard whose claims cannot be read at all.

    Raises:
        StoreError: of another kind.
    """
    place = f"the claims of {quoted(shard.base)}"
    return Unreadable(place, error.problem, removal_of(link, shard, b""))


def removal_of(link: Link, shard: Shard, task: bytes) -> str:
    """The command that deletes what keeps a task from being read, found by looking.

    Raises:
        StoreError: other than StoreCorrupt.
    """
    base, claimed, expiry = shard.fixed
    settled, levels = shard.key(task), shard.levels
    found: dict[bytes, bytes | None] = {}
    for key, command in (
        (base, ("GET", base)),
        (claimed, ("HGET", claimed, task)),
        (expiry, ("ZSCORE", expiry, task)),
        (settled, ("GET", settled)),
        (levels, ("GET", levels)),
    ):
        try:
            found[key] = link.ask(*command)
        except StoreCorrupt:
            return f"DEL {quoted(key)}"
    if not _is_high_water(found[base]):
        # Tokens then go on above the clock, as after the loss of a server.
        return f"DEL {quoted(base)}"
    if found[claimed] is not None:
        return f"HDEL {quoted(claimed)} {quoted(task)}"
    if found[settled] is not None:
        return f"DEL {quoted(settled)}"
    for bucket in shard.buckets(task, found[levels] or b""):
        try:
            if link.ask("HEXISTS", bucket, task):
                return f"HDEL {quoted(bucket)} {quoted(task)}"
        except StoreCorrupt:
            return f"DEL {quoted(bucket)}"
    return f"DEL {quoted(settled)}"


def _is_high_water(stored: bytes | None) -> bool:
    return stored is None or (stored.isdigit() and int(stored) < MAX_TOKEN)
