"""Stores of a site's own, on the servers that the tests of stores share."""

from __future__ import annotations

import uuid
from pathlib import Path

__all__ = ["store_url"]


def store_url(url: str, folder: Path) -> str:
    """The URL of a store that no other site uses.

    Parameters:
        url: ``redis``, ``cluster``, ``postgresql`` or ``sqlite``; or a URL, which is left as it is.
        folder: of the site.
    """
    if url == "redis":
        from .redis_broker import own_database, shared_server

        return f"redis://127.0.0.1:{shared_server().port}/{own_database()}"
    if url == "cluster":
        from tests.stores.redis_server import shared_cluster

        return f"{shared_cluster().url}?prefix=site-{uuid.uuid4().hex}:"
    if url == "postgresql":
        from tests.stores.postgres_server import shared_server as shared_postgres

        return f"{shared_postgres().url}?schema=site_{uuid.uuid4().hex}"
    if url == "sqlite":
        return f"sqlite:///{folder}/claims.sqlite"
    return url
