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

__all__ = ["POPPED", "commands_in", "traces"]

PUSHED, POPPED, UNACKED, ANSWERED = "pushed", "popped", "unacknowledged", "answered or put back"

Command = list[bytes]


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


def traces(commands: Iterable[Command], unacked: str = "unacked") -> Mapping[str, list[str]]:
    """What happened to the messages of each task, by its id, in order.

    Parameters:
        commands: as the server carried them out.
        unacked: kombu's hash.
    """
    found: dict[str, list[str]] = defaultdict(list)
    lists: dict[bytes, deque[bytes]] = defaultdict(deque)
    tags: dict[bytes, str] = {}
    for name, key, *rest in (command for command in commands if len(command) > 1):
        verb = name.upper()
        if verb in (b"LPUSH", b"RPUSH"):
            for message in rest:
                lists[key].append(message) if verb == b"RPUSH" else lists[key].appendleft(message)
                _note(found, _task(message), PUSHED)
        elif verb in (b"LPOP", b"RPOP") and lists[key]:
            message = lists[key].pop() if verb == b"RPOP" else lists[key].popleft()
            _note(found, _task(message), POPPED)
        elif verb == b"HSET" and key == unacked.encode():
            tags[rest[0]] = _task(rest[1])
            _note(found, tags[rest[0]], UNACKED)
        elif verb == b"HDEL" and key == unacked.encode():
            for tag in rest:
                _note(found, tags.pop(tag, ""), ANSWERED)
    return found


def _note(found: dict[str, list[str]], task_id: str, what: str) -> None:
    if task_id:
        found[task_id].append(what)


def _task(message: bytes) -> str:
    """The task's id; empty for what is no task."""
    try:
        told = json.loads(message)
        headers = (told[0] if isinstance(told, list) else told)["headers"]
        return str(headers.get("id") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""
