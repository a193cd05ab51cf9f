"""Claims in Redis or Valkey: one script a verb, one round trip a batch, the server's clock.

How records are kept is told in ``lua/record.lua``, what each script takes and answers in its head.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ..errors import InvalidArgument, StoreCorrupt
from ..protocol import (
    AlreadyClaimed,
    Attempt,
    ClaimAnswer,
    ClaimRequest,
    ClaimToken,
    Ended,
    Exhausted,
    Expiry,
    Finished,
    Lost,
    Outcome,
    Record,
    RenewAnswer,
    Renewal,
    Renewed,
    SettleAnswer,
    Settled,
    Settlement,
    Success,
    Superseded,
    TookOver,
)
from .arguments import check_batch, check_duty, check_keep, check_keys, check_scan
from .base import Census, Page, Store, View
from .packing import CODES, pack_text
from .redis_check import find_concerns
from .redis_damage import removal_of
from .redis_link import Call, Link, Script, load_script
from .redis_record import (
    Shard,
    as_record,
    is_new,
    pack_request,
    recalled,
    rows_of,
    shard_of,
    slot_of,
)
from .redis_registry import Registry
from .redis_scan import Reader
from .redis_url import parse_url

__all__ = ["RedisStore"]

T = TypeVar("T")

#: Most tasks of one script call: a millisecond or two of the server, which does nothing else then.
#: Between the calls of one round trip it serves others.
CHUNK = 100

_SUCCESS, _ORPHANED, _TOOK_OVER, _EXHAUSTED, _ALREADY, _FINISHED, _SUPERSEDED = range(7)
_DONE, _ENDED, _LOST, _UNKNOWN = range(4)

_FIVE = struct.Struct(">5q")
_FOUR = struct.Struct(">4q")
_THREE = struct.Struct(">3q")
_TWO = struct.Struct(">2q")

#: Of one element: the server's clock, then the numbers and the text that the script says of it.
Row = Sequence[Any]


def _no_offset() -> int:
    return 0


class RedisStore(Store):
    """``redis://``, ``rediss://``, ``valkey://``, ``redis+socket://``, ``sentinel://`` and
    ``redis+cluster://``.

    An answer is as durable as the server is: see ``check`` and docs/stores/redis.md.

    Parameters:
        url: as Celery's Redis broker takes it; options may stand in its query.
        timeout: seconds for a connection, and for an answer, before ``StoreUnavailable``.
        clock_offset: milliseconds to add to the server's clock; for tests.
        options: ``prefix`` of every key (default ``claims:``), ``slots`` to spread a hot queue over
            (1), ``wait_replicas`` that must have a write (0); from a broker's transport options
            ``global_keyprefix``, ``master_name``, ``sentinel_kwargs``, ``username``, ``password``,
            ``db``, ``ssl``, ``ssl_*``, ``socket_keepalive``, ``credential_provider``.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,
        clock_offset: Callable[[], int] = _no_offset,
        **options: Any,
    ) -> None:
        if (
            isinstance(timeout, bool)
            or not isinstance(timeout, (int, float))
            or not (math.isfinite(timeout) and timeout > 0)
        ):
            raise InvalidArgument("timeout", f"expected seconds above 0, got {timeout!r}")
        target = parse_url(url, options)
        self.name = target.name
        self._offset = clock_offset
        self._prefix = target.prefix
        self._slots = target.slots
        self._waits = target.wait_replicas > 0
        self._link = Link(target, timeout)
        self._registry = Registry(self._link, target.prefix, clock_offset)
        self._reader = Reader(self._link, target, self.shards, clock_offset)

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        batch = check_batch("requests", requests, ClaimRequest)
        rows = self._write(_CLAIM, _FIVE, (), map(_key_of, batch), map(pack_request, batch))
        return self._decode(_claim_answer, batch, rows)

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        batch = check_batch("renewals", renewals, Renewal)
        rows = self._write_grants(
            _RENEW,
            batch,
            lambda each: _FOUR.pack(each.token.token, each.lease_ms, each.extend, each.started),
        )
        return self._decode(_renew_answer, batch, rows)

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        batch = check_batch("settlements", settlements, Settlement)
        rows = self._write_grants(
            _SETTLE,
            batch,
            lambda each: _FOUR.pack(
                each.token.token, each.keep_ms, CODES[each.outcome], each.counted
            ),
        )
        return self._decode(_settle_answer, batch, rows)

    def lookup(self, keys: Sequence[tuple[str, str]]) -> list[Record | None]:
        pairs = check_keys(keys)
        rows = self._ask(_LOOKUP, _TWO, (), pairs, ([] for _ in pairs))
        return self._decode(_looked_up, pairs, rows)

    def scan(
        self, view: View, *, queue: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page:
        check_scan(view, queue, limit)
        return self._reader.page(view, queue, cursor, limit)

    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        check_keep(keep_ms)
        batch = check_batch("expiries", expiries, Expiry)
        # First: if it fails, nothing was done of what the call is for.
        self._registry.retire()
        rows = self._write(
            _EXPIRE,
            _TWO,
            (keep_ms,),
            ((each.queue, each.task_id) for each in batch),
            ([_TWO.pack(each.token, each.expires_at)] for each in batch),
        )
        return [bool(row[1]) for row in rows]

    def census(self, queue: str | None = None) -> Census:
        """Claims only: Redis forgets what is free or finished by itself, and does not count it."""
        check_scan(View.ALL, queue, 1)
        return self._reader.census(queue)

    def elect(self, duty: str, interval_ms: int) -> bool:
        check_duty(duty, interval_ms)
        key = self._prefix + b"turn:" + duty.encode("utf-8", "surrogatepass")
        call = Call(_ELECT, [key], [self._offset(), interval_ms])
        return bool(self._link.run([call], writes=True)[0])

    def check(self) -> list[str]:
        return super().check() + find_concerns(self._link, replicas_are_waited_for=self._waits)

    def close(self) -> None:
        self._link.close()

    def shards(self, queue: str | None) -> list[Shard]:
        """The shards of a queue, or all in which something may be claimed."""
        if queue is None:
            return self._registry.shards()
        if self._slots == 1:
            return [shard_of(self._prefix, queue, None)]
        return [shard_of(self._prefix, queue, slot) for slot in range(self._slots)]

    def _write_grants(
        self, script: Any, batch: Sequence[Any], pack: Callable[[Any], bytes]
    ) -> list[Row]:
        """Ask with the token alone; with all that a grant says where the store forgot it."""
        rows = self._write(
            script,
            _THREE,
            (1,),
            (_key_of(each.token) for each in batch),
            ([pack(e)] for e in batch),
        )
        forgotten = _from_first_unknown(batch, rows)
        if forgotten:
            lost = [batch[number] for number in forgotten]
            again = self._write(
                script,
                _THREE,
                (2,),
                (_key_of(each.token) for each in lost),
                ([pack(each), recalled(each.token)] for each in lost),
            )
            for number, row in zip(forgotten, again, strict=True):
                rows[number] = row
        return rows

    def _write(
        self,
        script: Any,
        form: struct.Struct,
        head: Sequence[Any],
        keys: Iterable[tuple[str, str]],
        arguments: Iterable[list[bytes]],
    ) -> list[Row]:
        return self._ask(script, form, head, keys, arguments, writes=True)

    def _ask(
        self,
        script: Any,
        form: struct.Struct,
        head: Sequence[Any],
        keys: Iterable[tuple[str, str]],
        arguments: Iterable[list[bytes]],
        *,
        writes: bool = False,
    ) -> list[Row]:
        """A row for each key, in order; a script call for each shard, in one round trip.

        Parameters:
            form: of the numbers that the script answers of a task, a text's length first.
            head: its arguments before those of the tasks.
        """
        start = [self._offset(), *head]
        open_calls: dict[bytes, _Group] = {}
        groups: list[_Group] = []
        count = 0
        for (queue, task_id), own in zip(keys, arguments, strict=True):
            task = pack_text(task_id)
            shard = shard_of(self._prefix, queue, slot_of(task, self._slots))
            group = open_calls.get(shard.base)
            if group is None or len(group.numbers) >= CHUNK:
                group = open_calls[shard.base] = _Group(script, shard, start)
                groups.append(group)
            group.numbers.append(count)
            group.keys.append(shard.key(task))
            group.arguments += own
            count += 1
        rows: list[Any] = [None] * count
        if not groups:
            return rows
        due = []
        if writes:
            due = [group.shard for group in groups if self._registry.is_due(group.shard)]
            self._registry.note(due)
        try:
            replies = self._link.run(groups, writes=writes)
        except StoreCorrupt as error:
            if count == 1:
                raise self._explain(error.problem, groups[0].shard, task) from error.__cause__
            raise
        for group, reply in zip(groups, replies, strict=True):
            group.spread(rows, reply, form)
            if writes and is_new(reply) and group.shard not in due:
                self._registry.note([group.shard])
        return rows

    def _decode(
        self, decode: Callable[[Any, Row], T], batch: Sequence[Any], rows: Sequence[Row]
    ) -> list[T]:
        answers = []
        for each, row in zip(batch, rows, strict=True):
            try:
                answers.append(decode(each, row))
            except ValueError as error:
                queue, task_id = each if isinstance(each, tuple) else _key_of(_grant_of(each))
                task = pack_text(task_id)
                shard = shard_of(self._prefix, queue, slot_of(task, self._slots))
                raise self._explain(str(error), shard, task) from error
        return answers

    def _explain(self, problem: str, shard: Shard, task: bytes) -> StoreCorrupt:
        removal = removal_of(self._link, shard, task)
        return StoreCorrupt(
            self.name, f"a record cannot be read ({problem}); to delete it: {removal}"
        )


class _Group(Call):
    """The call for those tasks of a batch that are in one shard, in their order."""

    __slots__ = ("numbers", "shard")

    keys: list[bytes]
    arguments: list[Any]

    def __init__(self, script: Script, shard: Shard, start: list[Any]) -> None:
        super().__init__(script, [*shard.fixed], [*start])
        self.shard = shard
        self.numbers: list[int] = []

    def spread(self, rows: list[Any], reply: bytes, form: struct.Struct) -> None:
        """Put each task's part of a reply where it belongs."""
        found = rows_of(reply, form, len(self.numbers))
        for number, row in zip(self.numbers, found, strict=True):
            rows[number] = row


def _from_first_unknown(batch: Sequence[Any], rows: Sequence[Row]) -> list[int]:
    """What to ask again: what comes after a forgotten grant of the same task waited for it."""
    unknown: set[tuple[str, str]] = set()
    numbers = []
    for number, (each, row) in enumerate(zip(batch, rows, strict=True)):
        if row[1] == _UNKNOWN:
            unknown.add(_key_of(each.token))
        if unknown and _key_of(each.token) in unknown:
            numbers.append(number)
    return numbers


def _key_of(grant: ClaimRequest | ClaimToken) -> tuple[str, str]:
    return (grant.queue, grant.task_id)


def _grant_of(each: Any) -> ClaimRequest | ClaimToken:
    return each if isinstance(each, ClaimRequest) else each.token


def _claim_answer(request: ClaimRequest, row: Row) -> ClaimAnswer:
    now, code, number, expires_at, _, packed = row
    if code in (_SUCCESS, _ORPHANED, _TOOK_OVER, _EXHAUSTED):
        return _granted(request, row)
    if code == _SUPERSEDED:
        return Superseded(Attempt(number, expires_at), now)
    record = as_record(request.queue, request.task_id, packed, expires_at)
    if code == _ALREADY:
        return AlreadyClaimed(record.owner, expires_at, now)
    return Finished(_outcome(record), record.settled_at, now)


def _granted(request: ClaimRequest, row: Row) -> ClaimAnswer:
    now, code, number, expires_at, deliveries, packed = row
    if packed and code != _TOOK_OVER:
        token = as_record(request.queue, request.task_id, packed, expires_at).as_token()
    else:
        token = ClaimToken(
            queue=request.queue,
            task_id=request.task_id,
            owner=request.owner,
            token=number,
            attempt=request.attempt,
            created_at=now,
            expires_at=expires_at,
            grant_id=request.grant_id,
            root_id=request.root_id,
            deaths=request.deaths,
            delivery=request.delivery,
        )
    if code == _EXHAUSTED:
        return Exhausted(deliveries, token, now)
    if code == _TOOK_OVER:
        previous = as_record(request.queue, request.task_id, packed, 0)
        return TookOver(previous.owner, token, now, deliveries, previous.delivery)
    return Success(token, now, deliveries, code == _ORPHANED)


def _renew_answer(renewal: Renewal, row: Row) -> RenewAnswer:
    now, code, expires_at, _ = row
    if code == _DONE:
        return Renewed(expires_at, now)
    return _refused(renewal.token, row)


def _settle_answer(settlement: Settlement, row: Row) -> SettleAnswer:
    now, code, *_ = row
    if code == _DONE:
        return Settled(now)
    return _refused(settlement.token, row)


def _refused(token: ClaimToken, row: Row) -> Ended | Lost:
    now, code, _, packed = row
    if not packed:
        return Lost(None, now)
    record = as_record(token.queue, token.task_id, packed, 0)
    return Ended(_outcome(record), now) if code == _ENDED else Lost(record.owner, now)


def _looked_up(key: tuple[str, str], row: Row) -> Record | None:
    _, expires_at, packed = row
    return as_record(*key, packed, expires_at) if packed else None


def _outcome(record: Record) -> Outcome:
    if record.outcome is None:
        raise ValueError("a finished record without an outcome")
    return record.outcome


_CLAIM = load_script("claim")
_RENEW = load_script("renew")
_SETTLE = load_script("settle")
_LOOKUP = load_script("lookup")
_EXPIRE = load_script("expire")
_ELECT = load_script("elect")
