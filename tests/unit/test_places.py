"""Where claims are kept when nobody says, and stores that do not fit their broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery_claims import open_store, places
from celery_claims.errors import ConfigurationError
from celery_claims.places import check_place, default_url, visibility_timeout
from kombu import Connection


@pytest.fixture(autouse=True)
def _no_session_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that had no memory broker yet; what a test sets is taken back."""
    monkeypatch.setenv(places.SESSION_FILE, "unset")
    monkeypatch.delenv(places.SESSION_FILE)


def network_broker(driver: str = "redis", **options: Any) -> Any:
    return SimpleNamespace(
        transport=SimpleNamespace(driver_type=driver),
        transport_options=options,
        hostname="broker.internal",
    )


def opens(url: str) -> Iterator[int | None]:
    with open_store(url) as store:
        yield store.census().finished


def test_beside_a_filesystem_broker(tmp_path: Path) -> None:
    """In its control folder, which every worker of it sees."""
    control = tmp_path / "a folder" / "50%"
    connection = Connection("filesystem://", transport_options={"control_folder": str(control)})
    url = default_url(connection)
    assert list(opens(url)) == [0]
    assert (control / "claims.sqlite").is_file()


def test_a_relative_control_folder_is_of_this_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The URL is absolute: a child that changes directory keeps the store."""
    monkeypatch.chdir(tmp_path)
    assert default_url(Connection("filesystem://")) == f"sqlite:///{tmp_path}/control/claims.sqlite"


def test_beside_an_sqlite_broker(tmp_path: Path) -> None:
    broker = tmp_path / "a broker.db"
    url = default_url(Connection(f"sqla+sqlite:///{broker}"))
    assert list(opens(url)) == [0]
    assert (tmp_path / "a broker.db.claims").is_file()


def test_an_sqlite_broker_without_a_file_has_no_place() -> None:
    with pytest.raises(ConfigurationError, match="claims_url"):
        default_url(Connection("sqla+sqlite:///:memory:"))


def test_one_file_for_a_process_with_a_memory_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its children, which find it in their environment."""
    url = default_url(Connection("memory://"))
    assert default_url(Connection("memory://")) == url
    assert list(opens(url)) == [0]
    monkeypatch.setenv(places.SESSION_FILE, "/of/the/parent.sqlite")
    assert default_url(Connection("memory://")) == "sqlite:////of/the/parent.sqlite"


@pytest.mark.parametrize("driver", ["py-amqp", "sqs", "mongodb"])
def test_a_broker_without_a_place_names_the_setting(driver: str) -> None:
    with pytest.raises(ConfigurationError, match=driver) as caught:
        default_url(network_broker(driver))
    assert caught.value.setting == "claims_url"


@pytest.mark.parametrize("url", ["sqlite:///x.db", "SQLite:///x.db", "memory://"])
def test_a_local_store_with_a_network_broker_is_refused(url: str) -> None:
    """Workers on another host would not see its claims, and run everything twice."""
    with pytest.raises(ConfigurationError, match="claims_allow_local_store") as caught:
        check_place(url, network_broker(), forks=False, allow_local=False)
    assert caught.value.setting == "claims_url"
    check_place(url, network_broker(), forks=False, allow_local=True)


@pytest.mark.parametrize("allow_local", [False, True])
def test_a_memory_store_with_a_forking_pool_is_refused(allow_local: bool) -> None:
    """Its children would have claims of their own; no setting makes that right."""
    with pytest.raises(ConfigurationError, match="claims_url"):
        check_place("memory://", Connection("memory://"), forks=True, allow_local=allow_local)


@pytest.mark.parametrize(
    "broker",
    ["memory://", "filesystem://", "sqla+sqlite:///broker.db"],
    ids=["memory", "filesystem", "sqlite"],
)
def test_a_local_store_fits_a_local_broker(broker: str) -> None:
    check_place("sqlite:///x.db", Connection(broker), forks=True, allow_local=False)
    check_place("memory://", Connection(broker), forks=False, allow_local=False)


def test_a_shared_store_fits_every_broker() -> None:
    check_place("postgresql://db/claims", network_broker(), forks=True, allow_local=False)


def test_a_database_server_as_broker_is_no_local_one() -> None:
    """SQLAlchemy on anything but SQLite serves many hosts."""
    broker = network_broker("sql")
    broker.hostname = "postgresql://db/broker"
    with pytest.raises(ConfigurationError):
        check_place("sqlite:///x.db", broker, forks=False, allow_local=False)
    with pytest.raises(ConfigurationError, match="claims_url"):
        default_url(broker)


@pytest.mark.parametrize(
    ("connection", "seconds"),
    [
        (network_broker("redis"), 3600.0),
        (network_broker("redis", visibility_timeout=43_200), 43_200.0),
        (network_broker("sqs", visibility_timeout=30), 30.0),
        (network_broker("py-amqp"), None),
    ],
)
def test_the_visibility_timeout(connection: Any, seconds: float | None) -> None:
    assert visibility_timeout(connection) == seconds


def test_a_delivery_is_held_for_half_of_rabbitmqs_timeout() -> None:
    assert places.longest_wait(network_broker("amqp")) == 1800 / 2
    assert places.longest_wait(network_broker("redis")) is None
    assert places.longest_wait(Connection("filesystem://")) is None


def test_a_worker_that_a_closed_channel_would_end_is_a_problem() -> None:
    def problems(driver: str, **conf: Any) -> list[str]:
        connection = Connection(f"{driver}://broker")
        return places.check_broker(connection, conf, keep_finished=7200.0, has_own_store=True)

    (problem,) = problems("amqp")
    assert "broker_channel_error_retry = True" in problem
    assert problems("amqp", broker_channel_error_retry=True) == []
    assert problems("redis") == []
