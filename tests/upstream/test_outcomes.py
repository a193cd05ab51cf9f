"""What a comparison with Celery's own tests would say; the comparison takes half an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from .outcomes import Outcomes, read, worse

REPORT = """<?xml version="1.0"?>
<testsuites><testsuite>
  <testcase classname="t.integration.test_tasks" name="test_one"/>
  <testcase classname="t.integration.test_tasks" name="test_two"><failure>no</failure></testcase>
  <testcase classname="t.integration.test_tasks" name="test_three"><error>no</error></testcase>
  <testcase classname="t.integration.test_tasks" name="test_four"><skipped/></testcase>
  <testcase classname="t.integration.test_tasks" name="test_two"/>
</testsuite></testsuites>
"""
HERE = "t.integration.test_tasks::test_"


def outcomes(passed: str, failed: str = "", skipped: str = "") -> Outcomes:
    return Outcomes(*(frozenset(tests.split()) for tests in (passed, failed, skipped)))


def test_a_report_is_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    found = read(report)
    assert found.passed == {f"{HERE}one"}
    assert found.failed == {f"{HERE}two", f"{HERE}three"}
    assert found.skipped == {f"{HERE}four"}
    assert str(found) == "1 passed, 2 failed, 1 skipped"


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        (outcomes("a b", "c"), []),
        (outcomes("a", "b c"), ["b"]),
        (outcomes("a", "c", "b"), ["b"]),
        (outcomes("a b c"), []),
    ],
    ids=["the same", "one fails", "one is left out", "one more passes"],
)
def test_only_what_passes_without_claims_must_pass_with_them(
    claimed: Outcomes, expected: list[str]
) -> None:
    assert worse(outcomes("a b", "c"), claimed) == expected
