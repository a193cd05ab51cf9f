"""Who stops a body: the loop if it turns, and otherwise whoever learns that it must stop."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from celery_claims import stopping
from celery_claims.case import Case, Phase
from celery_claims.delivered import Delivered
from celery_claims.stopping import Stopper

from tests.unit.factories import incoming


@pytest.fixture
def case() -> Case:
    return Case(incoming(), connection=0, grant_id="grant", phase=Phase.RUNNING, lost=True)


@pytest.fixture
def delivered(case: Case) -> Delivered:
    delivered = Delivered(MagicMock(), None, MagicMock(), MagicMock(), None, MagicMock())
    delivered.case, delivered.request = case, MagicMock()
    return delivered


@pytest.fixture
def keeper(case: Case) -> MagicMock:
    keeper = MagicMock(desk=SimpleNamespace(can_stop=True))
    keeper.stopping.return_value = [case]
    return keeper


@pytest.fixture
def stopper(keeper: MagicMock, case: Case, delivered: Delivered) -> Stopper:
    return Stopper(MagicMock(), keeper, {case: delivered})


@pytest.fixture(autouse=True)
def kill_child(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    kill_child = MagicMock(return_value=True)
    monkeypatch.setattr(stopping, "kill_child", kill_child)
    return kill_child


@pytest.fixture(autouse=True)
def stop_body(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    stop_body = MagicMock()
    monkeypatch.setattr(stopping, "stop_body", stop_body)
    return stop_body


def test_the_loop_stops_what_it_can(
    stopper: Stopper, case: Case, delivered: Delivered, kill_child: MagicMock, stop_body: MagicMock
) -> None:
    """Its books say what a child does only while nobody else changes them."""
    stopper.turns()
    stopper.at_once(case)
    kill_child.assert_not_called()
    stopper.on_loop(delivered)
    stop_body.assert_called_once()


def test_without_a_loop_a_body_is_stopped_at_once_and_told_once(
    stopper: Stopper, case: Case, delivered: Delivered, keeper: MagicMock, stop_body: MagicMock
) -> None:
    stopper.turns()
    keeper.stopping.return_value = []
    stopper.rests()
    stopper.at_once(case)
    stop_body.assert_not_called()
    keeper.tell.assert_called_once()
    stopper.turns()
    stopper.on_loop(delivered)
    stop_body.assert_called_once()
    keeper.tell.assert_called_once()


def test_what_a_loop_had_yet_to_stop_when_it_ended_is_stopped(
    stopper: Stopper, kill_child: MagicMock
) -> None:
    stopper.turns()
    stopper.rests()
    kill_child.assert_called_once()


def test_what_cannot_be_killed_is_told_by_the_loop(
    stopper: Stopper,
    case: Case,
    delivered: Delivered,
    keeper: MagicMock,
    kill_child: MagicMock,
    stop_body: MagicMock,
) -> None:
    kill_child.return_value = False
    stopper.at_once(case)
    keeper.tell.assert_not_called()
    stopper.on_loop(delivered)
    keeper.tell.assert_called_once()
    stop_body.assert_called_once()


@pytest.mark.parametrize("phase", [Phase.CLAIMED, Phase.ENDED, Phase.HELD, Phase.DONE])
def test_a_body_that_does_not_run_is_not_killed(
    stopper: Stopper, case: Case, phase: Phase, kill_child: MagicMock
) -> None:
    """Its child may be busy with another task by now."""
    case.phase = phase
    stopper.at_once(case)
    kill_child.assert_not_called()


def test_threads_are_not_killed(
    stopper: Stopper, case: Case, keeper: MagicMock, kill_child: MagicMock
) -> None:
    keeper.desk.can_stop = False
    stopper.at_once(case)
    kill_child.assert_not_called()
