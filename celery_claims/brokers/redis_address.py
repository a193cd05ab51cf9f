"""Where kombu's Redis transport connects to, in the words of the Redis store.

Reads a kombu connection and does not connect: a worker opens its store before its broker.
"""

from __future__ import annotations

import importlib
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from ..errors import ConfigurationError

__all__ = ["options_of", "store_options_of", "url_of"]

#: Options of the transport that mean the same to the store.
SHARED = (
    "health_check_interval",
    "socket_keepalive",
    "socket_keepalive_options",
)


def url_of(connection: Any) -> str:
    """The server of a connection, without user and password.

    Of several servers that are not sentinels it is the one that the connection is set to.
    """
    host = str(connection.hostname or "127.0.0.1")
    if "://" in host:
        return f"redis+socket://{urlsplit(host).path}"
    default = connection.transport.default_port
    if not _has_sentinels(connection):
        return f"redis://{_place(host, connection.port or default)}"
    others = [urlsplit(url) for url in connection.alt if url.startswith("sentinel://")]
    places = [_place(url.hostname or "127.0.0.1", url.port or default) for url in others]
    return f"sentinel://{','.join(places or [_place(host, connection.port or default)])}"


def options_of(connection: Any) -> dict[str, Any]:
    """How to connect, beside the URL: user, database, TLS, sentinels.

    Raises:
        ConfigurationError: a sentinel broker whose ``master_name`` is not set.
    """
    given = connection.transport_options
    options = {name: given[name] for name in SHARED if given.get(name) is not None}
    options["username"], options["password"] = connection.userid, connection.password
    # kombu knows of it since 5.6.
    provider = getattr(connection, "credential_provider", None)
    database = connection.virtual_host
    host = str(connection.hostname or "")
    if "://" in host:
        parts = urlsplit(host)
        query = dict(parse_qsl(parts.query))
        options["username"], options["password"] = _text(parts.username), _text(parts.password)
        database = query.get("virtual_host", database)
        provider = query.get("credential_provider", provider)
        for name in ("socket_keepalive", "socket_keepalive_options"):
            options.pop(name, None)
    if provider:
        options["credential_provider"] = _resolve(provider)
        options["username"] = options["password"] = None
    options["db"] = str(database or "0").strip("/") or "0"
    if _has_sentinels(connection):
        if not given.get("master_name"):
            raise ConfigurationError(
                "broker_transport_options", "a sentinel broker needs its master_name here"
            )
        options["master_name"] = given["master_name"]
        options["sentinel_kwargs"] = given.get("sentinel_kwargs")
    return {**options, **_tls(connection.ssl)}


def store_options_of(connection: Any) -> dict[str, Any]:
    """Arguments of ``RedisStore`` beside the URL: how to connect, and the broker's key prefix.

    Raises:
        ConfigurationError: as ``options_of``; or naming ``claims_url``, for the prefix cannot be
            that of a store.
    """
    channel = connection.transport.Channel
    prefix = connection.transport_options.get("global_keyprefix", channel.global_keyprefix) or ""
    if "{" in prefix or "}" in prefix:
        raise ConfigurationError(
            "claims_url",
            f"not set, and the broker's global_keyprefix {prefix!r} has braces, which in the keys "
            "of a store stand around the queue: name a store",
        )
    return {**options_of(connection), "global_keyprefix": prefix}


def _has_sentinels(connection: Any) -> bool:
    return "master_name" in connection.transport.Channel.from_transport_options


def _tls(ssl: Any) -> dict[str, Any]:
    # Kombu connects without TLS unless it is a dict.
    if not isinstance(ssl, dict):
        return {}
    named = {**ssl, "ssl": True}
    if "ssl_cert_reqs" in ssl and ssl["ssl_cert_reqs"] is None:
        named["ssl_cert_reqs"] = "none"
    return named


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{quote(host, safe='')}:{port}"


def _text(value: str | None) -> str | None:
    return None if value is None else unquote(value)


def _resolve(provider: Any) -> Any:
    """An instance, as kombu makes one of the name of its class."""
    if not isinstance(provider, str):
        return provider
    module, _, name = provider.replace(":", ".").rpartition(".")
    return getattr(importlib.import_module(module), name)()
