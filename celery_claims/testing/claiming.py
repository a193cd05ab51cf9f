"""Rules of ``claim``: the table of answers, tokens and deliveries."""

from __future__ import annotations

import dataclasses

from ..checks import MAX_TOKEN
from ..protocol import (
    EXHAUSTED_LEASE_MS,
    AlreadyClaimed,
    Attempt,
    Delivery,
    Exhausted,
    Finished,
    Lost,
    Outcome,
    Renewed,
    Settled,
    State,
    Success,
    Superseded,
    TookOver,
)
from .harness import KEEP, LEASE, Rules, skip

__all__ = ["AnswerRules", "DeliveryRules", "TokenRules"]


class AnswerRules(Rules):
    """One test a row of the table in ``protocol``, and the runs and attempts behind it."""

    def test_nothing_known_is_granted(self) -> None:
        request = self.request(delivery=Delivery("task", "tag", "other", 3), deaths=2)
        answer = self.store.claim([request])[0]
        assert isinstance(answer, Success)
        token = answer.token
        for name in ("queue", "task_id", "owner", "grant_id", "root_id", "attempt", "delivery"):
            assert getattr(token, name) == getattr(request, name)
        assert token.deaths == 2
        assert token.created_at == answer.now
        assert token.expires_at == answer.now + LEASE
        record = self.record()
        assert record.as_token() == token
        assert (record.state, record.outcome, record.started) == (State.CLAIMED, None, False)
        assert (record.deliveries, record.settled_at, record.forget_at) == (0, 0, 0)

    def test_same_grant_gets_the_same_token_again(self) -> None:
        request = self.request()
        first = self.store.claim([request])[0]
        self.harness.advance(1000)
        again = self.store.claim([request])[0]
        assert isinstance(first, Success)
        assert isinstance(again, Success)
        assert again.token == dataclasses.replace(
            first.token, expires_at=max(first.token.expires_at, again.now + LEASE)
        )

    def test_same_grant_gets_the_same_token_after_expiry(self) -> None:
        request = self.request()
        first = self.store.claim([request])[0]
        self.run_out()
        again = self.store.claim([request])[0]
        assert isinstance(first, Success)
        assert isinstance(again, Success)
        assert again.token.token == first.token.token
        assert again.token.expires_at == again.now + LEASE

    def test_repeated_claim_never_shortens_the_lease(self) -> None:
        request = self.request(lease_ms=2 * LEASE)
        first = self.store.claim([request])[0]
        again = self.store.claim([dataclasses.replace(request, lease_ms=LEASE)])[0]
        assert isinstance(first, Success)
        assert isinstance(again, Success)
        assert again.token.expires_at == first.token.expires_at

    def test_live_claim_is_denied_to_another_owner(self) -> None:
        token = self.grant()
        answer = self.claim()
        assert isinstance(answer, AlreadyClaimed)
        assert (answer.owner, answer.expires_at) == (token.owner, token.expires_at)
        assert self.record().as_token() == token

    def test_live_claim_is_denied_to_a_second_copy_at_the_same_owner(self) -> None:
        token = self.grant()
        assert isinstance(self.claim(owner=token.owner), AlreadyClaimed)

    def test_live_claim_is_denied_to_the_next_attempt(self) -> None:
        self.grant()
        assert isinstance(self.claim(attempt=self.attempt(1)), AlreadyClaimed)

    def test_live_claim_is_denied_to_another_run(self) -> None:
        self.grant()
        assert isinstance(self.claim(root_id="another"), AlreadyClaimed)

    def test_expired_claim_is_taken_over(self) -> None:
        first = self.grant()
        self.run_out()
        answer = self.claim()
        assert isinstance(answer, TookOver)
        assert (answer.previous_owner, answer.previous) == (first.owner, first.delivery)
        assert answer.token.token > first.token
        assert self.record().as_token() == answer.token

    def test_cleaned_up_claim_is_granted(self) -> None:
        first = self.grant()
        self.run_out()
        assert self.clean_up() == [True]
        answer = self.claim()
        assert isinstance(answer, Success)
        assert answer.token.token > first.token

    def test_nacked_claim_is_granted_at_once(self) -> None:
        first = self.grant()
        self.nack(first)
        answer = self.claim()
        assert isinstance(answer, Success)
        assert answer.token.token > first.token

    def test_finished_attempt_is_not_granted_again(self) -> None:
        for number, outcome in enumerate(_FINISHED):
            token = self.grant(f"t{number}")
            self.release(token, outcome)
            answer = self.claim(f"t{number}")
            assert isinstance(answer, Finished)
            assert answer.outcome is outcome
            assert answer.finished_at == self.record(f"t{number}").settled_at

    def test_same_grant_is_not_granted_again_once_finished(self) -> None:
        request = self.request()
        answer = self.store.claim([request])[0]
        assert isinstance(answer, Success)
        self.release(answer.token)
        assert isinstance(self.store.claim([request])[0], Finished)

    def test_finished_attempt_stays_finished_while_it_is_kept(self) -> None:
        self.release(self.grant(), keep_ms=KEEP)
        self.harness.advance(KEEP - 60_000)
        self.store.expire([], keep_ms=KEEP)
        assert isinstance(self.claim(), Finished)

    def test_finished_attempt_is_forgotten_after_it_was_kept(self) -> None:
        token = self.grant()
        self.release(token, keep_ms=KEEP)
        self.harness.advance(KEEP + 1000)
        self.store.expire([], keep_ms=KEEP)
        assert self.gone()
        assert self.grant().token > token.token

    def test_finished_record_lets_the_next_attempt_run(self) -> None:
        for number, attempt in enumerate([Attempt(0, 3), Attempt(1, 0), Attempt(1, 2)]):
            token = self.grant(f"t{number}", attempt=self.attempt(2))
            self.release(token, Outcome.RETRY)
            answer = self.claim(f"t{number}", attempt=attempt)
            assert isinstance(answer, Success)
            assert self.record(f"t{number}").attempt == attempt

    def test_finished_record_lets_another_run_run(self) -> None:
        self.release(self.grant(attempt=self.attempt(2)))
        answer = self.claim(root_id="another")
        assert isinstance(answer, Success)
        assert answer.token.root_id == "another"

    def test_earlier_attempt_is_superseded_in_every_state(self) -> None:
        later = self.attempt(0, nesting=1)
        for task_id in ("claimed", "expired", "cleaned", "nacked", "finished"):
            token = self.grant(task_id, attempt=later)
            if task_id == "nacked":
                self.nack(token)
            elif task_id == "finished":
                self.release(token)
        live = self.claim("claimed", attempt=self.attempt(9))
        assert isinstance(live, Superseded)
        assert live.attempt == later
        self.run_out()
        self.store.expire([self.record("cleaned").as_expiry()], keep_ms=KEEP)
        for task_id in ("claimed", "expired", "cleaned", "nacked", "finished"):
            before = self.record(task_id)
            answer = self.claim(task_id, attempt=self.attempt(9))
            assert isinstance(answer, Superseded), task_id
            assert answer.attempt == later
            assert self.record(task_id) == before

    def test_later_attempt_takes_an_expired_claim_over(self) -> None:
        self.grant()
        self.run_out()
        answer = self.claim(attempt=self.attempt(1))
        assert isinstance(answer, TookOver)
        assert self.record().attempt == self.attempt(1)

    def test_rejected_message_runs_again_only_with_a_newer_death(self) -> None:
        self.release(self.grant(deaths=1), Outcome.REJECTED)
        assert isinstance(self.claim(deaths=1), Finished)
        answer = self.claim(deaths=2)
        assert isinstance(answer, Success)
        assert answer.token.deaths == 2

    def test_newer_death_does_not_run_what_was_not_rejected(self) -> None:
        self.release(self.grant(), Outcome.FAILURE)
        assert isinstance(self.claim(deaths=5), Finished)

    def test_queues_and_tasks_do_not_touch_each_other(self) -> None:
        names = [("a", "bc"), ("ab", "c"), ("a", "b"), ("b", "a"), ("a:b", "c"), ("a", "b:c")]
        tokens = [self.grant(task_id, queue) for queue, task_id in names]
        self.release(tokens[0])
        self.nack(tokens[1])
        states = [self.record(task_id, queue).state for queue, task_id in names]
        assert states == [State.FINISHED, State.FREE] + 4 * [State.CLAIMED]

    def test_two_stores_on_the_same_data_see_the_same_claims(self) -> None:
        token = self.grant()
        with self.harness.open() as other:
            assert isinstance(other.claim([self.request()])[0], AlreadyClaimed)
            assert other.lookup([("q", "t")]) == [self.record()]
        assert isinstance(self.renew(token), Renewed)


