"""How a record is written in Redis: the client's half of ``lua/record.lua``."""

from __future__ import annotations

import hashlib
import re
import struct
from binascii import crc32
from functools import lru_cache
from typing import Any

from ..protocol import Attempt, ClaimRequest, ClaimToken, Delivery, Record, State
from .base import FORGOTTEN
from .packing import OUTCOMES, pack_text, state_of, unpack_text
from .reading import check_record

__all__ = [
    "Shard",
    "as_record",
    "is_new",
    "pack_request",
    "recalled",
    "rows_of",
    "shard_of",
]

_TWO = struct.Struct(">2q")
_ONE = struct.Struct(">q")

_MAX_TINY, _MAX_SHORT, _MAX_SMALL_NUMBER = 31, 255, 127


class Shard:
    """The records of a queue, or of one slot of it.

    Parameters:
        prefix: of every key.
        tag: what stands in braces, for Redis Cluster keeps the keys of one tag together.
    """

    __slots__ = ("base", "fixed", "name")

    def __init__(self, prefix: bytes, tag: bytes) -> None:
        self.name = tag
        self.base = b"%b{%b}" % (prefix, tag)
        self.fixed = [self.base, self.base + b".c", self.base + b".e"]

    def key(self, task: bytes) -> bytes:
        return b"%b:%b" % (self.base, task)

    @property
    def levels(self) -> bytes:
        """The key that names the levels of finished records."""
        return self.base + b".f"

    def buckets(self, task: bytes, levels: bytes) -> list[bytes]:
        """Where a finished record of a task may be: what ``bucket_of`` in ``record.lua`` makes.

        Parameters:
            levels: what the key of that name holds.
        """
        spread = int(hashlib.sha1(task, usedforsecurity=False).hexdigest()[:7], 16)
        numbers = [int(number) for number in re.findall(rb"(\d{1,2}):\d+", levels)]
        return [b"%b:%d:%d" % (self.levels, n, spread % (1 << n)) for n in numbers]

    @property
    def queue(self) -> str:
        escaped = self.name.partition(b"#")[0]
        for character, escape in reversed(_ESCAPES):
            escaped = escaped.replace(escape, character)
        return escaped.decode("utf-8", "surrogatepass")


#: A brace would end the tag; the number sign begins the slot; the first is undone last.
_ESCAPES = ((b"%", b"%25"), (b"}", b"%7D"), (b"#", b"%23"))


@lru_cache(maxsize=4096)
def shard_of(prefix: bytes, queue: str, slot: int | None) -> Shard:
    """The shard of a queue, or of one of its slots."""
    tag = queue.encode("utf-8", "surrogatepass")
    for character, escape in _ESCAPES:
        tag = tag.replace(character, escape)
    return Shard(prefix, tag if slot is None else b"%b#%d" % (tag, slot))


def slot_of(task: bytes, slots: int) -> int | None:
    """Which of the slots of its queue a task is in, None if the queue has but one."""
    return crc32(task) % slots if slots > 1 else None


def pack_request(request: ClaimRequest) -> list[bytes]:
    """The argument of a task in ``claim.lua``."""
    return [_TWO.pack(request.lease_ms, request.max_deliveries) + pack_grant(request)]


def pack_grant(grant: ClaimRequest | ClaimToken) -> bytes:
    """What a record of it holds that it knows itself, from nesting on."""
    delivery = grant.delivery
    root = grant.root_id
    return b"".join(
        (
            _counts(*grant.attempt, grant.deaths),
            _length_and(b"" if root == grant.task_id else pack_text(root)),
            _length_and(pack_text(grant.grant_id)),
            _place(grant.owner, delivery.task, delivery.queue, delivery.priority),
            _length_and(pack_text(delivery.tag)),
        )
    )


def recalled(token: ClaimToken) -> bytes:
    """The argument from which a script makes a record anew that the store forgot."""
    return _ONE.pack(token.created_at) + pack_grant(token)


def is_new(reply: bytes) -> bool:
    """Whether the shard had no high-water before a script answered so."""
    return bool(_TWO.unpack_from(reply)[1])


def rows_of(reply: bytes, form: struct.Struct, count: int) -> list[tuple[Any, ...]]:
    """What a script answered of so many tasks: of each the clock, its numbers and its text.

    Parameters:
        form: of the numbers, the length of the text first.
    """
    (now,) = _ONE.unpack_from(reply)
    first, begin = _TWO.size, _TWO.size + form.size * count
    rows = []
    for length, *numbers in form.iter_unpack(reply[first:begin]):
        rows.append((now, *numbers, reply[begin : begin + length]))
        begin += length
    return rows


