"""The pure parts of the protocol; its rules are in the conformance suite, for every store."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from celery_claims.checks import MAX_KEY_BYTES, MAX_TOKEN
from celery_claims.errors import InvalidArgument
from celery_claims.protocol import (
    Attempt,
    ClaimRequest,
    ClaimToken,
    Delivery,
    Expiry,
    Outcome,
    Record,
    Renewal,
    Renewed,
    Settlement,
    State,
    Success,
    TookOver,
    decide_claim,
    decide_expire,
    decide_renew,
    decide_settle,
    next_token,
    trust_until,
    turn_is_due,
)
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_700_000_000_000


def request(**changes: Any) -> ClaimRequest:
    facts: dict[str, Any] = {
        "queue": "q",
        "task_id": "t",
        "owner": "o",
        "lease_ms": 1000,
        "grant_id": "g",
        "root_id": "r",
    }
    return ClaimRequest(**{**facts, **changes})


def granted() -> tuple[Record, ClaimToken]:
    transition = decide_claim(None, request(), NOW, 5)
    assert isinstance(transition.answer, Success)
    assert transition.record is not None
    return transition.record, transition.answer.token


class TestTokens:
    @given(st.integers(0, MAX_TOKEN - 1), st.integers(0, MAX_TOKEN))
    def test_next_token_is_above_what_was_given_out_and_not_behind_the_clock(
        self, high_water: int, clock: int
    ) -> None:
        token = next_token(high_water, clock)
        assert token > high_water
        assert token >= clock

    def test_tokens_stay_exact_as_a_double_for_two_centuries(self) -> None:
        year_2200_us = 7_258_118_400 * 1_000_000
        assert next_token(0, year_2200_us) <= MAX_TOKEN
        assert int(float(MAX_TOKEN)) == MAX_TOKEN
        assert int(f"{float(MAX_TOKEN):.0f}") == MAX_TOKEN

    def test_every_write_lifts_the_high_water_to_its_token(self) -> None:
        record, token = granted()
        assert decide_claim(None, request(), NOW, 5).floor == 5
        assert decide_renew(None, Renewal(token, 1000), NOW, 0).floor == 5
        kept = Settlement(token, Outcome.SUCCESS, 1000)
        assert decide_settle(record, kept, NOW, 5).floor == 5

    def test_what_is_forgotten_on_purpose_lifts_it_above_its_token(self) -> None:
        record, token = granted()
        for outcome in (Outcome.SUCCESS, Outcome.NACKED):
            transition = decide_settle(record, Settlement(token, outcome, 0), NOW, 5)
            assert transition.record is None
            assert transition.floor == 6

    def test_refusals_change_nothing(self) -> None:
        record, token = granted()
        stale = dataclasses.replace(token, token=4)
        refused = [
            decide_renew(record, Renewal(stale, 1000), NOW, 5),
            decide_settle(record, Settlement(stale, Outcome.SUCCESS, 0), NOW, 5),
            decide_expire(record, record.as_expiry(), NOW, 0),
            decide_claim(record, request(grant_id="h"), NOW, 6),
        ]
        assert all(not transition.changed for transition in refused)
        assert all(transition.record == record for transition in refused)
        assert all(transition.floor == 0 for transition in refused)


class TestTime:
    def test_lease_is_over_at_its_last_millisecond(self) -> None:
        record, token = granted()
        assert record.is_live(NOW + 999)
        assert not record.is_orphan(NOW + 999)
        assert record.is_orphan(NOW + 1000)
        assert not record.is_live(NOW + 1000)
        assert token.is_valid(NOW + 999)
        assert not token.is_valid(NOW + 1000)
        takeover = decide_claim(record, request(grant_id="h"), NOW + 1000, 6).answer
        assert isinstance(takeover, TookOver)

    def test_remaining_time_is_never_negative(self) -> None:
        _, token = granted()
        assert [token.remaining_ms(NOW + ms) for ms in (0, 400, 1000, 5000)] == [1000, 600, 0, 0]

    def test_trust_counts_from_the_question_and_leaves_a_margin(self) -> None:
        assert trust_until(100.0, 30.0) == pytest.approx(127.0)
        assert trust_until(100.0, 30.0) < 130.0

    def test_turns(self) -> None:
        assert turn_is_due(None, 1000, NOW)
        assert not turn_is_due(NOW, 1000, NOW)
        assert not turn_is_due(NOW, 1000, NOW + 999)
        assert turn_is_due(NOW, 1000, NOW + 1000)
        assert turn_is_due(NOW, 1000, NOW - 1)

    @given(st.integers(1, 10**7), st.integers(1, 10**7), st.booleans())
    def test_renewal_never_shortens_a_lease(self, waited: int, lease: int, extend: bool) -> None:
        record, token = granted()
        answer = decide_renew(record, Renewal(token, lease, extend=extend), NOW + waited, 5).answer
        assert isinstance(answer, Renewed)
        assert answer.expires_at >= max(record.expires_at, NOW + waited + lease)


class TestAttempts:
    def test_replacements_come_before_retries(self) -> None:
        mixed = [Attempt(1, 1), Attempt(0, 99), Attempt(1, 0), Attempt(0, 0), Attempt(0, 1)]
        ordered = [Attempt(0, 0), Attempt(0, 1), Attempt(0, 99), Attempt(1, 0), Attempt(1, 1)]
        assert sorted(mixed) == ordered


class TestArguments:
    def test_longest_key_counts_bytes(self) -> None:
        request(task_id="x" * MAX_KEY_BYTES)
        request(task_id="\N{SNOWMAN}" * (MAX_KEY_BYTES // 3))
        for text in ("x" * (MAX_KEY_BYTES + 1), "\N{SNOWMAN}" * (MAX_KEY_BYTES // 3 + 1)):
            with pytest.raises(InvalidArgument) as raised:
                request(task_id=text)
            assert raised.value.argument == "task_id"

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("attempt", (0, 0)),
            ("attempt", None),
            ("attempt.retries", Attempt(0, -1)),
            ("attempt.nesting", Attempt(True, 0)),
            ("deaths", -1),
            ("deaths", 1.0),
            ("max_deliveries", 0),
            ("max_deliveries", True),
            ("delivery", None),
            ("delivery.tag", Delivery(tag=5)),  # type: ignore[arg-type]
            ("delivery.task", Delivery(task=None)),  # type: ignore[arg-type]
            ("delivery.priority", Delivery(priority=1.5)),  # type: ignore[arg-type]
        ],
    )
    def test_bad_requests(self, argument: str, value: Any) -> None:
        with pytest.raises(InvalidArgument) as raised:
            request(**{argument.partition(".")[0]: value})
        assert raised.value.argument == argument

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("queue", ""),
            ("task_id", 5),
            ("owner", None),
            ("grant_id", b"x"),
            ("root_id", ""),
            ("token", 0),
            ("token", 1.0),
            ("token", True),
            ("token", MAX_TOKEN + 1),
            ("created_at", -1),
            ("expires_at", "1"),
            ("deaths", None),
            ("attempt", (0, 0)),
            ("delivery", "x"),
        ],
    )
    def test_bad_tokens(self, field: str, value: Any) -> None:
        _, token = granted()
        bad = dataclasses.replace(token, **{field: value})
        for make in (lambda: Renewal(bad, 1000), lambda: Settlement(bad, Outcome.SUCCESS, 0)):
            with pytest.raises(InvalidArgument) as raised:
                make()
            assert raised.value.argument == f"token.{field}"

    def test_what_is_no_token_at_all(self) -> None:
        for value in (None, 5, "token"):
            with pytest.raises(InvalidArgument) as raised:
                Renewal(value, 1000)  # type: ignore[arg-type]
            assert raised.value.argument == "token"

    @pytest.mark.parametrize("outcome", [Outcome.EXPIRED, "success", None])
    def test_bad_outcomes(self, outcome: Any) -> None:
        _, token = granted()
        with pytest.raises(InvalidArgument) as raised:
            Settlement(token, outcome, 0)
        assert raised.value.argument == "outcome"

    @pytest.mark.parametrize("flag", [1, 0, None, "yes"])
    def test_bad_flags(self, flag: Any) -> None:
        _, token = granted()
        for argument, make in (
            ("extend", lambda: Renewal(token, 1, extend=flag)),
            ("started", lambda: Renewal(token, 1, started=flag)),
            ("counted", lambda: Settlement(token, Outcome.NACKED, 0, counted=flag)),
        ):
            with pytest.raises(InvalidArgument) as raised:
                make()
            assert raised.value.argument == argument

    def test_bad_expiries(self) -> None:
        with pytest.raises(InvalidArgument) as raised:
            Expiry("q", "", 1, 1)
        assert raised.value.argument == "task_id"


def test_records_and_tokens_cannot_be_changed() -> None:
    record, token = granted()
    for thing in (record, token, request()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            thing.owner = "x"
    assert record.state is State.CLAIMED
