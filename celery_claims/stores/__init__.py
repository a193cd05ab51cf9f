"""Stores by URL, imported when they are first opened."""

from __future__ import annotations

import difflib
import importlib
import inspect
from importlib.metadata import entry_points
from typing import Any

from ..errors import ConfigurationError
from .base import Census, Page, Store, Unreadable, View

__all__ = ["Census", "Page", "Store", "Unreadable", "View", "open_store"]

#: scheme -> (module:class, the extra of the package that brings its driver)
SCHEMES: dict[str, tuple[str, str | None]] = {
    "memory": ("celery_claims.stores.memory:MemoryStore", None),
    "postgres": ("celery_claims.stores.postgres:PostgresStore", "postgres"),
    "postgresql": ("celery_claims.stores.postgres:PostgresStore", "postgres"),
    "sqlite": ("celery_claims.stores.sqlite:SQLiteStore", None),
    "redis": ("celery_claims.stores.redis:RedisStore", "redis"),
    "rediss": ("celery_claims.stores.redis:RedisStore", "redis"),
    "redis+socket": ("celery_claims.stores.redis:RedisStore", "redis"),
    "redis+cluster": ("celery_claims.stores.redis:RedisStore", "redis"),
    "sentinel": ("celery_claims.stores.redis:RedisStore", "redis"),
    "valkey": ("celery_claims.stores.redis:RedisStore", "redis"),
}

#: Third parties register ``scheme = module:Class`` in this entry-point group.
ENTRY_POINTS = "celery_claims.stores"


def open_store(url: str, **options: Any) -> Store:
    """Open the store that a URL names.

    Parameters:
        url: e.g. ``memory://`` or ``sqlite:///var/lib/app/claims.db``.
        options: the store's own keyword arguments; see its class.
    Returns:
        the store; its first call connects.
    Raises:
        ConfigurationError: naming ``claims_url``: no such scheme, a missing driver or a bad URL;
            or naming ``claims_store_options`` or the option.
    """
    if not isinstance(url, str) or "://" not in url:
        raise ConfigurationError(
            "claims_url", f"expected a URL like sqlite:///claims.db, got {url!r}"
        )
    scheme = url.partition("://")[0].lower()
    store_class = _store_class(scheme)
    try:
        inspect.signature(store_class).bind(url, **options)
    except TypeError as error:
        raise ConfigurationError("claims_store_options", f"{scheme}://: {error}") from error
    store: Store = store_class(url, **options)
    return store


def _store_class(scheme: str) -> Any:
    if scheme in SCHEMES:
        target, extra = SCHEMES[scheme]
        return _load(scheme, target, extra)
    third_party = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if scheme in third_party:
        return third_party[scheme].load()
    known = sorted({*SCHEMES, *third_party})
    close = difflib.get_close_matches(scheme, known, n=1)
    hint = f"; did you mean {close[0]}://?" if close else ""
    raise ConfigurationError(
        "claims_url", f"no store for {scheme}://{hint} Known: {', '.join(known)}"
    )


def _load(scheme: str, target: str, extra: str | None) -> Any:
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("celery_claims"):
            raise
        raise ConfigurationError(
            "claims_url",
            f"{scheme}:// needs the package {error.name}: pip install 'celery-claims[{extra}]'",
        ) from error