def as_record(queue: str, task_id: str, packed: bytes, expires_at: int) -> Record:
    """The record that was packed.

    Parameters:
        expires_at: of a claimed record, which does not have it itself.
    Raises:
        ValueError: this is not a record.
    """
    values = _Values(packed)
    code, token, runs, drift, nesting, retries, deaths = values.numbers(7)
    if not 0 <= code < len(OUTCOMES):
        raise ValueError(f"no outcome has the code {code}")
    root = values.text() or task_id
    outcome, born = OUTCOMES[code], token // 1000
    state = state_of(outcome)
    settled_at = forget_at = 0
    owner = grant_id = FORGOTTEN
    delivery = Delivery()
    if state is not State.CLAIMED:
        lag, keep = values.numbers(2)
        settled_at, forget_at, expires_at = born + lag, born + lag + keep, 0
    if state is State.FREE:
        expires_at = born + values.number()
    if state is not State.FINISHED:
        grant_id, owner = values.text(), values.text()
        task, from_queue, priority = values.text(), values.text(), values.priority()
        delivery = Delivery(task, values.text(), from_queue, priority)
    values.end()
    record = Record(
        queue=queue,
        task_id=task_id,
        owner=owner,
        grant_id=grant_id,
        token=token,
        root_id=root,
        attempt=Attempt(nesting, retries),
        deaths=deaths,
        claimed_at=born + drift,
        expires_at=expires_at,
        started=bool(runs % 2),
        deliveries=runs // 2,
        state=state,
        outcome=outcome,
        settled_at=settled_at,
        forget_at=forget_at,
        delivery=delivery,
    )
    return check_record(record)


# What few claims differ in is packed once.


@lru_cache(maxsize=1024)
def _counts(*values: int) -> bytes:
    return b"".join(map(_number, values))


@lru_cache(maxsize=1024)
def _place(owner: str, task: str, queue: str, priority: int | None) -> bytes:
    texts = (_length_and(pack_text(text)) for text in (owner, task, queue))
    return b"".join((*texts, _number(priority)))


def _length_and(raw: bytes) -> bytes:
    """A string of MessagePack."""
    length = len(raw)
    if length <= _MAX_TINY:
        return b"%c%b" % (0xA0 | length, raw)
    if length <= _MAX_SHORT:
        return b"\xd9%c%b" % (length, raw)
    return b"\xda" + length.to_bytes(2, "big") + raw


def _number(value: int | None) -> bytes:
    """A number of MessagePack, or nothing."""
    if value is None:
        return b"\xc0"
    if 0 <= value <= _MAX_SMALL_NUMBER:
        return b"%c" % value
    return b"\xd3" + value.to_bytes(8, "big", signed=True)


#: MessagePack's first byte -> of a whole number its (bytes, signed), of a text its length's bytes
_NUMBERS = {
    0xCC: (1, False),
    0xCD: (2, False),
    0xCE: (4, False),
    0xCF: (8, False),
    0xD0: (1, True),
    0xD1: (2, True),
    0xD2: (4, True),
    0xD3: (8, True),
}
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_NOTHING = 0xC0
_FIRST_TEXT, _LAST_TEXT, _FIRST_NEGATIVE = 0xA0, 0xBF, 0xE0


class _Values:
    """Reads a row of MessagePack values, as far as records have them."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._at = 0

    def number(self) -> int:
        first = self._take(1)[0]
        if first <= _MAX_SMALL_NUMBER:
            return first
        if first >= _FIRST_NEGATIVE:
            return first - 256
        if first not in _NUMBERS:
            raise ValueError(f"expected a number at byte {self._at - 1}")
        size, signed = _NUMBERS[first]
        return int.from_bytes(self._take(size), "big", signed=signed)

    def numbers(self, count: int) -> list[int]:
        return [self.number() for _ in range(count)]

    def text(self) -> str:
        first = self._take(1)[0]
        if _FIRST_TEXT <= first <= _LAST_TEXT:
            length = first - _FIRST_TEXT
        elif first in _TEXTS:
            length = int.from_bytes(self._take(_TEXTS[first]), "big")
        else:
            raise ValueError(f"expected a text at byte {self._at - 1}")
        return unpack_text(self._take(length))

    def priority(self) -> int | None:
        if self._packed[self._at : self._at + 1] == b"%c" % _NOTHING:
            self._at += 1
            return None
        return self.number()

    def end(self) -> None:
        if self._at != len(self._packed):
            raise ValueError(f"{len(self._packed) - self._at} bytes too many")

    def _take(self, size: int) -> bytes:
        taken = self._packed[self._at : self._at + size]
        if len(taken) != size:
            raise ValueError("it ends too early")
        self._at += size
        return taken
