"""What a soak sends: a steady mix of all that makes a worker remember something."""

from __future__ import annotations

import random
from dataclasses import dataclass

from celery import Celery, uuid

__all__ = ["Load"]

#: Kinds of tasks, with their share.
SHARES = {"short": 6, "long": 1, "copied": 2, "retrying": 2, "failing": 2, "later": 3}
#: Seconds that a long task takes, and one that has copies, which wait meanwhile.
LONG = 0.5


@dataclass
class Load:
    """Sends by a seed, at a steady rate.

    Parameters:
        app: of the sender, with the broker of the workers.
        rng: decides what is sent.
        rate: messages or more in a second.
    """

    app: Celery
    rng: random.Random
    rate: float
    #: tasks, however many messages each had
    sent: int = 0

    def keep_up(self, seconds: float) -> None:
        """Send what should have been sent this long after the beginning."""
        while self.sent < seconds * self.rate:
            (kind,) = self.rng.choices(list(SHARES), weights=list(SHARES.values()))
            getattr(self, f"_{kind}")()
            self.sent += 1

    def _short(self) -> None:
        self.app.send_task("soak.work", (0,))

    def _long(self) -> None:
        self.app.send_task("soak.work", (LONG,))

    def _copied(self) -> None:
        """One of them runs, the others are held and then skipped."""
        task_id = uuid()
        for _ in range(self.rng.randint(2, 4)):
            self.app.send_task("soak.work", (LONG,), task_id=task_id)

    def _retrying(self) -> None:
        self.app.send_task("soak.retry")

    def _failing(self) -> None:
        self.app.send_task("soak.fail")

    def _later(self) -> None:
        self.app.send_task("soak.work", (0,), countdown=self.rng.uniform(0.5, 3))
