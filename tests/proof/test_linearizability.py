"""The search itself: good histories are accepted, bad ones are not, by whatever they differ."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from celery_claims.protocol import (
    AlreadyClaimed,
    Finished,
    Lost,
    Outcome,
    Renewal,
    Renewed,
    Settlement,
    Success,
    TookOver,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from .counterexample import explain
from .history import FAR, UNKNOWN, Cleanup, Look, Operation
from .linearizability import check
from .specification import Specification
from .stories import KEEP, KEY, Story, Telling, spread, tell_at_random, unheard

SPECIFICATION = Specification()
LOOSE_CLOCK = Specification(monotone=False)
seeds = st.integers(0, 1 << 32)


def in_turn(story: Story) -> list[Operation]:
    """One operation after the other has returned, each by another client."""
    return spread(story.told, random.Random(0), overlap=0)


def is_good(operations: list[Operation], specification: Specification = SPECIFICATION) -> bool:
    verdict = check(operations, specification)
    assert verdict.linearizable is not None
    return verdict.linearizable


def by_program_order_only(operations: list[Operation]) -> list[Operation]:
    """What a checker of sequential consistency sees: each client's order, and no time between."""
    weaker: list[Operation] = []
    last: dict[str, Operation] = {}
    for each in operations:
        seen = replace(each, called=0, returned=FAR - 1, after=last.get(each.client))
        last[each.client] = seen
        weaker.append(seen)
    return weaker


def by_final_state_only(operations: list[Operation]) -> list[Operation]:
    """What a checker of the last record sees: everything was tried, and only the end is known."""
    return [*map(unheard, operations[:-1]), operations[-1]]


class TestGoodHistories:
    def test_nothing(self) -> None:
        assert is_good([])

    def test_the_life_of_a_claim(self) -> None:
        story = Story()
        token = story.claim().token
        story.claim()
        story.renew(token)
        story.release(token)
        story.claim()
        story.look()
        assert is_good(in_turn(story))

    def test_of_two_claims_at_once_the_one_that_returned_later_may_win(self) -> None:
        story = Story()
        story.claim()
        story.claim()
        winner, loser = in_turn(story)
        winner = replace(winner, called=0, returned=20)
        assert is_good([winner, replace(loser, called=1, returned=9)])

    def test_an_unheard_claim_took_effect(self) -> None:
        story = Story()
        story.claim()
        story.claim()
        lost, denied = in_turn(story)
        assert isinstance(denied.answer, AlreadyClaimed)
        assert is_good([unheard(lost), denied])

    def test_an_unheard_claim_took_no_effect(self) -> None:
        story = Story()
        story.claim()
        (granted,) = in_turn(story)
        never = Operation("c9", story.request(), UNKNOWN, granted.called - 10, FAR)
        assert is_good([never, granted])

    def test_an_unheard_release_took_effect_long_after(self) -> None:
        story = Story()
        token = story.claim().token
        story.renew(token)
        story.release(token)
        story.claim()
        claimed, renewed, released, finished = in_turn(story)
        assert isinstance(finished.answer, Finished)
        early = replace(unheard(released), called=claimed.returned + 1)
        assert is_good([claimed, early, renewed, finished])

    def test_an_unheard_renewal_is_known_by_the_lease_that_it_left(self) -> None:
        story = Story()
        token = story.claim().token
        story.wait(700)
        story.renew(token)
        story.wait(700)
        story.claim()
        claimed, renewed, denied = in_turn(story)
        assert is_good([claimed, unheard(renewed), denied])
        assert not is_good([claimed, denied])

    def test_a_batch_may_have_a_record_twice(self) -> None:
        story = Story()
        token = story.claim().token
        story.nack(token)
        story.renew(token)
        claimed, nacked, refused = in_turn(story)
        together = {"called": nacked.called, "returned": refused.returned}
        first = replace(nacked, **together)
        assert is_good([claimed, first, replace(refused, **together, after=first)])
        second = replace(refused, **together)
        assert is_good([claimed, second, replace(nacked, **together)])
        assert not is_good([claimed, second, replace(nacked, **together, after=second)])

    def test_readings_of_the_clock_may_be_out_of_order_where_the_store_allows_it(self) -> None:
        """PostgreSQL: a claim is denied by the old row after a renewal read the clock."""
        story = Story()
        token = story.claim().token
        story.wait(10)
        story.claim()
        claimed, denied = in_turn(story)
        renewal = Renewal(token, 5000)
        early = Renewed(renewal.lease_ms + story.now - 5, story.now - 5)
        renewed = Operation("c9", renewal, early, denied.called, denied.returned + 10)
        assert is_good([claimed, denied, renewed], LOOSE_CLOCK)
        assert not is_good([claimed, denied, renewed])


