"""Rules of ``expire``, ``scan``, ``census``, ``lookup`` and ``elect``."""

from __future__ import annotations

import dataclasses

from ..errors import InvalidArgument
from ..protocol import Outcome, Record, Renewed, State
from ..stores.base import MAX_PAGE, View
from .harness import KEEP, LEASE, Rules, raises, skip

__all__ = ["CleanupRules", "ElectRules", "ScanRules"]


class CleanupRules(Rules):
    """Only what is still expired as it was seen is cleaned up."""

    def test_cleanup_frees_an_expired_claim(self) -> None:
        token = self.grant()
        self.run_out()
        assert self.clean_up() == [True]
        record = self.record()
        assert (record.state, record.outcome) == (State.FREE, Outcome.EXPIRED)
        assert (record.token, record.root_id) == (token.token, token.root_id)
        assert record.forget_at == record.settled_at + KEEP

    def test_cleanup_never_touches_a_live_claim(self) -> None:
        self.grant()
        before = self.record()
        assert self.store.expire([before.as_expiry()], keep_ms=0) == [False]
        assert self.record() == before

    def test_cleanup_leaves_a_claim_that_was_renewed_since(self) -> None:
        token = self.grant()
        self.run_out()
        expiry = self.record().as_expiry()
        assert isinstance(self.renew(token), Renewed)
        before = self.record()
        assert self.store.expire([expiry], keep_ms=0) == [False]
        self.run_out()
        assert self.store.expire([expiry], keep_ms=0) == [False]
        assert self.record() == before

    def test_cleanup_leaves_settled_records(self) -> None:
        self.release(self.grant("finished"))
        self.nack(self.grant("free"))
        self.run_out()
        before = [self.record("finished"), self.record("free")]
        expiries = [record.as_expiry() for record in before]
        assert self.store.expire(expiries, keep_ms=0) == [False, False]
        assert [self.record("finished"), self.record("free")] == before

    def test_cleanup_of_the_unknown_does_nothing(self) -> None:
        self.grant()
        self.run_out()
        expiry = dataclasses.replace(self.record().as_expiry(), task_id="unknown")
        assert self.store.expire([expiry], keep_ms=KEEP) == [False]

    def test_repeated_cleanup_answers_false(self) -> None:
        self.start(self.grant())
        self.run_out()
        expiry = self.record().as_expiry()
        assert self.store.expire([expiry, expiry], keep_ms=KEEP) == [True, False]
        assert self.store.expire([expiry], keep_ms=KEEP) == [False]
        assert self.record().deliveries == 1

    def test_counters_outlive_cleanup_for_as_long_as_they_are_kept(self) -> None:
        self.start(self.grant())
        self.run_out()
        self.clean_up()
        self.harness.advance(KEEP - 60_000)
        self.store.expire([], keep_ms=KEEP)
        assert self.record().deliveries == 1
        self.harness.advance(120_000)
        self.store.expire([], keep_ms=KEEP)
        assert self.gone()

    def test_forgetting_leaves_what_is_claimed(self) -> None:
        self.nack(self.grant())
        token = self.grant(lease_ms=10 * KEEP)
        self.harness.advance(2 * KEEP)
        self.store.expire([], keep_ms=0)
        assert self.record().as_token() == token


