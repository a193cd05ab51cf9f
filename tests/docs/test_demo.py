"""The demo, with its real workers: without claims things go wrong, with claims they do not."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from .pages import ROOT, environment

DEMO = ROOT / "examples" / "quickstart" / "demo.py"

#: Seconds; the two stories take about a quarter of it on an idle machine.
PATIENCE = 110

VERDICT = re.compile(
    r"^  (with(?:out)? claims): +runs (\d+), finished (\d+), overlaps (\d+), lost (\d+) -> (.*)$",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def demo():
    """The demo as a module, for its judge."""
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo"]


def test_two_stories_end_right():
    """The kill and the three copies; ``make demo`` also has the long task, and the same code."""
    ran = subprocess.run(
        [sys.executable, str(DEMO), "--only", "copies", "--only", "kill"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    verdicts = VERDICT.findall(ran.stdout)
    with_claims = [verdict[1:] for verdict in verdicts if verdict[0] == "with claims"]
    assert with_claims == [("1", "1", "0", "0", "right"), ("2", "1", "0", "0", "right")]
    without = {verdict[5] for verdict in verdicts if verdict[0] == "without claims"}
    assert without <= {"wrong, as expected", "problem not reproduced"}


def test_the_half_without_claims_is_the_same_file_less_four_lines(demo):
    with_claims = demo.app_source(claims=True).splitlines()
    without = demo.app_source(claims=False).splitlines()
    assert [line for line in with_claims if line not in without] == [
        "from celery_claims import claimed, current_claim, install",
        *[line for line in with_claims if line.startswith("install(app")],
        "@claimed",
        '    run["token"] = current_claim().token',
    ]
    assert [line for line in without if line not in with_claims] == []


def journal(*kinds_and_pids):
    return [{"event": kind, "pid": pid} for kind, pid in kinds_and_pids]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], (0, 0, 0, 1)),
        ([("start", 1), ("end", 1)], (1, 1, 0, 0)),
        ([("start", 1), ("end", 1), ("start", 1), ("end", 1)], (2, 2, 0, 0)),
        ([("start", 1), ("start", 2), ("end", 1), ("end", 2)], (2, 2, 1, 0)),
        ([("start", 1), ("killed", 1), ("start", 2), ("end", 2)], (2, 1, 0, 0)),
        ([("start", 1), ("killed", 1)], (1, 0, 0, 1)),
    ],
    ids=["nothing", "one run", "twice in turn", "at once", "taken over", "lost"],
)
def test_the_judge(demo, events, expected):
    """The verdict is only as good as the count of runs, ends, overlaps and losses."""
    it = demo.tally(journal(*events))
    assert (it.runs, it.finished, it.overlaps, it.lost) == expected
    assert it.right is (expected[1:] == (1, 0, 0))
