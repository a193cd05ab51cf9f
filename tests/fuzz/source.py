"""Values from bytes that a fuzzer chose: the same bytes give the same values, with any fuzzer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeVar

__all__ = ["Source"]

T = TypeVar("T")


class Source:
    """Takes bytes from the front; where there are none left, it goes on with zeros."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def raw(self, size: int) -> bytes:
        """So many bytes, or what is left."""
        taken = self._raw[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.raw(len(self._raw))

    def whole(self, least: int, most: int) -> int:
        """A number from a range; of a small one it takes one byte."""
        size = ((most - least).bit_length() + 7) // 8
        return least + int.from_bytes(self.raw(size), "big") % (most - least + 1)

    def flag(self) -> bool:
        return bool(self.whole(0, 1))

    def number(self, size: int) -> int:
        """A number of up to so many bytes."""
        return int.from_bytes(self.raw(self.whole(0, size)), "big", signed=True)

    def real(self) -> float:
        """Also one that is no number, or infinite."""
        (found,) = struct.unpack(">d", self.raw(8).ljust(8, b"\0"))
        return float(found)

    def text(self, most: int) -> str:
        """Up to so many characters, lone surrogates among them."""
        count = self.whole(0, most)
        if self.flag():
            return self.raw(count).decode("latin-1")
        taken = self.raw(2 * count)
        return taken[: len(taken) // 2 * 2].decode("utf-16-le", "replace" if count % 2 else _PASS)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.whole(0, len(items) - 1)]

    def value(self, depth: int = 2) -> Any:
        """Anything that JSON has."""
        kind = self.whole(0, 7 if depth else 5)
        if kind == 0:
            return None
        if kind == 1:
            return self.flag()
        if kind == 2:
            return self.number(9)
        if kind == 3:
            return self.real()
        if kind in (4, 5):
            return self.text(12)
        several = range(self.whole(0, 3))
        if kind == 6:
            return [self.value(depth - 1) for _ in several]
        return {self.text(4): self.value(depth - 1) for _ in several}

    def fields(self, names: Sequence[str]) -> dict[str, Any]:
        """Some of these, with anything in them."""
        return {self.pick(names): self.value() for _ in range(self.whole(0, 4))}


_PASS = "surrogatepass"
