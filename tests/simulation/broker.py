"""The broker: messages that are given out, taken back and given out again.

Like RabbitMQ it takes the messages of a lost connection back; like Redis it keeps them under the
delivery tag that they had, until somebody puts them back or the visibility timeout is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

from celery_claims.brokers import Fate, InHand
from celery_claims.errors import StoreUnavailable
from celery_claims.protocol import Record
from kombu.message import Message

from .judge import Judge, Part, part_of
from .link import QUICK, Link, Service
from .plan import Plan
from .world import Fate as ProcessFate
from .world import Process, World

__all__ = ["Broker", "Channel", "Copy", "SimulatedDeliveries"]

QUEUE = "celery"
#: How far from the end of the queue a message may be taken: what is near together has no order.
MIXED = 5
#: Members of one page of what nobody touched.
PAGE = 100

T = TypeVar("T")


@dataclass(eq=False)
class Copy:
    """One message."""

    tag: str
    number: int
    headers: dict[str, Any]
    body: bytes
    properties: dict[str, Any]
    part: Part
    late: bool
    redelivered: bool = False
    #: when it was last given out, or touched
    score: float = 0.0
    #: a claim or a touch tells of it
    known: bool = False
    #: who has it
    holder: Process | None = None

    @property
    def content(self) -> tuple[int, bool]:
        """What tells it from another under its tag, for who reads it."""
        return self.number, self.redelivered


class Bag(Generic[T]):
    """A set from which one is drawn by a seed, in O(1)."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._places: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T) -> None:
        if item not in self._places:
            self._places[item] = len(self._items)
            self._items.append(item)

    def discard(self, item: T) -> None:
        place = self._places.pop(item, None)
        if place is None:
            return
        last = self._items.pop()
        if last is not item:
            self._items[place] = last
            self._places[last] = place

    def draw(self, rng: Random) -> T:
        return self._items[int(rng.random() * len(self._items))]


