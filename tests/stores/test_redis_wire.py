"""Connections that are kept, and what must not be left on them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, ClassVar

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


def test_a_driver_tells_its_socket_and_what_an_error_is(server: RedisServer) -> None:
    """Canary: what is used of its inside."""
    with server.client() as client:
        connection = client.connection_pool.connection_class(
            **client.connection_pool.connection_kwargs
        )
        assert connection._sock is None
        connection.send_packed_command([b"PING\r\n"])
        assert connection._sock.recv(100) == b"+PONG\r\n"
        error = connection._parser.parse_error("NOSCRIPT No matching script")
        assert isinstance(error, redis.exceptions.NoScriptError)
        connection.disconnect()
        assert connection._sock is None


class FakeSocket:
    """Gives what it is told to, a piece at a time."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [*pieces]

    def recv(self, _: int) -> bytes:
        return self.pieces.pop(0)


class FakeConnection:
    """A driver's connection whose answers are known before."""

    def __init__(self, *pieces: bytes) -> None:
        self._sock: FakeSocket | None = FakeSocket(*pieces)
        self._parser = redis.Connection()._parser

    def send_packed_command(self, packed: list[bytes]) -> None: ...

    def disconnect(self) -> None:
        self._sock = None


def exchanged(told: bytes, size: int, count: int = 1) -> tuple[list[Any], FakeConnection]:
    """What so many commands are answered where the socket gives so many bytes at a time."""
    pieces = [told[place : place + size] for place in range(0, len(told), size)]
    connection = FakeConnection(*pieces, b"")

    class Pool:
        connection_kwargs: ClassVar[dict[str, Any]] = {}

        @staticmethod
        def connection_class() -> FakeConnection:
            return connection

    return Wire(Pool()).exchange([("ANY",)] * count), connection


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_answers_come_in_pieces_of_any_size(size: int) -> None:
    told = b"*4\r\n:-12\r\n$3\r\na\r\n\r\n$-1\r\n*-1\r\n+OK\r\n$0\r\n\r\n*0\r\n"
    answers, _ = exchanged(told, size, 4)
    assert answers == [[-12, b"a\r\n", None, None], b"OK", b"", []]


@pytest.mark.parametrize("told", [b"$3\r\nab", b"", b"+O", b"*2\r\n:1\r\n"])
def test_an_answer_that_ends_too_early_is_a_lost_connection(told: bytes) -> None:
    with pytest.raises(redis.ConnectionError, match="closed"):
        exchanged(told, 2)


def test_more_answers_than_commands_are_nobodys() -> None:
    with pytest.raises(redis.ConnectionError, match="more than it was asked"):
        exchanged(b":1\r\n:2\r\n", 100)


@pytest.mark.parametrize("told", [b"?what\r\n", b"$x\r\n", b":\r\n", b"*1.5\r\n", b"\r\n"])
def test_what_is_no_answer_is_refused(told: bytes) -> None:
    with pytest.raises(redis.exceptions.InvalidResponse):
        exchanged(told, 100)


def test_a_server_that_starts_is_no_answer_to_a_command() -> None:
    """The next call makes a connection anew."""
    with pytest.raises(redis.exceptions.BusyLoadingError):
        exchanged(b"-LOADING it starts\r\n", 100)


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


def test_a_connection_that_the_driver_ended_is_not_used(wire: Wire) -> None:
    first = wire.exchange([("CLIENT", "ID")])
    wire._idle[0].connection.disconnect()
    assert wire.exchange([("CLIENT", "ID")]) != first


def test_what_is_closed_connects_anew(wire: Wire) -> None:
    first = wire.exchange([("CLIENT", "ID")])
    wire.close()
    wire.close()
    assert wire.exchange([("CLIENT", "ID")]) != first
