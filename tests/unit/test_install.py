"""``install``: whenever, as often as one likes, and wherever the configuration comes from."""

from __future__ import annotations

import pickle
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.defaults import DEFAULTS
from celery_claims import ConfigurationError, claimed, install
from celery_claims.bootsteps import ClaimsConsumerStep, ClaimsWorkerStep
from celery_claims.claims import claims_of, installed
from celery_claims.config import Settings
from celery_claims.headers import HEADER
from celery_claims.options import CLEANUP_TASK
from celery_claims.protocol import ClaimRequest
from celery_claims.stores.memory import MemoryStore
from celery_claims.testing import FakeClock

from tests.unit.apps import bare_app, claimed_app, current, published


@pytest.fixture
def app() -> Celery:
    return bare_app()


def settings_of(app: Celery) -> Settings:
    return installed(app).settings


def as_beat_begins(app: Celery) -> dict[str, Any]:
    """What beat does before it reads the schedule."""
    app.loader.init_worker()
    app.finalize()
    schedule: dict[str, Any] = app.conf.beat_schedule
    return schedule


# once and again


def test_installing_twice_is_installing_once(app: Celery) -> None:
    """The later settings are added to the earlier ones."""
    install(app, lease=60, max_deliveries=3)
    claims = installed(app)
    install(app, lease=90)
    assert installed(app) is claims
    assert (settings_of(app).lease, settings_of(app).max_deliveries) == (90, 3)
    assert app.steps["worker"] == {ClaimsWorkerStep}
    assert app.steps["consumer"] == {ClaimsConsumerStep}


def test_settings_of_a_second_install_count_after_the_first_were_read(app: Celery) -> None:
    install(app, lease=60)
    assert settings_of(app).lease == 60
    install(app, lease=90)
    assert settings_of(app).lease == 90


def test_the_url_of_a_second_install_counts_too(app: Celery) -> None:
    """A store that nobody has claimed in yet is not kept for its own sake."""
    install(app, url=f"memory://{uuid.uuid4().hex}")
    claims = installed(app)
    assert claims.store.name == claims.url
    url = f"memory://{uuid.uuid4().hex}"
    install(app, url=url)
    assert claims.url == url
    assert claims.store.name == url


def test_apps_have_nothing_in_common(app: Celery) -> None:
    other = bare_app()
    install(app, lease=60)
    install(other, lease=90)
    assert (settings_of(app).lease, settings_of(other).lease) == (60, 90)
    assert claims_of(bare_app()) is None


def test_tasks_before_and_after(app: Celery) -> None:
    app.task(name="before")(as_a_task())
    install(app, tasks=["*"])
    app.task(name="after")(as_a_task())
    app.finalize()
    app.task(name="after finalization")(as_a_task())
    claims = installed(app)
    names = ["before", "after", "after finalization"]
    assert all(claims.options(name) is not None for name in names)
    assert set(names) <= {task.name for task in claims.claimed_tasks()}
    assert claims.options("of another app") is None


def as_a_task() -> Any:
    def function() -> None: ...

    return function


def test_after_finalization(app: Celery) -> None:
    app.finalize()
    install(app, tasks=["*"])
    assert CLEANUP_TASK in app.tasks
    assert CLEANUP_TASK in as_beat_begins(app)


def test_a_wrong_setting_fails_at_once_and_installs_nothing(app: Celery) -> None:
    with pytest.raises(ConfigurationError, match=r"leese: .*did you mean lease\?"):
        install(app, leese=5)
    assert claims_of(app) is None


# where settings come from


class Plain:
    claims_lease = 45
    claims_tasks = ("proj.*",)


class Upper:
    CLAIMS_LEASE = 45
    CLAIMS_TASKS = ("proj.*",)


class Django:
    CELERY_CLAIMS_LEASE = 45
    CELERY_CLAIMS_TASKS = ("proj.*",)
    CELERY_TASK_ACKS_LATE = True
    CLAIMS_LEASE = "of another library, for it has no namespace"


class DjangoLower:
    celery_claims_lease = 45
    celery_claims_tasks = ("proj.*",)
    celery_task_acks_late = True


SOURCES = pytest.mark.parametrize(
    ("source", "namespace"),
    [
        (Plain, None),
        (Upper, None),
        (Django, "CELERY"),
        (DjangoLower, "celery"),
        (dict(vars(Plain)), None),
    ],
    ids=["plain", "upper", "django", "django, lower", "dict"],
)


