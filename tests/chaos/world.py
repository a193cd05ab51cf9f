"""The servers of a chaos run, each behind a proxy, and its workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.process.container import WorkerSpec
from tests.process.nodes import ProcessWorker, SiteBroker
from tests.process.proxy import Proxy
from tests.process.redis_broker import RedisBroker
from tests.process.setup import Site
from tests.stores.postgres_server import PostgresServer
from tests.stores.redis_server import RedisServer

from .environment import LEDGER, PROTECTION
from .ledger import Ledger

__all__ = ["Happening", "Plan", "World", "made"]

#: Every write is on the disk before it is answered, so that a killed server has lost none.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass(frozen=True)
class Plan:
    """What kind of run it is.

    Parameters:
        broker, store: ``redis`` or ``rabbitmq``; ``redis`` or ``postgresql``.
        protection: what keeps tasks from running twice; see ``tasks``.
        workers, processes: how many, and of each.
        lease, cleanup: seconds.
        seconds: for how long there is chaos.
        rate: tasks and canvases that are sent in a second.
        pause: seconds between two faults, on average.
        rest: seconds after the last fault, at most, for everything to end.
        seed: decides what is sent and which faults happen when.
    """

    broker: str = "redis"
    store: str = "redis"
    protection: str = "claims"
    workers: int = 3
    processes: int = 6
    lease: float = 4.0
    cleanup: float = 1.0
    seconds: float = 60.0
    rate: float = 8.0
    pause: float = 3.0
    rest: float = 180.0
    seed: int = 0


@dataclass(frozen=True)
class Happening:
    """A fault.

    Parameters:
        what: in a word.
        began, ended: monotonic seconds; equal for a kill.
        pids: the processes that it happened to, none for one of a server or a connection.
    """

    what: str
    began: float
    ended: float
    pids: frozenset[int] = frozenset()


@dataclass
class World:
    """Everything that a run needs.

    Parameters:
        plan, site: of the run.
        broker_server, store_server: with ``kill`` and ``start``.
        broker_proxy, store_proxy: between the workers and them.
        ledger: the protected resource, which has no faults.
    """

    plan: Plan
    site: Site
    broker_server: Any
    store_server: Any
    broker_proxy: Proxy
    store_proxy: Proxy
    ledger: Ledger
    workers: list[ProcessWorker] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)

    def start_workers(self) -> None:
        self.workers = [self.new_worker() for _ in range(self.plan.workers)]
        for worker in self.workers:
            worker.container.ready()

    def new_worker(self) -> ProcessWorker:
        spec = WorkerSpec(
            app="tests.chaos.tasks",
            name=f"w{len(self.site.logs())}",
            concurrency=self.plan.processes,
            log_level="DEBUG",
            env={PROTECTION: self.plan.protection},
        )
        return self.site.start_worker(spec, wait=False)

    def replace(self, worker: ProcessWorker) -> None:
        """A supervisor starts another one in the place of one that is gone."""
        self.workers[self.workers.index(worker)] = self.new_worker()

    def replace_the_dead(self) -> None:
        for worker in list(self.workers):
            if worker.container.status == "exited":
                self.replace(worker)

    def has_messages(self) -> bool:
        """Whether the broker has any, queued or unacknowledged; RabbitMQ loses none: it does."""
        broker = self.site.broker
        if not isinstance(broker, RedisBroker):
            return True
        return bool(broker.waiting() or broker.unacked())

    def note(self, what: str, began: float, pids: frozenset[int] = frozenset()) -> None:
        self.happenings.append(Happening(what, began, time.monotonic(), pids))

    def pids(self, worker: ProcessWorker) -> frozenset[int]:
        try:
            return frozenset({worker.container.pid, *worker.children()})
        except psutil.NoSuchProcess:
            return frozenset()


@contextmanager
def made(plan: Plan, folder: Path) -> Iterator[World]:
    """A world for a run; nothing of it is left."""
    ledger_server, results = PostgresServer(), RedisServer()
    broker_server, store_server = _broker_server(plan), _store_server(plan)
    started = [results, *([broker_server] if plan.broker == "redis" else [])]
    started += [store_server] if plan.store == "redis" else []
    try:
        for server in started:
            server.start()
        broker_proxy, store_proxy = Proxy(broker_server.port), Proxy(store_server.port)
        broker = _broker(plan, folder, broker_server, broker_proxy.port)
        ledger = Ledger(ledger_server.url)
        ledger.make()
        site = Site(
            folder,
            app="tests.chaos.tasks",
            broker=broker,
            conf=_conf(plan, results.url),
            claims={
                "url": store_server.url.replace(str(store_server.port), str(store_proxy.port)),
                "lease": plan.lease,
                "cleanup_every": plan.cleanup,
                "store_timeout": plan.lease / 4,
            },
        )
        site.extra_env[LEDGER] = ledger_server.url
        world = World(plan, site, broker_server, store_server, broker_proxy, store_proxy, ledger)
        try:
            yield world
        finally:
            site.teardown()
            broker_proxy.stop()
            store_proxy.stop()
    finally:
        for server in started:
            server.stop()
        if plan.store == "postgresql":
            store_server.close()
        ledger_server.close()


def _broker_server(plan: Plan) -> Any:
    if plan.broker == "redis":
        return RedisServer(*DURABLE)
    from tests.process.rabbit_server import shared_server

    return shared_server("chaos")


def _store_server(plan: Plan) -> Any:
    if plan.store == "redis":
        return RedisServer(*DURABLE)
    return PostgresServer(fsync="on", synchronous_commit="on")


def _broker(plan: Plan, folder: Path, server: Any, port: int) -> SiteBroker:
    if plan.broker == "redis":
        return RedisBroker(folder / "broker", server, port=port)
    from tests.process.rabbit_broker import RabbitBroker

    return RabbitBroker(folder / "broker", server, port=port)


def _conf(plan: Plan, results: str) -> dict[str, Any]:
    return {
        "result_backend": results,
        "worker_prefetch_multiplier": 2,
        "broker_channel_error_retry": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {"confirm_publish": True} if plan.broker == "rabbitmq" else {},
        # A message that cannot be sent while the broker is away is sent when it is back.
        "task_publish_retry_policy": {"max_retries": 100, "interval_max": 0.5},
        "broker_connection_timeout": 2,
        "broker_heartbeat": 10,
        **_peers(plan, results),
    }


def _peers(plan: Plan, results: str) -> dict[str, Any]:
    """What packages that lock want to know."""
    return {
        "once": {
            "ONCE": {
                "backend": "celery_once.backends.Redis",
                "settings": {"url": results, "default_timeout": 3600},
            }
        },
        "singleton": {"singleton_backend_url": results},
        "heimdall": {},
    }.get(plan.protection, {})
