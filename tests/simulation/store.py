"""The store: the real protocol in memory, behind links that fail."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from celery_claims.protocol import (
    ClaimAnswer,
    ClaimRequest,
    Expiry,
    Record,
    RenewAnswer,
    Renewal,
    SettleAnswer,
    Settlement,
)
from celery_claims.stores import Census, Page, Store, View
from celery_claims.stores.memory import MemoryStore

from .judge import Judge
from .link import Link, Service
from .world import EPOCH, Process

__all__ = ["SimulatedStore", "StoreServer"]


class StoreServer(MemoryStore):
    """The server; the judge sees every effect."""

    def __init__(self, service: Service, judge: Judge) -> None:
        world = service.world
        super().__init__(clock=lambda: round((EPOCH + world.now) * 1e6), private=True)
        self.service = service
        self.judge = judge
        service.on_silence = judge.unanswered

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        answers = super().claim(requests)
        for request, answer in zip(requests, answers, strict=True):
            self.judge.claimed(request, answer)
        return answers

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        answers = super().renew(renewals)
        for renewal, answer in zip(renewals, answers, strict=True):
            self.judge.renewed(renewal, answer)
        return answers

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        answers = super().settle(settlements)
        for settlement, answer in zip(settlements, answers, strict=True):
            self.judge.settled(settlement, answer)
        return answers

    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        before = super().lookup([(each.queue, each.task_id) for each in expiries])
        answers = super().expire(expiries, keep_ms=keep_ms)
        now = self._clock() // 1000
        for expiry, record, cleaned in zip(expiries, before, answers, strict=True):
            if cleaned:
                self.judge.cleaned_up(expiry, record, now)
        return answers


class SimulatedStore(Store):
    """A client of the server in one process."""

    name = "simulated://"

    def __init__(self, process: Process, server: StoreServer) -> None:
        self._link = Link(process, server.service)
        self._server = server

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimAnswer]:
        return self._link.ask("claim", partial(self._server.claim, requests))

    def renew(self, renewals: Sequence[Renewal]) -> list[RenewAnswer]:
        return self._link.ask("renew", partial(self._server.renew, renewals))

    def settle(self, settlements: Sequence[Settlement]) -> list[SettleAnswer]:
        return self._link.ask("settle", partial(self._server.settle, settlements))

    def lookup(self, keys: Sequence[tuple[str, str]]) -> list[Record | None]:
        return self._link.ask("lookup", partial(self._server.lookup, keys))

    def scan(
        self, view: View, *, queue: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page:
        scan = partial(self._server.scan, view, queue=queue, cursor=cursor, limit=limit)
        return self._link.ask("scan", scan)

    def expire(self, expiries: Sequence[Expiry], *, keep_ms: int) -> list[bool]:
        return self._link.ask("expire", partial(self._server.expire, expiries, keep_ms=keep_ms))

    def census(self, queue: str | None = None) -> Census:
        return self._link.ask("census", partial(self._server.census, queue))

    def elect(self, duty: str, interval_ms: int) -> bool:
        return self._link.ask("elect", partial(self._server.elect, duty, interval_ms))