class ScanRules(Rules):
    """Pages show each record once, whatever happens in between."""

    def _fill(self) -> dict[str, set[str]]:
        """Seven records of each kind, in two queues."""
        names: dict[str, set[str]] = {}
        for kind in ("orphaned", "live", "free", "finished"):
            names[kind] = {f"{kind}-{number}" for number in range(7)}
        for name in sorted(names["orphaned"]):
            self.grant(name, queue="a" if name < "orphaned-3" else "b")
            self.harness.advance(1000)
        self.run_out()
        for name in sorted(names["live"] | names["free"] | names["finished"]):
            token = self.grant(name, queue="a" if name[-1] < "3" else "b", lease_ms=10 * LEASE)
            if name in names["free"]:
                self.nack(token)
            elif name in names["finished"]:
                self.release(token)
        return names

    def test_views_show_what_they_say(self) -> None:
        names = self._fill()
        for limit in (1, 3, 7, 100):
            for view, expected in (
                (View.LIVE, names["live"]),
                (View.ORPHANED, names["orphaned"]),
                (View.ALL, set().union(*names.values())),
            ):
                shown = [record.task_id for record in self.pages(view, limit=limit)]
                assert len(shown) == len(expected)
                assert set(shown) == expected

    def test_views_of_a_queue_show_only_that_queue(self) -> None:
        self._fill()
        for view in View:
            everything = _names(self.pages(view))
            for queue in ("a", "b"):
                shown = self.pages(view, queue=queue, limit=2)
                assert {record.queue for record in shown} == {queue}
                assert _names(shown) == {name for name in everything if name[0] == queue}
            assert self.pages(view, queue="c") == []

    def test_records_are_shown_whole(self) -> None:
        self._fill()
        for record in self.pages(View.ALL):
            assert self.record(record.task_id, record.queue) == record

    def test_orphans_are_ordered_by_expiry(self) -> None:
        self._fill()
        for queue in (None, "a", "b"):
            times = [record.expires_at for record in self.pages(View.ORPHANED, queue, limit=2)]
            assert times == sorted(times)

    def test_orphans_that_expired_at_the_same_time_are_shown_once_each(self) -> None:
        requests = [self.request(f"t{number}") for number in range(10)]
        self.store.claim(requests)
        self.run_out()
        shown = [record.task_id for record in self.pages(View.ORPHANED, limit=3)]
        assert sorted(shown) == sorted(request.task_id for request in requests)

    def test_what_is_cleaned_up_between_pages_hides_nothing(self) -> None:
        self.store.claim([self.request(f"t{number}") for number in range(10)])
        self.run_out()
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = self.store.scan(View.ORPHANED, cursor=cursor, limit=3)
            seen.extend(record.task_id for record in page.records)
            self.store.expire([record.as_expiry() for record in page.records], keep_ms=0)
            cursor = page.cursor
            if cursor is None:
                break
        assert sorted(seen) == sorted(f"t{number}" for number in range(10))

    def test_page_of_stuck_orphans_does_not_hide_the_rest(self) -> None:
        self.store.claim([self.request(f"t{number}") for number in range(6)])
        self.run_out()
        first = self.store.scan(View.ORPHANED, limit=3)
        rest = self.store.scan(View.ORPHANED, cursor=first.cursor, limit=3)
        assert len(_names(first.records) | _names(rest.records)) == 6

    def test_cursor_outlives_changes_to_other_records(self) -> None:
        names = self._fill()
        for view in (View.LIVE, View.ALL):
            stay = {name for name in names["live"] if int(name[-1]) % 2}
            page = self.store.scan(view, limit=3)
            seen = [record.task_id for record in page.records]
            for name in names["live"] - stay:
                record = self.store.lookup([("a" if name[-1] < "3" else "b", name)])[0]
                if record is not None:
                    self.release(record.as_token(), keep_ms=0)
            while page.cursor is not None:
                page = self.store.scan(view, cursor=page.cursor, limit=3)
                seen.extend(record.task_id for record in page.records)
            assert len(seen) == len(set(seen))
            assert stay <= set(seen)

    def test_cursor_outlives_the_record_that_it_names(self) -> None:
        self.store.claim([self.request(f"t{number}") for number in range(4)])
        page = self.store.scan(View.LIVE, limit=2)
        for record in page.records:
            self.release(record.as_token(), keep_ms=0)
        rest = self.store.scan(View.LIVE, cursor=page.cursor, limit=10)
        shown = [record.task_id for record in (*page.records, *rest.records)]
        assert sorted(shown) == ["t0", "t1", "t2", "t3"]

    def test_renewed_records_stay_in_a_scan_of_live_ones(self) -> None:
        tokens = [self.grant(f"t{number}") for number in range(6)]
        page = self.store.scan(View.LIVE, limit=2)
        seen = [record.task_id for record in page.records]
        for token in reversed(tokens):
            self.renew(token, 2 * LEASE)
        while page.cursor is not None:
            page = self.store.scan(View.LIVE, cursor=page.cursor, limit=2)
            seen.extend(record.task_id for record in page.records)
        assert set(seen) == {token.task_id for token in tokens}

    def test_foreign_cursors_are_refused(self) -> None:
        self.store.claim([self.request(f"t{number}") for number in range(3)])
        cursor = self.store.scan(View.LIVE, limit=1).cursor
        assert cursor is not None
        for view, queue, wrong in (
            (View.LIVE, None, "nonsense"),
            (View.LIVE, None, ""),
            (View.LIVE, None, "[]"),
            (View.ORPHANED, None, cursor),
            (View.LIVE, "q", cursor),
        ):
            with raises(InvalidArgument, "cursor"):
                self.store.scan(view, queue=queue, cursor=wrong)

    def test_bad_scans_are_refused(self) -> None:
        for limit in (0, -1, MAX_PAGE + 1, True, 1.0, None):
            with raises(InvalidArgument, "limit"):
                self.store.scan(View.ALL, limit=limit)  # type: ignore[arg-type]
        with raises(InvalidArgument, "view"):
            self.store.scan("all")  # type: ignore[arg-type]
        with raises(InvalidArgument, "queue"):
            self.store.scan(View.ALL, queue="")
        with raises(InvalidArgument, "queue"):
            self.store.census(5)  # type: ignore[arg-type]

    def test_census_counts_each_state(self) -> None:
        self._fill()
        for queue, number in ((None, 7), ("a", 3), ("c", 0)):
            census = self.store.census(queue)
            assert (census.live, census.orphaned) == (number, number)
            assert census.free in (number, None)
            assert census.finished in (number, None)

    def test_lookup_answers_in_order(self) -> None:
        self.grant("a")
        self.grant("b")
        found = self.store.lookup([("q", "b"), ("q", "x"), ("q", "a"), ("q", "b")])
        assert [record and record.task_id for record in found] == ["b", None, "a", "b"]
        assert self.store.lookup([]) == []


