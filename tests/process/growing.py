"""Billiard's pool, without a race that ends a worker whose pool grows.

The pool's supervisor and Celery's autoscaler both look after the processes, each in a thread of its
own. One that was added and is not started yet has no process, which the other thread takes for one
that has exited: it looks for the process id None and raises ``KeyError``. Here they take turns.
"""

from __future__ import annotations

import threading
from functools import wraps

from billiard.pool import Pool

__all__ = ["take_turns_at_the_pool"]

_turn = threading.RLock()


def take_turns_at_the_pool() -> None:
    """Mend the pool in this process; harmless when repeated."""
    look_after = Pool._maintain_pool
    if hasattr(look_after, "__wrapped__"):
        return

    @wraps(look_after)
    def look_after_alone(pool: Pool) -> None:
        with _turn:
            look_after(pool)

    Pool._maintain_pool = look_after_alone
