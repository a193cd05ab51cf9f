"""What chaos sends: tasks of every kind with ids that are known beforehand, and copies of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from celery import Celery, Task, chain, chord, uuid
from kombu.exceptions import OperationalError

__all__ = ["KINDS", "Load", "Sent"]

#: Every kind of work.
KINDS = ("short", "long", "retrying", "chain", "chord", "eta")


@dataclass(frozen=True)
class Sent:
    """Something that was sent.

    Parameters:
        kind: of ``KINDS``.
        ids: of every task that must run.
        sure: the broker confirmed it.
        copies: how many more messages with the same id were sent on purpose.
    """

    kind: str
    ids: tuple[str, ...]
    sure: bool
    copies: int = 0


@dataclass
class Load:
    """Sends by a seed.

    Parameters:
        app: the chaos app, of the sending process.
        rng: decides what is sent.
        lease: seconds; long tasks take longer.
        duplicates: the share of single tasks that are sent more than once.
    """

    app: Celery
    rng: random.Random
    lease: float
    duplicates: float = 0.2
    sent: list[Sent] = field(default_factory=list)
    _number: int = 0

    def send(self, kind: str) -> None:
        """Send one of this kind; an error of the broker makes it an unsure one."""
        ids, signature = getattr(self, f"_{kind}")()
        copies = 0
        if len(ids) == 1 and self.rng.random() < self.duplicates:
            copies = self.rng.randint(1, 3)
        try:
            signature.apply_async()
            for _ in range(copies):
                self._send_again(signature)
        except OperationalError:
            self.sent.append(Sent(kind, ids, sure=False, copies=copies))
            return
        self.sent.append(Sent(kind, ids, sure=True, copies=copies))

    def _send_again(self, signature: Any) -> None:
        """As a broker delivers again: past what a package does when a task is published."""
        task = self.app.tasks[signature.task]
        Task.apply_async(task, signature.args, signature.kwargs, **signature.options)

    def _short(self) -> tuple[tuple[str, ...], Any]:
        return self._single("chaos.work", self._next(), 0.01)

    def _long(self) -> tuple[tuple[str, ...], Any]:
        return self._single("chaos.work", self._next(), 1.5 * self.lease)

    def _retrying(self) -> tuple[tuple[str, ...], Any]:
        return self._single("chaos.retry", self._next())

    def _eta(self) -> tuple[tuple[str, ...], Any]:
        ids, signature = self._single("chaos.work", self._next(), 0.05)
        return ids, signature.set(countdown=self.rng.uniform(0.5, 2 * self.lease))

    def _chain(self) -> tuple[tuple[str, ...], Any]:
        ids = tuple(uuid() for _ in range(3))
        first = self._signature(ids[0], "chaos.work", self._next(), 0.05)
        rest = [self._signature(task_id, "chaos.follow", self._next()) for task_id in ids[1:]]
        return ids, chain(first, *rest)

    def _chord(self) -> tuple[tuple[str, ...], Any]:
        ids = tuple(uuid() for _ in range(4))
        header = [self._signature(each, "chaos.work", self._next(), 0.05) for each in ids[:3]]
        return ids, chord(header, self._signature(ids[3], "chaos.follow", self._next()))

    def _single(self, name: str, *args: Any) -> tuple[tuple[str, ...], Any]:
        task_id = uuid()
        return (task_id,), self._signature(task_id, name, *args)

    def _signature(self, task_id: str, name: str, *args: Any) -> Any:
        return self.app.tasks[name].signature(args, task_id=task_id)

    def _next(self) -> int:
        self._number += 1
        return self._number