class ElectRules(Rules):
    """One turn an interval."""

    def test_one_turn_per_interval(self) -> None:
        assert self.store.elect("sweep", 60_000)
        assert not self.store.elect("sweep", 60_000)
        with self.harness.open() as other:
            assert not other.elect("sweep", 60_000)
        self.harness.advance(61_000)
        assert self.store.elect("sweep", 60_000)
        assert not self.store.elect("sweep", 60_000)

    def test_duties_are_apart(self) -> None:
        assert self.store.elect("sweep", 60_000)
        assert self.store.elect("count", 60_000)

    def test_turn_is_taken_again_after_the_clock_stepped_back(self) -> None:
        if not self.harness.can_step_back:
            skip("the clock of this store cannot be set back")
        assert self.store.elect("sweep", 60_000)
        self.harness.advance(-24 * 3600 * 1000)
        assert self.store.elect("sweep", 60_000)
        assert not self.store.elect("sweep", 60_000)

    def test_bad_duties_are_refused(self) -> None:
        with raises(InvalidArgument, "duty"):
            self.store.elect("", 1000)
        for interval in (0, -1, True, 1.5, float("nan"), 10**15):
            with raises(InvalidArgument, "interval_ms"):
                self.store.elect("sweep", interval)  # type: ignore[arg-type]


def _names(records: tuple[Record, ...] | list[Record]) -> set[tuple[str, str]]:
    return {(record.queue, record.task_id) for record in records}
