"""Result backends of a site beside the folder: Redis, and RabbitMQ itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_celery import CeleryTestBackend

from .container import FolderContainer
from .redis_broker import own_database, shared_server


class RedisBackend(CeleryTestBackend):
    """Celery's Redis backend, in a database of the shared server that nothing else uses.

    It counts the parts of a chord itself, one for each result that is stored, so that a task that
    ran twice would be counted twice.

    Parameters:
        folder: of the site.
    """

    container: FolderContainer

    def __init__(self, folder: Path) -> None:
        self.server = shared_server()
        self.database = own_database()
        url = f"redis://127.0.0.1:{self.server.port}/{self.database}"
        super().__init__(FolderContainer(folder, url))

    def client(self) -> Any:
        """A client of the test's own, that decodes what it reads."""
        return self.server.client(db=self.database, decode_responses=True)


class RpcBackend(CeleryTestBackend):
    """Celery's rpc backend: results are messages at the broker, for the app that published.

    Parameters:
        folder: of the site.
    """

    container: FolderContainer

    def __init__(self, folder: Path) -> None:
        super().__init__(FolderContainer(folder, "rpc://"))
