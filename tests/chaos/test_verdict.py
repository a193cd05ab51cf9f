"""A verdict finds what must not be, and tells it from what a fault explains."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.process.journal import Run

from . import faults as faults_module
from .__main__ import ROWS, as_json, table
from .faults import Faults
from .ledger import Write
from .load import Sent
from .run import Outcome
from .verdict import Verdict, judge
from .world import Happening

LEASE = 4.0


def ran(began: float, ended: float | None, event: str | None = "finish", **given: int) -> Run:
    facts = {"pid": 1, "token": 7, "retries": 0, **given}
    return Run(task_id="a", started=began, ended=ended, event=event, **facts)


def judged(
    *runs: Run,
    faults: tuple[Happening, ...] = (),
    writes: tuple[Write, ...] = (),
    sure: bool = True,
    dropped: Mapping[str, int] | None = None,
    late: tuple[str, ...] = (),
    seen: tuple[str, ...] | None = None,
    unclaimed: Mapping[str, int] | None = None,
) -> Verdict:
    sent = [Sent("short", ("a",), sure=sure)]
    return judge(sent, runs, writes, faults, LEASE, dropped or {}, late, seen, unclaimed)


def killed(pid: int, at: float) -> Happening:
    return Happening("kill a worker", at, at, frozenset({pid}))


def test_one_run_is_as_it_should_be() -> None:
    verdict = judged(ran(1, 2))
    assert (verdict.sent, verdict.finished, verdict.violations) == (1, 1, [])


def test_a_task_that_a_worker_saw_and_that_never_ended_is_lost() -> None:
    verdict = judged(ran(1, 2, "died"), faults=(killed(1, 2),))
    assert verdict.lost == 1
    assert "short never finished" in verdict.violations[0]


def test_a_task_that_no_worker_saw_is_lost() -> None:
    """It may still be queued, or nobody asks for it: that is no fault of the broker's."""
    verdict = judged()
    assert (verdict.swallowed, verdict.lost) == (0, 1)
    assert "short never finished" in verdict.violations[0]


def test_a_hundred_tasks_that_nobody_consumed_are_lost() -> None:
    sent = [Sent("short", (str(number),), sure=True) for number in range(100)]
    verdict = judge(sent, (), (), (), LEASE, {})
    assert (verdict.swallowed, verdict.lost, len(verdict.violations)) == (0, 100, 100)


def test_a_task_that_the_broker_gave_away_and_forgot_is_the_brokers() -> None:
    verdict = judged(dropped={"a": 0})
    assert (verdict.swallowed, verdict.lost, verdict.violations) == (1, 0, [])
    assert verdict.swallowed_retries == 0


def test_a_task_that_was_put_back_and_then_dropped_is_the_brokers() -> None:
    """A worker saw it and died; what a broker's trace ends with tells what came after."""
    verdict = judged(ran(1, 2, "died"), faults=(killed(1, 2),), dropped={"a": 0})
    assert (verdict.swallowed, verdict.lost, verdict.violations) == (1, 0, [])


@pytest.mark.parametrize("dropped", [{}, {"a": 0}])
def test_a_retry_that_no_worker_saw_is_lost(dropped: Mapping[str, int]) -> None:
    """Also if it was the attempt before that the broker dropped: then the next was not sent."""
    verdict = judged(ran(1, 2, "Retry"), dropped=dropped)
    assert (verdict.swallowed, verdict.lost, len(verdict.violations)) == (0, 1, 1)


def test_a_retry_that_the_broker_gave_away_and_forgot_is_the_brokers() -> None:
    verdict = judged(ran(1, 2, "Retry"), dropped={"a": 1})
    assert (verdict.swallowed, verdict.swallowed_retries, verdict.violations) == (1, 1, [])


def test_without_claims_what_no_worker_saw_counts_as_never_delivered() -> None:
    """The id alone is no sign of a retry: the attempt before has the same."""
    assert judged(seen=()).swallowed == 1
    retried = judged(ran(1, 2, "Retry"), seen=("a",))
    assert (retried.swallowed, retried.swallowed_retries) == (1, 1)
    assert judged(ran(1, 2, "Retry"), seen=("a", "a attempt 1")).lost == 1