class TestBadHistories:
    """Each is one answer away from a good one."""

    def refused(self, story: Story, number: int, answer: Any) -> list[Operation]:
        """The story with another answer, which must not be possible any more."""
        operations = in_turn(story)
        assert is_good(operations)
        operations[number] = replace(operations[number], answer=answer)
        assert not is_good(operations)
        assert not is_good(operations, LOOSE_CLOCK)
        return operations

    def test_two_owners(self) -> None:
        story = Story()
        first = story.claim()
        story.claim()
        request = story.requests[1]
        token = replace(
            first.token, owner=request.owner, grant_id=request.grant_id, token=first.token.token + 1
        )
        self.refused(story, 1, Success(token, first.now))

    def test_a_token_that_went_back(self) -> None:
        story = Story()
        old = story.claim().token
        story.nack(old)
        new = story.claim()
        self.refused(story, 2, replace(new, token=replace(new.token, token=old.token)))

    def test_a_takeover_before_the_end_of_the_lease(self) -> None:
        story = Story()
        old = story.claim()
        story.wait(1000)
        new = story.claim()
        assert isinstance(new, TookOver)
        early = new.now - 1
        token = replace(new.token, created_at=early, expires_at=early + 1000)
        operations = in_turn(story)
        operations[1] = replace(operations[1], answer=replace(new, token=token, now=early), low=0)
        assert old.token.expires_at == new.now
        assert not is_good(operations)

    def test_a_lost_release(self) -> None:
        story = Story()
        token = story.claim().token
        story.release(token)
        story.look()
        self.refused(story, 2, story_before_release(story))

    def test_a_stale_renewal_that_is_answered_as_if_it_were_valid(self) -> None:
        story = Story()
        token = story.claim().token
        story.wait(2000)
        story.claim()
        lost = story.renew(token)
        assert isinstance(lost, Lost)
        self.refused(story, 2, Renewed(lost.now + 1000, lost.now))

    def test_a_live_claim_that_is_cleaned_up(self) -> None:
        story = Story()
        token = story.claim().token
        record = story.store.lookup([KEY])[0]
        assert record is not None
        story.renew(token, 5000)
        assert story.tell(Cleanup(record.as_expiry(), KEEP)) is False
        self.refused(story, 2, True)

    def test_a_cleanup_that_does_nothing(self) -> None:
        story = Story()
        story.claim()
        record = story.store.lookup([KEY])[0]
        assert record is not None
        story.wait(2000)
        story.look()
        assert story.tell(Cleanup(record.as_expiry(), KEEP)) is True
        self.refused(story, 2, False)

    def test_a_reading_of_the_clock_from_outside_of_its_call(self) -> None:
        story = Story()
        granted = story.claim()
        operations = in_turn(story)
        assert is_good([replace(operations[0], low=granted.now, high=granted.now)])
        assert not is_good([replace(operations[0], low=granted.now + 1, high=FAR)])
        assert not is_good([replace(operations[0], low=0, high=granted.now - 1)])

    def test_a_grant_that_was_settled_and_forgotten_comes_back(self) -> None:
        story = Story()
        token = story.claim().token
        story.nack(token, keep_ms=0)
        lost = story.renew(token)
        self.refused(story, 2, Renewed(lost.now + 1000, lost.now))


def story_before_release(story: Story) -> Any:
    other = Story()
    other.claim()
    return other.look()


class TestWeakerCheckers:
    """Histories that a weaker checker takes for good."""

    def test_a_stale_read_is_sequentially_consistent_and_not_linearizable(self) -> None:
        story = Story()
        story.look()
        story.claim()
        look, claim = in_turn(story)
        # Another client looks once the claim has returned, and sees nothing.
        late = replace(look, called=claim.returned + 1, returned=claim.returned + 2)
        assert is_good(by_program_order_only([claim, late]))
        assert not is_good([claim, late])

    def test_a_finish_that_an_earlier_client_did_not_see(self) -> None:
        story = Story()
        token = story.claim().token
        denied = story.claim()
        story.release(token)
        claimed, refused, released = in_turn(story)
        assert isinstance(denied, AlreadyClaimed)
        # Denied by a lease whose release another client had already heard of.
        late = replace(refused, called=released.returned + 1, returned=released.returned + 2)
        assert is_good(by_program_order_only([claimed, released, late]))
        assert not is_good([claimed, released, late])

    def test_two_owners_at_once_may_leave_a_right_record(self) -> None:
        story = Story()
        first = story.claim()
        story.nack(first.token)
        second = story.claim()
        story.look()
        claimed, _, again, look = in_turn(story)
        assert isinstance(second, Success)
        # The first one was never given back: for a while there were two.
        renewed = Renewed(first.token.expires_at, first.now)
        kept = replace(again, call=Renewal(first.token, 1000), answer=renewed, client="c8")
        kept = replace(kept, called=again.returned + 1, returned=look.called - 1)
        operations = [claimed, again, kept, look]
        release = Operation("c9", Settlement(first.token, Outcome.NACKED, KEEP), UNKNOWN, 1, FAR)
        assert is_good([*by_final_state_only(operations), release])
        assert not is_good([*operations, release])


