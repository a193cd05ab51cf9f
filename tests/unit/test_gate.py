"""What the gate does with a message when the store's last word is not what it hoped for."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest
from celery_claims import gate as module
from celery_claims.case import Action, Case, Do
from celery_claims.delivered import Delivered
from celery_claims.gate import Gate

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
    assert delivered.reject.called is rejected
    assert keeper.returned.called is not rejected
    delivered.acknowledge.assert_not_called()