@pytest.mark.parametrize(("attempt", "lost"), [(0, 1), (1, 0)])
def test_a_message_that_nobody_claimed_is_not_lost_while_the_broker_has_it(
    attempt: int, lost: int
) -> None:
    """Of the attempt that is missing: an earlier one says nothing of it."""
    verdict = judged(ran(1, 2, "Retry"), unclaimed={"a": attempt})
    assert (verdict.unclaimed, verdict.lost) == (1 - lost, lost)
    assert len(verdict.violations) == lost


@pytest.mark.parametrize(("began", "ended", "lost"), [(1.5, 1.7, 0), (2.1, 3.0, 1), (0.1, 0.9, 1)])
def test_a_retry_that_could_not_be_sent_is_ended_by_celery(
    began: float, ended: float, lost: int
) -> None:
    """Only while the broker had a fault: else somebody rejected the message without reason."""
    silent = Happening("silence the broker", began, ended)
    verdict = judged(ran(1, 2, "Reject"), faults=(silent,))
    assert (verdict.unsent, verdict.lost) == (1 - lost, lost)
    assert len(verdict.violations) == lost


@pytest.mark.parametrize(
    ("header", "ways", "unsent"),
    [
        ([ran(1, 2), ran(9, 9.1, pid=2)], {}, True),
        ([ran(1, 2, "died"), ran(9, 9.1, pid=2)], {}, False),
        ([ran(1, 2)], {}, False),
        ([ran(1, 2), ran(9, 9.1, pid=2)], {"b": ["pushed"]}, False),
    ],
    ids=["killed at its end", "killed before", "not killed", "the body was sent"],
)
def test_a_chords_body_that_celery_never_sent_is_no_loss_of_the_claims(
    header: list[Run], ways: Mapping[str, list[str]], *, unsent: bool
) -> None:
    """Only where the run that was to send it died after its own end."""
    sent = [Sent("chord", ("a", "b"), sure=True)]
    verdict = judge(sent, header, (), (killed(1, 2.5),), LEASE, {}, ways=ways)
    assert (verdict.unsent, verdict.lost) == (int(unsent), int(not unsent))


def test_what_ended_after_the_wait_for_it_is_a_violation() -> None:
    verdict = judged(ran(1, 2), late=("a",))
    assert (verdict.finished, verdict.lost) == (1, 0)
    assert "short ended too late" in verdict.violations[0]


def test_what_may_not_have_been_sent_is_not_missed() -> None:
    verdict = judged(sure=False)
    assert (verdict.sent, verdict.lost, verdict.violations) == (0, 0, [])


def test_a_second_run_after_a_kill_is_explained() -> None:
    verdict = judged(ran(1, 2, "died"), ran(6, 7, pid=2), faults=(killed(1, 2),))
    assert verdict.repeated == {"killed": 1}
    assert verdict.violations == []


def test_a_second_run_after_the_end_is_a_violation() -> None:
    verdict = judged(ran(1, 2), ran(20, 21, pid=2))
    assert verdict.repeated == {"it had ended": 1}
    assert "ran again: it had ended" in verdict.violations[0]


def test_the_next_attempt_is_no_second_run() -> None:
    verdict = judged(ran(1, 2, "Retry"), ran(3, 4, retries=1))
    assert (verdict.repeated, verdict.violations) == ({}, [])


def test_a_death_right_after_the_body_explains_another_run() -> None:
    verdict = judged(ran(1, 2), ran(9, 10, pid=2), faults=(killed(1, 2.1),))
    assert verdict.repeated == {"killed or cut off before its end was recorded": 1}
    assert verdict.violations == []


@pytest.mark.parametrize("event", ["ClaimLost", "SystemExit", None])
def test_a_second_run_after_a_loss_or_an_unknown_end_needs_a_fault(event: str | None) -> None:
    again = ran(20, 21, pid=2)
    verdict = judged(ran(10, 12 if event else None, event), again)
    assert "ran again: " in verdict.violations[0]
    fault = Happening("freeze a worker", 10.5, 11.9, frozenset({1}))
    assert judged(ran(10, 12, event or "died"), again, faults=(fault,)).violations == []


@pytest.mark.parametrize(("ended", "explained"), [(9.5, True), (4.0, False)])
def test_a_claim_may_be_lost_to_a_fault_before_the_body(ended: float, explained: bool) -> None:
    """Its first line is not where its lease began."""
    fault = Happening("silence the store", ended - 3, ended)
    verdict = judged(ran(10, 12, "ClaimLost"), ran(20, 21, pid=2), faults=(fault,))
    assert (verdict.violations == []) is explained


