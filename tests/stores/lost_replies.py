"""The reply of every verb that writes is lost, after its work is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
from celery_claims.errors import StoreUnavailable
from celery_claims.protocol import (
    ClaimRequest,
    ClaimToken,
    Ended,
    Outcome,
    Record,
    Renewal,
    Renewed,
    Settled,
    Settlement,
    State,
    Success,
)
from celery_claims.stores import Store

from tests.process.proxy import Fault, Proxy
from tests.process.waiting import wait_until

from .calls import every_call

__all__ = ["assert_done_once_and_answered_again"]

LEASE, KEEP = 30_000, 3_600_000
#: A minute, which no test lasts.
TURN = 60_000
KEY = ("lost", "replies")

Answer = TypeVar("Answer")


def assert_done_once_and_answered_again(
    store: Store, remote: Store, proxy: Proxy, fault: Fault
) -> None:
    """What was done is answered again, and not done twice.

    Parameters:
        store: asks the server without the proxy.
        remote: the same store, by the proxy.
        fault: how the reply is lost.
    """

    def seen() -> Record:
        (record,) = store.lookup([KEY])
        assert record is not None
        return record

    def lost(call: Callable[[], Answer], done: Callable[[], bool]) -> Answer:
        """The answer to the repeated call, once the first is known to be done."""
        assert not done()
        # On a connection that is there already, or the reply would be one of its making.
        remote.lookup([KEY])
        before, proxy.fault = proxy.lost, fault
        with pytest.raises(StoreUnavailable):
            call()
        assert proxy.lost > before
        assert done()
        proxy.fault = Fault.NONE
        return call()

    def claim(grant: str, lease_ms: int) -> ClaimRequest:
        return ClaimRequest(*KEY, "owner", lease_ms, grant, "root")

    # Once each before, on this queue: else the first reply that Redis gives is about a script that
    # it does not know yet, or a queue that is new.
    for _, warm in every_call(remote, _other_claim(remote)):
        warm()

    (answer,) = lost(
        lambda: remote.claim([claim("first", LEASE)]), lambda: store.lookup([KEY]) != [None]
    )
    assert isinstance(answer, Success)
    token = answer.token
    assert seen().token == token.token

    (renewed,) = lost(
        lambda: remote.renew([Renewal(token, 2 * LEASE)]),
        lambda: seen().expires_at >= token.expires_at + LEASE,
    )
    assert isinstance(renewed, Renewed)

    given_back = Settlement(token, Outcome.NACKED, KEEP, counted=True)
    (settled,) = lost(lambda: remote.settle([given_back]), lambda: seen().state is State.FREE)
    assert isinstance(settled, Settled)
    assert seen().deliveries == 1

    assert isinstance(store.claim([claim("second", 1)])[0], Success)
    wait_until(lambda: store.census().orphaned == 1, what="the end of the lease")
    expiry = seen().as_expiry()
    # False: there was nothing left to clean up.
    assert lost(
        lambda: remote.expire([expiry], keep_ms=KEEP), lambda: seen().outcome is Outcome.EXPIRED
    ) == [False]

    (answer,) = store.claim([claim("third", LEASE)])
    assert isinstance(answer, Success)
    token = answer.token
    finished = Settlement(token, Outcome.SUCCESS, KEEP)
    (settled,) = lost(lambda: remote.settle([finished]), lambda: seen().state is State.FINISHED)
    assert isinstance(settled, Settled)
    assert isinstance(store.renew([Renewal(token, LEASE)])[0], Ended)

    # The caller is not told that the turn is its own, and nobody else gets it: one is left out.
    remote.lookup([KEY])
    before, proxy.fault = proxy.lost, fault
    with pytest.raises(StoreUnavailable):
        remote.elect("sweep", TURN)
    assert proxy.lost > before
    proxy.fault = Fault.NONE
    assert not store.elect("sweep", TURN)
    assert not remote.elect("sweep", TURN)


def _other_claim(store: Store) -> ClaimToken:
    (answer,) = store.claim([ClaimRequest(KEY[0], "another", "owner", LEASE, "other", "root")])
    assert isinstance(answer, Success)
    return answer.token