class Broker:
    """One queue."""

    def __init__(self, world: World, plan: Plan, judge: Judge) -> None:
        self.world = world
        self.judge = judge
        self.is_redis = plan.broker == "redis"
        self.visibility = plan.visibility
        self.age = plan.lease
        self.service = Service(world, "broker", plan.timeout)
        self.service.on_silence = judge.untold
        self.queue: deque[Copy] = deque()
        self.unacked: dict[str, Copy] = {}
        self.touched: dict[InHand, float] = {}
        self.ready: Bag[Channel] = Bag()
        self._numbers = 0
        self._pumping = False
        if self.is_redis:
            world.after(self.visibility / 4, self._restore_visible)

    # messages

    def note(self, tag: str) -> None:
        """A claim is granted, and its record tells of this message."""
        copy = self.unacked.get(tag)
        if copy is not None:
            copy.known = True

    def unnote(self, tag: str) -> None:
        """The claim is given back: only a touch tells of the message now."""
        copy = self.unacked.get(tag)
        if copy is not None:
            copy.known = InHand(tag, QUEUE) in self.touched

    def taken_over(self, tag: str, heir: ProcessFate) -> None:
        """A record told of this message, until its claim was taken over: the new owner is told."""
        self.unnote(tag)
        copy = self.unacked.get(tag)
        if self.is_redis and copy is not None and not copy.known:
            self.world.after(self.judge.soon, self._check_known, copy, heir, self.world.now)

    def _check_known(self, copy: Copy, heir: ProcessFate, since: float) -> None:
        """Of one that was killed, that had no answer, or whom the broker did not hear, nobody
        hears of the message."""
        forgotten = self.unacked.get(copy.tag) is copy and not copy.known
        if forgotten and not (heir.was_hit(since) or self.service.was_bad(self.judge.soon)):
            self.judge.fail("back soon", f"nobody knows of {copy.part}, {copy.tag}, any more")

    def send(
        self, headers: dict[str, Any], body: bytes, properties: dict[str, Any], *, late: bool
    ) -> None:
        self._numbers += 1
        number = self._numbers
        copy = Copy(f"m{number}", number, headers, body, properties, part_of(headers), late=late)
        self.judge.sent(copy.part)
        self.queue.append(copy)
        self.pump()

    def duplicate(self, copy: Copy) -> None:
        self._numbers += 1
        self.world.tell("broker", "another copy of %s", copy.part)
        self.put(replace(copy, tag=f"m{self._numbers}", number=self._numbers))

    def put(self, copy: Copy) -> None:
        """Where it is consumed next."""
        self.queue.appendleft(copy)
        self.pump()

    def messages(self) -> list[Copy]:
        return [*self.queue, *self.unacked.values()]

    def take(self, tag: str) -> Copy | None:
        return self.unacked.pop(tag, None)

    def put_back(self, tags: Iterable[str]) -> int:
        """Unacknowledged ones, which may be given out again."""
        number = 0
        for tag in tags:
            copy = self.take(tag)
            if copy is not None:
                number += 1
                self.put(replace(copy, redelivered=True))
        return number

    def acknowledged(self, tag: str, channel: Channel) -> None:
        copy = self.take(tag)
        if copy is None:
            return
        self.world.tell(channel.process, "acknowledged %s", copy.part)
        self._removed(copy, channel)

    def rejected(self, tag: str, channel: Channel, *, requeue: bool) -> None:
        copy = self.take(tag)
        if copy is None:
            return
        self.world.tell(channel.process, "rejected %s, requeue %s", copy.part, requeue)
        if requeue:
            self.queue.append(replace(copy, redelivered=True))
            self.pump()
        else:
            self._removed(copy, channel)

    def _removed(self, copy: Copy, channel: Channel) -> None:
        self.judge.removed(copy.part, channel.process, late=copy.late, leaving=channel.leaving)

    # giving out

    def pump(self) -> None:
        if not self._pumping:
            self._pumping = True
            self.world.after(self.world.rng.uniform(*QUICK), self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self.service.down:
            return
        rng = self.world.rng
        while self.queue and len(self.ready):
            place = int(rng.random() * min(MIXED, len(self.queue)))
            copy = self.queue[place]
            del self.queue[place]
            self.ready.draw(rng).give(copy)

    def next_tag(self) -> str:
        self._numbers += 1
        return f"d{self._numbers}"

    def set_down(self, *, down: bool) -> None:
        self.service.down = down
        if not down:
            self.pump()

    # as Redis

    def _restore_visible(self) -> None:
        until = self.world.now - self.visibility
        old = [tag for tag, copy in self.unacked.items() if copy.score <= until]
        for tag in old:
            copy = self.unacked[tag]
            self.world.tell("broker", "the visibility timeout of %s is over", tag)
            alive = copy.holder is not None and copy.holder.alive
            self.judge.restored(copy.part, alive=alive)
        self.put_back(old)
        self.world.after(self.visibility / 4, self._restore_visible)

    def touch(self, mine: Sequence[InHand], dropped: Sequence[InHand]) -> None:
        now = self.world.now
        for each in mine:
            copy = self.unacked.get(each.tag)
            if copy is None:
                self.touched.pop(each, None)
            else:
                copy.score, copy.known = now, True
                self.touched[each] = now + self.age
        for each in dropped:
            if each.tag not in self.unacked:
                self.touched.pop(each, None)

    def read(self, wanted: Sequence[InHand]) -> list[tuple[int, bool] | None]:
        found = [self.unacked.get(each.tag) for each in wanted]
        return [None if copy is None else copy.content for copy in found]

    def give_back(self, in_hand: InHand, expected: tuple[int, bool] | None) -> Fate:
        """As give_back.lua."""
        now = self.world.now
        copy = self.unacked.get(in_hand.tag)
        if copy is not None:
            if self.touched.get(in_hand, 0.0) > now:
                return Fate.IN_HAND
            if copy.score > now - self.age or copy.content != expected:
                if in_hand in self.touched:
                    self.touched[in_hand] = now + self.age
                return Fate.IN_HAND
        self.touched.pop(in_hand, None)
        if copy is None:
            return Fate.NOBODYS
        self.put_back([in_hand.tag])
        return Fate.PUT_BACK

    def untouched(self) -> list[InHand]:
        now = self.world.now
        old = sorted((until, each) for each, until in self.touched.items() if until <= now)
        return [each for _, each in old[:PAGE]]


class Channel:
    """A worker's channel, on both its ends.

    Parameters:
        on_message: takes what comes, in the process.
        on_lost: called, in the process, when the broker has closed it.
    """

    #: What kombu's messages ask a channel for.
    no_ack_consumers = None
    ack_emulation = True

    def __init__(
        self,
        broker: Broker,
        process: Process,
        on_message: Callable[[Channel, Message], None],
        on_lost: Callable[[Channel], None],
    ) -> None:
        self.broker = broker
        self.process = process
        #: the broker's end
        self.open = True
        #: the worker's end
        self.usable = True
        self.consuming = False
        self.leaving = False
        self.prefetch = 0
        self.taken: dict[str, None] = {}
        self.connection = SimpleNamespace(driver_type="redis" if broker.is_redis else "amqp")
        #: as kombu's ``virtual.QoS``: what is dirty is not counted and not put back
        self.qos = SimpleNamespace(_quick_ack=self.forget)
        self._link = Link(process, broker.service)
        self._on_message = on_message
        self._on_lost = on_lost
        process.on_death.append(self._died)

    # the broker's end

    def set_prefetch(self, prefetch_count: int) -> None:
        self.prefetch = prefetch_count
        self._look()

    def consume(self) -> None:
        self.consuming = True
        self._look()

    def cancel(self) -> None:
        self.consuming = False
        self._look()

    def _look(self) -> None:
        room = not self.prefetch or len(self.taken) < self.prefetch
        if self.open and self.consuming and room:
            self.broker.ready.add(self)
            self.broker.pump()
        else:
            self.broker.ready.discard(self)

    def give(self, copy: Copy) -> None:
        broker, world = self.broker, self.broker.world
        if not broker.is_redis:
            copy.tag = broker.next_tag()
        copy.score, copy.known, copy.holder = world.now, False, self.process
        broker.unacked[copy.tag] = copy
        self.taken[copy.tag] = None
        self._look()
        world.tell("broker", "%s, %s to %s", copy.part, copy.tag, self.process)
        world.after(world.rng.uniform(*QUICK), self._arrive, copy)

    def _arrive(self, copy: Copy) -> None:
        if not self.open:
            return
        message = Message(
            body=copy.body,
            delivery_tag=copy.tag,
            content_type="application/json",
            content_encoding="utf-8",
            headers=dict(copy.headers),
            properties=copy.properties,
            delivery_info={
                "exchange": "",
                "routing_key": QUEUE,
                "redelivered": copy.redelivered,
            },
            channel=self,
            accept={"application/json"},
        )
        self._on_message(self, message)

    def forget(self, tag: str) -> None:
        self.taken.pop(tag, None)
        self._look()

    def lose(self, *, restores: bool = True) -> None:
        """The connection is cut: the worker will find out.

        Parameters:
            restores: the client of Redis manages to put its messages back.
        """
        if not self.open:
            return
        self._close(restores=restores)
        if self.process.alive:
            self._on_lost(self)

    def _close(self, *, restores: bool) -> None:
        self.open = False
        self.broker.ready.discard(self)
        tags, self.taken = list(self.taken), {}
        if restores or not self.broker.is_redis:
            self.broker.put_back(reversed(tags))

    def _died(self) -> None:
        if self.open:
            self.broker.ready.discard(self)
            # What was written before is on its way all the same.
            self.broker.world.after(0.005, self._close_dead)

    def _close_dead(self) -> None:
        if self.open:
            self._close(restores=False)

    # the worker's end

    def close(self) -> None:
        """In good order, by its worker."""
        self.usable = False
        if self.open:
            self._close(restores=True)

    def basic_ack(self, tag: str, multiple: bool = False) -> None:
        self._answer("ack", tag, lambda: self.broker.acknowledged(tag, self))

    def basic_reject(self, tag: str, requeue: bool) -> None:
        self._answer("reject", tag, lambda: self.broker.rejected(tag, self, requeue=requeue))

    def _answer(self, what: str, tag: str, effect: Callable[[], None]) -> None:
        """Raises: ConnectionResetError, as far as its end knows."""
        world = self.process.world
        if not self.usable:
            raise ConnectionResetError(what)
        if self.broker.is_redis:
            self.taken.pop(tag, None)
            try:
                self._link.ask(f"{what} {tag}", effect)
            except StoreUnavailable as error:
                raise ConnectionResetError(what) from error
            self._look()
            return
        self.process.step()
        world.after(world.rng.uniform(*QUICK), self._arrived, tag, effect)
        self.process.step()

    def _arrived(self, tag: str, effect: Callable[[], None]) -> None:
        if self.open:
            self.taken.pop(tag, None)
            effect()
            self._look()


class SimulatedDeliveries:
    """``Deliveries`` of the broker that is like Redis, by the rules of its scripts."""

    def __init__(self, process: Process, broker: Broker) -> None:
        self.touch_every = max(broker.visibility / 3, 0.1)
        self._broker = broker
        self._link = Link(process, broker.service)

    def touch(self, mine: Sequence[InHand], dropped: Sequence[InHand] = ()) -> None:
        self._link.ask("touch", lambda: self._broker.touch(mine, dropped))

    def give_back(self, records: Sequence[Record]) -> list[Fate]:
        return self._give_back([InHand(r.delivery.tag, r.delivery.queue) for r in records])

    def give_back_untouched(self) -> int:
        old = self._link.ask("untouched", self._broker.untouched)
        return self._give_back(old).count(Fate.PUT_BACK)

    def _give_back(self, wanted: Sequence[InHand]) -> list[Fate]:
        if not wanted:
            return []
        found = self._link.ask("read messages", lambda: self._broker.read(wanted))
        return [
            self._link.ask(
                "give back", lambda each=each, read=read: self._broker.give_back(each, read)
            )  # type: ignore[misc]
            for each, read in zip(wanted, found, strict=True)
        ]

    def close(self) -> None:
        """Nothing to close."""
