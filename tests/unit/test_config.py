"""Settings: each wrong value and combination is an error that names what the user wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from celery_claims.config import (
    KEEP_FINISHED,
    Settings,
    TaskOptions,
    check_lease,
    read_options,
    read_settings,
)
from celery_claims.errors import ConfigurationError

NAN = math.nan
INF = math.inf


def problem(mapping: Mapping[str, Any], prefix: str = "claims_") -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(mapping, prefix)
    return caught.value


def test_nothing_set_is_the_documented_default() -> None:
    settings = read_settings({})
    assert settings == Settings()
    assert (settings.lease, settings.max_deliveries, settings.on_store_down) == (30.0, 20, "wait")
    assert (settings.cleanup_every, settings.max_held, settings.timeout) == (10.0, 1000, 2.0)


def test_everything_else_in_the_mapping_is_left_alone() -> None:
    assert read_settings({"broker_url": "amqp://", "claimed": 1, "CLAIM_LEASE": 3}) == Settings()


def test_every_setting_is_read_in_any_case() -> None:
    values = {
        "url": "sqlite:///x.db",
        "tasks": ("proj.*",),
        "lease": 60,
        "keep_finished": 0,
        "max_deliveries": 3,
        "max_hold": 600,
        "strict": True,
        "on_store_down": "run",
        "cleanup_every": 5,
        "store_timeout": 1.5,
        "max_held": 7,
        "max_wait": 60,
        "allow_local_store": True,
        "store_options": {"slots": 16},
    }
    assert set(values) == set(Settings.__slots__)
    expected = Settings(**values)
    assert read_settings({f"claims_{name}": value for name, value in values.items()}) == expected
    assert read_settings({f"CLAIMS_{n.upper()}": v for n, v in values.items()}) == expected
    assert read_settings(values, prefix="") == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("url", 5),
        ("url", b"memory://"),
        ("url", "claims.db"),
        ("url", ""),
        ("tasks", "proj.*"),
        ("tasks", b"proj.*"),
        ("tasks", 5),
        ("tasks", [5]),
        ("tasks", [""]),
        ("tasks", ["proj.*", "!"]),
        ("tasks", ["!proj.skip"]),
        *[("lease", bad) for bad in ("30", None, True, NAN, INF, 0, 0.99, -5, 3600.1, [30])],
        *[("keep_finished", bad) for bad in ("1h", True, NAN, INF, -1, -0.001)],
        *[("max_deliveries", bad) for bad in ("20", None, True, 0, -1, 2.0, 1_000_001)],
        *[("max_hold", bad) for bad in ("60", False, NAN, INF, 0, 0.5)],
        *[("strict", bad) for bad in (None, 1, 0, "yes")],
        *[("on_store_down", bad) for bad in (None, "", "RUN", "stop", 1)],
        *[("cleanup_every", bad) for bad in (None, "10", True, NAN, 0, 0.5, 86_401)],
        *[("store_timeout", bad) for bad in ("2", True, NAN, 0, 0.01, -1, INF)],
        *[("max_held", bad) for bad in (None, "9", True, -1, 1.5, 65_535)],
        *[("max_wait", bad) for bad in ("60", True, NAN, INF, 0, 0.5)],
        *[("allow_local_store", bad) for bad in (None, 1, "true")],
        *[("store_options", bad) for bad in (None, "slots=16", [], {5: 1}, {"timeout": 1})],
    ],
)
@pytest.mark.parametrize("prefix", ["claims_", ""])
def test_a_bad_value_names_its_setting(name: str, value: object, prefix: str) -> None:
    """With the prefix in a configuration, without it in ``install(app, ...)``."""
    error = problem({prefix + name: value}, prefix)
    assert error.setting == prefix + name
    assert str(error).startswith(f"{prefix}{name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease", 1),
        ("lease", 3600),
        ("keep_finished", 0),
        ("keep_finished", None),
        ("max_deliveries", 1),
        ("max_hold", 1),
        ("max_held", 0),
        ("max_wait", None),
        ("max_wait", 1),
        ("cleanup_every", 1),
        ("tasks", []),
    ],
)
def test_the_edges_are_allowed(name: str, value: object) -> None:
    settings = read_settings({f"claims_{name}": value})
    assert getattr(settings, name) == (() if value == [] else value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("claims_leese", "claims_lease"), ("CLAIMS_MAX_DELIVERY", "claims_max_deliveries")],
)
def test_a_typo_names_what_was_probably_meant(key: str, meant: str) -> None:
    error = problem({key: 5})
    assert error.setting == key
    assert f"did you mean {meant}?" in error.problem


def test_a_name_like_no_other_lists_what_there_is() -> None:
    error = problem({"claims_xyzzy": 5})
    assert "did you mean" not in error.problem
    assert all(name in error.problem for name in Settings.__slots__)


@pytest.mark.parametrize(("lease", "timeout"), [(30, 20.1), (3, 2.01), (1, 0.7)])
def test_a_timeout_must_leave_the_lease_a_second_try(lease: float, timeout: float) -> None:
    """Two beats may fail before the lease is over, if each fails in time."""
    error = problem({"claims_lease": lease, "claims_store_timeout": timeout})
    assert error.setting == "claims_store_timeout"
    assert "longer lease" in error.problem


@pytest.mark.parametrize(("lease", "timeout"), [(30, 2.0), (6, 2.0), (3, 1.0), (1.5, 0.5)])
def test_the_default_timeout_fits_every_lease(lease: float, timeout: float) -> None:
    assert read_settings({"claims_lease": lease}).timeout == pytest.approx(timeout)


def test_a_tasks_own_lease_must_fit_the_timeout_too() -> None:
    settings = Settings(store_timeout=5.0)
    check_lease(settings, "proj.add", 7.5)
    with pytest.raises(ConfigurationError, match=r"proj\.add") as caught:
        check_lease(settings, "proj.add", 7.4)
    assert caught.value.setting.startswith("claims_store_timeout")


@pytest.mark.parametrize(
    ("patterns", "claimed", "not_claimed"),
    [
        ([], [], ["proj.add"]),
        (["*"], ["proj.add", "celery.chord_unlock", ""], []),
        (["proj.*"], ["proj.add", "proj.a.b"], ["project", "other.proj.add", "Proj.add"]),
        (["proj.*", "!proj.skip*"], ["proj.add"], ["proj.skip", "proj.skipped"]),
        (["!proj.skip", "proj.*"], ["proj.add"], ["proj.skip"]),
        (["a.?", "b.[xy]"], ["a.1", "b.x"], ["a.12", "b.z"]),
    ],
)
def test_patterns(patterns: list[str], claimed: list[str], not_claimed: list[str]) -> None:
    """As in a shell, with case; an exclusion wins wherever it stands."""
    settings = read_settings({"claims_tasks": patterns})
    assert [name for name in claimed if not settings.claims(name)] == []
    assert [name for name in not_claimed if settings.claims(name)] == []


def test_a_task_takes_from_the_settings_what_it_leaves_open() -> None:
    settings = Settings(lease=60.0, strict=True, keep_finished=5.0, max_deliveries=7, max_hold=90.0)
    assert settings.for_task(TaskOptions()) == TaskOptions(60.0, True, 5.0, 7, 90.0)
    own = TaskOptions(lease=2.0, strict=False, keep_finished=0.0, max_deliveries=1, max_hold=3.0)
    assert settings.for_task(own) == own


@pytest.mark.parametrize(
    ("keep_finished", "expected"), [(0.0, KEEP_FINISHED), (None, KEEP_FINISHED), (90.0, 90.0)]
)
def test_what_is_given_back_is_remembered_where_ends_are_not(
    keep_finished: float | None, expected: float
) -> None:
    """Promise 8: the count of deaths must be there when the message comes again."""
    assert Settings().keep_free(TaskOptions(keep_finished=keep_finished)) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease", 0.5),
        ("lease", "30"),
        ("strict", 1),
        ("keep_finished", -1),
        ("max_deliveries", 0),
        ("max_deliveries", 1.5),
        ("max_hold", 0),
    ],
)
def test_a_bad_option_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_options({name: value})
    assert caught.value.setting == f"claimed: {name}"


def test_a_misspelt_option_names_what_was_probably_meant() -> None:
    with pytest.raises(ConfigurationError, match=r"claimed\(leese=.*did you mean lease\?"):
        read_options({"leese": 5})


def test_options_left_out_are_open() -> None:
    assert read_options({}) == TaskOptions()
    assert read_options({"lease": 5}) == TaskOptions(lease=5)