@given(seed=seeds, steps=st.integers(1, 40), overlap=st.integers(0, 4))
def test_a_sequential_run_is_accepted_however_its_calls_overlap(
    seed: int, steps: int, overlap: int
) -> None:
    rng = random.Random(seed)
    operations = spread(tell_at_random(rng, steps).told, rng, overlap=overlap)
    assert is_good(operations)
    assert is_good(operations, LOOSE_CLOCK)


@given(seed=seeds, steps=st.integers(1, 25), overlap=st.integers(0, 3))
def test_it_is_accepted_if_some_answers_were_lost(seed: int, steps: int, overlap: int) -> None:
    rng = random.Random(seed)
    operations = spread(tell_at_random(rng, steps).told, rng, overlap=overlap)
    operations = [unheard(each) if rng.random() < 0.2 else each for each in operations]
    assert is_good(operations)


@given(seed=seeds, steps=st.integers(0, 20), overlap=st.integers(0, 3))
def test_a_second_owner_is_refused(seed: int, steps: int, overlap: int) -> None:
    """A denial becomes a grant."""
    rng = random.Random(seed)
    story = tell_at_random(rng, steps)
    # Beyond every lease.
    story.wait(100_000)
    story.claim(root_id="last")
    story.wait(1)
    assert isinstance(story.claim(root_id="last"), AlreadyClaimed)
    told = [*story.told[:-1], granted_instead(story.told[-1])]
    assert not is_good(spread(told, rng, overlap=overlap))


@given(seed=seeds, steps=st.integers(0, 20), overlap=st.integers(0, 3))
def test_a_lost_release_is_refused(seed: int, steps: int, overlap: int) -> None:
    """A finished attempt is granted again."""
    rng = random.Random(seed)
    story = tell_at_random(rng, steps)
    # Beyond every lease.
    story.wait(100_000)
    story.release(story.claim(root_id="last").token)
    assert isinstance(story.claim(root_id="last"), Finished)
    told = [*story.told[:-1], granted_instead(story.told[-1])]
    assert not is_good(spread(told, rng, overlap=overlap))


@given(seed=seeds, steps=st.integers(2, 30), overlap=st.integers(0, 3))
def test_a_token_that_went_back_is_refused(seed: int, steps: int, overlap: int) -> None:
    """A grant gets the token of the one before it."""
    rng = random.Random(seed)
    told = tell_at_random(rng, steps).told
    grants = [n for n, each in enumerate(told) if isinstance(each.answer, (Success, TookOver))]
    tokens = [told[n].answer.token.token for n in grants]
    later = [
        n
        for n, token in zip(grants, tokens, strict=True)
        if token > tokens[0] and is_asked_once(told, n)
    ]
    assume(later)
    number = rng.choice(later)
    answer = told[number].answer
    back = replace(answer, token=replace(answer.token, token=tokens[0]))
    told[number] = replace(told[number], answer=back)
    assert not is_good(spread(told, rng, overlap=overlap))


def is_asked_once(told: list[Telling], number: int) -> bool:
    """A claim that is repeated may be granted another time, and in another order."""
    return sum(each.call == told[number].call for each in told) == 1


def granted_instead(each: Telling) -> Telling:
    """The same claim, as if nobody had been in its way."""
    story = Story()
    story.wait(each.at - story.now)
    return Telling(each.call, story.perform(each.call), each.at)


def test_a_counterexample_is_small_and_says_what_is_impossible() -> None:
    story = tell_at_random(random.Random(4), 60)
    story.wait(100_000)
    token = story.claim(root_id="new").token
    for _ in range(20):
        story.look()
    story.release(token)
    story.look()
    # The release is answered, and a look after it does not see it.
    told = [*story.told[:-1], replace(story.told[-1], answer=story.told[-3].answer)]
    text = explain(spread(told, random.Random(0), overlap=0), SPECIFICATION)
    assert "release as success" in text
    assert text.count("look ->") == 1
    assert text.index("none of these may come next") < text.index("look ->")


@pytest.mark.parametrize("call", [Look(KEY)])
def test_what_would_change_nothing_is_not_tried(call: Look) -> None:
    """A hundred unheard questions cost nothing."""
    story = Story()
    story.claim()
    story.claim()
    idle = [Operation(f"d{n}", call, UNKNOWN, -n, FAR) for n in range(100)]
    assert check([*in_turn(story), *idle], SPECIFICATION).configurations < 10
