"""What the conformance suite needs of a store beyond its verbs."""

from __future__ import annotations

import itertools
import unittest
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..protocol import (
    Attempt,
    ClaimAnswer,
    ClaimRequest,
    ClaimToken,
    Outcome,
    Record,
    RenewAnswer,
    Renewal,
    SettleAnswer,
    Settlement,
    Success,
    TookOver,
)
from ..stores.base import Page, Store, View

__all__ = ["Harness", "Rules", "raises", "skip"]

#: Leases and kept times of the suite, in ms: long enough that a real clock does not end them.
LEASE = 30_000
KEEP = 3_600_000


class Harness(ABC):
    """One empty data set, made for one test.

    The suite takes every time from the store's answers, so a store on a real clock may pass: let
    ``advance`` move an offset that the store adds to its server's time.
    """

    #: ``advance`` takes negative times.
    can_step_back = True

    @abstractmethod
    def open(self) -> Store:
        """Another store object on the same data."""

    @abstractmethod
    def advance(self, ms: int) -> None:
        """Move the store's clock by milliseconds."""

    def reopen(self, store: Store) -> Store:
        """Close a store and open it again, as a restarted process would."""
        store.close()
        return self.open()

    def lose_everything(self) -> None:
        """Lose all data under the open stores, as a flushed or failed-over server does."""
        skip("this store cannot lose its data while it is open")

    def corrupt(self, task_id: str, queue: str = "q") -> None:  # noqa: ARG002
        """Make the record of a task one that cannot be read, as damage or another writer does."""
        skip("no other writer can reach the records of this store")

    def close(self) -> None:
        """Remove the data."""


class Rules:
    """Helpers of the suite; a fresh harness and store for each test."""

    harness: Harness
    store: Store

    def make_harness(self) -> Harness:
        """The harness of one test; override it."""
        raise NotImplementedError("override make_harness()")

    def setup_method(self) -> None:
        self._numbers = itertools.count(1)
        self.harness = self.make_harness()
        self.store = self.harness.open()

    def teardown_method(self) -> None:
        self.store.close()
        self.harness.close()

    def request(self, task_id: str = "t", queue: str = "q", **changes: Any) -> ClaimRequest:
        """A claim of a new delivery."""
        number = next(self._numbers)
        facts: dict[str, Any] = {
            "owner": f"owner-{number}",
            "lease_ms": LEASE,
            "grant_id": f"grant-{number}",
            "root_id": "root",
        }
        return ClaimRequest(queue=queue, task_id=task_id, **{**facts, **changes})

    def claim(self, task_id: str = "t", queue: str = "q", **changes: Any) -> ClaimAnswer:
        return self.store.claim([self.request(task_id, queue, **changes)])[0]

    def grant(self, task_id: str = "t", queue: str = "q", **changes: Any) -> ClaimToken:
        """Claim and insist on a grant to run."""
        answer = self.claim(task_id, queue, **changes)
        assert isinstance(answer, (Success, TookOver)), answer
        return answer.token

    def renew(self, token: ClaimToken, lease_ms: int = LEASE, **changes: bool) -> RenewAnswer:
        return self.store.renew([Renewal(token, lease_ms, **changes)])[0]

    def start(self, token: ClaimToken) -> None:
        """Note that the body was started."""
        self.renew(token, 1, started=True)

    def release(
        self, token: ClaimToken, outcome: Outcome = Outcome.SUCCESS, keep_ms: int = KEEP
    ) -> SettleAnswer:
        return self.store.settle([Settlement(token, outcome, keep_ms)])[0]

    def nack(self, token: ClaimToken, counted: bool = False, keep_ms: int = KEEP) -> SettleAnswer:
        return self.store.settle([Settlement(token, Outcome.NACKED, keep_ms, counted=counted)])[0]

    def record(self, task_id: str = "t", queue: str = "q") -> Record:
        record = self.store.lookup([(queue, task_id)])[0]
        assert record is not None
        return record

    def gone(self, task_id: str = "t", queue: str = "q") -> bool:
        return self.store.lookup([(queue, task_id)]) == [None]

    def run_out(self) -> None:
        """Let every lease of the suite's length end."""
        self.harness.advance(LEASE + 1000)

    def clean_up(self, keep_ms: int = KEEP) -> list[bool]:
        """Clean up what has expired."""
        orphans = self.pages(View.ORPHANED)
        return self.store.expire([record.as_expiry() for record in orphans], keep_ms=keep_ms)

    def pages(self, view: View, queue: str | None = None, limit: int = 100) -> list[Record]:
        """All records of a view."""
        records: list[Record] = []
        cursor: str | None = None
        while True:
            page: Page = self.store.scan(view, queue=queue, cursor=cursor, limit=limit)
            assert len(page.records) <= limit
            records.extend(page.records)
            cursor = page.cursor
            if cursor is None:
                return records

    def attempt(self, retries: int = 0, nesting: int = 0) -> Attempt:
        return Attempt(nesting, retries)


@contextmanager
def raises(kind: type[BaseException], naming: str | None = None) -> Iterator[None]:
    """Insist on an error, and on the argument that it names."""
    try:
        yield
    except kind as error:
        if naming is not None:
            assert getattr(error, "argument", None) == naming, error
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


def skip(reason: str) -> None:
    """Leave the test out; pytest and unittest both know this."""
    raise unittest.SkipTest(reason)