@SOURCES
@pytest.mark.parametrize("first", ["install", "config"])
def test_a_configuration_object(source: Any, namespace: str | None, first: str) -> None:
    """In any case, with its namespace, before or after ``install``."""
    app = Celery("unit", set_as_current=False)
    if first == "install":
        install(app)
    app.config_from_object(source, namespace=namespace)
    install(app)
    assert (settings_of(app).lease, settings_of(app).tasks) == (45, ("proj.*",))


def test_what_install_says_wins_over_the_configuration(app: Celery) -> None:
    app.conf.claims_lease = 45
    app.conf.claims_max_deliveries = 3
    install(app, lease=60)
    assert (settings_of(app).lease, settings_of(app).max_deliveries) == (60, 3)


def test_the_configuration_may_change_until_it_is_read(app: Celery) -> None:
    install(app)
    app.conf.claims_lease = 45
    assert settings_of(app).lease == 45


@pytest.mark.parametrize(
    ("source", "namespace", "meant"),
    [
        ({"claims_leese": 5}, None, "claims_lease"),
        ({"CLAIMS_LEESE": 5}, None, "claims_lease"),
        ({"CELERY_CLAIMS_LEESE": 5}, "CELERY", "claims_lease"),
    ],
)
def test_a_typo_in_a_configuration_is_found(
    source: dict[str, Any], namespace: str | None, meant: str
) -> None:
    app = Celery("unit", set_as_current=False)
    app.config_from_object(source, namespace=namespace)
    install(app)
    with pytest.raises(ConfigurationError, match=rf"leese.*did you mean {meant}\?"):
        installed(app).settings  # noqa: B018


@pytest.mark.parametrize("first", ["conf", "install"])
def test_relations_are_checked_over_both_sources(app: Celery, first: str) -> None:
    """A timeout that fits the lease of the app's configuration, or of an earlier ``install``."""
    if first == "conf":
        app.conf.claims_lease = 60
    else:
        install(app, lease=60)
    install(app, store_timeout=30)
    assert (settings_of(app).lease, settings_of(app).timeout) == (60, 30)


def test_a_relation_that_is_broken_over_both_sources_is_found(app: Celery) -> None:
    app.conf.claims_lease = 3
    install(app, store_timeout=5)
    with pytest.raises(ConfigurationError, match="claims_store_timeout"):
        installed(app).settings  # noqa: B018


@pytest.mark.parametrize(
    ("conf", "kept"),
    [
        ({}, 7200.0),
        ({"broker_transport_options": {"visibility_timeout": 3600}}, 7200.0),
        ({"broker_transport_options": {"visibility_timeout": 43_200}}, 86_400.0),
        ({"claims_keep_finished": 60}, 60),
        ({"claims_keep_finished": 0}, 0),
    ],
)
def test_finished_attempts_are_remembered_longer_than_their_messages(
    conf: dict[str, Any], kept: float
) -> None:
    """Promise 4: two hours, or twice the visibility timeout if that is longer."""
    app = bare_app(**conf)
    install(app)
    assert settings_of(app).keep_finished == kept


def test_the_counters_of_what_is_given_back_are_kept_where_ends_are_not(app: Celery) -> None:
    install(app, keep_finished=0)
    assert installed(app).keep_free_ms() == 7_200_000


def test_the_shortest_lease_is_of_any_claimed_task(app: Celery) -> None:
    """The heartbeat's interval comes from it."""
    install(app, lease=60)
    app.task(name="short")(claimed(lease=6)(as_a_task()))
    app.task(name="long")(claimed(lease=600)(as_a_task()))
    app.finalize()
    assert installed(app).shortest_lease() == 6


def test_a_copy_of_the_app_is_installed_too() -> None:
    """A spawned child gets the app by pickle, and its worker's settings with it."""
    app = Celery("unit", set_as_current=False, broker="memory://")
    install(app, lease=60, url="sqlite:///x.db")
    installed(app).open_keeper("w1@host", forks=True)
    copy = pickle.loads(pickle.dumps(app))
    assert copy is not app
    assert (settings_of(copy).lease, installed(copy).url) == (60, "sqlite:///x.db")


# beat


