"""A clock that tests move."""

from __future__ import annotations

__all__ = ["FakeClock"]

#: A moment with microseconds that do not round, in the range of real clocks.
BEGINNING_US = 1_700_000_000_123_456


class FakeClock:
    """Microseconds since the epoch; stands still until ``advance``.

    Parameters:
        now_us: where it begins.
    """

    def __init__(self, now_us: int = BEGINNING_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def advance(self, ms: int) -> None:
        """Move by milliseconds; back if negative."""
        self.now_us += ms * 1000