@pytest.mark.parametrize(
    ("fault", "explained"),
    [
        (Happening("freeze a worker", 1.5, 8, frozenset({1})), True),
        (Happening("freeze a worker", 1.5, 8, frozenset({9})), False),
        (Happening("silence the store", 1.5, 6), True),
        (Happening("cut the store", 1.5, 1.6), False),
        (Happening("silence the broker", 1.5, 6), False),
    ],
)
def test_only_what_can_take_a_lease_explains_two_runs_at_once(
    fault: Happening, explained: bool
) -> None:
    verdict = judged(ran(1, 9), ran(7, 8, pid=2), faults=(fault,))
    assert verdict.overlaps == {fault.what if explained else "nothing": 1}
    assert bool(verdict.violations) is not explained


def test_a_stale_write_is_a_violation_only_if_it_was_taken() -> None:
    newer, older = Write("a", 8, 5.0, True), Write("a", 7, 1.0, False)
    runs = (ran(1, 9, "died"), ran(5, 6, pid=2))
    faults = (killed(1, 9),)
    refused = judged(*runs, faults=faults, writes=(newer, older))
    assert (refused.stale_tried, refused.stale_refused, refused.stale_accepted) == (1, 1, 0)
    taken = judged(*runs, faults=faults, writes=(newer, Write("a", 7, 1.0, True)))
    assert taken.stale_accepted == 1
    assert any("a stale write was taken" in each for each in taken.violations)


def test_a_comparison_has_a_column_for_each_and_nothing_in_the_wrong_one() -> None:
    """A reason that only one run has counts nothing in the others."""
    one = judged(ran(1, 2, "died"), ran(6, 7, pid=2), faults=(killed(1, 2),))
    other = judged(ran(1, 9), ran(2, 8, pid=2))
    faults = {"kill a worker": 2, "kill a child": 1, "freeze a worker": 4}
    found = {
        "claims": as_json(Outcome(one, faults, {})),
        "bare": as_json(Outcome(other, {}, {})),
    }
    shown = table(found)
    columns = [list(column.cells) for column in shown.columns]
    assert [str(column.header) for column in shown.columns] == ["", "claims", "bare"]
    rows = {name: (mine, theirs) for name, mine, theirs in zip(*columns, strict=True)}
    assert rows[ROWS["sent"]] == rows[ROWS["finished"]] == ("1", "1")
    assert rows["run again: killed"] == ("1", "0")
    assert rows["run again: it had ended"] == ("0", "1")
    assert rows["run at once: nothing explains it"] == ("0", "1")
    assert rows["SIGKILLs"] == ("3", "0")


class OneWorker:
    """A world in which there is nobody but a worker with these children.

    Parameters:
        children: asked for with each fault; an exception is raised.
    """

    def __init__(self, children: Any) -> None:
        self.happened: list[str] = []
        self.dead: list[int] = []
        self._children = children
        self.workers = [SimpleNamespace(children=self._ask)]
        journal = SimpleNamespace(note_dead=lambda *pids: self.dead.extend(pids))
        self.site = SimpleNamespace(journal=journal)

    def _ask(self) -> list[int]:
        if isinstance(self._children, Exception):
            raise self._children
        return list(self._children)

    def note(self, what: str, began: float, pids: frozenset[int] = frozenset()) -> None:
        self.happened.append(what)


@pytest.mark.parametrize("children", [[], psutil.NoSuchProcess(1), [2**22 + 1]])
def test_a_child_that_is_not_there_is_not_counted_as_killed(children: Any) -> None:
    """Nor is it noted, which would explain what it did not do. The last is above any pid."""
    world: Any = OneWorker(children)
    faults = Faults(world, SimpleNamespace(choices=_child, choice=lambda items: items[0]))
    assert faults.happen() == "kill a child: there is none"
    assert (faults.counts["kill a child"], world.happened, world.dead) == (0, [], [])


def test_a_child_that_was_killed_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    killed_pids: list[int] = []
    monkeypatch.setattr(faults_module.os, "kill", lambda pid, _: killed_pids.append(pid))
    world: Any = OneWorker([7])
    faults = Faults(world, SimpleNamespace(choices=_child, choice=lambda items: items[0]))
    assert faults.happen() == "kill a child"
    assert (faults.counts["kill a child"], killed_pids, world.dead) == (1, [7], [7])


def _child(*_: Any, **__: Any) -> list[str]:
    return ["kill a child"]
