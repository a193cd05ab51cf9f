"""Clients that ask a store at random, so that few records see much contention.

All clients ask about the same few records at a time, and go on to others every ``EPOCH`` seconds,
so that no history grows without end. Leases are a few milliseconds long: they run out all the time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from celery_claims.errors import StoreError, StoreUnavailable
from celery_claims.protocol import (
    Attempt,
    ClaimAnswer,
    ClaimRequest,
    ClaimToken,
    Delivery,
    Exhausted,
    Expiry,
    Outcome,
    Record,
    RenewAnswer,
    Renewal,
    SettleAnswer,
    Settlement,
    Success,
    TookOver,
)
from celery_claims.stores import Census, Page, Store, View, open_store

from .history import Key, Log, RecordedStore

__all__ = ["Client", "Flaky", "Job", "Plan"]

T = TypeVar("T")

#: Milliseconds, up to what a call takes while nothing is wrong and a little more.
LEASES = (1, 2, 5, 10, 20, 50, 150)
#: Milliseconds that a settled record is kept; 0 forgets it at once.
KEEPS = (0, 5, 50, 3_600_000, 3_600_000)
ENDS = (Outcome.SUCCESS, Outcome.FAILURE, Outcome.RETRY, Outcome.REJECTED)
RUNS = ("run", "rerun", "again")

#: How many of its last grants a client goes on to use, most of them stale by then.
REMEMBERED = 12


@dataclass(frozen=True)
class Plan:
    """What all clients of a run share.

    Parameters:
        seed: of the clients' choices.
        operations: how many all of them ask together, at least.
        keys: records at a time.
        epoch: seconds until the next ones.
        started: the monotonic second in which the run began.
        until_fault: they go on until something went wrong as well.
        name: of the run, where several ask one store.
    """

    seed: int
    operations: int
    keys: int = 3
    epoch: float = 0.4
    started: float = 0.0
    name: str = ""
    until_fault: bool = False

    def keys_now(self) -> list[Key]:
        epoch = int((time.monotonic() - self.started) / self.epoch)
        # Some share a shard in every store, some have one of their own in most.
        return [
            (self.name + ("shared" if number % 2 else f"own-{number}"), f"{epoch}-{number}")
            for number in range(self.keys)
        ]


class Client:
    """One of several that ask at the same time.

    Parameters:
        number: its place in ``counts``.
        name: begins with c; with the seed it decides what the client chooses.
        counts: of every client's operations, and last of the faults; it adds to its own.
    """

    def __init__(
        self, number: int, name: str, plan: Plan, store: Store, log: Log, counts: Any
    ) -> None:
        self._rng = random.Random(f"{plan.seed}/{name}")
        self._name = name
        self._number = number
        self._plan = plan
        self._store = RecordedStore(store, log)
        self._log = log
        self._counts = counts
        self._requests: list[ClaimRequest] = []
        self._tokens: list[ClaimToken] = []
        self._expiries: list[Expiry] = []
        self._grants = 0

    def run(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Ask until all clients together asked enough."""
        moves: list[tuple[Callable[[], None], int]] = [
            (self._claim, 30),
            (self._claim_again, 8),
            (self._renew, 24),
            (self._settle, 14),
            (self._look, 8),
            (self._clean_up, 10),
            (self._clean_up_blindly, 4),
        ]
        weights = [weight for _, weight in moves]
        while not self._is_enough() and not stopped():
            ((move, _),) = self._rng.choices(moves, weights)
            noted = self._log.operations
            try:
                move()
            except StoreError:
                # Noted as unknown; the next one may be answered.
                threading.Event().wait(self._rng.random() * 0.1)
            self._counts[self._number] += self._log.operations - noted

    def _is_enough(self) -> bool:
        *operations, faults = self._counts
        plan = self._plan
        return sum(operations) >= plan.operations and bool(faults or not plan.until_fault)

    def _key(self) -> Key:
        return self._rng.choice(self._plan.keys_now())

    def _some(self, items: Sequence[T]) -> list[T]:
        return [self._rng.choice(items) for _ in range(self._rng.choice((1, 1, 1, 2, 4)))]

    def _claim(self) -> None:
        self._ask([self._request(key) for key in self._some(self._plan.keys_now())])

    def _request(self, key: Key) -> ClaimRequest:
        rng = self._rng
        self._grants += 1
        return ClaimRequest(
            queue=key[0],
            task_id=key[1],
            # An owner of its own for each grant: an answer that names it tells which grant it was.
            owner=f"{self._name}/{self._grants}",
            lease_ms=rng.choice(LEASES),
            grant_id=f"{self._name}-{self._grants}",
            root_id=rng.choice(RUNS),
            attempt=Attempt(rng.choice((0, 0, 0, 1)), rng.choice((0, 0, 1))),
            deaths=rng.choice((0, 0, 1)),
            max_deliveries=rng.choice((1, 2, 2, 20)),
            delivery=Delivery("task", f"tag-{self._grants}", "", rng.choice((None, 3))),
        )

    def _claim_again(self) -> None:
        """As after a lost reply: the same request."""
        if self._requests:
            self._ask([self._rng.choice(self._requests)])

    def _ask(self, requests: list[ClaimRequest]) -> None:
        self._requests = [*self._requests, *requests][-REMEMBERED:]
        for answer in self._store.claim(requests):
            if isinstance(answer, (Success, TookOver, Exhausted)):
                self._remember(answer.token)

    def _remember(self, token: ClaimToken) -> None:
        self._tokens = [*self._tokens, token][-REMEMBERED:]

    def _token(self) -> ClaimToken:
        """Mostly the newest, for it may still be valid; sometimes any that it ever had."""
        keys = self._plan.keys_now()
        of_now = [token for token in self._tokens if (token.queue, token.task_id) in keys]
        if of_now and self._rng.random() < 0.7:
            return of_now[-1]
        return self._rng.choice(of_now or self._tokens)

    def _renew(self) -> None:
        if not self._tokens:
            return
        rng = self._rng
        renewals = [
            Renewal(
                self._token(),
                rng.choice(LEASES),
                extend=rng.random() < 0.3,
                started=rng.random() < 0.5,
            )
            for _ in self._some((1,))
        ]
        self._store.renew(renewals)

    def _settle(self) -> None:
        if not self._tokens:
            return
        settlements = [self._settlement() for _ in self._some((1,))]
        self._store.settle(settlements)

    def _settlement(self) -> Settlement:
        rng = self._rng
        keep = rng.choice(KEEPS)
        if rng.random() < 0.5:
            counted = rng.random() < 0.4
            return Settlement(self._token(), Outcome.NACKED, keep, counted=counted)
        return Settlement(self._token(), rng.choice(ENDS), keep)

    def _look(self) -> None:
        keys = self._some(self._plan.keys_now())
        for record in self._store.lookup(keys):
            if isinstance(record, Record) and record.owner.startswith("c"):
                self._expiries = [*self._expiries, record.as_expiry()][-REMEMBERED:]
                # Somebody else's grant: what may it do, and what may its owner do beside it?
                if self._rng.random() < 0.2 and record.settled_at == 0:
                    self._remember(record.as_token())

    def _clean_up(self) -> None:
        page = self._store.orphans(self._key()[0], self._rng.choice((1, 3, 100)))
        expiries = [record.as_expiry() for record in page.records]
        self._store.expire(expiries, self._rng.choice(KEEPS))

    def _clean_up_blindly(self) -> None:
        if not self._expiries:
            return
        expiries = self._some(self._expiries)
        self._store.expire(expiries, self._rng.choice(KEEPS))


