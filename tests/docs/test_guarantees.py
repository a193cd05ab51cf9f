"""Each promise names tests, and the tests that it names exist."""

from __future__ import annotations

import ast

from .pages import ROOT, rows

GUARANTEES = ROOT / "docs" / "guarantees.md"

PROMISES = rows(GUARANTEES, "## Promises")
ON_BROKERS = rows(GUARANTEES, "## On each broker")
TRAPS = rows(GUARANTEES, "## Traps")


def named_in(cell: str) -> list[str]:
    return [part.strip().strip("`") for part in cell.split("<br>") if part.strip()]


def exists(test: str) -> bool:
    """Whether the source has this file, class and function."""
    path, *names = test.split("::")
    file = ROOT / path
    if not names or not file.is_file():
        return False
    body: list[ast.stmt] = ast.parse(file.read_text()).body
    for name in names:
        found = [node for node in body if getattr(node, "name", None) == name]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def test_all_nine_promises_are_there():
    assert [number for number, *_ in PROMISES] == [str(n) for n in range(1, 10)]


def test_every_promise_is_kept_on_every_broker():
    assert [number for number, *_ in ON_BROKERS] == [str(n) for n in range(1, 10)]


def test_no_promise_is_without_tests():
    every = PROMISES + ON_BROKERS + TRAPS
    cells = [(row[0], cell) for row in every for cell in row[2:]]
    assert [number for number, cell in cells if not named_in(cell)] == []


def test_every_named_test_exists():
    every = PROMISES + ON_BROKERS + TRAPS
    named = [test for row in every for cell in row[2:] for test in named_in(cell)]
    assert [test for test in named if not exists(test)] == []


def test_what_is_looked_for_is_found_only_where_it_is():
    """The check itself: a test that was renamed or moved is missed."""
    here = "tests/docs/test_guarantees.py"
    assert exists(f"{here}::test_all_nine_promises_are_there")
    assert not exists(f"{here}::test_of_another_name")
    assert not exists("tests/docs/test_elsewhere.py::test_all_nine_promises_are_there")
    assert not exists(here)
