"""Connections that are kept, and what must not be left on them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery_claims.stores.redis_wire import Wire

from tests.stores.redis_server import RedisServer


class Interrupted(BaseException):
    """As a soft time limit, in the middle of anything."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def wire(server: RedisServer) -> Iterator[Wire]:
    with server.client() as client:
        made = Wire(client.connection_pool)
        yield made
        made.close()


def test_many_commands_are_answered_in_order(wire: Wire) -> None:
    """Whatever their arguments are, and also where an answer is an error."""
    echoes: list[Any] = [b"\x00\xff\r\n", "t\u00e4xt", 17, 0.5, b""]
    *answers, refused, last = wire.exchange(
        [*(("ECHO", each) for each in echoes), ("NO", "SUCH"), ("PING",)]
    )
    assert answers == [b"\x00\xff\r\n", "t\u00e4xt".encode(), b"17", b"0.5", b""]
    assert isinstance(refused, redis.ResponseError)
    assert last == b"PONG"


def test_a_connection_is_used_again(wire: Wire) -> None:
    assert wire.exchange([("CLIENT", "ID")]) == wire.exchange([("CLIENT", "ID")])


def test_an_answer_that_was_not_read_is_nobody_elses(wire: Wire) -> None:
    """Promise 5: a claim that takes another's answer for its own is two claims."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Interrupted):
            wire.exchange([("BLPOP", "nothing", "10")])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert wire.exchange([("ECHO", b"mine")]) == [b"mine"]


def test_a_connection_that_the_server_ended_is_not_used(wire: Wire, server: RedisServer) -> None:
    """However many there were: none of them counts against a limit of the driver."""
    for _ in range(150):
        (number,) = wire.exchange([("CLIENT", "ID")])
        with server.client() as client:
            client.client_kill_filter(_id=number)
    assert wire.exchange([("PING",)]) == [b"PONG"]


def test_what_is_closed_connects_anew(wire: Wire) -> None:
    first = wire.exchange([("CLIENT", "ID")])
    wire.close()
    wire.close()
    assert wire.exchange([("CLIENT", "ID")]) != first
