"""The promise of a store: eight verbs, each atomic per record, linearizable, repeatable.

What holds for every verb:

*Batch.* A write verb takes a list and answers a list of the same length and order. The records of
one list may be the same; they are treated in order. Each element is atomic by itself; a batch as a
whole is not, and if the call raises, any part of it may have been carried out.

*Clock.* The store's own (for SQLite and memory: the host's), in milliseconds since the epoch.
A caller's clock decides nothing.

*Repeating.* A call that raised a ``StoreError`` may be repeated, whole or in parts: what it had
done before is answered again and not done twice.

*Errors.* Bad arguments raise ``InvalidArgument`` before anything is done; a failing store raises
``StoreError`` with the driver's error as its cause. Nothing else leaves a verb. A batch with a
record that cannot be read may be refused as a whole, with ``StoreCorrupt``; its parts without that
record are not. Of a batch of one the error says what to delete. Nothing is granted, and nothing
deleted, because it cannot be read.

*Threads and forks.* One store object may be used by any number of threads, and in a forked child.

A new store derives from ``Store`` and passes ``celery_claims.testing.StoreConformance``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType

from ..protocol import (
    ClaimAnswer,
    ClaimRequest,
    Expiry,
    Record,
    RenewAnswer,
    Renewal,
    SettleAnswer,
    Settlement,
)

__all__ = ["Census", "Page", "Store", "Unreadable", "View"]

#: The owner and the grant of a finished record whose store does not keep them.
FORGOTTEN = "(finished)"

#: Most records of one ``scan`` page.
MAX_PAGE = 1000

#: Most kept records that one ``expire`` call forgets: bounds its time.
FORGET_BATCH = 1000


class View(str, Enum):
    """Which records a scan shows."""

    #: claimed, under an unexpired lease
    LIVE = "live"
    #: claimed, under a lease that is over; the longest expired first
    ORPHANED = "orphaned"
    #: every record
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record, or what stands where one should, that a scan went past.

    Parameters:
        place: where it is, in the store's own terms.
        problem: why it cannot be read.
        removal: the store's own command that deletes it, and nothing else.
    """

    place: str
    problem: str
    removal: str

    def __str__(self) -> str:
        return f"{self.place} cannot be read ({self.problem}); to delete it: {self.removal}"


@dataclass(frozen=True, slots=True)
class Page:
    """Some records of a scan.

    Parameters:
        records: at most the asked number, less the unreadable ones.
        cursor: where to go on, None after the last page.
        now: the store's clock in milliseconds, when the page was read.
        unreadable: what stood between the records and could not be read.
    """

    records: tuple[Record, ...]
    cursor: str | None
    now: int
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, slots=True)
class Census:
    """How many records there are, by what they say at ``now`` of the store's clock.

    What has no known state, or cannot be counted, is in none of the numbers.

    Parameters:
        free, finished: None where the store does not count them.
    """

    live: int
    orphaned: int
    free: int | None
    finished: int | None
    now: int


