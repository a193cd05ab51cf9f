"""What is called on the consumer's loop is called soon, whoever asks for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
from celery_claims.loop import Loop
from kombu.asynchronous import Hub


class Consumer:
    """What the loop needs of Celery's."""

    def __init__(self, hub: Hub | None) -> None:
        self.hub = hub
        self.pending: list[Any] = []

    def call_soon(self, function: Any) -> None:
        self.pending.append(function)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def loop(hub: Hub) -> Iterator[Loop]:
    loop = Loop(Consumer(hub))
    yield loop
    loop.close()


def turn(hub: Hub, until: Any) -> list[int]:
    """Turn the hub; how many events each of its waits ended with."""
    woken: list[int] = []
    poll = hub.poller.poll

    def recording(timeout: float) -> Any:
        events = poll(timeout)
        woken.append(len(events or ()))
        return events

    hub.poller.poll = recording
    turning = hub.create_loop()
    for _ in range(10):
        next(turning)
        if until():
            break
    return woken


def test_a_timers_call_does_not_wait_for_the_next_event(hub: Hub, loop: Loop) -> None:
    """Held messages ask again by a timer; without the loop nothing would happen for ten seconds."""
    done: list[str] = []
    loop.register(hub)
    turn(hub, lambda: True)
    hub.timer.call_after(0, loop.call, (done.append, "asked"))
    woken = turn(hub, lambda: done)
    assert done == ["asked"]
    assert 0 not in woken


def test_a_call_of_another_thread_wakes_the_loop(hub: Hub, loop: Loop) -> None:
    done: list[str] = []
    loop.register(hub)
    turn(hub, lambda: True)
    thread = threading.Thread(target=loop.call, args=(done.append, "from afar"))
    thread.start()
    woken = turn(hub, lambda: done)
    thread.join()
    assert done == ["from afar"] and 0 not in woken


def test_calls_outlive_a_connection(hub: Hub, loop: Loop) -> None:
    """Celery resets its hub before it connects again; what was called meanwhile is not lost."""
    done: list[int] = []
    loop.register(hub)
    hub.reset()
    loop.call(done.append, 1)
    loop.call(done.append, 2)
    loop.register(hub)
    turn(hub, lambda: done)
    assert done == [1, 2]


def test_calls_before_the_loop_begins_are_made_when_it_does(hub: Hub, loop: Loop) -> None:
    done: list[int] = []
    loop.call(done.append, 1)
    loop.register(hub)
    turn(hub, lambda: done)
    assert done == [1]


def test_an_error_is_the_loops_and_the_other_calls_are_made(hub: Hub, loop: Loop) -> None:
    """A lost connection must reach Celery, which connects again."""
    done: list[int] = []
    loop.register(hub)
    loop.call(MagicMock(side_effect=ConnectionError("cut")))
    loop.call(done.append, 1)
    with pytest.raises(ConnectionError, match="cut"):
        turn(hub, lambda: False)
    turn(hub, lambda: done)
    assert done == [1]


def test_more_calls_than_the_sockets_hold(hub: Hub, loop: Loop) -> None:
    """One unread byte is enough; no caller waits for the loop."""
    done: list[int] = []
    loop.register(hub)
    for number in range(100_000):
        loop.call(done.append, number)
    turn(hub, lambda: done)
    assert len(done) == 100_000


def test_a_consumer_without_a_hub_is_handed_the_calls() -> None:
    consumer, done = Consumer(None), []
    loop = Loop(consumer)
    loop.call(done.append, 1)
    loop.call(done.append, 2)
    for function in consumer.pending:
        function()
    assert done == [1, 2]


def test_closing_twice_is_closing_once(hub: Hub, loop: Loop) -> None:
    loop.register(hub)
    loop.close()
    loop.close()
    loop.call(lambda: None)
