"""The way of messages through a Redis broker, on a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.stores.redis_server import RedisServer

from .run import unclaimed_in
from .trace import (
    ANSWERED,
    POPPED,
    PUSHED,
    UNACKED,
    Message,
    commands_in,
    dropped_in,
    traces,
)


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
        Message("back"): [PUSHED, POPPED, UNACKED, ANSWERED],
        Message("done"): [PUSHED, POPPED, UNACKED, ANSWERED],
        Message("lost"): [PUSHED, POPPED],
    }
    assert dropped_in(found) == {"lost": 0}


def test_copies_and_attempts_are_told_apart(server: RedisServer) -> None:
    """By the tag that kombu gives each message and the retries in its headers."""
    for task_id, retries, tag in [("a", 0, "one"), ("a", 0, "two"), ("b", 0, "one"), ("b", 1, "x")]:
        sent = {
            "headers": {"id": task_id, "retries": retries},
            "properties": {"delivery_tag": f"{task_id}-{tag}"},
        }
        server.ask("LPUSH", "celery", json.dumps(sent))
    for _ in range(2):
        server.ask("RPOP", "celery")
    found = traces(commands_in(server.folder))
    assert found == {
        Message("a", 0, "a-one"): [PUSHED, POPPED],
        Message("a", 0, "a-two"): [PUSHED, POPPED],
        Message("b", 0, "b-one"): [PUSHED],
        Message("b", 1, "b-x"): [PUSHED],
    }
    assert dropped_in(found) == {"a": 0}


@pytest.mark.parametrize(
    ("other", "way"),
    [
        (Message("a", 0, "copy"), [PUSHED]),
        (Message("a", 0, "copy"), [PUSHED, POPPED, UNACKED]),
        (Message("a", 0, "copy"), [PUSHED, POPPED, UNACKED, ANSWERED]),
        (Message("a", 1, "retry"), [PUSHED]),
    ],
)
def test_a_message_that_is_still_there_or_was_answered_is_not_dropped(
    other: Message, way: list[str]
) -> None:
    """A copy that was lost on the way excuses no other one, nor a later attempt."""
    assert dropped_in({Message("a", 0, "first"): [PUSHED, POPPED], other: way}) == {}


def test_the_newest_attempt_is_what_was_dropped() -> None:
    found = {
        Message("a", 0, "first"): [PUSHED, POPPED, UNACKED, ANSWERED],
        Message("a", 1, "second"): [PUSHED, POPPED],
    }
    assert dropped_in(found) == {"a": 1}


TASK = "7dc9f681-1f52-4583-8862-a1cdfaeb5546"
ONCE = [PUSHED, POPPED, UNACKED]
CLAIMED = f"claimed task chaos.work[{TASK}]: token 17, attempt (0, 0)\n"
HELD = f"held task chaos.work[{TASK}]: waits\n"


@pytest.mark.parametrize(
    ("way", "logs", "unclaimed"),
    [
        (ONCE, [""], True),
        (ONCE, [CLAIMED], False),
        (ONCE, [HELD], False),
        ([*ONCE, ANSWERED, *ONCE], [CLAIMED], True),
        ([*ONCE, ANSWERED, *ONCE], [HELD + CLAIMED], True),
        ([*ONCE, ANSWERED, *ONCE], [CLAIMED, HELD], False),
        ([*ONCE, ANSWERED], [""], False),
        ([*ONCE, ANSWERED, PUSHED], [""], False),
    ],
)
def test_what_no_worker_heard_of_waits_for_the_visibility_timeout(
    way: list[str], logs: list[str], *, unclaimed: bool
) -> None:
    """Of what reached a gate a sweep knows; and what is in its queue waits for a worker."""
    found = {Message(TASK, 0, "first"): way, Message(TASK, 0, "copy"): [PUSHED, POPPED]}
    told = {f"w{number}": log for number, log in enumerate(logs)}
    assert unclaimed_in(found, told) == ({TASK: 0} if unclaimed else {})
