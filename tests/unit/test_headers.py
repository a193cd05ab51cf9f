"""What is read from a message, hostile ones too, and the claim's way to another process."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from celery_claims.checks import MAX_KEY_BYTES, MAX_TOKEN
from celery_claims.errors import InvalidArgument
from celery_claims.headers import (
    HEADER,
    Identity,
    Passport,
    first_queue,
    onward,
    read_identity,
)
from celery_claims.protocol import Attempt, ClaimRequest, Delivery
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.factories import claimed_case, make_desk


def protocol_2(**given: Any) -> dict[str, Any]:
    """The headers that Celery writes."""
    headers = {
        "lang": "py",
        "task": "proj.add",
        "id": "id-1",
        "root_id": "root-1",
        "parent_id": None,
        "retries": 0,
        "replaced_task_nesting": 0,
    }
    return {**headers, **given}


def passport(**given: Any) -> Passport:
    token = claimed_case(make_desk()).token
    assert token is not None
    made = Passport(
        token=replace(token, attempt=Attempt(1, 2), deaths=3),
        lease=30.0,
        strict=True,
        keep_finished=7200.0,
        deliveries=2,
        mark_start=True,
        trusted_until=12.5,
        worker=4711,
    )
    return replace(made, **given)


# identity


def test_protocol_2_has_the_identity_in_its_headers() -> None:
    headers = protocol_2(retries=2, replaced_task_nesting=1)
    assert read_identity(headers, headers) == Identity("id-1", "root-1", Attempt(1, 2), 0)


def test_protocol_1_has_it_in_its_body_and_deaths_in_its_headers() -> None:
    body = {"task": "proj.add", "id": "id-1", "args": [], "kwargs": {}, "retries": 3}
    headers = {"x-death": [{"count": 2, "reason": "rejected"}]}
    assert read_identity(headers, body) == Identity("id-1", "id-1", Attempt(0, 3), 2)


@pytest.mark.parametrize("root_id", [None, "", "missing"])
def test_a_task_without_a_root_is_its_own(root_id: str | None) -> None:
    headers = protocol_2(root_id=root_id)
    if root_id == "missing":
        del headers["root_id"]
    assert read_identity(headers, headers).root_id == "id-1"


@pytest.mark.parametrize("task_id", ["ü漢\x00\n", "{x}", " ", "a" * 2_560, "x" * MAX_KEY_BYTES])
def test_any_text_is_an_id(task_id: str) -> None:
    """Trap 11: ids with any characters, 10 kB long."""
    headers = protocol_2(id=task_id)
    assert read_identity(headers, headers).task_id == task_id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("id", bad) for bad in (None, "", 5, b"id", ["id"], "x" * (MAX_KEY_BYTES + 1))],
        *[("root_id", bad) for bad in (5, b"root", {"a": 1}, "x" * (MAX_KEY_BYTES + 1))],
        *[("retries", bad) for bad in (-1, True, 1.0, "1", [], 2**60)],
        *[("replaced_task_nesting", bad) for bad in (-1, False, 1.0, "1", {}, 2**60)],
    ],
)
def test_a_hostile_field_is_named(field: str, value: object) -> None:
    """Such a message cannot be claimed; the gate says so and lets Celery judge it."""
    headers = protocol_2(**{field: value})
    with pytest.raises(InvalidArgument) as caught:
        read_identity(headers, headers)
    assert caught.value.argument == field


def test_a_missing_id_is_named() -> None:
    with pytest.raises(InvalidArgument, match="id"):
        read_identity({}, {})


@pytest.mark.parametrize(
    ("x_death", "deaths"),
    [
        (None, 0),
        ([], 0),
        ([{"count": 1, "reason": "rejected"}], 1),
        ([{"count": 2, "reason": "rejected"}, {"count": 3, "reason": "rejected"}], 5),
        (({"count": 4, "reason": "rejected"},), 4),
        ([{"count": count, "reason": "rejected"} for count in (-4, "7", 1.5)], 0),
        ([{"count": 1, "reason": "expired"}, {"count": 1, "reason": "delivery_limit"}], 0),
        ([{"count": 1}, {"reason": "rejected"}, {}, None, 9], 0),
        ("x-death", 0),
        ({"count": 3}, 0),
    ],
)
def test_deaths_are_the_rejections_of_every_queue(x_death: object, deaths: int) -> None:
    """Trap 3: only a delivery that was rejected since runs again after a rejection."""
    headers = protocol_2(**{"x-death": x_death})
    assert read_identity(headers, headers).deaths == deaths


numbers = st.integers(-1, 3) | st.sampled_from([MAX_TOKEN, MAX_TOKEN + 1, 2**63, True, 1.0])
texts = st.text(max_size=5)
hostile = numbers | texts | st.none() | st.binary(max_size=3) | st.lists(numbers, max_size=2)
deaths = st.lists(
    st.fixed_dictionaries({"count": numbers, "reason": st.just("rejected") | texts}), max_size=3
)


@given(
    fields=st.fixed_dictionaries(
        {"id": st.just("id-1") | hostile},
        optional={
            "root_id": texts | hostile,
            "retries": numbers | hostile,
            "replaced_task_nesting": numbers | hostile,
            "x-death": deaths | hostile,
        },
    )
)
@example({"id": "id-1", "retries": 2**60})
@example({"id": "id-1", "x-death": [{"count": 2**60, "reason": "rejected"}]})
@example({"id": "id-1", "x-death": [{"count": MAX_TOKEN}, {"count": 1}]})
def test_what_is_read_can_be_claimed(fields: dict[str, Any]) -> None:
    """Trap 11: whatever a producer sends is refused here, or the store can be asked for it.

    Only this step's error is caught: a later one would stop the whole worker.
    """
    try:
        identity = read_identity(fields, fields)
    except InvalidArgument:
        return
    ClaimRequest(
        queue="celery",
        task_id=identity.task_id,
        owner="w1",
        lease_ms=30_000,
        grant_id="g",
        root_id=identity.root_id,
        attempt=identity.attempt,
        deaths=identity.deaths,
    )


# the first queue


def test_a_retry_to_another_queue_keeps_the_first_one() -> None:
    """So that all attempts of a run meet in one record."""
    assert first_queue({HEADER: {"queue": "first"}}, "here") == "first"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "first",
        5,
        [],
        {},
        {"queue": None},
        {"queue": ""},
        {"queue": 5},
        {"queue": b"first"},
        {"queue": ["first"]},
        {"queue": "x" * (MAX_KEY_BYTES + 1)},
        {"token": 9, "owner": "me"},
    ],
)
def test_a_forged_queue_that_is_none_is_not_believed(header: object) -> None:
    assert first_queue({HEADER: header}, "here") == "here"
    assert first_queue({}, "here") == "here"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (None, None),
        ("x", None),
        ({}, None),
        ({"token": 5}, None),
        ({"queue": "first"}, {"queue": "first"}),
        (passport().as_header(), {"queue": "celery"}),
    ],
)
def test_only_the_first_queue_goes_onward(header: object, kept: object) -> None:
    """A retry must not carry the claim of the attempt before."""
    assert onward(header) == kept


# the passport


@pytest.mark.parametrize(
    "carry",
    [
        lambda header: header,
        lambda header: json.loads(json.dumps(header)),
        lambda header: pickle.loads(pickle.dumps(header)),
    ],
    ids=["plain", "json", "pickle"],
)
def test_a_passport_arrives_as_it_left(carry: Callable[[Any], Any]) -> None:
    """But for the delivery, which is the sweeper's and stays behind."""
    left = passport()
    arrived = Passport.from_header(carry(left.as_header()))
    assert arrived == replace(left, token=replace(left.token, delivery=Delivery()))
    assert isinstance(arrived.token.attempt, Attempt)


def test_a_passport_says_nothing_of_the_message() -> None:
    """Plain data only, and no delivery: every serializer and every log may see it."""
    header = passport().as_header()
    assert json.loads(json.dumps(header)) == header
    assert "delivery" not in header
