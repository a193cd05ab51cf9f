"""The pages of the documentation, and the parts of them that tests look at."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["PAGES", "ROOT", "Block", "blocks", "environment", "page_name", "rows"]

ROOT = Path(__file__).parents[2]

PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "examples").glob("*/README.md"),
        *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
    ]
)

_BLOCK = re.compile(r"^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block.

    Parameters:
        language: what stands after the fence.
        text: its lines.
        line: the number of its first line in the page.
    """

    language: str
    text: str
    line: int


def page_name(page: Path) -> str:
    """A page in test ids and messages."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, in some languages or in all."""
    source = page.read_text()
    found = [
        Block(match["language"], match["text"], source.count("\n", 0, match.start("text")) + 1)
        for match in _BLOCK.finditer(source)
    ]
    return [block for block in found if not languages or block.language in languages]


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = page.read_text().partition(f"\n{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table, f"{page_name(page)} has no table below {heading!r}"
    lines = table.group().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def environment() -> dict[str, str]:
    """For a process that runs what a page shows: this checkout, no other quick start."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("QUICKSTART")}
    return inherited | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
