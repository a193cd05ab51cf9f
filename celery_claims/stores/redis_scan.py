"""Reading many records from Redis, a page at a time.

Claimed records are read by the end of their lease, from all shards merged: what is renewed
meanwhile moves on and may be shown again, but is never passed over. What is free or finished has
no index: it is found by SCAN, a bounded step a page, and in the buckets that SCAN finds.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import InvalidArgument, StoreCorrupt
from ..protocol import Record
from .arguments import decode_cursor, encode_cursor
from .base import Census, Page, Unreadable, View
from .packing import unpack_text
from .redis_damage import damaged_bucket, damaged_claim, damaged_record, damaged_shard
from .redis_link import Call, Link, load_script
from .redis_record import Shard, as_record, rows_of
from .redis_url import Target

__all__ = ["Reader"]

#: How many keys a SCAN looks at, and how many of them a page may take, whatever they hold.
SCAN_COUNT = 1000
SCANS_A_PAGE = 10

_CLAIMED, _SETTLED = "claimed", "settled"
#: The cursor of a SCAN that is over.
_OVER = -1
#: What follows the shard in the key of a record, and of a bucket.
_TASK, _BUCKET = b":", b".f:"


class _Place(NamedTuple):
    """Where a page ended. Of claimed records: the last one shown; of others: where SCAN was."""

    phase: str = _CLAIMED
    #: the end of a lease in milliseconds, or SCAN's cursor
    number: int = 0
    #: the shard of the last record, or the server that is scanned; hexadecimal
    where: str = ""
    #: the last task, or the keys that were found and not yet shown; hexadecimal
    what: str = ""


class _Row(NamedTuple):
    expires_at: int
    shard: bytes
    task: bytes
    packed: bytes
    #: of the shard: its tag
    name: bytes


class Reader:
    """Pages and counts.

    Parameters:
        shards: those of a queue, or all.
        offset: milliseconds to add to the server's clock.
    """

    def __init__(
        self,
        link: Link,
        target: Target,
        shards: Callable[[str | None], list[Shard]],
        offset: Callable[[], int],
    ) -> None:
        self._link = link
        self._prefix = target.prefix
        self._slots = target.slots
        self._shards = shards
        self._offset = offset

    def census(self, queue: str | None) -> Census:
        shards = self._shards(queue)
        answers = self._link.run_apart([Call(_CENSUS, s.fixed, [self._offset()]) for s in shards])
        replies = [answer for answer in answers if not isinstance(answer, StoreCorrupt)]
        return Census(
            live=sum(reply[1] for reply in replies),
            orphaned=sum(reply[2] for reply in replies),
            free=None,
            finished=None,
            now=max((reply[0] for reply in replies), default=0) or self._now(),
        )

    def page(self, view: View, queue: str | None, cursor: str | None, limit: int) -> Page:
        """A page of ``Store.scan``.

        Raises:
            StoreError, InvalidArgument.
        """
        place = _read(cursor, view, queue)
        if place is not None and place.phase == _SETTLED:
            return self._settled_page(view, queue, place, limit)
        return self._claimed_page(view, queue, place, limit)

    def _claimed_page(
        self, view: View, queue: str | None, place: _Place | None, limit: int
    ) -> Page:
        rows, more, now, unreadable = self._claimed(view, self._shards(queue), place, limit)
        records = []
        for row in rows:
            shard = Shard(self._prefix, row.name)
            try:
                task_id = unpack_text(row.task)
                records.append(as_record(shard.queue, task_id, row.packed, row.expires_at))
            except ValueError as error:
                unreadable.append(damaged_claim(shard, row.task, error))
        following: _Place | None = None
        if more:
            last = rows[-1]
            following = _Place(_CLAIMED, last.expires_at, last.shard.hex(), last.task.hex())
        elif view is View.ALL:
            following = _Place(_SETTLED)
        cursor = following and encode_cursor(view, queue, *following)
        return Page(tuple(records), cursor, now, tuple(unreadable))

    def _claimed(
        self, view: View, shards: Sequence[Shard], place: _Place | None, limit: int
    ) -> tuple[list[_Row], bool, int, list[Unreadable]]:
        """The next records of all shards, whether there are more, the time, and on the first page
        the shards that cannot be read."""
        broken: list[Unreadable] = []
        while True:
            answers = self._link.run_apart(
                [
                    Call(_PAGE, s.fixed, [self._offset(), view.value, *_begin(s, place), limit])
                    for s in shards
                ]
            )
            found = list(zip(shards, answers, strict=True))
            if place is None:
                broken = [
                    damaged_shard(self._link, shard, answer)
                    for shard, answer in found
                    if isinstance(answer, StoreCorrupt)
                ]
            shards = [shard for shard, answer in found if not isinstance(answer, StoreCorrupt)]
            replies = [answer for answer in answers if not isinstance(answer, StoreCorrupt)]
            pages = [_rows(shard, reply) for shard, reply in zip(shards, replies, strict=True)]
            cut = [reply[-1] == limit for reply in replies]
            # An index that named only what an eviction took is shorter now: ask again.
            if all(page or not is_cut for page, is_cut in zip(pages, cut, strict=True)):
                break
        times = [reply[0] for reply in replies] or [self._now()]
        # What a shard did not show comes after its last: nothing beyond the first of those ends.
        ends = [page[-1] for page, is_cut in zip(pages, cut, strict=True) if is_cut]
        rows = sorted(row for page in pages for row in page)
        if ends:
            rows = [row for row in rows if row <= min(ends)]
        more = bool(ends) or len(rows) > limit
        now = min(times) if view is View.LIVE else max(times)
        return rows[:limit], more, now, broken

    def _settled_page(self, view: View, queue: str | None, place: _Place, limit: int) -> Page:
        servers = self._link.servers()
        names = sorted(servers)
        server, cursor = place.where or names[0], place.number
        keys = [bytes.fromhex(key) for key in place.what.split(",") if key]
        for _ in range(SCANS_A_PAGE):
            if len(keys) >= limit or cursor == _OVER:
                break
            if server not in servers:
                raise InvalidArgument(
                    "cursor", "the servers of the cluster have changed: begin anew"
                )
            cursor, found = self._link.on_server(
                servers[server], "SCAN", cursor, "MATCH", self._pattern(queue), "COUNT", SCAN_COUNT
            )
            cursor = int(cursor)
            keys = list(dict.fromkeys([*keys, *found]))
            if cursor == 0:
                later = names[names.index(server) + 1 :]
                server, cursor = (later[0], 0) if later else (server, _OVER)
        shown, left, broken = self._unfolded(keys, limit)
        records, now, unreadable = self._read(shown, queue)
        unreadable += broken
        following = None
        if left or cursor != _OVER:
            rest = ",".join(key.hex() for key in left)
            following = encode_cursor(view, queue, *_Place(_SETTLED, cursor, server, rest))
        return Page(tuple(records), following, now, tuple(unreadable))

    def _unfolded(
        self, keys: Sequence[bytes], limit: int
    ) -> tuple[list[bytes], list[bytes], list[Unreadable]]:
        """The first keys of records, the other keys, and buckets that cannot be read.

        A bucket stands for the keys that its records would have by themselves.
        """
        left, shown, broken = deque(keys), list[bytes](), list[Unreadable]()
        while left and len(shown) < limit:
            key = left.popleft()
            shard, rest = self._parse(key)
            if rest.startswith(_TASK):
                shown.append(key)
            if not rest.startswith(_BUCKET):
                continue
            try:
                tasks = self._link.ask("HKEYS", key)
            except StoreCorrupt as error:
                broken.append(damaged_bucket(key, error.problem))
            else:
                left.extendleft(shard.key(task) for task in tasks)
        return shown, [*left], broken

    def _read(
        self, keys: Iterable[bytes], queue: str | None
    ) -> tuple[list[Record], int, list[Unreadable]]:
        names = None if queue is None else {shard.name for shard in self._shards(queue)}
        places = [
            (shard, rest.removeprefix(_TASK))
            for shard, rest in map(self._parse, keys)
            if names is None or shard.name in names
        ]
        answers = self._link.run_apart(
            [Call(_LOOKUP, [*s.fixed, s.key(task)], [self._offset()]) for s, task in places]
        )
        records, now, unreadable = [], 0, []
        for (shard, task), answer in zip(places, answers, strict=True):
            if isinstance(answer, StoreCorrupt):
                unreadable.append(damaged_record(self._link, shard, task, answer.problem))
                continue
            ((clock, expires_at, packed),) = rows_of(answer, _LOOKED_UP, 1)
            now = max(now, clock)
            try:
                if packed:
                    records.append(as_record(shard.queue, unpack_text(task), packed, expires_at))
            except ValueError as error:
                unreadable.append(damaged_record(self._link, shard, task, str(error)))
        return records, now or self._now(), unreadable

    def _pattern(self, queue: str | None) -> bytes:
        """A pattern of the keys; ``_read`` leaves out what it shows too much."""
        if queue is None:
            return _escape(self._prefix) + b"{*}*:*"
        name = self._shards(queue)[0].name.partition(b"#")[0]
        slot = b"#*" if self._slots > 1 else b""
        return b"%b{%b%b}*:*" % (_escape(self._prefix), _escape(name), slot)

    def _parse(self, key: bytes) -> tuple[Shard, bytes]:
        """The shard of a key that SCAN found, and what follows it."""
        tag, _, rest = key[len(self._prefix) + 1 :].partition(b"}")
        return Shard(self._prefix, tag), rest

    def _now(self) -> int:
        seconds, microseconds = self._link.ask("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000 + self._offset()


def _read(cursor: str | None, view: View, queue: str | None) -> _Place | None:
    parts = decode_cursor(cursor, view, queue, str, int, str, str)
    if parts is None:
        return None
    place = _Place(*parts)  # type: ignore[arg-type]
    known = (_CLAIMED, _SETTLED) if view is View.ALL else (_CLAIMED,)
    if place.phase not in known or not _are_hexadecimal(place):
        raise InvalidArgument("cursor", f"not a cursor of this store: {cursor!r}")
    return place


def _are_hexadecimal(place: _Place) -> bool:
    texts = place.what.split(",")
    if place.phase == _CLAIMED:
        texts.append(place.where)
    try:
        for text in texts:
            bytes.fromhex(text)
    except ValueError:
        return False
    return True


def _begin(shard: Shard, place: _Place | None) -> list[Any]:
    """Where a shard's part of the next page begins: see ``page.lua``."""
    if place is None:
        return ["", "from", ""]
    where = bytes.fromhex(place.where)
    word = "from" if shard.base > where else "none" if shard.base < where else "after"
    return [place.number, word, bytes.fromhex(place.what)]


def _rows(shard: Shard, reply: list[Any]) -> list[_Row]:
    return [
        _Row(reply[place + 2], shard.base, reply[place], reply[place + 1], shard.name)
        for place in range(1, len(reply) - 1, 3)
    ]


def _escape(text: bytes) -> bytes:
    """The text as a pattern that matches nothing else."""
    for character in (b"\\", b"*", b"?", b"[", b"]"):
        text = text.replace(character, b"\\" + character)
    return text


_PAGE = load_script("page")
_CENSUS = load_script("census")
_LOOKUP = load_script("lookup")

#: See lookup.lua: the length of a record, the end of its lease.
_LOOKED_UP = struct.Struct(">2q")
