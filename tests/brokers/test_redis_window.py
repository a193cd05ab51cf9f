"""What kombu's Redis transport loses by itself: the window that no claim can close."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import kombu
import pytest

from tests.process.waiting import wait_until
from tests.stores.redis_server import RedisServer

CONSUMER = """
import sys, kombu
with kombu.Connection(sys.argv[1]) as connection:
    with connection.Consumer(kombu.Queue("window"), callbacks=[print]):
        while True:
            connection.drain_events()
"""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def waits_for_a_message(server: RedisServer) -> bool:
    with server.client(decode_responses=True) as client:
        return any(each["cmd"] == "brpop" for each in client.client_list())


def test_a_frozen_consumer_is_handed_a_message_that_dies_with_it(server: RedisServer) -> None:
    """As ``docs/brokers/redis.md`` says: taken off its queue, not yet unacknowledged, and gone."""
    consumer = subprocess.Popen([sys.executable, "-c", CONSUMER, server.url])
    try:
        wait_until(lambda: waits_for_a_message(server), what="the consumer to wait")
        consumer.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, consumer.pid, os.WSTOPPED | os.WNOWAIT)
        with kombu.Connection(server.url) as connection:
            queue = kombu.Queue("window")
            connection.Producer().publish("hello", routing_key="window", declare=[queue])
    finally:
        consumer.kill()
        consumer.wait()
    assert (server.ask("LLEN", "window"), server.ask("HLEN", "unacked")) == (0, 0)
