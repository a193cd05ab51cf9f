"""The manager: names, clamping, typed refusals, exact counts."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery_claims import manager as manager_module
from celery_claims.errors import (
    ClaimNotFound,
    ExtensionLimit,
    InvalidArgument,
    StaleToken,
)
from celery_claims.manager import AtomicClaimManager, ClaimStats, LeaseConfig
from celery_claims.protocol import (
    AlreadyClaimed,
    Attempt,
    ClaimRequest,
    ClaimToken,
    Ended,
    Exhausted,
    Finished,
    Lost,
    Outcome,
    Renewal,
    Renewed,
    Settled,
    Success,
    Superseded,
    TookOver,
)
from celery_claims.stores.memory import MemoryStore
from celery_claims.testing import FakeClock

BAD_DURATIONS: list[Any] = [0, -1, True, 1.5, float("nan"), float("inf"), "1", 10**15]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def manager(clock: FakeClock) -> AtomicClaimManager:
    return AtomicClaimManager(MemoryStore(clock=clock, private=True))


def grant(manager: AtomicClaimManager, task_id: str = "t", owner: str = "o") -> ClaimToken:
    answer = manager.claim("q", task_id, owner)
    assert isinstance(answer, (Success, TookOver))
    return answer.token


class TestClaims:
    def test_a_life(self, manager: AtomicClaimManager, clock: FakeClock) -> None:
        token = grant(manager)
        assert token.expires_at == clock.now_ms + 30_000
        assert (token.root_id, token.attempt) == ("t", Attempt())
        assert isinstance(manager.claim("q", "t", "other"), AlreadyClaimed)
        clock.advance(20_000)
        assert manager.renew(token) == Renewed(clock.now_ms + 30_000, clock.now_ms)
        assert isinstance(manager.release(token), Settled)
        assert isinstance(manager.claim("q", "t", "other"), Finished)
        assert isinstance(manager.renew(token), Ended)
        assert isinstance(manager.nack(token), Ended)

    def test_each_claim_is_a_delivery_of_its_own(self, manager: AtomicClaimManager) -> None:
        token = grant(manager)
        assert isinstance(manager.claim("q", "t", "o"), AlreadyClaimed)
        again = manager.claim("q", "t", "o", grant_id=token.grant_id)
        assert isinstance(again, Success)
        assert again.token.token == token.token

    def test_all_of_a_request_is_passed_on(self, manager: AtomicClaimManager) -> None:
        answer = manager.claim(
            "q", "t", "o", grant_id="g", root_id="r", attempt=Attempt(1, 2), deaths=3
        )
        assert isinstance(answer, Success)
        token = answer.token
        assert (token.grant_id, token.root_id, token.attempt, token.deaths) == (
            "g",
            "r",
            Attempt(1, 2),
            3,
        )
        assert isinstance(manager.claim("q", "t", "o", root_id="r"), Superseded)

    def test_leases_are_brought_into_their_limits(
        self, manager: AtomicClaimManager, clock: FakeClock
    ) -> None:
        for wish, lease in ((1, 1000), (5000, 5000), (10**9, 3_600_000)):
            answer = manager.claim("q", f"t{wish}", "o", wish)
            assert isinstance(answer, Success)
            assert answer.token.expires_at == clock.now_ms + lease

    def test_refusals_are_typed(self, manager: AtomicClaimManager, clock: FakeClock) -> None:
        stale = grant(manager)
        clock.advance(31_000)
        grant(manager, owner="second")
        given_back = grant(manager, "u")
        manager.nack(given_back)
        for token, kind in ((stale, StaleToken), (given_back, ClaimNotFound)):
            for call in (
                lambda t=token: manager.renew(t),
                lambda t=token: manager.extend(t, 1000),
                lambda t=token: manager.release(t),
            ):
                with pytest.raises(kind) as raised:
                    call()
                assert raised.value.token == token.token
        with pytest.raises(StaleToken):
            manager.nack(stale)
        assert isinstance(manager.nack(given_back), Settled)

    def test_keep_0_forgets_at_once(self, clock: FakeClock) -> None:
        manager = AtomicClaimManager(MemoryStore(clock=clock, private=True), keep_finished_ms=0)
        token = grant(manager)
        manager.release(token)
        with pytest.raises(ClaimNotFound):
            manager.release(token)
        grant(manager)

    def test_batches_answer_refusals(self, manager: AtomicClaimManager) -> None:
        requests = [ClaimRequest("q", f"t{n}", "o", 1000, f"g{n}", "r") for n in range(3)]
        tokens = [
            answer.token for answer in manager.claim_many(requests) if isinstance(answer, Success)
        ]
        assert len(tokens) == 3
        assert [type(each) for each in manager.nack_many(tokens[:1])] == [Settled]
        renewed = manager.renew_many(Renewal(token, 1000) for token in tokens)
        assert [type(each) for each in renewed] == [Lost, Renewed, Renewed]
        released = manager.release_many(tokens, Outcome.FAILURE)
        assert [type(each) for each in released] == [Lost, Settled, Settled]


class TestExtensions:
    def test_extend_adds_to_what_is_left(self, manager: AtomicClaimManager) -> None:
        token = grant(manager)
        answer = manager.extend(token, 5000)
        assert isinstance(answer, Renewed)
        assert answer.expires_at == token.expires_at + 5000

    def test_extend_is_limited_per_grant(self, manager: AtomicClaimManager) -> None:
        token = grant(manager)
        for _ in range(10):
            manager.extend(token, 1000)
        with pytest.raises(ExtensionLimit):
            manager.extend(token, 1000)
        assert isinstance(manager.renew(token), Renewed)
        manager.extend(grant(manager, "another"), 1000)

    def test_next_grant_counts_anew(self, clock: FakeClock) -> None:
        store = MemoryStore(clock=clock, private=True)
        manager = AtomicClaimManager(store, LeaseConfig(max_extensions=1))
        for _ in range(3):
            token = grant(manager)
            manager.extend(token, 1000)
            with pytest.raises(ExtensionLimit):
                manager.extend(token, 1000)
            manager.nack(token)

    def test_none_may_be_allowed(self, clock: FakeClock) -> None:
        store = MemoryStore(clock=clock, private=True)
        manager = AtomicClaimManager(store, LeaseConfig(max_extensions=0))
        with pytest.raises(ExtensionLimit):
            manager.extend(grant(manager), 1000)

    def test_one_extension_is_no_longer_than_the_longest_lease(
        self, manager: AtomicClaimManager
    ) -> None:
        token = grant(manager)
        answer = manager.extend(token, 10**9)
        assert isinstance(answer, Renewed)
        assert answer.expires_at == token.expires_at + 3_600_000

    def test_counting_is_bounded_and_ends_with_the_grant(
        self, manager: AtomicClaimManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(manager_module, "MAX_COUNTED", 5)
        tokens = [grant(manager, f"t{number}") for number in range(20)]
        for token in tokens:
            manager.extend(token, 1000)
        assert len(manager._extensions._used) == 5
        manager.release_many(tokens)
        assert len(manager._extensions._used) == 0


class TestQuestions:
    def test_is_claimed(self, manager: AtomicClaimManager, clock: FakeClock) -> None:
        assert manager.is_claimed("q", "t") is None
        token = grant(manager)
        assert manager.is_claimed("q", "t") == ("o", token.expires_at)
        assert manager.is_claimed("other", "t") is None
        clock.advance(30_000)
        assert manager.is_claimed("q", "t") is None
        manager.release(token)
        assert manager.is_claimed("q", "t") is None

    def test_get_token(self, manager: AtomicClaimManager, clock: FakeClock) -> None:
        token = grant(manager)
        assert manager.get_token("q", "t", "o") == token
        assert manager.get_token("q", "t", "other") is None
        assert manager.get_token("q", "u", "o") is None
        clock.advance(31_000)
        assert manager.get_token("q", "t", "o") == token
        manager.nack(token)
        assert manager.get_token("q", "t", "o") is None

    def test_claims_of_a_queue(self, manager: AtomicClaimManager, clock: FakeClock) -> None:
        expired = grant(manager, "expired")
        clock.advance(30_000)
        requests = [ClaimRequest("q", f"t{n:04}", "o", 9000, f"g{n}", "r") for n in range(1500)]
        manager.claim_many(requests)
        manager.claim("other", "t", "o")
        listed = manager.list_claims("q")
        assert [token.task_id for token in listed] == [each.task_id for each in requests]
        assert manager.active_claims("q") == 1500
        assert expired not in listed
        assert manager.list_claims("nothing") == []

    def test_cleanup(self, manager: AtomicClaimManager, clock: FakeClock) -> None:
        assert manager.cleanup_expired() == 0
        for number in range(250):
            grant(manager, f"t{number}")
        clock.advance(31_000)
        live = grant(manager, "live")
        assert manager.cleanup_expired(limit=30) == 30
        assert manager.cleanup_expired(limit=130) == 130
        assert manager.cleanup_expired() == 90
        assert manager.cleanup_expired() == 0
        assert manager.list_claims("q") == [live]
        assert manager.stats().expirations == 250

    def test_cleanup_forgets_what_was_kept_long_enough(
        self, manager: AtomicClaimManager, clock: FakeClock
    ) -> None:
        manager.release(grant(manager))
        clock.advance(2 * 3600 * 1000)
        assert manager.cleanup_expired() == 0
        assert manager.store.census().finished == 0


class TestStats:
    def test_every_answer_is_counted_once(
        self, manager: AtomicClaimManager, clock: FakeClock
    ) -> None:
        assert manager.stats() == ClaimStats()
        first = grant(manager)
        manager.claim("q", "t", "second")
        clock.advance(31_000)
        second = grant(manager)
        with pytest.raises(StaleToken):
            manager.renew(first)
        manager.renew(second)
        manager.extend(second, 1000)
        manager.nack(second, counted=True)
        exhausted = manager.claim("q", "t", "o", max_deliveries=1)
        assert isinstance(exhausted, Exhausted)
        manager.release(exhausted.token, Outcome.EXHAUSTED)
        manager.claim("q", "t", "o")
        manager.nack(exhausted.token)
        grant(manager, "late")
        clock.advance(31_000)
        manager.cleanup_expired()
        assert manager.stats() == ClaimStats(
            attempts=6,
            successes=3,
            contentions=1,
            takeovers=1,
            acks=1,
            nacks=1,
            expirations=1,
            extensions=1,
            skips=1,
            exhausted=1,
            losses=1,
        )

    def test_counts_are_exact_under_threads(self, manager: AtomicClaimManager) -> None:
        barrier = threading.Barrier(8)

        def work() -> None:
            barrier.wait(timeout=30)
            for number in range(100):
                answer = manager.claim("q", f"t{number}", "o")
                if isinstance(answer, Success):
                    manager.extend(answer.token, 1000)
                    manager.release(answer.token)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = manager.stats()
        assert (stats.attempts, stats.successes) == (800, 100)
        assert (stats.extensions, stats.acks) == (100, 100)
        assert stats.contentions + stats.skips == 700

    def test_a_snapshot_does_not_change(self, manager: AtomicClaimManager) -> None:
        before = manager.stats()
        grant(manager)
        assert before == ClaimStats()
        assert manager.stats().attempts == 1


class TestLeaseConfig:
    def test_defaults(self) -> None:
        config = LeaseConfig()
        assert (config.default_ms, config.min_ms, config.max_ms) == (30_000, 1_000, 3_600_000)
        assert (config.cleanup_interval_ms, config.max_extensions) == (5_000, 10)

    def test_clamp(self) -> None:
        config = LeaseConfig(default_ms=200, min_ms=100, max_ms=300)
        assert [config.clamp(wish) for wish in (None, 1, 100, 250, 300, 9999)] == [
            200,
            100,
            100,
            250,
            300,
            300,
        ]

    @pytest.mark.parametrize("value", BAD_DURATIONS)
    def test_clamp_refuses_what_is_no_duration(self, value: Any) -> None:
        with pytest.raises(InvalidArgument) as raised:
            LeaseConfig().clamp(value)
        assert raised.value.argument == "lease_ms"

    @pytest.mark.parametrize("value", BAD_DURATIONS)
    @pytest.mark.parametrize("field", ["default_ms", "min_ms", "max_ms", "cleanup_interval_ms"])
    def test_bad_values(self, field: str, value: Any) -> None:
        with pytest.raises(InvalidArgument) as raised:
            LeaseConfig(**{field: value})
        assert raised.value.argument == field

    @pytest.mark.parametrize("value", [-1, True, 1.0, None])
    def test_bad_extensions(self, value: Any) -> None:
        with pytest.raises(InvalidArgument) as raised:
            LeaseConfig(max_extensions=value)
        assert raised.value.argument == "max_extensions"

    @pytest.mark.parametrize("changes", [{"min_ms": 40_000}, {"max_ms": 2000}])
    def test_limits_must_hold_the_default(self, changes: dict[str, int]) -> None:
        with pytest.raises(InvalidArgument) as raised:
            LeaseConfig(**changes)
        assert raised.value.argument == "default_ms"


class TestArguments:
    @pytest.mark.parametrize("value", BAD_DURATIONS)
    def test_bad_durations_are_named(self, manager: AtomicClaimManager, value: Any) -> None:
        token = grant(manager)
        for argument, call in (
            ("lease_ms", lambda: manager.claim("q", "x", "o", value)),
            ("lease_ms", lambda: manager.renew(token, value)),
            ("additional_ms", lambda: manager.extend(token, value)),
            ("limit", lambda: manager.cleanup_expired(value if value != 10**15 else 0)),
        ):
            with pytest.raises(InvalidArgument) as raised:
                call()
            assert raised.value.argument == argument
        assert manager.stats().attempts == 1

    @pytest.mark.parametrize("value", ["", None, 5, b"x", "x" * 10_241])
    def test_bad_names_are_named(self, manager: AtomicClaimManager, value: Any) -> None:
        for argument, call in (
            ("queue", lambda: manager.claim(value, "t", "o")),
            ("task_id", lambda: manager.claim("q", value, "o")),
            ("owner", lambda: manager.claim("q", "t", value)),
            ("queue", lambda: manager.is_claimed(value, "t")),
            ("task_id", lambda: manager.is_claimed("q", value)),
            ("queue", lambda: manager.get_token(value, "t", "o")),
            ("owner", lambda: manager.get_token("q", "t", value)),
            ("queue", lambda: manager.active_claims(value)),
            ("queue", lambda: manager.list_claims(value)),
        ):
            with pytest.raises(InvalidArgument) as raised:
                call()
            assert raised.value.argument == argument

    def test_bad_others_are_named(self, manager: AtomicClaimManager) -> None:
        token = grant(manager)
        wrong: Any = "wrong"
        for argument, call in (
            ("token", lambda: manager.renew(wrong)),
            ("token", lambda: manager.extend(wrong, 1000)),
            ("token", lambda: manager.release(wrong)),
            ("token", lambda: manager.nack(wrong)),
            ("tokens", lambda: manager.release_many([wrong])),
            ("tokens", lambda: manager.nack_many(wrong)),
            ("renewals", lambda: manager.renew_many([wrong])),
            ("requests", lambda: manager.claim_many([wrong])),
            ("outcome", lambda: manager.release(token, wrong)),
            ("outcome", lambda: manager.release(token, Outcome.NACKED)),
            ("outcome", lambda: manager.release(token, Outcome.EXPIRED)),
            ("counted", lambda: manager.nack(token, wrong)),
            ("attempt", lambda: manager.claim("q", "t", "o", attempt=wrong)),
            ("store", lambda: AtomicClaimManager(wrong)),
            ("config", lambda: AtomicClaimManager(manager.store, wrong)),
            (
                "keep_finished_ms",
                lambda: AtomicClaimManager(manager.store, keep_finished_ms=-1),
            ),
        ):
            with pytest.raises(InvalidArgument) as raised:
                call()
            assert raised.value.argument == argument
        assert manager.get_token("q", "t", "o") == token

    def test_subclasses_of_text_are_text(self, manager: AtomicClaimManager) -> None:
        class Name(str):
            __slots__ = ()

        token = grant(manager)
        assert manager.is_claimed(Name("q"), Name("t")) == ("o", token.expires_at)
