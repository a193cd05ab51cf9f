"""A PostgreSQL URL: what is ours in it, and what is libpq's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlunsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ..errors import ConfigurationError
from .arguments import split_url

__all__ = ["Address", "parse_address"]

DEFAULT_SCHEMA = "celery_claims"

#: Connections of one process at most: a call holds one for the time of its round trip.
DEFAULT_POOL_SIZE = 8

#: Unquoted, these names mean the same as quoted.
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")

#: PostgreSQL cuts longer names off silently. Our longest own name has 17 characters.
_LONGEST_NAME, _LONGEST_PREFIX = 63, 40

_OWN_OPTIONS = ("schema", "prefix", "auto_create", "pool_size")
_SECRETS = ("password", "sslpassword")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the claims are.

    Parameters:
        name: the URL without passwords.
        connection: libpq's parameters.
        schema: the schema of the tables.
        prefix: what the names of tables and functions begin with.
        auto_create: make or migrate the schema when it is first used.
        pool_size: connections of one process at most, a count.
    """

    name: str
    connection: dict[str, Any]
    schema: str
    prefix: str
    auto_create: bool
    pool_size: int


def parse_address(url: str) -> Address:
    """Read ``postgresql://user:password@host:port/database?schema=...``.

    Raises:
        ConfigurationError: naming ``claims_url``.
    """
    parts = split_url(url)
    if parts.scheme not in ("postgresql", "postgres") or parts.fragment:
        raise ConfigurationError(
            "claims_url", f"expected postgresql://user@host/database, got {_redact(url)!r}"
        )
    own = {
        key: value
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
        if key in _OWN_OPTIONS
    }
    # Piece by piece as they are: libpq does not take a + for a space.
    others = [piece for piece in parts.query.split("&") if _key(piece) not in _OWN_OPTIONS]
    try:
        connection = conninfo_to_dict(urlunsplit(parts._replace(query="&".join(others))))
    except (psycopg.Error, UnicodeError) as error:
        # Without a cause: libpq quotes the URL, password and all.
        problem = str(error).replace(url, "").strip()
        if parts.password:
            problem = problem.replace(parts.password, "***")
        raise ConfigurationError(
            "claims_url",
            f"{_redact(url)!r} is not a PostgreSQL URL ({problem}); ours are: "
            + ", ".join(_OWN_OPTIONS),
        ) from None
    return Address(
        name=_redact(url),
        connection=connection,
        schema=_identifier("schema", own.get("schema", DEFAULT_SCHEMA), _LONGEST_NAME),
        prefix=_prefix(own.get("prefix", "")),
        auto_create=_flag("auto_create", own.get("auto_create", "true")),
        pool_size=_count("pool_size", own.get("pool_size", str(DEFAULT_POOL_SIZE))),
    )


def _redact(url: str) -> str:
    parts = split_url(url)
    account, at, host = parts.netloc.rpartition("@")
    user, colon, _ = account.partition(":")
    query = "&".join(
        f"{_key(piece)}=***" if _key(piece) in _SECRETS else piece
        for piece in parts.query.split("&")
    )
    netloc = f"{user}{colon and ':***'}{at}{host}"
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def _key(piece: str) -> str:
    return unquote(piece.partition("=")[0])


def _prefix(value: str) -> str:
    return value and _identifier("prefix", value, _LONGEST_PREFIX)


def _identifier(option: str, value: str, longest: int) -> str:
    if not _IDENTIFIER.fullmatch(value) or len(value) > longest or value.startswith("pg_"):
        raise ConfigurationError(
            "claims_url",
            f"{option} must be small letters, digits and _, at most {longest}, and begin with a "
            f"letter or _ but not with pg_; got {value!r}",
        )
    return value


def _flag(option: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise ConfigurationError("claims_url", f"{option} must be true or false, got {value!r}")
    return value == "true"


def _count(option: str, value: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", value):
        raise ConfigurationError("claims_url", f"{option} must be from 1 to 9999, got {value!r}")
    return int(value)
