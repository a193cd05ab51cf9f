"""For authors of stores, and for tests of code that uses claims. Needs no pytest to import.

A store passes if this does::

    class TestMyStore(StoreConformance):
        def make_harness(self) -> Harness:
            return MyHarness()

    TestMyStoreAgainstTheModel = store_machine(MyHarness).TestCase
"""

from __future__ import annotations

from .clock import FakeClock
from .conformance import StoreConformance
from .harness import Harness
from .machine import store_machine

__all__ = ["FakeClock", "Harness", "StoreConformance", "store_machine"]
