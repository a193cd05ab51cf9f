"""Rules about records that cannot be read: damaged ones, or somebody else's under our keys."""

from __future__ import annotations

from ..errors import StoreCorrupt
from ..parts import ask_in_parts
from ..protocol import Outcome, Renewal, Renewed, Settled, Settlement, Success
from ..stores.base import Unreadable, View
from .harness import KEEP, LEASE, Rules, raises

__all__ = ["ReadingRules"]


class ReadingRules(Rules):
    """What cannot be read is told of, hides nothing, and is neither granted nor deleted."""

    def _scan(self, view: View, queue: str | None, limit: int) -> tuple[set[str], list[Unreadable]]:
        """The task ids of a view, and what the scan went past."""
        shown: list[str] = []
        past: list[Unreadable] = []
        cursor: str | None = None
        while True:
            page = self.store.scan(view, queue=queue, cursor=cursor, limit=limit)
            assert len(page.records) + len(page.unreadable) <= limit
            shown += [record.task_id for record in page.records]
            past += page.unreadable
            cursor = page.cursor
            if cursor is None:
                assert len(shown) == len(set(shown))
                return set(shown), past

    def test_scans_go_on_past_what_cannot_be_read_and_tell_of_it_once(self) -> None:
        names = {f"t{number}" for number in range(5)}
        self.store.claim([self.request(name) for name in sorted(names)])
        self.harness.corrupt("t2")
        for view in (View.LIVE, View.ALL, View.ORPHANED):
            if view is View.ORPHANED:
                self.run_out()
            for queue in (None, "q"):
                for limit in (1, 2, 5, 100):
                    shown, past = self._scan(view, queue, limit)
                    assert shown == names - {"t2"}
                    assert len(past) == 1 and past[0].problem and past[0].removal
            assert self._scan(view, "other", 100) == (set(), [])

    def test_scans_go_on_past_settled_records_that_cannot_be_read(self) -> None:
        for name in ("t0", "t1", "t2"):
            self.release(self.grant(name))
        self.harness.corrupt("t1")
        shown, past = self._scan(View.ALL, None, 2)
        assert shown == {"t0", "t2"} and len(past) == 1

    def test_many_records_that_cannot_be_read_do_not_hide_the_rest(self) -> None:
        names = [f"t{number}" for number in range(6)]
        self.store.claim([self.request(name) for name in names])
        for name in names[:4]:
            self.harness.corrupt(name)
        self.run_out()
        shown, past = self._scan(View.ORPHANED, None, 1)
        assert shown == {"t4", "t5"} and len(past) == 4

    def test_calls_for_what_cannot_be_read_are_refused_and_leave_it_alone(self) -> None:
        self.grant()
        self.harness.corrupt("t")
        before = self._scan(View.ALL, None, 100)[1]
        for _ in range(2):
            for call in (
                self.claim,
                lambda: self.store.lookup([("q", "t")]),
            ):
                with raises(StoreCorrupt):
                    call()
        assert self._scan(View.ALL, None, 100)[1] == before
        assert isinstance(self.claim("another"), Success)

    def test_error_for_one_record_says_what_to_delete(self) -> None:
        self.grant()
        self.harness.corrupt("t")
        (unreadable,) = self._scan(View.ALL, None, 100)[1]
        try:
            self.store.lookup([("q", "t")])
        except StoreCorrupt as error:
            assert unreadable.removal in str(error), error
        else:
            raise AssertionError("it was read")

    def test_parts_of_a_batch_without_what_cannot_be_read_are_answered(self) -> None:
        """Also after the whole of it was refused, and perhaps half done."""
        tokens = {name: self.grant(name) for name in ("t0", "t1", "t2", "t3")}
        self.harness.corrupt("t2")
        keys = [("q", name) for name in tokens]
        found = ask_in_parts(self.store.lookup, keys)
        assert [isinstance(each, StoreCorrupt) for each in found] == [False, False, True, False]
        good = [token for name, token in tokens.items() if name != "t2"]
        renewals = [Renewal(token, 2 * LEASE) for token in tokens.values()]
        renewed = ask_in_parts(self.store.renew, renewals)
        assert [type(answer) for answer in renewed if answer is not renewed[2]] == [Renewed] * 3
        settlements = [Settlement(token, Outcome.SUCCESS, KEEP) for token in good]
        assert all(isinstance(each, Settled) for each in self.store.settle(settlements))

    def test_cleanup_frees_the_others(self) -> None:
        self.store.claim([self.request(f"t{number}") for number in range(4)])
        self.harness.corrupt("t1")
        self.run_out()
        assert self.clean_up() == [True, True, True]

    def test_counting_goes_on(self) -> None:
        self.store.claim([self.request(f"t{number}") for number in range(4)])
        self.harness.corrupt("t1")
        assert self.store.census().live in (3, 4)
