"""Every rule of the protocol and of the store contract, against any store."""

from __future__ import annotations

from .batching import ArgumentRules, BatchRules, KeyRules, RaceRules
from .claiming import AnswerRules, DeliveryRules, TokenRules
from .holding import FencingRules, RenewRules, SettleRules
from .reading import ReadingRules
from .sweeping import CleanupRules, ElectRules, ScanRules

__all__ = ["StoreConformance"]


class StoreConformance(
    AnswerRules,
    TokenRules,
    DeliveryRules,
    RenewRules,
    SettleRules,
    FencingRules,
    CleanupRules,
    ScanRules,
    ReadingRules,
    ElectRules,
    BatchRules,
    KeyRules,
    ArgumentRules,
    RaceRules,
):
    """Derive from it, override ``make_harness``, and run it with pytest.

    A rule is a ``test_`` method and named after what it holds; one that a harness cannot show
    (a clock that cannot step back, data that cannot be lost) is skipped.
    """