class TokenRules(Rules):
    """Fencing numbers only rise."""

    def test_tokens_rise_with_each_grant(self) -> None:
        tokens = []
        for _ in range(20):
            token = self.grant()
            self.nack(token)
            tokens.append(token.token)
        assert tokens == sorted(set(tokens))
        assert all(0 < token <= MAX_TOKEN for token in tokens)

    def test_tokens_rise_when_nothing_is_kept(self) -> None:
        tokens = []
        for forget in (self.release, self.nack):
            for _ in range(5):
                token = self.grant()
                forget(token, keep_ms=0)
                assert self.gone()
                tokens.append(token.token)
        assert tokens == sorted(set(tokens))

    def test_tokens_rise_across_cleanup(self) -> None:
        first = self.grant()
        self.run_out()
        self.clean_up(keep_ms=0)
        assert self.gone()
        assert self.grant().token > first.token

    def test_tokens_rise_across_a_restart(self) -> None:
        first = self.grant()
        self.release(first, keep_ms=0)
        self.store = self.harness.reopen(self.store)
        assert self.grant().token > first.token

    def test_tokens_rise_when_the_clock_steps_back(self) -> None:
        if not self.harness.can_step_back:
            skip("the clock of this store cannot be set back")
        first = self.grant()
        self.release(first, keep_ms=0)
        self.harness.advance(-24 * 3600 * 1000)
        self.store = self.harness.reopen(self.store)
        second = self.grant()
        assert second.token > first.token
        assert isinstance(self.renew(second), Renewed)

    def test_tokens_rise_after_everything_was_lost(self) -> None:
        first = self.grant()
        self.harness.lose_everything()
        self.harness.advance(1000)
        assert self.grant().token > first.token


