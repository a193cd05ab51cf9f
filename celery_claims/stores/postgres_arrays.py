"""Lists as PostgreSQL arrays in its binary form, packed at once.

psycopg's own dumper asks for the type of every element; with the many columns of a batch that is
most of the time of a call.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from psycopg import pq
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper

__all__ = ["Flags", "Numbers", "Texts", "Words", "register"]

#: Type numbers of PostgreSQL: of the array and of its elements.
_BYTEA_ARRAY, _BYTEA = 1001, 17
_BIGINT_ARRAY, _BIGINT = 1016, 20
_BOOLEAN_ARRAY, _BOOLEAN = 1000, 16
_TEXT_ARRAY, _TEXT = 1009, 25

_EMPTY = struct.Struct("!iiI")
_HEADER = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")
_NUMBER = struct.Struct("!iq")
_NULL = _LENGTH.pack(-1)
_TRUE, _FALSE = b"\0\0\0\1\1", b"\0\0\0\1\0"


class Texts(list[bytes]):
    """bytea[]"""


class Words(list[bytes]):
    """text[], in UTF-8"""


class Numbers(list["int | None"]):
    """bigint[]"""


class Flags(list[bool]):
    """boolean[]"""


def _pack(element: int, parts: list[bytes], count: int) -> bytes:
    if not count:
        return _EMPTY.pack(0, 0, element)
    # Dimensions, "may hold NULL", the type, and the one dimension: its length and first index.
    return _HEADER.pack(1, 1, element, count, 1) + b"".join(parts)


class _TextsDumper(Dumper):
    format = pq.Format.BINARY
    oid = _BYTEA_ARRAY

    element = _BYTEA

    def dump(self, obj: Sequence[bytes]) -> bytes:
        parts: list[bytes] = []
        for text in obj:
            parts += (_LENGTH.pack(len(text)), text)
        return _pack(self.element, parts, len(obj))


class _WordsDumper(_TextsDumper):
    oid = _TEXT_ARRAY
    element = _TEXT


class _NumbersDumper(Dumper):
    format = pq.Format.BINARY
    oid = _BIGINT_ARRAY

    def dump(self, obj: Sequence[int | None]) -> bytes:
        parts = [_NULL if number is None else _NUMBER.pack(8, number) for number in obj]
        return _pack(_BIGINT, parts, len(obj))


class _FlagsDumper(Dumper):
    format = pq.Format.BINARY
    oid = _BOOLEAN_ARRAY

    def dump(self, obj: Sequence[bool]) -> bytes:
        return _pack(_BOOLEAN, [_TRUE if flag else _FALSE for flag in obj], len(obj))


def register(context: AdaptContext) -> None:
    """Let a connection take the types of this module as parameters."""
    adapters: Any = context.adapters
    adapters.register_dumper(Texts, _TextsDumper)
    adapters.register_dumper(Words, _WordsDumper)
    adapters.register_dumper(Numbers, _NumbersDumper)
    adapters.register_dumper(Flags, _FlagsDumper)
