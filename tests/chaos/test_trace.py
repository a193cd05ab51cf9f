"""The way of messages through a Redis broker, on a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.stores.redis_server import RedisServer

from .trace import ANSWERED, POPPED, PUSHED, UNACKED, commands_in, traces


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as running:
        yield running


def message(task_id: str) -> str:
    return json.dumps({"headers": {"id": task_id}, "body": ""})


def entry(task_id: str) -> str:
    return json.dumps([{"headers": {"id": task_id}}, "", "celery"])


def test_each_message_is_followed(server: RedisServer) -> None:
    """Also through a script and over a restart; the one that is lost ends with a pop."""
    server.ask("LPUSH", "celery", message("done"), message("lost"))
    server.ask("RPUSH", "celery", message("back"))
    server.ask("PUBLISH", "other", "x")
    # The oldest is at the right, but for what was put back there.
    assert json.loads(server.ask("BRPOP", "celery", 1)[1])["headers"]["id"] == "back"
    server.ask("HSET", "unacked", "tag-1", entry("back"))
    server.ask("EVAL", "redis.call('HDEL', 'unacked', 'tag-1')", 0)
    server.ask("RPOP", "celery")
    server.ask("HSET", "unacked", "tag-2", entry("done"))
    server.ask("HDEL", "unacked", "tag-2")
    server.kill()
    server.start()
    server.ask("RPOP", "celery")
    found = traces(commands_in(server.folder))
    assert found == {
        "back": [PUSHED, POPPED, UNACKED, ANSWERED],
        "done": [PUSHED, POPPED, UNACKED, ANSWERED],
        "lost": [PUSHED, POPPED],
    }