class DeliveryRules(Rules):
    """Runs that died are counted; waiting is not."""

    def test_takeover_counts_a_started_run(self) -> None:
        self.start(self.grant())
        self.run_out()
        self.grant()
        assert self.record().deliveries == 1

    def test_takeover_does_not_count_a_claim_that_only_waited(self) -> None:
        self.grant()
        self.run_out()
        self.grant()
        assert self.record().deliveries == 0

    def test_cleanup_counts_a_started_run_once(self) -> None:
        self.start(self.grant())
        self.run_out()
        self.clean_up()
        assert self.record().deliveries == 1
        self.grant()
        assert self.record().deliveries == 1

    def test_cleanup_does_not_count_a_claim_that_only_waited(self) -> None:
        self.grant()
        self.run_out()
        self.clean_up()
        assert self.record().deliveries == 0

    def test_nack_counts_only_if_it_says_so(self) -> None:
        self.nack(self.grant())
        assert self.record().deliveries == 0
        self.nack(self.grant(), counted=True)
        assert self.record().deliveries == 1
        self.nack(self.grant(), counted=True)
        assert self.record().deliveries == 2

    def test_repeated_nack_counts_once(self) -> None:
        token = self.grant()
        self.nack(token, counted=True)
        self.nack(token, counted=True)
        assert self.record().deliveries == 1

    def test_counted_nack_after_cleanup_counts_once(self) -> None:
        token = self.grant()
        self.start(token)
        self.run_out()
        self.clean_up()
        assert isinstance(self.nack(token, counted=True), Settled)
        assert self.record().deliveries == 1

    def test_late_owner_takes_back_what_cleanup_counted(self) -> None:
        for task_id in ("renewed", "nacked"):
            self.start(self.grant(task_id))
        self.run_out()
        self.clean_up()
        self.renew(self.record("renewed").as_token())
        self.nack(self.record("nacked").as_token())
        assert self.record("renewed").deliveries == 0
        assert self.record("nacked").deliveries == 0

    def test_next_attempt_counts_anew(self) -> None:
        self.nack(self.grant(), counted=True)
        self.grant(attempt=self.attempt(1))
        assert self.record().deliveries == 0

    def test_another_run_counts_anew(self) -> None:
        self.nack(self.grant(), counted=True)
        self.grant(root_id="another")
        assert self.record().deliveries == 0

    def test_exhausted_at_the_cap(self) -> None:
        for _ in range(2):
            self.nack(self.grant(max_deliveries=2), counted=True)
        answer = self.claim(max_deliveries=2)
        assert isinstance(answer, Exhausted)
        assert answer.deliveries == 2
        assert answer.token.expires_at == answer.now + EXHAUSTED_LEASE_MS
        assert isinstance(self.claim(max_deliveries=2), AlreadyClaimed)

    def test_exhausted_by_takeover(self) -> None:
        self.start(self.grant(max_deliveries=1))
        self.run_out()
        assert isinstance(self.claim(max_deliveries=1), Exhausted)

    def test_exhausted_is_repeated_to_the_same_grant(self) -> None:
        self.nack(self.grant(), counted=True)
        request = self.request(max_deliveries=1)
        first, again = self.store.claim([request, request])
        assert isinstance(first, Exhausted)
        assert isinstance(again, Exhausted)
        assert again.token.token == first.token.token

    def test_exhausted_stays_so_if_its_reporter_dies(self) -> None:
        self.nack(self.grant(), counted=True)
        assert isinstance(self.claim(max_deliveries=1), Exhausted)
        self.harness.advance(EXHAUSTED_LEASE_MS + 1000)
        answer = self.claim(max_deliveries=1)
        assert isinstance(answer, Exhausted)
        assert answer.deliveries == 1

    def test_exhausted_is_released_and_then_finished(self) -> None:
        self.nack(self.grant(), counted=True)
        answer = self.claim(max_deliveries=1)
        assert isinstance(answer, Exhausted)
        assert isinstance(self.release(answer.token, Outcome.EXHAUSTED), Settled)
        denied = self.claim(max_deliveries=1)
        assert isinstance(denied, Finished)
        assert denied.outcome is Outcome.EXHAUSTED

    def test_exhausted_loses_to_nobody_while_it_reports(self) -> None:
        first = self.grant()
        self.nack(first, counted=True)
        assert isinstance(self.claim(max_deliveries=1), Exhausted)
        assert isinstance(self.renew(first), Lost)


_FINISHED = [outcome for outcome in Outcome if outcome not in (Outcome.NACKED, Outcome.EXPIRED)]