class Flaky(Store):
    """A store whose answers, and whose questions, are lost now and then.

    Parameters:
        store: the real one.
        odds: of each loss, from 0 to 1.
    """

    def __init__(self, store: Store, rng: random.Random, odds: float) -> None:
        self.name = store.name
        self._store = store
        self._rng = rng
        self._odds = odds

    def _lose(self, work: Callable[[], T]) -> T:
        chance = self._rng.random()
        if chance < self._odds:
            raise StoreUnavailable(self.name, "the question was lost")
        answer = work()
        if chance > 1 - self._odds:
            raise StoreUnavailable(self.name, "the answer was lost")
        return answer

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        return self._lose(lambda: self._store.claim(requests))

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        return self._lose(lambda: self._store.renew(renewals))

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        return self._lose(lambda: self._store.settle(settlements))

    def lookup(self, keys: Sequence[Key]) -> list[Record | None]:
        return self._lose(lambda: self._store.lookup(keys))

    def scan(self, view: View, **options: Any) -> Page:
        return self._lose(lambda: self._store.scan(view, **options))

    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        return self._lose(lambda: self._store.expire(expiries, keep_ms=keep_ms))

    def census(self, queue: str | None = None) -> Census:
        return self._lose(lambda: self._store.census(queue))

    def elect(self, duty: str, interval_ms: int) -> bool:
        return self._lose(lambda: self._store.elect(duty, interval_ms))

    def close(self) -> None:
        self._store.close()


@dataclass(frozen=True)
class Job:
    """How a client is started, in a thread or in a process of its own.

    Parameters:
        folder: of the logs.
        url, options: of the store.
        odds: of losing a question or an answer, where nothing outside the client does that.
        wrong_clock: its wall clock is wrong, another time with each reading.
        wrap: what stands between the client and the store.
    """

    plan: Plan
    folder: Path
    url: str
    options: tuple[tuple[str, Any], ...] = ()
    odds: float = 0.0
    wrong_clock: bool = False
    wrap: Callable[[Store], Store] | None = None

    def run(self, number: int, name: str, counts: Any) -> None:
        """The whole life of a client.

        Parameters:
            number: its place in ``counts``.
            name: of its log; a client that comes after a killed one has another name.
        """
        rng = random.Random(f"{self.plan.seed}/{name}")
        if self.wrong_clock:
            _set_wall_clock_wrong(rng)
        log = Log(self.folder / name)
        store = open_store(self.url, **dict(self.options))
        store = self.wrap(store) if self.wrap else store
        store = Flaky(store, rng, self.odds) if self.odds else store
        try:
            Client(number, name, self.plan, store, log, counts).run()
        finally:
            store.close()
            log.close()


def _set_wall_clock_wrong(rng: random.Random) -> None:
    """In this process, for good. What asks the system itself is not deceived."""
    right, right_ns = time.time, time.time_ns
    steps = (0.0, 3600.0, -86_400.0, 0.5, -0.5)
    time.time = lambda: right() + rng.choice(steps)
    time.time_ns = lambda: right_ns() + int(rng.choice(steps) * 1e9)
