"""Every call of a store, for what must be so of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from celery_claims.protocol import ClaimRequest, ClaimToken, Expiry, Outcome, Renewal, Settlement
from celery_claims.stores import Store, View

__all__ = ["every_call"]

LEASE, KEEP = 30_000, 3_600_000


def every_call(store: Store, token: ClaimToken) -> list[tuple[str, Callable[[], Any]]]:
    """Every verb, and what else asks a server, by name.

    Parameters:
        token: of a claim, which may be forgotten.
    """
    key = (token.queue, token.task_id)
    asked = ClaimRequest(*key, "somebody", LEASE, "grant", "root")
    finished = Settlement(token, Outcome.SUCCESS, KEEP)
    expiry = Expiry(*key, token.token, token.expires_at)
    return [
        ("claim", lambda: store.claim([asked])),
        ("renew", lambda: store.renew([Renewal(token, LEASE)])),
        ("settle", lambda: store.settle([finished])),
        ("lookup", lambda: store.lookup([key])),
        ("expire", lambda: store.expire([expiry], keep_ms=KEEP)),
        ("elect", lambda: store.elect("duty", 1000)),
        ("census", store.census),
        ("check", store.check),
        *[(f"scan {view.value}", partial(store.scan, view)) for view in View],
    ]
