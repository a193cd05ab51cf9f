"""What a run of pytest came to, by test."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Outcomes", "read", "worse"]


@dataclass(frozen=True)
class Outcomes:
    """The tests of a run by how they ended."""

    passed: frozenset[str]
    failed: frozenset[str]
    skipped: frozenset[str]

    def __str__(self) -> str:
        return f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"


def read(report: Path) -> Outcomes:
    """From JUnit's XML. A test that failed in one of its parts has failed."""
    passed, failed, skipped = set(), set(), set()
    for case in ET.parse(report).iter("testcase"):
        test = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(test)
        elif case.find("skipped") is not None:
            skipped.add(test)
        else:
            passed.add(test)
    return Outcomes(frozenset(passed - failed), frozenset(failed), frozenset(skipped - failed))


def worse(bare: Outcomes, claimed: Outcomes) -> list[str]:
    """What fails with claims, or is not run, though it passes without."""
    return sorted(bare.passed - claimed.passed)
