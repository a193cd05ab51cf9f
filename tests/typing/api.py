"""The public API as a typed program uses it. Checked by mypy, never run."""

from __future__ import annotations

from celery import Celery
from celery_claims import (
    AtomicClaimManager,
    ClaimLost,
    ClaimNotFound,
    ClaimStats,
    ClaimToken,
    ClaimsError,
    ConfigurationError,
    DeliveriesExhausted,
    LeaseConfig,
    StaleToken,
    StoreError,
    StoreUnavailable,
    __version__,
    claimed,
    current_claim,
    errors,
    install,
    open_store,
)
from celery_claims.events import ClaimEvent, Hook, add_hook
from celery_claims.protocol import (
    AlreadyClaimed,
    Attempt,
    Exhausted,
    Finished,
    Success,
    Superseded,
    TookOver,
)
from celery_claims.stores import Store
from typing_extensions import assert_type

app = Celery("typed")
install(app)
install(app, url="sqlite:///claims.db", tasks=["proj.*"], lease=30, strict=True)
assert_type(install(app), None)
assert_type(__version__, str)


# the decorator keeps the type of what it decorates


@claimed
def plain(x: int) -> str:
    return str(x)


@claimed(lease=60, strict=True, keep_finished=3600, max_deliveries=5, max_hold=600.0)
def with_options(x: int) -> str:
    return str(x)


@claimed(lease=None)
class OfAClass:
    def run(self, x: int) -> str:
        return str(x)


assert_type(plain(1), str)
assert_type(with_options(1), str)
assert_type(OfAClass().run(1), str)
plain("1")  # type: ignore[arg-type]
with_options("1")  # type: ignore[arg-type]
claimed(leese=5)  # type: ignore[call-overload]
claimed(lease="5")  # type: ignore[call-overload]


# in a task


def body() -> None:
    claim = current_claim()
    claim.check()  # type: ignore[union-attr]
    if claim is None:
        return
    assert_type(claim.queue, str)
    assert_type(claim.task_id, str)
    assert_type(claim.owner, str)
    assert_type(claim.token, int)
    assert_type(claim.attempt, Attempt)
    assert_type(claim.attempt.retries, int)
    assert_type(claim.deliveries, int)
    assert_type(claim.remaining, float)
    assert_type(claim.check(), None)
    assert_type(claim.extend(5_000), None)
    claim.extend("5000")  # type: ignore[arg-type]
    claim.token = 5  # type: ignore[misc]


# by hand


def by_hand() -> None:
    with open_store("memory://") as store:
        assert_type(store, Store)
        manager = AtomicClaimManager(store)
        answer = manager.claim("queue", "id", "owner", 30_000)
        if isinstance(answer, (Success, TookOver)):
            assert_type(answer.token, ClaimToken)
            manager.extend(answer.token, 1_000)
            manager.release(answer.token)
        elif isinstance(answer, AlreadyClaimed):
            assert_type(answer.owner, str)
        else:
            assert_type(answer, Finished | Superseded | Exhausted)
        assert_type(manager.is_claimed("queue", "id"), tuple[str, int] | None)
        assert_type(manager.get_token("queue", "id", "owner"), ClaimToken | None)
        assert_type(manager.cleanup_expired(), int)
        assert_type(manager.stats(), ClaimStats)
        assert_type(manager.active_claims("queue"), int)
        assert_type(manager.list_claims("queue"), list[ClaimToken])
    config = LeaseConfig(default_ms=30_000)
    assert_type(config.max_extensions, int)
    open_store(5)  # type: ignore[arg-type]


# errors carry fields


def handle(error: ClaimsError) -> None:
    if isinstance(error, StoreUnavailable):
        assert_type(error.store, str)
    elif isinstance(error, (StaleToken, ClaimNotFound)):
        assert_type(error.token, int)
    elif isinstance(error, ConfigurationError):
        assert_type(error.setting, str)
    elif isinstance(error, DeliveriesExhausted):
        assert_type(error.deliveries, int)


kinds: list[type[Exception]] = [StoreError, errors.StoreFull, ClaimLost]


# a hook is any callable that takes an event


def hook(event: ClaimEvent) -> None:
    assert_type(event.name, str)


also: Hook = hook
add_hook(hook)
add_hook(print)
add_hook(lambda event, other: None)  # type: ignore[arg-type]
