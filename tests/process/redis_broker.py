"""Kombu's Redis transport on a private server."""

from __future__ import annotations

import atexit
import itertools
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from kombu.transport.redis import PRIORITY_STEPS, Channel

from tests.stores.redis_server import RedisServer

from .container import FolderContainer
from .nodes import SiteBroker

#: Each site has a database of the shared server for itself.
DATABASES = 4096


_numbers = itertools.count(1)


@lru_cache(maxsize=1)
def shared_server() -> RedisServer:
    """One server for all sites of this process."""
    server = RedisServer("--databases", str(DATABASES)).start()
    atexit.register(server.stop)
    return server


def own_database() -> int:
    """A database of the shared server that nothing has used."""
    number = next(_numbers)
    assert number < DATABASES
    return number


class RedisBroker(SiteBroker):
    """A Redis broker.

    Parameters:
        folder: of the site.
        server: the test's own, for what must not happen to others; the shared one if not given.
        port: where workers reach it, if not directly.
        url: how they reach it, if it is more than a port.
        options: ``broker_transport_options``; a site's ``conf`` may replace them.
    """

    container: FolderContainer
    usual_backend = "redis"

    def __init__(
        self,
        folder: Path,
        server: RedisServer | None = None,
        *,
        port: int | None = None,
        url: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.server = server or shared_server()
        self.database = 0 if server else own_database()
        plain = f"redis://127.0.0.1:{port or self.server.port}/{self.database}"
        super().__init__(FolderContainer(folder, url or plain, options))

    def client(self) -> Any:
        """A client of the test's own, that decodes what it reads."""
        return self.server.client(db=self.database, decode_responses=True)

    def key(self, name: str) -> str:
        """A key of kombu's, behind the prefix."""
        return f"{self.options.get('global_keyprefix', '')}{name}"

    def waiting(self, queue: str = "celery") -> int:
        sep = self.options.get("sep", Channel.sep)
        steps = self.options.get("priority_steps", PRIORITY_STEPS)
        lists = [queue, *(f"{queue}{sep}{step}" for step in steps if step)]
        with self.client() as client:
            return sum(client.llen(self.key(name)) for name in lists)

    def unacked(self, task_id: str | None = None) -> list[str]:
        """The delivery tags of messages that workers have, of one task or of all."""
        return [
            tag for tag, message in self._held() if task_id in (None, message["headers"].get("id"))
        ]

    def _held(self) -> list[tuple[str, dict[str, Any]]]:
        key = self.key(self.options.get("unacked_key", Channel.unacked_key))
        with self.client() as client:
            return [(tag, json.loads(entry)[0]) for tag, entry in client.hgetall(key).items()]

    def redelivered(self) -> list[str]:
        """The delivery tags of messages that workers have, and that had been put back before."""
        return [tag for tag, message in self._held() if message["headers"].get("redelivered")]

    def touched(self) -> int:
        """How many messages the workers have told to be in their hands."""
        index = self.options.get("unacked_index_key", Channel.unacked_index_key)
        with self.client() as client:
            return int(client.zcard(self.key(f"{index}.celery_claims")))

    def redeliver(self, task_id: str) -> int:
        tags = self.unacked(task_id)
        with self.connect() as connection:
            for tag in tags:
                # What kombu does when the visibility timeout is over; it needs no declarations,
                # for Celery names the queue in the routing key.
                connection.default_channel.qos.restore_by_tag(tag)
        return len(tags)
