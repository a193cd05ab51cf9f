"""Cleaning expired claims up, in bounded pages; two sweepers at once are harmless."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from .brokers import Deliveries, Fate
from .errors import StoreError
from .events import ClaimEvent, emit
from .native import monotonic, pause
from .parts import ask_in_parts
from .protocol import Record
from .stores import Page, Store, View

__all__ = ["DUTY", "Sweep", "Sweeper"]

logger = logging.getLogger("celery_claims")

#: The name under which sweepers take turns in the store.
DUTY = "sweep"
#: Expired claims read and cleaned up at a time: Redis does nothing else meanwhile.
PAGE = 20
#: Pages of one run: bounds its time; the next run goes on with what is left.
MAX_PAGES = 250
#: Most seconds between two pages. A sweep that did nothing else would keep the store and a
#: processor from who claims: it waits as long as a page took, which is a millisecond on a store
#: nearby. One that is far away is left alone anyhow while a page is under way.
LONGEST_PAUSE = 0.002


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one run did.

    Parameters:
        seen: expired claims that it saw.
        cleaned: how many of them it cleaned up.
        given_back: messages that it gave back to a broker which does not do so by itself.
        unreadable: what else has expired, perhaps, but cannot be read.
    """

    seen: int
    cleaned: int
    given_back: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        told = f"{self.cleaned} of {self.seen} expired claims cleaned up"
        if self.given_back:
            told += f", {self.given_back} messages given back"
        if self.unreadable:
            told += f", {self.unreadable} more cannot be read: see `celery claims check`"
        return told


class Sweeper:
    """Two steps per page, so that a crash between them loses nothing: give the messages of
    expired claims back to the broker, then clean the claims up if nobody renewed them meanwhile.

    Parameters:
        store: where claims live.
        keep_ms: how long counters outlive a cleanup, in milliseconds.
        deliveries: gives a dead worker's messages back to the broker; None: the broker does so by
            itself.
        pause: waits for so many seconds between two pages.
    """

    def __init__(
        self,
        store: Store,
        keep_ms: int,
        deliveries: Deliveries | None = None,
        *,
        pause: Callable[[float], None] = pause,
    ) -> None:
        self._store = store
        self._keep_ms = keep_ms
        self._deliveries = deliveries
        self._pause = pause

    def run_once(self) -> Sweep:
        """Sweep until nothing expired is left, or the bound of one run is reached. What cannot be
        read stays where it is, and one event tells of it.

        Raises:
            StoreError: of the store; a broker that does not answer is for the next run.
        """
        seen = cleaned = given_back = 0
        unreadable: list[str] = []
        try:
            # The claims first, for they may be cleaned up once their messages are back.
            for page in self._pages():
                records = page.records
                seen += len(records)
                unreadable += map(str, page.unreadable)
                fates = self._give_back(records)
                given_back += fates.count(Fate.PUT_BACK)
                answers = self._clean(records, fates)
                cleaned += sum(answer is True for answer in answers)
                unreadable += [str(answer) for answer in answers if isinstance(answer, StoreError)]
            given_back += self._give_back_untouched()
        except _BrokerFailed as error:
            logger.warning("expired claims stay until the broker answers: %s", error.__cause__)
            self._clean((), [])
        if unreadable:
            emit(ClaimEvent("unreadable", _summary(unreadable)))
        return Sweep(seen, cleaned, given_back, len(unreadable))

    def _pages(self) -> Iterator[Page]:
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            began = monotonic()
            page = self._store.scan(View.ORPHANED, cursor=cursor, limit=PAGE)
            yield page
            cursor = page.cursor
            if cursor is None:
                return
            self._pause(min(monotonic() - began, LONGEST_PAUSE))

    def _give_back(self, records: tuple[Record, ...]) -> list[Fate]:
        if self._deliveries is None or not records:
            return [Fate.NOBODYS] * len(records)
        with _telling_them_apart():
            return self._deliveries.give_back(records)

    def _give_back_untouched(self) -> int:
        if self._deliveries is None:
            return 0
        with _telling_them_apart():
            return self._deliveries.give_back_untouched()

    def _clean(self, records: tuple[Record, ...], fates: list[Fate]) -> list[bool | StoreError]:
        pairs = zip(records, fates, strict=True)
        expiries = [record.as_expiry() for record, fate in pairs if fate is not Fate.IN_HAND]
        return ask_in_parts(partial(self._store.expire, keep_ms=self._keep_ms), expiries)


def _summary(unreadable: list[str]) -> str:
    """The first one whole, for it says what to do; the number of all."""
    number = len(unreadable)
    rest = f"; {number - 1} more: see `celery claims check`" if number > 1 else ""
    return unreadable[0] + rest


class _BrokerFailed(Exception):
    """Its cause is the error."""


@contextmanager
def _telling_them_apart() -> Iterator[None]:
    """A broker's errors have the class of a store's."""
    try:
        yield
    except StoreError as error:
        raise _BrokerFailed from error
