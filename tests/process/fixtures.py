"""Fixtures of the pytest-celery plugin, on local processes.

Registered by ``tests/conftest.py`` unless pytest runs with ``--docker``; then the plugin's own are
left as they are. What a test says of its surroundings:

``@pytest.mark.site(app=..., conf=..., claims=...)``
    the arguments of ``Site``;
``@pytest.mark.workers(2, pool="prefork", concurrency=2)``
    how many workers, and the fields of their ``WorkerSpec``; or the specs themselves;
``@pytest.mark.brokers("folder", "redis")``
    run once on each of these brokers; ``folder`` if nothing is said;
``@pytest.mark.backends("redis", "rpc")``
    run once with each of these result backends; what is usual beside the broker if nothing is said.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.pytest import celery_worker  # noqa: F401 - in-process, as Celery has it
from celery.contrib.testing.app import setup_default_app
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryWorkerCluster,
)

from tests.worker.apps import create_app

from .container import WorkerSpec
from .gates import Gates
from .journal import Journal
from .nodes import SiteBroker
from .setup import ProcessSetup, Site

#: How much of a process's log a failed test shows, in characters.
LOG_TAIL = 10_000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for marker, argument in (("brokers", "broker_kind"), ("backends", "backend_kind")):
        mark = metafunc.definition.get_closest_marker(marker)
        if mark is not None:
            metafunc.parametrize(argument, mark.args)


@pytest.fixture
def broker_kind() -> str:
    """One of ``setup.BROKERS``."""
    return "folder"


@pytest.fixture
def backend_kind() -> str | None:
    """One of ``setup.BACKENDS``; None: what is usual beside the broker."""
    return None


@pytest.fixture
def site(
    request: pytest.FixtureRequest, tmp_path: Path, broker_kind: str, backend_kind: str | None
) -> Iterator[Site]:
    """The test's folder, and the processes that it starts; all end with the test."""
    mark = request.node.get_closest_marker("site")
    fields = {"broker": broker_kind, "backend": backend_kind, **(mark.kwargs if mark else {})}
    site = Site(tmp_path, **fields)
    yield site
    site.teardown()


@pytest.fixture
def journal(site: Site) -> Journal:
    """What the task bodies did."""
    return site.journal


@pytest.fixture
def gates(site: Site) -> Gates:
    """Where task bodies wait."""
    return site.gates


@pytest.fixture
def worker_specs(request: pytest.FixtureRequest, site: Site) -> list[WorkerSpec]:
    """The workers that the test starts with."""
    mark = request.node.get_closest_marker("workers")
    if mark and mark.args and isinstance(mark.args[0], WorkerSpec):
        return list(mark.args)
    count = mark.args[0] if mark and mark.args else 1
    fields = {"app": site.app_module, **(mark.kwargs if mark else {})}
    return [WorkerSpec(name=f"w{number}", **fields) for number in range(1, count + 1)]


@pytest.fixture
def celery_broker(site: Site) -> SiteBroker:
    return site.broker


@pytest.fixture
def celery_broker_cluster(celery_broker: SiteBroker) -> CeleryBrokerCluster:
    return CeleryBrokerCluster(celery_broker)


@pytest.fixture
def celery_backend(site: Site) -> CeleryTestBackend:
    return site.backend


@pytest.fixture
def celery_backend_cluster(celery_backend: CeleryTestBackend) -> CeleryBackendCluster:
    return CeleryBackendCluster(celery_backend)


@pytest.fixture
def celery_worker_cluster(site: Site, worker_specs: list[WorkerSpec]) -> CeleryWorkerCluster:
    # All are started before the first is waited for.
    cluster = CeleryWorkerCluster(*[site.start_worker(spec, wait=False) for spec in worker_specs])
    cluster.ready()
    return cluster


@pytest.fixture
def celery_setup_config(site: Site) -> dict[str, Any]:
    return site.conf


@pytest.fixture
def celery_setup_cls() -> type[ProcessSetup]:
    return ProcessSetup


@pytest.fixture
def celery_setup_app(celery_setup_config: dict[str, Any]) -> Iterator[Celery]:
    """The test's own app: the settings and tasks of the workers, current while the test runs."""
    app = create_app(celery_setup_config)
    with setup_default_app(app):
        app.set_current()
        yield app
        app.close()


@pytest.fixture
def celery_setup(
    celery_setup_cls: type[ProcessSetup],
    celery_worker_cluster: CeleryWorkerCluster,
    celery_broker_cluster: CeleryBrokerCluster,
    celery_backend_cluster: CeleryBackendCluster,
    celery_setup_app: Celery,
    site: Site,
) -> Iterator[ProcessSetup]:
    setup = celery_setup_cls(
        celery_worker_cluster,
        celery_broker_cluster,
        celery_backend_cluster,
        celery_setup_app,
        site=site,
    )
    assert setup.ready()
    yield setup
    setup.teardown()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what its processes and its tasks said."""
    report = yield
    site = getattr(item, "funcargs", {}).get("site")
    if report.failed and isinstance(site, Site):
        for name, log in site.logs().items():
            report.sections.append((f"log of {name}", log[-LOG_TAIL:]))
        journal = "\n".join(str(line) for line in site.journal.lines())
        report.sections.append(("journal", journal[-LOG_TAIL:]))
    return report
