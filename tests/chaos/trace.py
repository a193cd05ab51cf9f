"""What a Redis broker's append-only file tells of each message: the way it went, in order.

Every change is in the file, with what it was of a pop, for the lists are rebuilt here. A message
whose last trace is a pop went out of its queue and never into the hash of unacknowledged ones: it
was with a worker that died, or whose connection broke, between the two. Nobody but kombu knew of
it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Message", "commands_in", "dropped_in", "told", "traces", "unanswered_in"]

PUSHED, POPPED, UNACKED, ANSWERED = "pushed", "popped", "unacknowledged", "answered or put back"

Command = list[bytes]


class Message(NamedTuple):
    """Which message of a broker it is: each copy has a tag of its own, which it keeps.

    Parameters:
        task_id: Celery's id.
        retries: of its attempt.
        tag: its delivery tag, empty if it has none.
    """

    task_id: str
    retries: int = 0
    tag: str = ""


def commands_in(folder: Path) -> Iterator[Command]:
    """The commands of the append-only files of a server that wrote no other base."""
    for file in sorted(folder.glob("appendonlydir/*.incr.aof"), key=_number):
        yield from _commands(file.read_bytes())


def _number(file: Path) -> int:
    (number,) = re.findall(r"\.(\d+)\.incr\.aof$", file.name)
    return int(number)


def _commands(raw: bytes) -> Iterator[Command]:
    at = 0

    def line() -> bytes:
        nonlocal at
        end = raw.index(b"\r\n", at)
        found, at = raw[at:end], end + 2
        return found

    while at < len(raw):
        head = line()
        if head.startswith(b"#"):
            # A note of the server's, e.g. of the time.
            continue
        command = []
        for _ in range(int(head[1:])):
            size = int(line()[1:])
            command.append(raw[at : at + size])
            at += size + 2
        yield command


def traces(commands: Iterable[Command], unacked: str = "unacked") -> Mapping[Message, list[str]]:
    """What happened to each message of a task, in order.

    Parameters:
        commands: as the server carried them out.
        unacked: kombu's hash.
    """
    found: dict[Message, list[str]] = defaultdict(list)
    lists: dict[bytes, deque[bytes]] = defaultdict(deque)
    tags: dict[bytes, Message | None] = {}
    for name, key, *rest in (command for command in commands if len(command) > 1):
        verb = name.upper()
        if verb in (b"LPUSH", b"RPUSH"):
            for message in rest:
                lists[key].append(message) if verb == b"RPUSH" else lists[key].appendleft(message)
                _note(found, _message(message), PUSHED)
        elif verb in (b"LPOP", b"RPOP") and lists[key]:
            message = lists[key].pop() if verb == b"RPOP" else lists[key].popleft()
            _note(found, _message(message), POPPED)
        elif verb == b"HSET" and key == unacked.encode():
            tags[rest[0]] = _message(rest[1])
            _note(found, tags[rest[0]], UNACKED)
        elif verb == b"HDEL" and key == unacked.encode():
            for tag in rest:
                _note(found, tags.pop(tag, None), ANSWERED)
    return found


def dropped_in(found: Mapping[Message, list[str]]) -> Mapping[str, int]:
    """The tasks whose messages the broker gave away and then knew nothing more of.

    By id, with the retries of the attempt: the newest that there was a message of, and it counts
    only if each copy of it went that way.
    """
    return _newest(found, {POPPED})


def unanswered_in(found: Mapping[Message, list[str]]) -> Mapping[str, int]:
    """As ``dropped_in``, of messages that may also be unacknowledged."""
    return _newest(found, {POPPED, UNACKED})


def _newest(found: Mapping[Message, list[str]], ends: set[str]) -> Mapping[str, int]:
    ways: dict[str, dict[int, list[list[str]]]] = defaultdict(lambda: defaultdict(list))
    for message, way in found.items():
        ways[message.task_id][message.retries].append(way)
    newest = {task_id: max(attempts) for task_id, attempts in ways.items()}
    return {
        task_id: retries
        for task_id, retries in newest.items()
        if all(way[-1] in ends for way in ways[task_id][retries])
    }


def told(found: Mapping[Message, list[str]]) -> Mapping[str, list[str]]:
    """The ways of each task's messages, in words."""
    ways: dict[str, list[str]] = defaultdict(list)
    for message, way in found.items():
        ways[message.task_id].append(f"attempt {message.retries}, {', '.join(way)}")
    return ways


def _note(found: dict[Message, list[str]], message: Message | None, what: str) -> None:
    if message is not None:
        found[message].append(what)


def _message(raw: bytes) -> Message | None:
    """Which one it is; None for what is no task."""
    try:
        told = json.loads(raw)
        told = told[0] if isinstance(told, list) else told
        headers, properties = told["headers"], told.get("properties") or {}
        tag = properties.get("delivery_tag") or ""
        found = Message(str(headers["id"]), int(headers.get("retries") or 0), str(tag))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return found