class Store(ABC):
    """Where claims live. See the module for what holds for every verb.

    Parameters:
        url: as the user wrote it; ``name`` is this without a password.
    """

    #: Whether other processes that open the same URL see the same records.
    shared: bool = True

    #: The store in messages: its URL without a password.
    name: str

    @abstractmethod
    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        """Ask for grants.

        Parameters:
            requests: what is asked for; leases in milliseconds.
        Returns:
            ``protocol.decide_claim`` of each. The tokens of one claim strictly rise for ever.
        Raises:
            StoreError.
        Atomicity: each element is one compare-and-set. Clock: the store's.
        A retry with the same grant id gets the same token, with the lease counted anew.
        """

    @abstractmethod
    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        """Lengthen leases; never shortens one.

        Parameters:
            renewals: the grants and the wanted leases, in milliseconds.
        Returns:
            ``protocol.decide_renew`` of each.
        Raises:
            StoreError.
        Atomicity: each element compares the token and sets the expiry in one step.
        Clock: the store's.
        A retry renews again (harmless); a retried extension adds again, which the caller bounds.
        """

    @abstractmethod
    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        """Record ends: finished, or given back.

        Parameters:
            settlements: the grants, their outcome and how long it is kept, in milliseconds.
        Returns:
            ``protocol.decide_settle`` of each.
        Raises:
            StoreError.
        Atomicity: each element compares the token and sets the state in one step.
        Clock: the store's.
        Of a finished record a store may forget the owner and the grant (``FORGOTTEN``, also in
        ``Lost``), the end of the lease (0) and the delivery: no answer depends on them.
        A retry answers what the first call answered (after ``keep_ms`` 0: ``Lost``, for it forgot).
        """

    @abstractmethod
    def lookup(self, keys: Sequence[tuple[str, str]]) -> list[Record | None]:
        """Read the records of (queue, task id) pairs.

        Parameters:
            keys: (queue, task id) pairs.
        Returns:
            one record or None each, as some moment within the call had it.
        Raises:
            StoreError.
        Atomicity: each element is read whole. Clock: not used. A retry reads again.
        """

    @abstractmethod
    def scan(
        self, view: View, *, queue: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page:
        """Read a page of records.

        Parameters:
            view: which records; ORPHANED are ordered by expiry, LIVE and ALL as the store likes.
            queue: only of this queue.
            cursor: the previous page's, None to begin. A cursor outlives changes to the records:
                going on from it leaves out none that stays in the view. What does not change is
                shown once; what changes meanwhile may be shown again, as it is then.
            limit: at most this many records, 1 to ``MAX_PAGE``; a page may have fewer, or none,
                though others follow.
        Returns:
            a ``Page``. A record that cannot be read does not end the scan: the page tells of it
            once, and goes on.
        Raises:
            StoreError; InvalidArgument for a cursor that is not the store's own.
        Atomicity: a page is read in one step, the pages of a scan are not. Clock: the store's, for
        LIVE and ORPHANED. A retry reads the page again. The cost is the page's, not the store's.
        """

    @abstractmethod
    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        """Clean expired claims up, and forget up to ``FORGET_BATCH`` records kept long enough.

        Parameters:
            expiries: what a scan showed; an empty list only forgets.
            keep_ms: how long the counters of what is cleaned up are kept; 0 forgets them at once.
        Returns:
            for each whether this call cleaned it up: False if it changed since the scan.
        Raises:
            StoreError.
        Atomicity: each element compares token and expiry, and the expiry with the clock, and sets
        the state in one step: a renewed claim is never removed. Clock: the store's.
        A retry answers False for what the first call had cleaned up.
        """

    @abstractmethod
    def census(self, queue: str | None = None) -> Census:
        """Count records.

        Parameters:
            queue: only of this queue.
        Returns:
            a ``Census``. Its cost may grow with the number of records: not for a hot path.
        Raises:
            StoreError.
        Atomicity: the counts are of one moment where the store can, else each of its own.
        Clock: the store's. A retry counts again.
        """

    @abstractmethod
    def elect(self, duty: str, interval_ms: int) -> bool:
        """Take the turn at a periodic duty that one of many workers shall do.

        Parameters:
            duty: its name.
            interval_ms: how long after a turn the next one may be taken, in milliseconds.
        Returns:
            True for one caller per interval.
        Raises:
            StoreError.
        Atomicity: compare-and-set on the time of the last turn. Clock: the store's.
        A retry after a lost reply may answer False though the turn was taken: the duty must be one
        that may be left out once.
        """

    def check(self) -> list[str]:
        """What may break the promises in this deployment, a sentence each with its cure.

        Returns:
            an empty list if nothing was found.
        Raises:
            StoreError: the store cannot be used at all.
        Atomicity: none, it only reads. Clock: not used. A retry checks again.
        """
        self.census()
        return []

    def close(self) -> None:
        """Let go of connections and files. Idempotent; the object must not be used after it."""

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
