"""What the gate does with a message when the store's last word is not what it hoped for."""

from __future__ import annotations

from functools import partial
from unittest.mock import MagicMock

import pytest
from celery.exceptions import TaskRevokedError
from celery_claims import gate as module
from celery_claims.case import Action, Case, Do
from celery_claims.delivered import Delivered
from celery_claims.gate import Gate
from celery_claims.headers import HEADER

from tests.unit.factories import incoming


@pytest.mark.parametrize(
    ("recorded", "rejected"),
    [(True, True), (False, True), (None, False)],
    ids=["recorded", "told later", "refused"],
)
def test_a_report_that_comes_too_late_leaves_the_message_to_the_next_owner(
    monkeypatch: pytest.MonkeyPatch, recorded: bool | None, rejected: bool
) -> None:
    """Promise 5: a message is dropped only under a claim that is still this worker's."""
    monkeypatch.setattr(module, "fail", MagicMock())
    keeper = MagicMock()
    keeper.exhausted.return_value = recorded
    gate = Gate(MagicMock(), keeper, MagicMock(), MagicMock(), max_held=10)
    delivered = Delivered(MagicMock(), None, MagicMock(), MagicMock(), None, MagicMock())
    delivered.case = Case(incoming(), connection=0, grant_id="grant")
    gate._delivered[delivered.case] = delivered
    keeper.next_alarm.return_value = None
    gate.perform([Action(Do.REPORT, delivered.case)])
    assert delivered._reject.called is rejected
    assert keeper.returned.called is not rejected
    delivered._acknowledge.assert_not_called()


@pytest.fixture
def gate() -> Gate:
    keeper = MagicMock()
    keeper.next_alarm.return_value = None
    return Gate(MagicMock(), keeper, MagicMock(), MagicMock(), max_held=10)


def deliver(gate: Gate) -> Delivered:
    delivered = Delivered(MagicMock(), None, MagicMock(), MagicMock(), None, MagicMock())
    delivered.case = Case(incoming(), connection=0, grant_id="grant")
    gate._delivered[delivered.case] = delivered
    return delivered


def test_a_delivery_that_waited_too_long_goes_back_to_its_queue(gate: Gate) -> None:
    """Promise 5: rejected to be delivered again, not acknowledged and not dropped."""
    delivered = deliver(gate)
    gate.perform([Action(Do.RETURN, delivered.case)])
    delivered._reject.assert_called_once()
    assert delivered._reject.call_args.args[2] is True
    delivered._acknowledge.assert_not_called()
    assert gate._delivered == {}


def test_at_the_end_an_acknowledgement_does_not_take_the_loops_way(gate: Gate) -> None:
    """The loop has ended by then, and would never send it."""
    delivered = deliver(gate)
    delivered.pending = partial(delivered.acknowledge, "log", "errors")
    gate.closing()
    delivered.message.ack_log_error.assert_called_once_with("log", "errors")
    delivered._acknowledge.assert_not_called()


def test_a_request_whose_claim_was_given_back_does_not_run(gate: Gate) -> None:
    """An older Celery lets the ETA timers of a lost connection go on."""
    gate._keeper.case.return_value = None
    request = MagicMock(id="id-1", request_dict={HEADER: {"grant_id": "of another connection"}})
    with pytest.raises(TaskRevokedError):
        gate.submit(request)


def test_a_request_without_a_claim_is_celerys_own(gate: Gate) -> None:
    assert gate.submit(MagicMock(request_dict={})) is None
    assert gate.submit(MagicMock(request_dict={HEADER: {"queue": "first"}})) is None
