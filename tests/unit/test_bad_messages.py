"""Messages with anything in them: refused, held, run unclaimed with a word, or claimed rightly."""

from __future__ import annotations

import logging
from typing import Any
from unittest.mock import MagicMock

import pytest
from celery_claims.checks import MAX_SHOWN
from celery_claims.headers import HEADER
from celery_claims.protocol import Attempt
from celery_claims.stores.memory import MemoryStore
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.factories import FlakyStore
from tests.unit.messages import TASK, Desk, message, protocol_1, protocol_2

HUGE = "x" * 10_000_000

#: What a field may hold that should hold something else.
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "\x00", "\ud800", "id-1", "celery", "9" * 5000])
    | st.binary(max_size=5)
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
#: Where a message came from, as a transport tells.
FROM = {"consumer_tag": "1", "exchange": "", "routing_key": "celery"}
OURS = ("id", "root_id", "retries", "replaced_task_nesting", "x-death", HEADER)
#: Of these Celery itself makes something; the others only we read.
FIELDS = st.dictionaries(st.sampled_from(OURS), ANYTHING, max_size=3)


@settings(max_examples=150, deadline=None)
@given(fields=FIELDS, missing=st.sets(st.sampled_from(OURS), max_size=1))
def test_protocol_2_with_anything_in_its_headers(fields: dict[str, Any], missing: set[str]) -> None:
    headers = {k: v for k, v in {**protocol_2(), **fields}.items() if k not in missing}
    desk = Desk()
    fate = desk.receive(message(headers))
    assert desk.claims() == (fate == "claimed")


@settings(max_examples=100, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(OURS), JSON, max_size=3), deaths=ANYTHING)
def test_protocol_1_with_anything_in_its_body(fields: dict[str, Any], deaths: Any) -> None:
    desk = Desk()
    fate = desk.receive(message({"x-death": deaths}, protocol_1(**fields)))
    assert desk.claims() == (fate == "claimed")


@settings(max_examples=100, deadline=None)
@given(
    headers=FIELDS,
    body=st.dictionaries(st.sampled_from(OURS), JSON, max_size=2),
)
def test_a_hybrid_is_claimed_as_what_celery_makes_of_it(
    headers: dict[str, Any], body: dict[str, Any]
) -> None:
    """Fields may stand in either place; the attempt that runs is the one that was claimed."""
    desk = Desk()
    headers = {"task": TASK, **headers}
    if desk.receive(message(headers, protocol_1(**body))) == "claimed":
        request = desk.requests[-1]
        claim = request.request_dict[HEADER]
        assert claim["attempt"][1] == (request.request_dict.get("retries") or 0)


@settings(max_examples=100, deadline=None)
@given(body=JSON | st.binary(max_size=30), task=st.just(TASK) | ANYTHING)
def test_bodies_and_tasks_of_any_kind(body: Any, task: Any) -> None:
    desk = Desk()
    assert desk.receive(message(protocol_2(task=task), body)) in {"claimed", "refused"}
    desk.receive(message({}, body))


@settings(max_examples=150, deadline=None)
@given(
    fields=FIELDS,
    body=st.just([[], {}, {}]) | JSON | st.binary(max_size=30),
    fails=st.booleans(),
)
def test_the_broker_is_told_of_every_message_once(
    fields: dict[str, Any], body: Any, fails: bool
) -> None:
    """Promise 5: run to its end and acknowledged, or rejected, whatever was in it; a copy that is
    held meanwhile is acknowledged when the end is recorded, and a later one at once."""
    headers = {**protocol_2(), **fields}
    desk = Desk(answers=True)
    first, copy, later = (message(dict(headers), body, delivery_info=FROM) for _ in range(3))
    fate = desk.receive(first)
    if fate == "claimed":
        assert desk.receive(copy) == "held"
        desk.turn()
        assert told(first) == told(copy) == []
        desk.run(desk.requests[0], fails=fails)
        desk.turn()
        assert told(first) == told(copy) == ["basic_ack"]
        desk.deliver(later)
        desk.turn()
        assert told(later) == ["basic_ack"]
        assert len(desk.requests) == 1
    elif fate == "unclaimed":
        desk.run(desk.requests[0], fails=fails)
        desk.turn()
        assert told(first) == ["basic_ack"]
    else:
        # What cannot be decoded Celery acknowledges, so that it does not come again.
        undecoded = desk.refusals[0][0] == "on_decode_error"
        assert told(first) == ["basic_ack" if undecoded else "basic_reject"]
    assert desk.keeper.snapshot() == ([], [])


