"""Which tasks are claimed and how: the decorator in every place, and patterns."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, _state, shared_task
from celery.app.task import Task
from celery_claims import ConfigurationError, claimed
from celery_claims.config import Settings, TaskOptions
from celery_claims.options import CLEANUP_TASK, options_of

from tests.unit.apps import bare_app, claimed_app, current


@pytest.fixture
def app() -> Celery:
    return bare_app()


@pytest.fixture
def _shared_tasks_go() -> Iterator[None]:
    """What a test shares with every later app is taken back."""
    before = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(before)


def options(app: Celery, name: str, **settings: Any) -> TaskOptions | None:
    app.finalize()
    return options_of(app.tasks[name], Settings(**settings))


def body() -> Callable[..., None]:
    """A function that no other test decorates."""

    def function(*args: Any) -> None: ...

    return function


def above(app: Celery, **given: Any) -> None:
    @claimed(lease=12)
    @app.task(name="t", **given)
    def task(*args: Any) -> None: ...


def below(app: Celery, **given: Any) -> None:
    @app.task(name="t", **given)
    @claimed(lease=12)
    def task(*args: Any) -> None: ...


@pytest.mark.parametrize("decorate", [above, below])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"bind": True},
        {"autoretry_for": (ValueError,)},
        {"bind": True, "autoretry_for": (ValueError,), "retry_backoff": True},
        {"lazy": False},
    ],
    ids=["plain", "bind", "autoretry", "bind and autoretry", "not lazy"],
)
@pytest.mark.parametrize("finalized", [False, True])
def test_the_decorator_above_and_below(
    app: Celery, decorate: Callable[..., None], given: dict[str, Any], finalized: bool
) -> None:
    """Whenever Celery makes the task of it."""
    if finalized:
        app.finalize()
    decorate(app, **given)
    found = options(app, "t")
    assert found == Settings().for_task(TaskOptions(lease=12))


def test_without_parentheses(app: Celery) -> None:
    claimed(app.task(name="above")(body()))
    app.task(name="below")(claimed(body()))
    expected = Settings().for_task(TaskOptions())
    assert options(app, "above") == options(app, "below") == expected


def test_the_decorator_leaves_the_task_as_it_was(app: Celery) -> None:
    """It marks; it does not wrap, and it makes no lazy task early."""
    task, function = app.task(name="t")(body()), body()
    assert claimed(task) is task
    assert claimed(function) is function
    assert not app.finalized


def test_class_based_tasks(app: Celery) -> None:
    """On the class, for it and for what derives from it."""

    @claimed(lease=12)
    class Base(Task):
        name = "base"

        def run(self) -> None: ...

    class Derived(Base):
        name = "derived"

    app.register_task(Base())
    app.register_task(Derived())
    app.task(name="function", base=Derived)(body())
    for name in ("base", "derived", "function"):
        found = options(app, name)
        assert found is not None and found.lease == 12


def test_a_derived_class_may_have_its_own_options(app: Celery) -> None:
    @claimed(lease=12)
    class Base(Task):
        def run(self) -> None: ...

    @claimed(lease=5)
    class Derived(Base):
        name = "derived"

    app.register_task(Derived())
    found = options(app, "derived")
    assert found is not None and found.lease == 5


@pytest.mark.usefixtures("_shared_tasks_go")
@pytest.mark.parametrize("first", ["claimed", "shared_task"])
def test_shared_tasks_of_every_app(first: str) -> None:
    """One function in several apps is claimed in each, whichever is the current one."""
    name = uuid.uuid4().hex
    if first == "claimed":
        claimed(lease=12)(shared_task(name=name)(body()))
    else:
        shared_task(name=name)(claimed(lease=12)(body()))
    one, other = bare_app(), bare_app()
    with current(one):
        found = [options(app, name) for app in (other, one)]
    expected = Settings().for_task(TaskOptions(lease=12))
    assert found == [expected, expected]


@pytest.mark.usefixtures("_shared_tasks_go")
def test_a_shared_task_with_a_retry_policy_is_claimed_in_a_later_app() -> None:
    """The decorator stands above, and another app asks first."""
    name = uuid.uuid4().hex
    claimed(lease=12)(shared_task(name=name, bind=True, autoretry_for=(ValueError,))(body()))
    with current(bare_app()) as first:
        assert options(first, name) is not None
    with current(bare_app()) as later:
        found = options(later, name)
    assert found is not None and found.lease == 12


def test_tasks_of_another_app_are_not_made_early(app: Celery) -> None:
    """Asking one app for its tasks must not finalize or fill another."""
    other = bare_app()
    calls: list[object] = []
    other.on_after_finalize.connect(lambda **_: calls.append(1), weak=False)
    claimed(other.task(name="of-other")(body()))
    app.task(name="t")(body())
    assert options(app, "t") is None
    assert calls == [] and not other.finalized


# patterns


def test_a_pattern_claims_without_a_decorator(app: Celery) -> None:
    for name in ("proj.add", "proj.skip", "other"):
        app.task(name=name)(body())
    settings = {"tasks": ("proj.*", "!proj.skip"), "lease": 45.0}
    assert options(app, "proj.add", **settings) == Settings(lease=45.0).for_task(TaskOptions())
    assert options(app, "proj.skip", **settings) is None
    assert options(app, "other", **settings) is None


def test_an_excluded_task_that_is_decorated_is_claimed(app: Celery) -> None:
    """A decorator is closer to the task than a pattern."""
    app.task(name="proj.skip")(claimed(body()))
    assert options(app, "proj.skip", tasks=("*", "!proj.skip")) is not None


def test_cleaning_up_is_never_claimed() -> None:
    """It must run where every claim is stuck."""
    app = claimed_app(tasks=["*"])
    assert options(app, CLEANUP_TASK, tasks=("*", CLEANUP_TASK)) is None
    assert options(app, "celery.chord_unlock", tasks=("*",)) is not None


# wrong options


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"leese": 5}, r"leese.*did you mean lease\?"),
        ({"lease": 0.5}, "lease"),
        ({"lease": "5"}, "lease"),
        ({"strict": "yes"}, "strict"),
        ({"keep_finished": -1}, "keep_finished"),
        ({"max_deliveries": 0}, "max_deliveries"),
        ({"max_hold": 0}, "max_hold"),
    ],
)
def test_a_wrong_option_fails_where_it_is_written(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        claimed(**given)


def test_a_lease_that_does_not_fit_the_store_names_the_task(app: Celery) -> None:
    app.task(name="proj.short")(claimed(lease=1.5)(body()))
    with pytest.raises(ConfigurationError, match=r"proj\.short"):
        options(app, "proj.short", store_timeout=2.0)
