"""The package is typed for those who use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_public_api_is_typed() -> None:
    """``tests/typing/api.py`` under strict rules: right uses pass, and wrong ones are found.

    An ignored error that does not occur is an error too.
    """
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "tests/typing/api.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