def told(made: Any) -> list[str]:
    """What the broker was told of a message."""
    return [call[0] for call in made.channel.mock_calls if call[0].startswith("basic_")]


@settings(max_examples=60, deadline=None)
@given(headers=ANYTHING, info=ANYTHING, properties=ANYTHING)
def test_envelopes_of_any_kind(headers: Any, info: Any, properties: Any) -> None:
    Desk().receive(message(headers, delivery_info=info, properties=properties))
    headers = protocol_2()
    Desk().receive(message(headers, delivery_info=info, properties=properties))


@pytest.mark.parametrize("priority", ["high", 2**70, -(2**70), 1.5, True, [], None, 9])
def test_only_a_number_is_a_priority(priority: object) -> None:
    desk = Desk()
    assert desk.receive(message(protocol_2(), properties={"priority": priority})) == "claimed"
    (record,) = desk.store.lookup([("celery", "id-1")])
    assert record.delivery.priority in (None, 9, 1)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"id": HUGE}, "id: longer than 10240 bytes"),
        ({"id": 77}, "id: expected text, got int"),
        ({"id": b"id-1"}, "id: expected text, got bytes"),
        ({"id": ""}, "id: must not be empty"),
        ({"root_id": ["id-1"]}, "root_id: expected text, got list"),
        ({"retries": HUGE}, "retries: expected a count, got 'xxx"),
        ({"retries": "3"}, "retries: expected a count, got '3'"),
        ({"retries": 2**70}, "retries: expected a count, got 1180591620717411303424"),
        ({"retries": 10**5000}, "retries: expected a count, got "),
        ({"retries": -1}, "retries: expected a count, got -1"),
        ({"replaced_task_nesting": True}, "replaced_task_nesting: expected a count, got True"),
    ],
)
def test_what_cannot_be_identified_is_run_as_without_claims_with_one_line_that_names_the_field(
    caplog: pytest.LogCaptureFixture, fields: dict[str, Any], word: str
) -> None:
    desk = Desk()
    with caplog.at_level(logging.WARNING, logger="celery_claims"):
        assert desk.receive(message(protocol_2(**fields))) == "unclaimed"
    (line,) = caplog.messages
    assert word in line and TASK in line
    assert len(line) < MAX_SHOWN + 200
    assert desk.claims() == 0


WORKER_ENDING: Any = pytest.mark.parametrize(
    ("made", "word"),
    [
        (message({"task": TASK}), "id: expected text, got None"),
        (message(protocol_2(id=["id-1"])), "id: expected text, got ['id-1']"),
        (message(protocol_2(id={"a": 1})), "id: expected text"),
        (message(protocol_2(), [1, 2]), "body: expected a list of args, kwargs and the rest"),
        (message(protocol_2(), 5), "body: expected"),
        (message(protocol_2(), {"kwargs": {}}), "body: expected"),
        (message(protocol_2(), delivery_info="x"), "delivery_info of a message must be a mapping"),
        (message(protocol_2(), properties="x"), "properties of a message must be a mapping"),
    ],
    ids=["no id", "list", "dict", "two parts", "number", "mapping", "delivery_info", "properties"],
)


@WORKER_ENDING
def test_celery_alone_fails_on_it(made: Any, word: str) -> None:
    """With an error that is none of those that its consumer answers by a reject."""
    desk = Desk()
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        desk.own_strategy(made, None, None, None, ())


@WORKER_ENDING
def test_what_would_end_the_worker_is_refused_as_an_invalid_task(made: Any, word: str) -> None:
    """Celery's own strategy fails on it with an error that nothing catches."""
    desk = Desk()
    assert desk.receive(made) == "refused"
    ((kind, error),) = desk.refusals
    assert kind == "on_invalid_task" and word in str(error)
    assert desk.claims() == 0


