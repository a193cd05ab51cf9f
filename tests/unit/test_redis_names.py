"""What kombu's Redis transport calls its keys, compared with kombu itself."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from celery_claims.brokers.redis_names import Names, read_entry, read_names
from kombu.transport.redis import Channel
from kombu.transport.virtual.exchange import TopicExchange


def names(**options: Any) -> Names:
    return read_names(options, Channel)


def stored(message: dict[str, Any], exchange: str = "", routing_key: str = "celery") -> bytes:
    return json.dumps([message, exchange, routing_key]).encode()


def message(**properties: Any) -> dict[str, Any]:
    properties.setdefault("delivery_info", {"exchange": "", "routing_key": "celery"})
    return {"body": "x", "headers": {"id": "t"}, "properties": properties}


def test_the_defaults_are_kombus() -> None:
    of = names()
    assert (of.key(of.unacked), of.key(of.index)) == (b"unacked", b"unacked_index")
    assert of.key(of.touched) == b"unacked_index.celery_claims"


def test_no_prefix_at_all() -> None:
    assert names(global_keyprefix=None).key("q") == b"q"


def test_options_of_the_transport_win() -> None:
    of = names(
        global_keyprefix="ours-",
        unacked_key="u",
        unacked_index_key="i",
        sep=":",
        priority_steps=[0, 5],
    )
    assert of.key(of.unacked) == b"ours-u"
    assert of.key(of.touched) == b"ours-i.celery_claims"
    assert of.list_of("q", 9) == b"ours-q:5"


def test_attributes_of_a_channel_of_ones_own_count() -> None:
    class Own(Channel):
        unacked_key = "mine"

    assert read_names({}, Own).unacked == "mine"


@pytest.mark.parametrize("steps", [[0, 3, 6, 9], [0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [2, 7], [3]])
def test_the_list_of_a_priority_is_kombus(steps: list[int]) -> None:
    channel = SimpleNamespace(priority_steps=steps, sep="|")
    channel.priority = lambda n: Channel.priority(channel, n)
    of = names(priority_steps=steps, sep="|")
    for priority in range(10):
        assert of.list_of("q", priority).decode() == Channel._q_for_pri(channel, "q", priority)


@pytest.mark.parametrize("value", [None, 0, 3, 9, 12, -1, "7", "high", 4.7])
def test_the_priority_of_a_message_is_kombus(value: Any) -> None:
    channel = SimpleNamespace(min_priority=0, max_priority=9, default_priority=0)
    sent = message(priority=value)
    expected = Channel._get_message_priority(channel, sent, reverse=False)
    assert read_entry(stored(sent)).priority == expected


def test_a_message_without_a_priority() -> None:
    assert read_entry(stored(message())).priority == 0


def test_a_message_goes_back_as_kombu_puts_it_back() -> None:
    """Marked as redelivered in both places, and the same in all else, to the last digit."""
    sent = message(
        number=12345678901234567890, fraction=0.1, text="ü\ud800", kind={"__type__": "x"}
    )
    back = json.loads(read_entry(stored(sent)).redelivered)
    assert back["headers"].pop("redelivered") is True
    assert back["properties"]["delivery_info"].pop("redelivered") is True
    assert back == sent


def test_a_message_without_headers_goes_back() -> None:
    sent = {"body": "x", "properties": {"delivery_info": {}}}
    back = json.loads(read_entry(stored(sent)).redelivered)
    assert back["properties"]["delivery_info"] == {"redelivered": True}


@pytest.mark.parametrize("entry", [b"", b"{", b"[1, 2]", b"[{}, null, null]", b'["text", "", ""]'])
def test_what_kombu_did_not_write_is_refused(entry: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_entry(entry)


@pytest.mark.parametrize("routing_key", ["a.b", "a.c", "a.b.c", "x", ""])
def test_a_topic_is_looked_up_as_kombu_does(routing_key: str) -> None:
    exchange = TopicExchange(SimpleNamespace())
    keys = {"one": "a.b", "star": "a.*", "hash": "a.#", "all": "#"}
    table = [exchange.prepare_bind(queue, "e", key, {}) for queue, key in keys.items()]
    bindings = ["|".join(part or "" for part in row) for row in table]
    entry = read_entry(stored(message(), "e", routing_key))
    assert entry.queues(bindings, "|") == set(exchange.lookup(table, "e", routing_key, None))


def test_a_direct_exchange_compares_the_key() -> None:
    entry = read_entry(stored(message(), "e", "k"))
    assert entry.queues(["k||one", "other||two", "k||three"], "|") == {"one", "three"}
