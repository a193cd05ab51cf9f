"""What a Redis URL says. The forms are those that Celery's Redis broker takes, and a few more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from ..checks import check_count, shown
from ..errors import ConfigurationError
from .arguments import split_url

__all__ = ["Target", "parse_url"]

_SCHEMES = ("redis", "rediss", "valkey", "redis+socket", "sentinel", "redis+cluster")
_PORTS = {"sentinel": 26379}
_PORT = 6379

#: What may stand in the query or be a keyword argument, beside ssl and ssl_*.
_OPTIONS = {"prefix", "slots", "wait_replicas", "db", "virtual_host", "master_name"}

#: Arguments of redis-py that are passed on as they are.
_PASSED_ON = {
    "credential_provider",
    "health_check_interval",
    "socket_keepalive",
    "socket_keepalive_options",
}

#: A hot queue spread further than this gains nothing, and each slot costs a scan a call.
MAX_SLOTS = 1024


@dataclass(frozen=True)
class Target:
    """Where claims live in Redis.

    Parameters:
        kind: ``single``, ``sentinel`` or ``cluster``.
        hosts: servers, sentinels or some nodes of the cluster; empty for a socket.
        path: of a Unix socket.
        prefix: of every key.
        slots: over how many shards each queue is spread (a count).
        wait_replicas: how many replicas must have a write before it is answered (a count).
        connection: arguments of redis-py.
        name: the URL without its password.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    prefix: bytes
    slots: int
    wait_replicas: int
    master_name: str
    name: str
    connection: dict[str, Any] = field(repr=False)
    sentinel_kwargs: dict[str, Any] = field(repr=False)


def parse_url(url: str, options: Mapping[str, Any]) -> Target:
    """The target of a URL and of the keyword arguments of ``RedisStore``, which win.

    Raises:
        ConfigurationError: naming ``claims_url`` or the argument.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in _SCHEMES:
        raise _wrong(f"expected one of {', '.join(_SCHEMES)}, got {scheme}://")
    # The several URLs of sentinels, as kombu writes them, are one list of hosts here.
    joined = rest.replace(f";{scheme}://", ",").replace(";", ",")
    parts = split_url(f"//{joined}")
    user, hosts = _hosts(parts.netloc, _PORTS.get(scheme, _PORT))
    settings = _settings(parts.query, options)
    connection: dict[str, Any] = {
        name: value for name, value in settings.items() if name not in _KNOWN_HERE
    }
    if scheme == "rediss":
        connection["ssl"] = True
    username, _, password = user.partition(":")
    for name, value in (("username", unquote(username)), ("password", unquote(password))):
        chosen = settings.get(name) or value
        if chosen:
            connection[name] = chosen
    path = unquote(parts.path) if scheme == "redis+socket" else ""
    if scheme == "redis+socket" and (hosts != (("localhost", _PORT),) or path in ("", "/")):
        raise _wrong("expected redis+socket:///path/of/the/socket (mind the number of slashes)")
    database = parts.path.strip("/") if not path else ""
    connection["db"] = _database(settings, database)
    kind = {"sentinel": "sentinel", "redis+cluster": "cluster"}.get(scheme, "single")
    if kind == "cluster" and connection.pop("db"):
        raise _wrong("a cluster has no other database than 0")
    if kind == "sentinel" and not settings.get("master_name"):
        raise _wrong("a sentinel needs ?master_name=NAME, or the argument master_name")
    return Target(
        kind=kind,
        hosts=() if path else hosts,
        path=path,
        prefix=_prefix(settings),
        slots=_count("slots", settings, least=1, most=MAX_SLOTS),
        wait_replicas=_count("wait_replicas", settings, least=0, most=MAX_SLOTS),
        master_name=str(settings.get("master_name") or ""),
        name=f"{scheme}://{username and unquote(username) + '@'}{_told(hosts, path)}",
        connection=connection,
        sentinel_kwargs=dict(settings.get("sentinel_kwargs") or {}),
    )


#: A port is one of 65535; a database has a number that fits the server's.
_PORT_DIGITS, _PORT_END, _DATABASE_DIGITS = 5, 65_536, 9

_KNOWN_HERE = _OPTIONS | {"global_keyprefix", "username", "password", "sentinel_kwargs"}


def _settings(query: str, options: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS and not _is_tls(name):
            known = ", ".join(sorted(_OPTIONS))
            raise _wrong(f"unknown option {name!r}; known: {known}, ssl and ssl_*")
        settings[name] = _tls_value(name, value) if _is_tls(name) else value
    for name, value in options.items():
        if name not in _KNOWN_HERE | _PASSED_ON and not _is_tls(name):
            raise ConfigurationError(name, "is no argument of the Redis store")
        if value is not None:
            settings[name] = value
    return settings


def _is_tls(name: str) -> bool:
    return name == "ssl" or name.startswith("ssl_")


def _tls_value(name: str, value: str) -> Any:
    if name in ("ssl", "ssl_check_hostname"):
        return value.lower() in ("1", "true", "yes")
    # ssl.CERT_REQUIRED is "required" to redis-py; kombu takes both.
    return value.lower().removeprefix("cert_") if name == "ssl_cert_reqs" else value


def _hosts(netloc: str, port: int) -> tuple[str, tuple[tuple[str, int], ...]]:
    """The user and password of the first host that has them, and the hosts."""
    user, hosts = "", []
    for part in netloc.split(","):
        own, _, place = part.rpartition("@")
        user = user or own
        host, colon, number = place.rpartition(":")
        if not colon or number.endswith("]"):
            host, number = place, ""
        if number and not (number.isdecimal() and len(number) <= _PORT_DIGITS):
            raise _wrong(f"the port of {shown(place)} is no number")
        if number and not 0 < int(number) < _PORT_END:
            raise _wrong(f"the port of {shown(place)} must be from 1 to {_PORT_END - 1}")
        hosts.append((unquote(host).strip("[]") or "localhost", int(number or port)))
    return user, tuple(hosts)


def _told(hosts: tuple[tuple[str, int], ...], path: str) -> str:
    return path or ",".join(f"{host}:{port}" for host, port in hosts)


def _database(settings: Mapping[str, Any], path: str) -> int:
    value = str(settings.get("db") or settings.get("virtual_host") or path or "0").strip("/")
    if not value.isdecimal() or len(value) > _DATABASE_DIGITS:
        raise _wrong(f"expected the number of a database, got {shown(value)}")
    return int(value)


def _prefix(settings: Mapping[str, Any]) -> bytes:
    prefix = settings.get("prefix", "claims:")
    whole = f"{settings.get('global_keyprefix') or ''}{prefix}"
    if "{" in whole or "}" in whole:
        raise ConfigurationError("prefix", "must have no braces: they stand around the queue")
    if not whole:
        raise ConfigurationError("prefix", "must not be empty: other keys may be in the database")
    return whole.encode("utf-8", "surrogatepass")


def _count(name: str, settings: Mapping[str, Any], least: int, most: int) -> int:
    value = settings.get(name, least)
    if isinstance(value, str) and value.isdecimal() and len(value) <= _DATABASE_DIGITS:
        value = int(value)
    check_count(name, value, least=least, most=most)
    return int(value)


def _wrong(problem: str) -> ConfigurationError:
    return ConfigurationError("claims_url", problem)