@pytest.mark.parametrize("task", [["proj.add"], {"a": 1}, 5, None, "no.such"])
def test_a_task_that_is_no_name_is_an_unknown_task(task: object) -> None:
    desk = Desk()
    assert desk.receive(message(protocol_2(task=task))) == "refused"
    assert desk.refusals[0][0] == "on_unknown_task"


@pytest.mark.parametrize("body", [b"\xff{", b"", b"{", b"[" * 3000])
def test_a_body_that_cannot_be_decoded_is_refused(body: bytes) -> None:
    desk = Desk()
    assert desk.receive(message(protocol_2(), body)) == "refused"
    assert desk.refusals[0][0] in ("on_decode_error", "on_invalid_task")
    assert desk.claims() == 0


@pytest.mark.parametrize(
    "task_id", ["\x00", "\ud800", "a\x00b", "'; DROP TABLE claims", "{x}", "x" * 10_240]
)
def test_any_text_is_claimed_as_it_is(task_id: str) -> None:
    desk = Desk()
    assert desk.receive(message(protocol_2(id=task_id, root_id=task_id))) == "claimed"
    assert desk.receive(message(protocol_2(id=task_id, root_id=task_id))) == "held"


@pytest.mark.parametrize(
    "forged",
    [
        {"grant_id": "g", "token": 1, "queue": "celery", "task_id": "id-1"},
        "a text",
        5,
        [],
        {"queue": ["celery"]},
        {"queue": HUGE},
        {"queue": ""},
    ],
    ids=["whole", "text", "number", "list", "queue of lists", "long queue", "empty queue"],
)
def test_a_forged_claim_is_worth_nothing(forged: Any) -> None:
    """Only the first queue is read from it, and only if it is one."""
    for made in (
        message(protocol_2(**{HEADER: forged})),
        message({}, protocol_1(**{HEADER: forged})),
        message(protocol_2(), protocol_1(**{HEADER: forged})),
    ):
        desk = Desk()
        assert desk.receive(made) == "claimed"
        assert desk.requests[0].request_dict[HEADER]["queue"] == "celery"


@pytest.mark.parametrize(
    "deaths",
    [
        "x",
        5,
        {},
        [5],
        [{"reason": "rejected", "count": "3"}],
        [{"reason": "rejected", "count": -3}],
        [{"reason": "rejected", "count": 2**80}],
        [{"reason": []}],
        [None],
        [[{}]],
    ],
)
def test_deaths_of_another_shape_are_none_or_many(deaths: Any) -> None:
    desk = Desk()
    assert desk.receive(message(protocol_2(**{"x-death": deaths}))) == "claimed"
    (record,) = desk.store.lookup([("celery", "id-1")])
    assert 0 <= record.deaths < 2**53 and record.attempt == Attempt()


def test_a_burst_with_a_bad_one_in_it_runs_the_others() -> None:
    """Of messages, and of records."""
    store = FlakyStore(MemoryStore(private=True))
    store.unreadable.add("id-2")
    desk = Desk(store)
    fates = [desk.receive(message(protocol_2(id=f"id-{n}", root_id=f"id-{n}"))) for n in range(4)]
    assert fates == ["claimed", "claimed", "held", "claimed"]


@pytest.mark.parametrize(
    "made",
    [message(protocol_2(id=[])), message(protocol_2(eta="soon")), message(protocol_2(), b"{")],
    ids=["by the gate", "by the strategy", "by the decoder"],
)
def test_a_refused_message_takes_no_room(made: Any) -> None:
    """On RabbitMQ: what Celery rejects is answered, though not by way of the gate."""
    desk = Desk()
    room = MagicMock(follows_all=True)
    desk.gate._room = room
    assert desk.receive(made) == "refused"
    assert room.answered.mock_calls[0].args == (made,)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_what_the_broker_says_of_a_redelivery_decides_nothing(first: bool, second: bool) -> None:
    """It is missing after a lost connection, and there on what nobody ever ran."""
    desk = Desk()
    fates = []
    for redelivered in (first, second):
        made = message(protocol_2(redelivered=redelivered))
        made.delivery_info = {"redelivered": redelivered}
        fates.append(desk.receive(made))
    assert fates == ["claimed", "held"]
