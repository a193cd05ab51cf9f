"""Rules of batches, keys, bad arguments and races."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..checks import MAX_KEY_BYTES
from ..errors import InvalidArgument
from ..protocol import (
    AlreadyClaimed,
    ClaimAnswer,
    Delivery,
    Ended,
    Expiry,
    Finished,
    Lost,
    Outcome,
    Renewal,
    Renewed,
    Settled,
    Settlement,
    Success,
    TookOver,
)
from ..stores.base import View
from .harness import KEEP, LEASE, Rules, raises

__all__ = ["ArgumentRules", "BatchRules", "KeyRules", "RaceRules"]

#: Keys that some store, escape or index got wrong somewhere.
UNUSUAL_KEYS = [
    "{x}",
    "a:b",
    "a b",
    "'\"`\\;--",
    "%s %d {0} $1 ?",
    "\0",
    "a\0b",
    "\n\r\t",
    "\N{SNOWMAN}\N{PILE OF POO}",
    "\ud800",
    "a\udfffb",
    "e\u0301",
    "\u00e9",
    "*",
    "[a]",
    "x" * MAX_KEY_BYTES,
    "\N{PILE OF POO}" * (MAX_KEY_BYTES // 4),
]

#: Whole numbers of milliseconds they are not.
BAD_DURATIONS: list[Any] = [0, -1, 10**15, 2**63, 1.5, float("nan"), float("inf"), True, None, "1"]

BAD_NAMES: list[Any] = ["", None, 5, b"bytes", "x" * (MAX_KEY_BYTES + 1), ["a"]]


class BatchRules(Rules):
    """A list is answered in order, element by element."""

    def test_empty_batches_answer_nothing(self) -> None:
        assert self.store.claim([]) == []
        assert self.store.renew([]) == []
        assert self.store.settle([]) == []
        assert self.store.expire([], keep_ms=KEEP) == []

    def test_claims_are_answered_in_order(self) -> None:
        requests = [self.request(f"t{number % 7}", queue=f"q{number % 3}") for number in range(60)]
        answers = self.store.claim(requests)
        seen: dict[tuple[str, str], str] = {}
        for request, answer in zip(requests, answers, strict=True):
            key = (request.queue, request.task_id)
            if key in seen:
                assert isinstance(answer, AlreadyClaimed)
                assert answer.owner == seen[key]
            else:
                assert isinstance(answer, Success)
                assert answer.token.owner == request.owner
                seen[key] = request.owner

    def test_duplicates_in_renewals_are_taken_in_order(self) -> None:
        token = self.grant()
        answers = self.store.renew([Renewal(token, 1000, extend=True)] * 3)
        ends = [answer.expires_at for answer in answers if isinstance(answer, Renewed)]
        assert ends == [token.expires_at + 1000 * number for number in (1, 2, 3)]

    def test_duplicates_in_settlements_are_taken_in_order(self) -> None:
        token = self.grant()
        answers = self.store.settle(
            [
                Settlement(token, Outcome.FAILURE, KEEP),
                Settlement(token, Outcome.SUCCESS, KEEP),
                Settlement(token, Outcome.NACKED, KEEP),
            ]
        )
        assert [type(answer) for answer in answers] == [Settled, Settled, Ended]
        assert self.record().outcome is Outcome.FAILURE

    def test_duplicates_of_a_forgotten_grant_are_taken_in_order(self) -> None:
        stale = self.grant()
        self.run_out()
        last = self.grant()
        self.run_out()
        assert self.clean_up(keep_ms=0) == [True]
        answers = self.store.renew([Renewal(each, LEASE) for each in (last, stale)])
        assert isinstance(answers[0], Renewed)
        assert isinstance(answers[1], Lost)
        assert answers[1].owner == last.owner

    def test_refused_elements_leave_the_others_alone(self) -> None:
        stale = self.grant("a")
        self.nack(stale)
        tokens = [self.grant("a"), self.grant("b"), self.grant("c")]
        answers = self.store.renew([Renewal(each, LEASE) for each in (tokens[1], stale, tokens[2])])
        assert [type(answer) for answer in answers] == [Renewed, Lost, Renewed]
        settlements = [Settlement(each, Outcome.SUCCESS, KEEP) for each in (stale, *tokens)]
        kinds = [type(answer) for answer in self.store.settle(settlements)]
        assert kinds == [Lost, Settled, Settled, Settled]

    def test_large_batches(self) -> None:
        requests = [self.request(f"t{number}") for number in range(1000)]
        answers = self.store.claim(requests)
        tokens = [answer.token for answer in answers if isinstance(answer, Success)]
        assert len(tokens) == 1000
        renewed = self.store.renew([Renewal(token, LEASE) for token in tokens])
        assert all(isinstance(answer, Renewed) for answer in renewed)
        settled = self.store.settle([Settlement(token, Outcome.SUCCESS, KEEP) for token in tokens])
        assert all(isinstance(answer, Settled) for answer in settled)
        assert self.store.census().finished in (1000, None)
        assert len(self.pages(View.ALL, limit=300)) == 1000


class KeyRules(Rules):
    """Any Unicode text up to 10 kB is a key."""

    def test_unusual_task_ids(self) -> None:
        self._live_through([("q", key) for key in UNUSUAL_KEYS])

    def test_unusual_queues(self) -> None:
        self._live_through([(key, "t") for key in UNUSUAL_KEYS])

    def _live_through(self, keys: list[tuple[str, str]]) -> None:
        tokens = [self.grant(task_id, queue) for queue, task_id in keys]
        for (queue, task_id), token in zip(keys, tokens, strict=True):
            assert self.record(task_id, queue).as_token() == token
            assert isinstance(self.claim(task_id, queue), AlreadyClaimed)
            assert isinstance(self.renew(token), Renewed)
            assert self.store.census(queue).live >= 1
        assert _keys(self.pages(View.LIVE, limit=2)) == sorted(keys)
        self.run_out()
        assert _keys(self.pages(View.ORPHANED, limit=2)) == sorted(keys)
        assert self.clean_up() == [True] * len(keys)
        for queue, task_id in keys:
            self.release(self.grant(task_id, queue))
            assert isinstance(self.claim(task_id, queue), Finished)

    def test_unusual_owners_roots_grants_and_deliveries_are_kept(self) -> None:
        for number, key in enumerate(UNUSUAL_KEYS):
            request = self.request(
                f"t{number}",
                owner=key,
                root_id=key,
                grant_id=key,
                delivery=Delivery(task=key, tag=key, queue=key, priority=-1),
            )
            answer = self.store.claim([request])[0]
            assert isinstance(answer, Success)
            record = self.record(f"t{number}")
            assert (record.owner, record.root_id, record.grant_id) == (key, key, key)
            assert record.delivery == request.delivery
            assert isinstance(self.store.claim([request])[0], Success)

    def test_unusual_duties(self) -> None:
        for key in UNUSUAL_KEYS:
            assert self.store.elect(key, 60_000)
            assert not self.store.elect(key, 60_000)


class ArgumentRules(Rules):
    """Bad arguments are named, before anything is done."""

    def test_bad_names(self) -> None:
        for value in BAD_NAMES:
            for argument in ("queue", "task_id", "owner", "grant_id", "root_id"):
                with raises(InvalidArgument, argument):
                    self.request(**{argument: value})
        for value in BAD_NAMES:
            with raises(InvalidArgument, "queue"):
                self.store.lookup([(value, "t")])
            with raises(InvalidArgument, "task_id"):
                self.store.lookup([("q", value)])

    def test_bad_durations(self) -> None:
        token = self.grant()
        for value in BAD_DURATIONS:
            with raises(InvalidArgument, "lease_ms"):
                self.request(lease_ms=value)
            with raises(InvalidArgument, "lease_ms"):
                Renewal(token, value)
            with raises(InvalidArgument, "additional_ms"):
                Renewal(token, value, extend=True)
            if value != 0 or isinstance(value, bool):
                with raises(InvalidArgument, "keep_ms"):
                    Settlement(token, Outcome.SUCCESS, value)
                with raises(InvalidArgument, "keep_ms"):
                    self.store.expire([], keep_ms=value)

    def test_elements_of_the_wrong_kind_are_refused_before_anything_is_done(self) -> None:
        token = self.grant()
        calls: list[tuple[str, Callable[[], object]]] = [
            ("requests", lambda: self.store.claim([self.request("x"), "t"])),  # type: ignore[list-item]
            ("renewals", lambda: self.store.renew([Renewal(token, 9 * LEASE), token])),  # type: ignore[list-item]
            (
                "settlements",
                lambda: self.store.settle([Settlement(token, Outcome.SUCCESS, 0), None]),  # type: ignore[list-item]
            ),
            (
                "expiries",
                lambda: self.store.expire([self.record()], keep_ms=0),  # type: ignore[list-item]
            ),
            ("keys", lambda: self.store.lookup(["qt"])),  # type: ignore[list-item]
            ("keys", lambda: self.store.lookup([("q", "t", "x")])),  # type: ignore[list-item]
            ("requests", lambda: self.store.claim("t")),  # type: ignore[arg-type]
        ]
        before = self.record()
        for argument, call in calls:
            with raises(InvalidArgument, argument):
                call()
        assert self.record() == before
        assert self.gone("x")

    def test_bad_expiries(self) -> None:
        with raises(InvalidArgument, "token"):
            Expiry("q", "t", 0, 1)
        with raises(InvalidArgument, "expires_at"):
            Expiry("q", "t", 1, -1)


class RaceRules(Rules):
    """Threads that race get answers as if one had come after the other."""

    threads = 8
    rounds = 200

    def _race(self, work: Callable[[int], Any]) -> list[Any]:
        """What ``work`` gave in each thread; all begin together."""
        barrier = threading.Barrier(self.threads)
        results: list[Any] = [None] * self.threads
        errors: list[BaseException] = []

        def run(number: int) -> None:
            try:
                barrier.wait(timeout=60)
                results[number] = work(number)
            except BaseException as error:  # noqa: BLE001 - it is raised again in the test
                errors.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results

    def test_one_winner_of_each_racing_claim(self) -> None:
        requests = [
            [self.request(f"t{turn}") for turn in range(self.rounds)] for _ in range(self.threads)
        ]
        barrier = threading.Barrier(self.threads)

        def claim_all(number: int) -> list[ClaimAnswer]:
            answers = []
            for turn in range(self.rounds):
                barrier.wait(timeout=60)
                answers += self.store.claim([requests[number][turn]])
            return answers

        results = self._race(claim_all)
        for turn in range(self.rounds):
            kinds = [type(result[turn]) for result in results]
            assert kinds.count(Success) == 1, (turn, kinds)
            assert kinds.count(AlreadyClaimed) == self.threads - 1

    def test_one_winner_of_a_racing_takeover(self) -> None:
        for turn in range(20):
            first = self.grant(f"t{turn}")
            self.run_out()
            requests = [self.request(f"t{turn}") for _ in range(self.threads)]

            def take_over(number: int, requests: Any = requests) -> ClaimAnswer:
                return self.store.claim([requests[number]])[0]

            answers = self._race(take_over)
            winners = [answer for answer in answers if isinstance(answer, TookOver)]
            assert len(winners) == 1
            assert winners[0].token.token > first.token

    def test_renewal_that_races_a_takeover_has_one_winner(self) -> None:
        for turn in range(20):
            token = self.grant(f"t{turn}")
            self.run_out()
            request = self.request(f"t{turn}")

            def renew_or_claim(number: int, token: Any = token, request: Any = request) -> Any:
                if number:
                    return self.renew(token)
                return self.store.claim([request])[0]

            claimed, *renewed = self._race(renew_or_claim)
            current = self.record(f"t{turn}").token
            if isinstance(claimed, TookOver):
                assert current == claimed.token.token
                assert isinstance(self.renew(token), Lost)
            else:
                assert isinstance(claimed, AlreadyClaimed)
                assert current == token.token
                assert all(isinstance(answer, Renewed) for answer in renewed)

    def test_renewal_that_races_a_cleanup_is_kept(self) -> None:
        for turn in range(20):
            token = self.grant(f"t{turn}")
            self.run_out()
            expiry = self.record(f"t{turn}").as_expiry()

            def renew_or_expire(number: int, token: Any = token, expiry: Any = expiry) -> Any:
                if number:
                    return self.renew(token)
                return self.store.expire([expiry], keep_ms=0)[0]

            _, *renewed = self._race(renew_or_expire)
            assert all(isinstance(answer, Renewed) for answer in renewed)
            assert self.record(f"t{turn}").is_live(renewed[0].now)

    def test_release_that_races_a_renewal_is_final(self) -> None:
        for turn in range(20):
            token = self.grant(f"t{turn}")

            def release_or_renew(number: int, token: Any = token) -> Any:
                return self.renew(token) if number else self.release(token)

            released, *renewed = self._race(release_or_renew)
            assert isinstance(released, Settled)
            assert {type(answer) for answer in renewed} <= {Renewed, Ended}
            assert isinstance(self.claim(f"t{turn}"), Finished)

    def test_one_turn_of_a_racing_election(self) -> None:
        for turn in range(20):

            def take_turn(_: int, duty: str = f"duty-{turn}") -> bool:
                return self.store.elect(duty, 60_000)

            results = self._race(take_turn)
            assert results.count(True) == 1

    def test_batches_in_opposite_orders_do_not_block_each_other(self) -> None:
        names = [f"t{number}" for number in range(20)]
        tokens = [self.grant(name, queue=name) for name in names]

        def renew_all(number: int) -> list[Any]:
            ordered = tokens if number % 2 else tokens[::-1]
            answers: list[Any] = []
            for _ in range(10):
                answers += self.store.renew([Renewal(token, LEASE) for token in ordered])
            return answers

        for answers in self._race(renew_all):
            assert all(isinstance(answer, Renewed) for answer in answers)


def _keys(records: list[Any]) -> list[tuple[str, str]]:
    return sorted((record.queue, record.task_id) for record in records)
