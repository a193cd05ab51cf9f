"""The model of the protocol, exhaustively: it keeps every promise, and with a bug it does not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).parent / "model" / "claims.pml"

#: Workers, and how often each thing may go wrong.
BOUNDS = ((2, 1, 1, 1, 1), (2, 3, 0, 1, 0), (3, 1, 1, 1, 0))

#: A bug, the promise that it breaks, and how often a worker must die for that.
BUGS = (
    ("EXCLUSIVE", 1, 2), ("TOKENS", 2, 2), ("FENCE", 2, 2), ("RENEW", 3, 2), ("FINISHED", 4, 2),
    ("LOST", 5, 2), ("START", 7, 2), ("TOLD", 7, 2), ("POISON", 8, 4), ("RETRY", 9, 2),
)  # fmt: skip


def search(folder: Path, defines: dict[str, int], *, for_ever: bool = False) -> str:
    """What spin says of the model: of its assertions, or of what must happen at last."""
    for program in ("spin", "gcc"):
        if shutil.which(program) is None:
            if os.environ.get("CI"):
                pytest.fail(f"{program} is missing: make servers installs it")
            pytest.skip(f"{program} is not installed: make servers")
    switches = [f"-D{name}={value}" for name, value in defines.items()]
    kind = ["-DNFAIR=6"] if for_ever else ["-DSAFETY", "-DNOCLAIM"]
    how = ["-a", "-f", "-N", "back", "-m100000"] if for_ever else ["-E", "-m3000"]
    # Compiling takes longer than the search does, most of all where a bug ends it.
    level = "-O0" if any(name.startswith("BUG_") for name in defines) else "-O1"
    compiler = ["gcc", level, "-w", "-DMEMLIM=600", *kind, "-o", "pan", "pan.c"]
    for command in (["spin", *switches, "-a", str(MODEL)], compiler):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=100)
    found = subprocess.run(
        ["./pan", *how], cwd=folder, check=False, capture_output=True, text=True, timeout=100
    )
    return found.stdout


def bounded(workers: int, crashes: int, pauses: int, copies: int, handbacks: int) -> dict[str, int]:
    return {
        "WORKERS": workers,
        "CRASHES": crashes,
        "PAUSES": pauses,
        "COPIES": copies,
        "HANDBACKS": handbacks,
    }


@pytest.mark.parametrize("bounds", BOUNDS)
def test_no_step_breaks_a_promise(tmp_path: Path, bounds: tuple[int, ...]) -> None:
    said = search(tmp_path, bounded(*bounds))
    assert "errors: 0" in said, said
    assert "not completed" not in said and "too small" not in said, said


def test_all_that_was_published_ends_at_last(tmp_path: Path) -> None:
    said = search(tmp_path, bounded(2, 1, 1, 1, 0), for_ever=True)
    assert "errors: 0" in said, said
    assert "not completed" not in said and "too small" not in said, said


@pytest.mark.parametrize(("bug", "number", "crashes"), BUGS)
def test_a_bug_breaks_its_promise(tmp_path: Path, bug: str, number: int, crashes: int) -> None:
    copies = 0 if bug == "POISON" else 1
    defines = {**bounded(2, crashes, 1, copies, 1), f"BUG_{bug}": 1, "ONLY": number}
    assert "assertion violated" in search(tmp_path, defines)


def test_an_expired_claim_that_nobody_may_take_over_is_stuck(tmp_path: Path) -> None:
    said = search(tmp_path, {**bounded(2, 1, 1, 0, 0), "BUG_STUCK": 1}, for_ever=True)
    assert "acceptance cycle" in said
