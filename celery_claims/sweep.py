"""Cleaning expired claims up, in bounded pages; two sweepers at once are harmless."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

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
        give_back: gives a dead worker's message back to the broker; it must do nothing if the
            message is there already. None: the broker gives it back by itself.
    """

    def __init__(
        self, store: Store, keep_ms: int, give_back: Callable[[Record], None] | None = None
    ) -> None:
        self._store = store
        self._keep_ms = keep_ms
        self._give_back = give_back

    def run_once(self) -> Sweep:
        """Sweep until nothing expired is left, or the bound of one run is reached.

        Raises:
            StoreError.
        """
        seen = cleaned = 0
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = self._store.scan(View.ORPHANED, cursor=cursor, limit=PAGE)
            seen += len(page.records)
            cleaned += self._clean(page.records)
            cursor = page.cursor
            if cursor is None:
                break
        return Sweep(seen, cleaned)

    def _clean(self, records: tuple[Record, ...]) -> int:
        expiries = [record.as_expiry() for record in records if self._is_back(record)]
        return sum(self._store.expire(expiries, keep_ms=self._keep_ms))

    def _is_back(self, record: Record) -> bool:
        if self._give_back is None:
            return True
        try:
            self._give_back(record)
        except Exception:
            logger.exception(
                "cannot give %s back to the broker; the next sweep tries", record.task_id
            )
            return False
        return True
