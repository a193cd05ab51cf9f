"""Cleaning expired claims up, in bounded pages; two sweepers at once are harmless."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .brokers import Deliveries
from .errors import StoreError
from .protocol import Record
from .stores import Store, View

__all__ = ["DUTY", "Sweep", "Sweeper"]

logger = logging.getLogger("celery_claims")

#: The name under which sweepers take turns in the store.
DUTY = "sweep"
#: Expired claims read and cleaned up at a time.
PAGE = 100
#: Pages of one run: bounds its time; the next run goes on with what is left.
MAX_PAGES = 50


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one run did: how many expired claims it saw, and how many of them it cleaned up."""

    seen: int
    cleaned: int


class Sweeper:
    """Two steps per page, so that a crash between them loses nothing: give the messages of
    expired claims back to the broker, then clean the claims up if nobody renewed them meanwhile.

    Parameters:
        store: where claims live.
        keep_ms: how long counters outlive a cleanup, in milliseconds.
        deliveries: gives a dead worker's messages back to the broker; None: the broker does so by
            itself.
    """

    def __init__(self, store: Store, keep_ms: int, deliveries: Deliveries | None = None) -> None:
        self._store = store
        self._keep_ms = keep_ms
        self._deliveries = deliveries

    def run_once(self) -> Sweep:
        """Sweep until nothing expired is left, or the bound of one run is reached.

        Raises:
            StoreError: of the store; a broker that does not answer is for the next run.
        """
        try:
            if self._deliveries is not None:
                self._deliveries.give_back_untouched()
        except StoreError as error:
            return self._broker_failed(error)
        seen = cleaned = 0
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = self._store.scan(View.ORPHANED, cursor=cursor, limit=PAGE)
            seen += len(page.records)
            try:
                back = self._give_back(page.records)
            except StoreError as error:
                self._broker_failed(error)
                break
            cleaned += self._clean(back)
            cursor = page.cursor
            if cursor is None:
                break
        return Sweep(seen, cleaned)

    def _give_back(self, records: tuple[Record, ...]) -> list[Record]:
        """Those whose message is in nobody's hands."""
        if self._deliveries is None or not records:
            return list(records)
        back = self._deliveries.give_back(records)
        return [record for record, is_back in zip(records, back, strict=True) if is_back]

    def _clean(self, records: list[Record]) -> int:
        expiries = [record.as_expiry() for record in records]
        return sum(self._store.expire(expiries, keep_ms=self._keep_ms))

    def _broker_failed(self, error: StoreError) -> Sweep:
        logger.warning("expired claims stay until the broker answers: %s", error)
        return Sweep(0, self._clean([]))
