"""Events: named once, logged in one form, watched by hooks that cannot touch a task."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

import celery_claims
import pytest
from celery_claims.events import NAMES, ClaimEvent, add_hook, emit, remove_hook


class Recorder:
    def __init__(self) -> None:
        self.seen: list[ClaimEvent] = []

    def __call__(self, event: ClaimEvent) -> None:
        self.seen.append(event)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    add_hook(recorder)
    yield recorder
    remove_hook(recorder)


def an_event(name: str = "held") -> ClaimEvent:
    return ClaimEvent(name, "waits", "proj.add", "id-1", "celery", 7, (0, 1))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_event_name_comes_first_in_the_log(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A constant word to search for, at its own level, with the facts beside it."""
    event = an_event(name)
    with caplog.at_level(logging.DEBUG, logger="celery_claims"):
        emit(event)
    (record,) = caplog.records
    assert record.getMessage() == f"{name} task proj.add[id-1]: waits"
    assert (record.levelno, record.name) == (NAMES[name], "celery_claims")
    assert record.claims is event  # type: ignore[attr-defined]


def test_an_event_of_the_worker_names_no_task(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="celery_claims"):
        emit(ClaimEvent("store_up", "sqlite:///x.db"))
    assert caplog.messages == ["store_up: sqlite:///x.db"]


def test_a_name_is_used_somewhere_and_every_use_is_a_name() -> None:
    """Each name is written in the package, and no event has a name that is not listed."""
    used = set()
    told = set()
    for path in Path(celery_claims.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and path.name != "events.py":
                used.add(node.value)
            if isinstance(node, ast.Call) and _names_an_event(node):
                first = node.args[0]
                told |= {n.value for n in ast.walk(first) if isinstance(n, ast.Constant)}
    assert set(NAMES) <= used
    assert {name for name in told if isinstance(name, str)} <= set(NAMES)


def _names_an_event(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return name in ("tell", "ClaimEvent") and bool(call.args)


def test_every_hook_is_told_once(recorder: Recorder) -> None:
    """Adding a hook twice is adding it once."""
    add_hook(recorder)
    emit(an_event())
    assert recorder.seen == [an_event()]


def test_a_removed_hook_is_told_nothing(recorder: Recorder) -> None:
    remove_hook(recorder)
    remove_hook(recorder)
    emit(an_event())
    assert recorder.seen == []


def test_a_hook_that_fails_touches_nobody(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error is logged, and the hooks after it are still told."""

    def broken(event: ClaimEvent) -> None:
        raise RuntimeError("broken hook")

    after = Recorder()
    add_hook(broken)
    add_hook(after)
    try:
        with caplog.at_level(logging.ERROR, logger="celery_claims"):
            emit(an_event())
    finally:
        remove_hook(broken)
        remove_hook(after)
    assert recorder.seen == after.seen == [an_event()]
    (record,) = caplog.records
    assert record.exc_info is not None and "broken hook" in str(record.exc_info[1])
    assert "held" in record.getMessage()


def test_a_hook_may_remove_itself(recorder: Recorder) -> None:
    class Once(Recorder):
        def __call__(self, event: ClaimEvent) -> None:
            super().__call__(event)
            remove_hook(self)

    once = Once()
    add_hook(once)
    emit(an_event())
    emit(an_event())
    assert len(once.seen) == 1 and len(recorder.seen) == 2


def test_an_event_is_not_changed_after_it_happened() -> None:
    with pytest.raises(AttributeError):
        an_event().name = "lost"  # type: ignore[misc]


@pytest.mark.parametrize("task_id", ["a\nb", "\ud800", "\x1b[2J"])
def test_an_id_cannot_break_a_line(task_id: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="celery_claims"):
        emit(ClaimEvent("held", "waits", "proj.add", task_id))
    (line,) = caplog.messages
    assert line.isprintable() and line.encode()