def test_the_beat_entry(app: Celery) -> None:
    """It expires, so that a queue that nobody reads does not fill up with it."""
    install(app, cleanup_every=5)
    assert as_beat_begins(app)[CLEANUP_TASK] == {
        "task": CLEANUP_TASK,
        "schedule": 5,
        "options": {"expires": 5},
    }
    assert app.tasks[CLEANUP_TASK].ignore_result


@pytest.mark.parametrize("finalized", [False, True])
def test_a_schedule_set_later_keeps_the_entry(app: Celery, finalized: bool) -> None:
    """``app.conf.beat_schedule = {...}`` after ``install`` replaces the whole schedule."""
    install(app)
    if finalized:
        app.finalize()
    app.conf.beat_schedule = {"mine": {"task": "proj.add", "schedule": 1}}
    assert set(as_beat_begins(app)) == {"mine", CLEANUP_TASK}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of tasks that sets the schedule when it is imported."""
    name = f"tasks_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(
        "from celery import current_app\n"
        "current_app.conf.beat_schedule = {'mine': {'task': 'proj.add', 'schedule': 1}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("finalized", [False, True])
def test_a_schedule_that_an_included_module_sets_keeps_the_entry(
    app: Celery, module: str, finalized: bool
) -> None:
    """Celery imports what ``include`` names when beat begins."""
    install(app)
    app.conf.include = [module]
    if finalized:
        app.finalize()
    with current(app):
        schedule = as_beat_begins(app)
    assert set(schedule) == {"mine", CLEANUP_TASK}


def test_an_own_entry_of_that_name_is_kept(app: Celery) -> None:
    """Whoever wants another interval or queue for it says so."""
    install(app)
    mine = {"task": CLEANUP_TASK, "schedule": 3600, "options": {"queue": "low"}}
    app.conf.beat_schedule = {CLEANUP_TASK: mine}
    assert as_beat_begins(app) == {CLEANUP_TASK: mine}


def test_periodic_tasks_and_the_entry_live_together(app: Celery) -> None:
    install(app)

    @app.on_after_configure.connect(weak=False)
    def add(sender: Celery, **_: Any) -> None:
        sender.add_periodic_task(5.0, sender.signature("proj.add"), name="mine")

    assert set(as_beat_begins(app)) == {"mine", CLEANUP_TASK}


def test_the_default_schedule_of_other_apps_is_left_alone(app: Celery) -> None:
    """Celery's default is one dict for every app of the process."""
    install(app)
    assert CLEANUP_TASK in as_beat_begins(app)
    assert CLEANUP_TASK not in bare_app().conf.beat_schedule
    assert CLEANUP_TASK not in DEFAULTS["beat_schedule"]


def test_cleaning_up_is_of_the_tasks_own_app() -> None:
    """Whichever app is the current one where it runs."""
    app, other = claimed_app(), claimed_app()
    clock = FakeClock()
    for each in (app, other):
        store = MemoryStore(clock=clock, private=True)
        store.claim([ClaimRequest("q", "dead", "w1", 1_000, "g", "r")])
        installed(each).__dict__["store"] = store
    clock.advance(1_000)
    with current(other):
        assert app.tasks[CLEANUP_TASK].apply().get() == 1
    assert installed(other).store.census().orphaned == 1
    assert installed(app).store.census().orphaned == 0


# publishing


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ({"queue": "first", "token": 7, "owner": "w1"}, {"queue": "first"}),
        ({"queue": "first"}, {"queue": "first"}),
        ({"token": 7}, None),
        ("forged", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("protocol", [1, 2])
def test_a_published_message_carries_no_claim(header: Any, kept: Any, protocol: int) -> None:
    """A retry sends custom headers on; the claim of the attempt before must stay behind."""
    app = claimed_app()
    app.conf.task_protocol = protocol
    with published() as messages:
        app.send_task("proj.add", headers={HEADER: header, "mine": 1})
    (message,) = messages
    assert message.get(HEADER) == kept
    assert message["mine"] == 1


def test_one_receiver_serves_every_app() -> None:
    """Signals are of the process: installing more apps must not trim or wrap more often."""
    claimed_app()
    before = [len(s.receivers) for s in (signals.before_task_publish, signals.worker_process_init)]
    claimed_app()
    after = [len(s.receivers) for s in (signals.before_task_publish, signals.worker_process_init)]
    assert after == before
