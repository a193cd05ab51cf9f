"""RabbitMQ, in a virtual host of the site's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .container import FolderContainer
from .nodes import SiteBroker
from .rabbit_server import RabbitServer, shared_server


class RabbitBroker(SiteBroker):
    """A RabbitMQ broker.

    Parameters:
        folder: of the site.
        server: the test's own, for what must not happen to others; the shared one if not given.
        port: where workers reach it, if not directly.
    """

    container: FolderContainer

    def __init__(
        self, folder: Path, server: RabbitServer | None = None, *, port: int | None = None
    ) -> None:
        self.host = (server or shared_server()).new_host()
        super().__init__(FolderContainer(folder, self.host.url(port)))

    @property
    def claims(self) -> dict[str, Any]:
        return {"url": "sqlite", "allow_local_store": True}

    def settings(self) -> dict[str, Any]:
        # Between two looks at its heartbeat a worker does not notice a signal.
        return {**super().settings(), "broker_heartbeat": 60, "broker_heartbeat_checkrate": 120}

    def waiting(self, queue: str = "celery") -> int:
        return self.host.ready(queue)

    def left(self, queue: str = "celery") -> int:
        return self.host.ready(queue) + self.host.unacknowledged(queue)

    def redeliver(self, task_id: str) -> int:
        """Of all tasks: the connections of all workers are closed, and so RabbitMQ delivers
        everything again that they had not acknowledged."""
        self.host.close_connections()
        return self.left()

    def release(self) -> None:
        self.host.delete()
