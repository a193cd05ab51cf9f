"""Lists as PostgreSQL arrays in its binary form, packed at once.

psycopg's own dumper asks for the type of every element; with the many columns of a batch that is
most of the time of a call. Of a batch of one the elements are sent, which psycopg packs in C.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg import pq
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.types.numeric import Int8BinaryDumper

__all__ = ["Flags", "Keys", "Numbers", "Texts", "of_one", "only", "register"]

#: A list among the parameters of a statement.
_LIST = re.compile(rb"%\((\w+)\)b::(\w+)\[\]")

#: Type numbers of PostgreSQL: of the array and of its elements.
_BYTEA_ARRAY, _BYTEA = 1001, 17
_BIGINT_ARRAY, _BIGINT = 1016, 20
_BOOLEAN_ARRAY, _BOOLEAN = 1000, 16
_UUID_ARRAY, _UUID = 2951, 2950

_EMPTY = struct.Struct("!iiI")
_HEADER = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")
_NUMBER = struct.Struct("!iq")
_NULL, _KEY_LENGTH = _LENGTH.pack(-1), _LENGTH.pack(16)
_TRUE, _FALSE = b"\0\0\0\1\1", b"\0\0\0\1\0"


class Keys(list[bytes]):
    """uuid[], of sixteen bytes each"""


class Texts(list["bytes | None"]):
    """bytea[]"""


class Numbers(list["int | None"]):
    """bigint[]"""


class Flags(list[bool]):
    """boolean[]"""


def _pack(element: int, parts: list[bytes], count: int) -> bytes:
    if not count:
        return _EMPTY.pack(0, 0, element)
    # Dimensions, "may hold NULL", the type, and the one dimension: its length and first index.
    return _HEADER.pack(1, 1, element, count, 1) + b"".join(parts)


class _KeysDumper(Dumper):
    format = pq.Format.BINARY
    oid = _UUID_ARRAY

    def dump(self, obj: Sequence[bytes]) -> bytes:
        return _pack(_UUID, [_KEY_LENGTH + key for key in obj], len(obj))


class _TextsDumper(Dumper):
    format = pq.Format.BINARY
    oid = _BYTEA_ARRAY

    def dump(self, obj: Sequence[bytes | None]) -> bytes:
        parts: list[bytes] = []
        for text in obj:
            parts += (_NULL,) if text is None else (_LENGTH.pack(len(text)), text)
        return _pack(_BYTEA, parts, len(obj))


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


def of_one(statement: bytes) -> bytes:
    """The statement of a batch for a batch of one: with what ``only`` makes of its parameters."""
    return _LIST.sub(rb"ARRAY[%(\1)b::\2]", statement)


def only(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The elements of lists that have one each; a list that is left out is one without a value."""
    single = {
        name: value[0] if isinstance(value, list) else value for name, value in parameters.items()
    }
    single["keys"] = UUID(bytes=single["keys"])
    return single


def register(context: AdaptContext) -> None:
    """Let a connection take the types of this module as parameters."""
    adapters: Any = context.adapters
    adapters.register_dumper(Keys, _KeysDumper)
    adapters.register_dumper(Texts, _TextsDumper)
    adapters.register_dumper(Numbers, _NumbersDumper)
    adapters.register_dumper(Flags, _FlagsDumper)
    # Whatever a number is: else a statement is prepared anew for each size of each of them.
    adapters.register_dumper(int, Int8BinaryDumper)
