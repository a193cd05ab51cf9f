"""Rules of ``renew`` and ``settle``: leases, ends, and what a stale owner may not do."""

from __future__ import annotations

import dataclasses

from ..protocol import (
    ClaimToken,
    Ended,
    Finished,
    Lost,
    Outcome,
    Renewal,
    Renewed,
    Settled,
    Settlement,
    State,
    Success,
)
from ..stores.base import View
from .harness import KEEP, LEASE, Rules

__all__ = ["FencingRules", "RenewRules", "SettleRules"]


class RenewRules(Rules):
    """Leases grow, also late, as long as the token is the last one."""

    def test_renew_counts_from_now(self) -> None:
        token = self.grant()
        self.harness.advance(10_000)
        answer = self.renew(token)
        assert isinstance(answer, Renewed)
        assert answer.expires_at == answer.now + LEASE
        assert self.record().expires_at == answer.expires_at

    def test_renew_never_shortens(self) -> None:
        token = self.grant()
        answer = self.renew(token, 1)
        assert isinstance(answer, Renewed)
        assert answer.expires_at == token.expires_at

    def test_extend_adds_to_what_is_left(self) -> None:
        token = self.grant()
        answer = self.renew(token, 5000, extend=True)
        assert isinstance(answer, Renewed)
        assert answer.expires_at == token.expires_at + 5000

    def test_extend_after_expiry_adds_to_now(self) -> None:
        token = self.grant()
        self.run_out()
        answer = self.renew(token, 5000, extend=True)
        assert isinstance(answer, Renewed)
        assert answer.expires_at == answer.now + 5000

    def test_renew_keeps_everything_else(self) -> None:
        token = self.grant()
        before = self.record()
        self.harness.advance(1000)
        answer = self.renew(token)
        assert isinstance(answer, Renewed)
        assert self.record() == dataclasses.replace(before, expires_at=answer.expires_at)

    def test_start_is_noted_and_stays(self) -> None:
        token = self.grant()
        assert not self.record().started
        self.renew(token, started=True)
        self.renew(token)
        assert self.record().started

    def test_renewed_claim_is_not_taken_over(self) -> None:
        token = self.grant()
        for _ in range(5):
            self.harness.advance(LEASE - 10_000)
            assert isinstance(self.renew(token), Renewed)
            assert not isinstance(self.claim(), Success)
        assert self.record().token == token.token

    def test_renew_after_expiry(self) -> None:
        token = self.grant()
        self.run_out()
        answer = self.renew(token)
        assert isinstance(answer, Renewed)
        assert answer.expires_at == answer.now + LEASE

    def test_renew_after_cleanup(self) -> None:
        token = self.grant()
        self.run_out()
        self.clean_up()
        assert isinstance(self.renew(token), Renewed)
        record = self.record()
        assert (record.state, record.outcome, record.forget_at) == (State.CLAIMED, None, 0)

    def test_renew_after_cleanup_that_kept_nothing(self) -> None:
        token = self.grant()
        self.run_out()
        self.clean_up(keep_ms=0)
        assert isinstance(self.renew(token), Renewed)
        assert self.record().state is State.CLAIMED

    def test_renew_after_own_release_has_ended(self) -> None:
        token = self.grant()
        self.release(token, Outcome.FAILURE)
        before = self.record()
        for extend in (False, True):
            answer = self.renew(token, extend=extend)
            assert isinstance(answer, Ended)
            assert answer.outcome is Outcome.FAILURE
        assert self.record() == before

    def test_renew_after_nack_is_refused(self) -> None:
        token = self.grant()
        self.nack(token)
        answer = self.renew(token)
        assert isinstance(answer, Lost)
        assert answer.owner is None
        assert self.record().state is State.FREE

    def test_renew_does_not_bring_back_what_was_settled_and_forgotten(self) -> None:
        for settle in (self.release, self.nack):
            token = self.grant()
            settle(token, keep_ms=0)
            assert isinstance(self.renew(token), Lost)
            assert self.gone()

    def test_forgotten_claim_is_created_anew_by_its_owner(self) -> None:
        token = self.grant()
        self.harness.lose_everything()
        answer = self.renew(token, started=True)
        assert isinstance(answer, Renewed)
        record = self.record()
        assert record.as_token() == dataclasses.replace(token, expires_at=answer.expires_at)
        assert record.started

    def test_forgotten_claim_is_finished_by_its_owner(self) -> None:
        token = self.grant()
        self.harness.lose_everything()
        assert isinstance(self.release(token), Settled)
        assert isinstance(self.claim(), Finished)

    def test_forgotten_claim_granted_to_another_does_not_come_back(self) -> None:
        token = self.grant()
        self.harness.lose_everything()
        self.harness.advance(1000)
        second = self.grant()
        assert second.token > token.token
        assert isinstance(self.renew(token), Lost)
        assert self.record().as_token() == second

    def test_recreated_claim_keeps_tokens_rising(self) -> None:
        token = self.grant()
        self.harness.lose_everything()
        self.renew(token)
        self.nack(token, keep_ms=0)
        assert self.grant().token > token.token


