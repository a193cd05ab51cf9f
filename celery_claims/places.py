"""Where claims are kept when ``claims_url`` does not say, and whether the place fits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .brokers import redis_address, redis_concerns
from .errors import ConfigurationError

__all__ = [
    "check_broker",
    "check_place",
    "default_options",
    "default_url",
    "longest_wait",
    "visibility_timeout",
]

#: Transports whose messages do not leave the host.
LOCAL_TRANSPORTS = frozenset({"memory", "filesystem"})
#: Stores that only the processes of one host, or one process, can share.
LOCAL_STORES = ("sqlite", "memory")
#: kombu's Redis default, in seconds: what a message waits before it is given to another worker.
REDIS_VISIBILITY_TIMEOUT = 3600.0
#: Half of RabbitMQ's default consumer_timeout, in seconds: a held delivery is back before it.
AMQP_WAIT = 900.0
#: Carries the file made for a memory broker to the children of a spawning pool.
SESSION_FILE = "CELERY_CLAIMS_SESSION_FILE"


def default_url(connection: Any) -> str:
    """The store beside a broker.

    Parameters:
        connection: a kombu connection, not yet connected.
    Raises:
        ConfigurationError: naming ``claims_url``: this broker has no such place.
    """
    driver = _driver(connection)
    if driver == "filesystem":
        folder = Path(connection.transport_options.get("control_folder", "control"))
        folder.mkdir(parents=True, exist_ok=True)
        return _sqlite_url(folder / "claims.sqlite")
    if driver == "memory":
        return _sqlite_url(_session_file())
    if _is_sqlite_broker(connection):
        return _sqlite_url(Path(f"{_sqlite_path(connection)}.claims"))
    if driver == "redis":
        return redis_address.url_of(connection)
    raise ConfigurationError(
        "claims_url",
        f"not set, and a broker of the kind {driver} has no place of its own for claims: name a "
        "store that every worker reaches, e.g. claims_url = 'postgresql://...' or 'redis://...'",
    )


def default_options(connection: Any) -> dict[str, Any]:
    """Arguments of the store at ``default_url``, beside the URL.

    Raises:
        ConfigurationError: naming the setting of the broker that is missing.
    """
    if _driver(connection) == "redis":
        return redis_address.store_options_of(connection)
    return {}


def check_place(url: str, connection: Any, *, forks: bool, allow_local: bool) -> None:
    """Refuse a store that some workers, or their pool, could not share.

    Parameters:
        url: the store's.
        connection: a kombu connection to the broker.
        forks: the pool runs tasks in other processes.
        allow_local: ``claims_allow_local_store``.
    Raises:
        ConfigurationError: naming the setting to change.
    """
    scheme = url.partition("://")[0].lower()
    if scheme == "memory" and forks:
        raise ConfigurationError(
            "claims_url",
            "memory:// lives in one process and this pool runs tasks in others: "
            "use sqlite:///FILE, or another pool",
        )
    if scheme not in LOCAL_STORES or allow_local or _is_local(connection):
        return
    raise ConfigurationError(
        "claims_url",
        f"{scheme}:// is seen by one host only, and a "
        f"{_driver(connection)} broker serves many: name a shared store, "
        "or set claims_allow_local_store = True if all workers run on this host",
    )


def visibility_timeout(connection: Any) -> float | None:
    """Seconds after which the broker gives an unacknowledged message away; None: it does not."""
    option = connection.transport_options.get("visibility_timeout")
    if option is not None:
        return float(option)
    if _driver(connection) == "redis":
        return REDIS_VISIBILITY_TIMEOUT
    return None


def longest_wait(connection: Any) -> float | None:
    """Seconds that a delivery may be held unacknowledged; None: as long as it takes."""
    return AMQP_WAIT if _driver(connection) == "amqp" else None


def check_broker(
    connection: Any, conf: Mapping[str, Any], *, keep_finished: float, has_own_store: bool
) -> list[str]:
    """What in the settings of a broker keeps claims from what they promise, each in one sentence.

    Parameters:
        connection: a kombu connection, not yet connected.
        conf: the app's configuration.
        keep_finished: ``claims_keep_finished``, in seconds.
        has_own_store: ``claims_url`` names another place than the broker.
    """
    driver = _driver(connection)
    if driver == "redis":
        return redis_concerns.find_concerns(
            connection, keep_finished=keep_finished, has_own_store=has_own_store
        )
    if driver != "amqp" or conf.get("broker_channel_error_retry"):
        return []
    problem = (
        "RabbitMQ closes the channel of a worker that leaves a message unacknowledged for longer "
        "than its consumer_timeout (30 minutes unless set), and the worker ends with it: set "
        "broker_channel_error_retry = True"
    )
    return [problem]


def _driver(connection: Any) -> str:
    """The kind of a broker, by its transport.

    Raises:
        ConfigurationError: naming ``broker_url``: the transport's own package is missing.
    """
    try:
        return str(connection.transport.driver_type)
    except ImportError as error:
        scheme = connection.transport_cls
        raise ConfigurationError(
            "broker_url",
            f"{scheme}:// needs the package {error.name}: pip install 'celery[{scheme}]'",
        ) from error


def _is_local(connection: Any) -> bool:
    driver = _driver(connection)
    return driver in LOCAL_TRANSPORTS or _is_sqlite_broker(connection)


def _is_sqlite_broker(connection: Any) -> bool:
    return _driver(connection) == "sql" and str(connection.hostname).startswith("sqlite")


def _sqlite_path(connection: Any) -> str:
    path = str(connection.hostname).partition(":///")[2].partition("?")[0]
    if not path or path == ":memory:":
        raise ConfigurationError(
            "claims_url", "not set, and the broker's SQLite database has no file: name a store"
        )
    return path


def _session_file() -> Path:
    """One file per process that uses a memory broker, and its children."""
    known = os.environ.get(SESSION_FILE)
    if known is None:
        folder = Path(tempfile.mkdtemp(prefix="celery-claims-"))
        known = os.environ[SESSION_FILE] = str(folder / "claims.sqlite")
    return Path(known)


def _sqlite_url(path: Path) -> str:
    return f"sqlite:///{quote(str(path.absolute()))}"
