"""Workflows under claims: the same results, children and number of runs as without.

The file backend counts no chords: ``celery.chord_unlock`` retries until the header is done, and is
claimed here like every other task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Signature, chain, chord, group
from celery.exceptions import ChordError
from celery.result import AsyncResult, GroupResult

from tests.process.journal import Journal
from tests.process.setup import Site
from tests.process.waiting import stays, wait_until

from .sites import (
    BOTH,
    is_claimed,
    notes,
    redeliver,
    shared_site,
    wait_for_signals,
    wait_for_skip,
)

#: Seconds
LIMIT = 40


@pytest.fixture(scope="module", params=BOTH)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with shared_site(tmp_path_factory.mktemp("canvas"), request.param) as site:
        # Without claims two attempts may run side by side, and the first write over the second.
        site.start_worker(concurrency=3 if is_claimed(site) else 1)
        yield site


@pytest.fixture
def add(celery_setup_app: Celery) -> Any:
    def add(*numbers: int, **options: Any) -> Signature:
        return celery_setup_app.signature("c.add", numbers, **options)

    return add


@pytest.fixture
def total(celery_setup_app: Celery) -> Signature:
    return celery_setup_app.signature("c.total")


def runs_of(journal: Journal, *results: AsyncResult) -> int:
    """How often the tasks of these results and of their parents ran."""
    ids = set()
    for result in results:
        node: Any = result
        while node is not None:
            ids |= {child.id for child in getattr(node, "results", [node])}
            node = node.parent
    return sum(len(journal.runs(task_id)) for task_id in ids)


def shape(result: AsyncResult | GroupResult) -> Any:
    """The tree of children of a result, as nested lists."""
    return [shape(child) for child in result.children or []]


# chains


def test_a_chain(site: Site, journal: Journal, add: Any) -> None:
    result = chain(add(1, 2), add(3), add(4)).apply_async()
    assert result.get(timeout=LIMIT) == 10
    assert runs_of(journal, result) == 3
    assert shape(result.parent.parent) == [[[]]]


def test_a_chain_that_fails_stops_there(site: Site, celery_setup_app: Celery, add: Any) -> None:
    fail = celery_setup_app.signature("tests.fail", ("no more",), immutable=True)
    result = chain(add(1, 2), fail, add(1)).apply_async()
    with pytest.raises(ValueError, match="no more"):
        result.parent.get(timeout=LIMIT)
    assert result.parent.parent.get(timeout=LIMIT) == 3
    assert not site.journal.runs(result.id)


def test_a_chain_applied_twice_runs_every_step_twice(journal: Journal, add: Any) -> None:
    both = chain(add(1, 2), add(3), add(4))
    first, second = both.apply_async(), both.apply_async()
    wait_until(lambda: runs_of(journal, first, second) == 6, what="six runs")
    assert first.get(timeout=LIMIT) == second.get(timeout=LIMIT) == 10


def test_a_chain_of_frozen_steps_applied_twice_runs_every_step_twice(
    site: Site, journal: Journal, add: Any
) -> None:
    """The later steps are published with the same id by both, under another root."""
    steps = [add(1, 2), add(3), add(4)]
    for step in steps[1:]:
        step.freeze()
    ids = [step.id for step in steps[1:]]
    for _ in range(2):
        steps[0].clone().apply_async(link=chain(*steps[1:]))
    wait_until(
        lambda: [len(journal.runs(task_id)) for task_id in ids] == [2, 2],
        what=lambda: f"two runs each, not {[journal.runs(task_id) for task_id in ids]}",
    )


# groups and chords


def test_a_group(site: Site, journal: Journal, add: Any) -> None:
    result = group(add(n, n) for n in range(5)).apply_async()
    assert result.get(timeout=LIMIT) == [0, 2, 4, 6, 8]
    assert runs_of(journal, result) == 5


def test_a_chord(site: Site, journal: Journal, add: Any, total: Signature) -> None:
    result = chord([add(n, n) for n in range(4)])(total)
    assert result.get(timeout=LIMIT) == 12
    assert runs_of(journal, result) == 5


def test_a_chord_of_one(site: Site, journal: Journal, add: Any, total: Signature) -> None:
    result = chord([add(3, 4)])(total)
    assert result.get(timeout=LIMIT) == 7
    assert runs_of(journal, result) == 2


def test_a_chord_within_a_chain(site: Site, add: Any, total: Signature) -> None:
    steps = chain(add(1, 1), group(add(1), add(2)), total.clone(), add(100))
    assert steps.apply_async().get(timeout=LIMIT) == 107


def test_nested_chords(site: Site, add: Any, total: Signature) -> None:
    inner = chord([add(1, 1), add(2, 2)], total.clone())
    result = chord([inner, add(10, 10)])(total.clone())
    assert result.get(timeout=LIMIT) == 26


def test_a_failing_header_fails_the_chord(
    site: Site, celery_setup_app: Celery, journal: Journal, add: Any, total: Signature
) -> None:
    fail = celery_setup_app.signature("tests.fail", ("in the header",))
    told = celery_setup_app.signature("c.errback")
    told.freeze()
    result = chord([add(1, 1), fail])(total.on_error(told))
    # Not by get(), which raises the error of the header as soon as it sees it.
    wait_until(result.ready, what="the end of the chord")
    assert isinstance(result.result, ChordError)
    assert "in the header" in str(result.result)
    wait_until(lambda: journal.runs(told.id), what="the error callback")
    assert not journal.runs(result.id)


def test_a_late_copy_of_a_header_counts_once(
    site: Site, journal: Journal, add: Any, total: Signature
) -> None:
    header = [add(n, n) for n in range(3)]
    result = chord(header)(total)
    assert result.get(timeout=LIMIT) == 6
    children = [child.id for child in result.parent.results]
    copies = sum(redeliver(site, task_id) for task_id in children)
    assert copies == 3
    if not is_claimed(site):
        wait_until(lambda: runs_of(journal, result) == 7, what="they all run again")
        return
    for task_id in children:
        wait_for_skip(site, task_id)
    assert runs_of(journal, result) == 4


@pytest.mark.parametrize("site", ["claimed"], indirect=True)
def test_the_unlocker_of_a_chord_is_claimed_as_well(
    site: Site, journal: Journal, add: Any, total: Signature
) -> None:
    result = chord([add(1, 1), add(2, 2)])(total)
    result.get(timeout=LIMIT)

    def unlocker() -> str | None:
        lines = [line for line in journal.lines() if line["event"] == "signal"]
        ended = [line for line in lines if line["name"] == "task_postrun"]
        calls = [line["task_id"] for line in ended if line["task"] == "celery.chord_unlock"]
        return calls[-1] if calls else None

    task_id = wait_until(unlocker, what="the end of the unlocker")
    wait_for_skip(site, task_id, redeliver(site, task_id))
    assert len(journal.runs(result.id)) == 1


# callbacks


def test_link(site: Site, journal: Journal, add: Any) -> None:
    callback = add(10)
    callback.freeze()
    result = add(1, 1).apply_async(link=callback)
    assert result.get(timeout=LIMIT) == 2
    assert AsyncResult(callback.id).get(timeout=LIMIT) == 12
    assert shape(result) == [[]]
    assert len(journal.runs(callback.id)) == 1


def test_link_error(site: Site, celery_setup_app: Celery, journal: Journal) -> None:
    told = celery_setup_app.signature("c.errback")
    told.freeze()
    fail = celery_setup_app.signature("tests.fail", ("told",))
    result = fail.apply_async(link_error=told)
    with pytest.raises(ValueError, match="told"):
        result.get(timeout=LIMIT)
    journal.wait_for_end(told.id)
    assert notes(site, told.id, "errback_of") == [str(result.id)]


def test_a_frozen_link_of_two_parents_runs_after_each(
    site: Site, journal: Journal, add: Any
) -> None:
    callback = add(5, 5, immutable=True)
    callback.freeze()
    parents = [add(n, n).apply_async(link=callback.clone()) for n in range(2)]
    journal.wait_for_end(callback.id, 2)
    assert [parent.get(timeout=LIMIT) for parent in parents] == [0, 2]


def test_a_frozen_signature_applied_in_two_tasks_runs_twice(
    site: Site, celery_setup_app: Celery, journal: Journal, add: Any
) -> None:
    child = add(1, 1)
    child.freeze()
    starts = celery_setup_app.signature("c.starts", (dict(child),))
    for _ in range(2):
        starts.clone().apply_async()
    journal.wait_for_end(child.id, 2)


def test_an_immutable_signature_takes_no_result(site: Site, add: Any) -> None:
    steps = chain(add(1, 1), add(20, 20, immutable=True))
    assert steps.apply_async().get(timeout=LIMIT) == 40


# replace


def test_replace(site: Site, celery_setup_app: Celery, journal: Journal) -> None:
    result = celery_setup_app.signature("c.replaced", (3,)).apply_async()
    assert result.get(timeout=LIMIT) == "replaced"
    journal.wait_for_end(result.id, 4)
    wait_until(lambda: len(journal.runs(result.id)) == 4, what="four runs")
    assert sorted(notes(site, result.id, "nesting")) == [0, 1, 2, 3]


def test_replace_after_retries(site: Site, celery_setup_app: Celery, journal: Journal) -> None:
    result = celery_setup_app.signature("c.replaced", (1,), {"retry": True}).apply_async()
    assert result.get(timeout=LIMIT) == "replaced"
    runs = journal.wait_for_end(result.id, 4)
    assert [run.retries for run in runs] == [0, 1, 0, 1]
    assert notes(site, result.id, "nesting") == [0, 0, 1, 1]


def test_replace_by_a_chain(site: Site, celery_setup_app: Celery, journal: Journal) -> None:
    result = celery_setup_app.signature("c.replaced_by_chain", (5,)).apply_async()
    assert result.get(timeout=LIMIT) == 16
    # Its own body, and the chain's last step under the same id.
    assert len(journal.wait_for_end(result.id, 2)) == 2


def test_replace_by_a_group(site: Site, celery_setup_app: Celery) -> None:
    result = celery_setup_app.signature("c.replaced_by_group", (5,)).apply_async()
    assert result.get(timeout=LIMIT) == [5, 6, 7]


def test_replace_within_a_chain(site: Site, celery_setup_app: Celery, add: Any) -> None:
    steps = chain(add(1, 1), celery_setup_app.signature("c.replaced_by_chain"), add(100))
    assert steps.apply_async().get(timeout=LIMIT) == 113


def test_late_copies_of_every_level_are_skipped(
    site: Site, celery_setup_app: Celery, journal: Journal
) -> None:
    result = celery_setup_app.signature("c.replaced", (2,)).apply_async()
    assert result.get(timeout=LIMIT) == "replaced"
    journal.wait_for_end(result.id, 3)
    wait_for_signals(
        site, result.id, *("prerun", "postrun:IGNORED") * 2, "prerun", "success", "postrun:SUCCESS"
    )
    if is_claimed(site):
        assert redeliver(site, result.id) == 3
        wait_for_skip(site, result.id, 3)
        assert stays(lambda: len(journal.runs(result.id)) == 3, 0.3)
