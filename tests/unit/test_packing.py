"""Texts in few bytes: what is packed comes back as it was, and nothing else is taken for it."""

from __future__ import annotations

import uuid

import pytest
from celery_claims.protocol import Outcome, State
from celery_claims.stores.packing import CODES, OUTCOMES, pack_text, state_of, unpack_text
from hypothesis import given
from hypothesis import strategies as st

#: Texts that look like what is packed, and nearly so.
NEAR = st.text("0123456789abcdefABF- \x00", max_size=40) | st.uuids().map(str)


@given(st.text(st.characters(codec=None), max_size=50) | NEAR)
def test_a_text_comes_back_as_it_was(text: str) -> None:
    assert unpack_text(pack_text(text)) == text


@given(NEAR, NEAR)
def test_two_texts_are_never_packed_alike(one: str, other: str) -> None:
    assert (pack_text(one) == pack_text(other)) == (one == other)


def test_ids_of_celery_take_seventeen_bytes() -> None:
    assert len(pack_text(str(uuid.uuid4()))) == 17
    assert len(pack_text("0123456789abcdef")) == 9
    assert pack_text("celery") == b"celery"


@pytest.mark.parametrize("packed", [b"\xff", b"\xff1234", b"\xff" + 17 * b"x", b"\xfe", b"\xfe12"])
def test_what_stands_for_no_text_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="stands for no text"):
        unpack_text(packed)


def test_every_outcome_has_a_code_and_a_state() -> None:
    assert set(OUTCOMES) == {None, *Outcome}
    assert [CODES[outcome] for outcome in OUTCOMES] == list(range(len(OUTCOMES)))
    free = [outcome for outcome in OUTCOMES if state_of(outcome) is State.FREE]
    assert free == [Outcome.NACKED, Outcome.EXPIRED]
    assert state_of(None) is State.CLAIMED and state_of(Outcome.SUCCESS) is State.FINISHED