class SettleRules(Rules):
    """Ends are recorded once, and answered again as often as asked."""

    def test_release_finishes(self) -> None:
        token = self.grant()
        answer = self.release(token, Outcome.RETRY)
        assert isinstance(answer, Settled)
        record = self.record()
        assert (record.state, record.outcome) == (State.FINISHED, Outcome.RETRY)
        assert record.settled_at == answer.now
        assert record.forget_at == answer.now + KEEP
        assert record.token == token.token

    def test_nack_frees(self) -> None:
        token = self.grant()
        answer = self.nack(token)
        assert isinstance(answer, Settled)
        record = self.record()
        assert (record.state, record.outcome) == (State.FREE, Outcome.NACKED)
        assert record.settled_at == answer.now

    def test_keep_0_forgets_at_once(self) -> None:
        for settle in (self.release, self.nack):
            settle(self.grant(), keep_ms=0)
            assert self.gone()
            assert self.pages(View.ALL) == []

    def test_repeated_release_answers_the_same(self) -> None:
        token = self.grant()
        self.release(token, Outcome.FAILURE)
        before = self.record()
        self.harness.advance(1000)
        assert isinstance(self.release(token, Outcome.SUCCESS), Settled)
        assert self.record() == before

    def test_repeated_nack_answers_the_same(self) -> None:
        token = self.grant()
        self.nack(token)
        before = self.record()
        self.harness.advance(1000)
        assert isinstance(self.nack(token), Settled)
        assert self.record() == before

    def test_repeated_settlement_of_what_was_forgotten_is_lost(self) -> None:
        for settle in (self.release, self.nack):
            token = self.grant()
            settle(token, keep_ms=0)
            assert isinstance(settle(token, keep_ms=0), Lost)
            assert self.gone()

    def test_release_after_expiry(self) -> None:
        token = self.grant()
        self.run_out()
        assert isinstance(self.release(token), Settled)
        assert isinstance(self.claim(), Finished)

    def test_release_after_cleanup(self) -> None:
        token = self.grant()
        self.run_out()
        self.clean_up()
        assert isinstance(self.release(token), Settled)
        assert isinstance(self.claim(), Finished)

    def test_nack_after_expiry_and_cleanup(self) -> None:
        first, second = self.grant("a"), self.grant("b")
        self.run_out()
        self.store.expire([self.record("b").as_expiry()], keep_ms=KEEP)
        assert isinstance(self.nack(first), Settled)
        assert isinstance(self.nack(second), Settled)
        assert {self.record(name).outcome for name in "ab"} == {Outcome.NACKED}

    def test_nack_after_own_release_has_ended(self) -> None:
        token = self.grant()
        self.release(token)
        answer = self.nack(token, counted=True)
        assert isinstance(answer, Ended)
        assert answer.outcome is Outcome.SUCCESS
        assert self.record().state is State.FINISHED
        assert self.record().deliveries == 0

    def test_release_after_nack_is_refused(self) -> None:
        token = self.grant()
        self.nack(token)
        assert isinstance(self.release(token), Lost)
        assert self.record().state is State.FREE

    def test_release_of_the_next_attempt_forgets_the_end_of_the_one_before(self) -> None:
        self.release(self.grant(), keep_ms=KEEP)
        self.release(self.grant(attempt=self.attempt(1)), keep_ms=4 * KEEP)
        self.harness.advance(2 * KEEP)
        self.store.expire([], keep_ms=KEEP)
        assert isinstance(self.claim(attempt=self.attempt(1)), Finished)


class FencingRules(Rules):
    """A stale owner changes nothing and is told so."""

    def _superseded(self) -> tuple[ClaimToken, ClaimToken]:
        stale = self.grant()
        self.run_out()
        return stale, self.grant()

    def test_stale_renew_changes_nothing(self) -> None:
        stale, current = self._superseded()
        before = self.record()
        answer = self.renew(stale, 10 * LEASE, started=True)
        assert isinstance(answer, Lost)
        assert answer.owner == current.owner
        assert self.record() == before

    def test_stale_extend_changes_nothing(self) -> None:
        stale, current = self._superseded()
        before = self.record()
        answer = self.renew(stale, LEASE, extend=True)
        assert isinstance(answer, Lost)
        assert answer.owner == current.owner
        assert self.record() == before

    def test_stale_release_changes_nothing(self) -> None:
        stale, current = self._superseded()
        before = self.record()
        for keep_ms in (KEEP, 0):
            answer = self.release(stale, keep_ms=keep_ms)
            assert isinstance(answer, Lost)
            assert answer.owner == current.owner
        assert self.record() == before

    def test_stale_nack_changes_nothing(self) -> None:
        stale, current = self._superseded()
        before = self.record()
        for keep_ms in (KEEP, 0):
            answer = self.nack(stale, counted=True, keep_ms=keep_ms)
            assert isinstance(answer, Lost)
            assert answer.owner == current.owner
        assert self.record() == before

    def test_stale_cleanup_changes_nothing(self) -> None:
        stale = self.grant()
        self.run_out()
        expiry = self.record().as_expiry()
        self.grant()
        self.run_out()
        before = self.record()
        assert self.store.expire([expiry], keep_ms=0) == [False]
        assert self.record() == before
        assert before.token > stale.token

    def test_stale_owner_stays_stale_once_the_next_one_has_ended(self) -> None:
        stale, current = self._superseded()
        self.release(current)
        assert isinstance(self.renew(stale), Lost)
        assert isinstance(self.release(stale), Lost)
        assert isinstance(self.nack(stale), Lost)
        assert self.record().token == current.token

    def test_stale_owner_stays_stale_once_the_next_one_is_forgotten(self) -> None:
        stale, current = self._superseded()
        self.release(current, keep_ms=0)
        assert isinstance(self.renew(stale), Lost)
        assert isinstance(self.release(stale), Lost)
        assert isinstance(self.nack(stale), Lost)
        assert self.gone()

    def test_token_made_up_above_the_last_is_refused(self) -> None:
        token = self.grant()
        forged = dataclasses.replace(token, token=token.token + 1)
        before = self.record()
        assert isinstance(self.store.renew([Renewal(forged, LEASE)])[0], Lost)
        assert isinstance(self.store.settle([Settlement(forged, Outcome.SUCCESS, KEEP)])[0], Lost)
        assert self.record() == before
