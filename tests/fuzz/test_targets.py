"""Each target of the fuzzer for a moment, so that it goes on working."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.process.container import ROOT

from .source import Source
from .targets import TARGETS

HAS_FUZZER = importlib.util.find_spec("atheris") is not None


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_any_bytes(name: str) -> None:
    """From the fuzzer where there is one, else from hypothesis."""
    if HAS_FUZZER:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", name, "-runs=200", "-verbosity=0"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(raw=st.binary(max_size=200))
    @example(raw=b"")
    def check(raw: bytes) -> None:
        TARGETS[name](raw)

    check()


def test_make_fuzz_runs_every_target() -> None:
    (names,) = re.findall(r"for target in ([^;]+); do", (ROOT / "Makefile").read_text())
    assert sorted(names.replace("\\", "").split()) == sorted(TARGETS)


@given(raw=st.binary(max_size=100))
def test_the_same_bytes_give_the_same_values_and_end(raw: bytes) -> None:
    one, other = Source(raw), Source(raw)
    assert repr(one.value(4)) == repr(other.value(4))
    assert one.rest() == other.rest()
    assert (one.rest(), one.text(9), one.number(8), one.flag()) == (b"", "", 0, False)
