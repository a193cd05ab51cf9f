"""Options and profiles for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# A loaded machine is slow, which is not what these tests look for.
settings.register_profile("normal", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))

MARKERS = (
    "docker: asks only what every setup of pytest-celery has; with --docker only these run",
    "brokers(*kinds): run once for each of these brokers",
    "backends(*kinds): run once for each of these result backends",
    "site(app, conf, claims): the folder, settings and app of a test with real workers",
    "oldest: also run by `make test` on the oldest Celery that is supported",
    "workers(count, **spec): the workers that the test starts with",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--docker",
        action="store_true",
        help="run the tests of pytest-celery's setups in its containers, not on local processes",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if config.getoption("--docker"):
        from tests.process import kinds

        config.pluginmanager.register(kinds, "celery-in-containers")
    else:
        # Registered after the plugin's own, these fixtures go over them.
        from tests.process import fixtures

        config.pluginmanager.register(fixtures, "celery-on-processes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--docker"):
        return
    others = [item for item in items if item.get_closest_marker("docker") is None]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
