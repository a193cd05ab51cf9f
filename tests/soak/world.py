"""The servers of a soak and its workers."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from tests.process.container import WorkerSpec
from tests.process.nodes import ProcessWorker
from tests.process.rabbit_broker import RabbitBroker
from tests.process.redis_broker import RedisBroker
from tests.process.setup import Site
from tests.stores.postgres_server import PostgresServer
from tests.stores.redis_server import RedisServer

from .environment import LEAK
from .servers import Probe, probe_broker, probe_store

__all__ = ["Plan", "World", "made", "sender"]

#: The longest warm-up that is chosen, in seconds, and the part of a shorter run that it takes.
WARM_UP, WARM_UP_SHARE = 300.0, 0.35
#: Pauses between two measurements, in seconds.
SHORTEST, LONGEST = 0.5, 15.0


@dataclass(frozen=True)
class Plan:
    """What kind of run it is.

    Parameters:
        broker, store: ``redis`` or ``rabbitmq``; ``redis``, ``sqlite`` or ``postgresql``.
        pools: of each worker.
        concurrency: children or threads of each.
        seconds: how long it is watched.
        rate: tasks that are sent in a second.
        keep_finished: seconds; short, so that records come and go.
        lease, cleanup: seconds.
        rest: seconds at the end, at most, for what is left to be done and forgotten.
        disturb: seconds between the deaths and restarts of processes; 0: none.
        leak: what each task leaves behind on purpose.
        bare: without claims, to compare.
        seed: decides what is sent and what is disturbed.
    """

    broker: str = "redis"
    store: str = "redis"
    pools: tuple[str, ...] = ("prefork", "threads")
    concurrency: int = 3
    seconds: float = 3600.0
    rate: float = 20.0
    keep_finished: float = 6.0
    lease: float = 4.0
    cleanup: float = 2.0
    rest: float = 60.0
    disturb: float = 0.0
    leak: tuple[str, ...] = ()
    bare: bool = False
    seed: int = 0

    @property
    def warm_up(self) -> float:
        return min(WARM_UP, WARM_UP_SHARE * self.seconds)

    @property
    def pause(self) -> float:
        """Seconds between two measurements: some hundreds of them, whatever the length."""
        return min(max(self.seconds / 240, SHORTEST), LONGEST)


@dataclass
class World:
    """Everything that a run needs.

    Parameters:
        plan, site: of the run.
        broker, store: how to measure them; no store without claims.
    """

    plan: Plan
    site: Site
    broker: Probe
    store: Probe | None
    workers: list[ProcessWorker] = field(default_factory=list)

    def start_workers(self) -> None:
        self.workers = [self._start(f"w{n}", pool) for n, pool in enumerate(self.plan.pools, 1)]
        for worker in self.workers:
            worker.container.ready()

    def _start(self, name: str, pool: str) -> ProcessWorker:
        spec = WorkerSpec(
            app="tests.soak.tasks",
            name=name,
            pool=pool,
            concurrency=self.plan.concurrency,
            env={LEAK: ",".join(self.plan.leak)},
        )
        return self.site.start_worker(spec, wait=False)

    def disturb(self, rng: random.Random) -> str:
        """End a process, as a machine out of memory or a deployment does; what it was."""
        worker = rng.choice(self.workers)
        children = sorted(worker.children())
        if children and rng.random() < 0.5:
            _kill(rng.choice(children))
            return f"killed a child of {worker.spec.name}"
        worker.container.kill(signal.SIGTERM)
        return f"told {worker.spec.name} to end"

    def replace_the_ended(self) -> None:
        for place, worker in enumerate(self.workers):
            if worker.container.status == "exited":
                self.workers[place] = self._start(worker.spec.name, worker.spec.pool)

    def left(self) -> int:
        """Messages that the broker still has."""
        broker = self.site.broker
        held = len(broker.unacked()) if isinstance(broker, RedisBroker) else 0
        return broker.left() + held


@contextmanager
def made(plan: Plan, folder: Path) -> Iterator[World]:
    """A world for a run; nothing of it is left."""
    with ExitStack() as stack:
        results = stack.enter_context(RedisServer())
        broker = _broker(plan, folder, stack)
        url, store = _store(plan, folder, stack)
        claims = {
            "url": url,
            "allow_local_store": True,
            "lease": plan.lease,
            "keep_finished": plan.keep_finished,
            "cleanup_every": plan.cleanup,
        }
        site = Site(
            folder,
            app="tests.soak.tasks",
            broker=broker,
            claims=claims,
            conf=_conf(results.url),
        )
        if plan.bare:
            site.claims, store = {}, None
        stack.callback(site.teardown)
        yield World(plan, site, probe_broker(broker), store)


def _broker(plan: Plan, folder: Path, stack: ExitStack) -> Any:
    if plan.broker == "redis":
        return RedisBroker(folder / "broker", stack.enter_context(RedisServer()))
    return RabbitBroker(folder / "broker")


def _store(plan: Plan, folder: Path, stack: ExitStack) -> tuple[str, Probe]:
    if plan.store == "redis":
        redis = stack.enter_context(RedisServer())
        return redis.url, probe_store(redis)
    if plan.store == "postgresql":
        postgres = PostgresServer()
        stack.callback(postgres.close)
        return postgres.url, probe_store(postgres)
    file = folder / "claims.sqlite"
    return f"sqlite:///{file}", probe_store(file)


def _conf(results: str) -> dict[str, Any]:
    return {
        "result_backend": results,
        "result_expires": 5,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 2,
        "broker_channel_error_retry": True,
    }


def sender(world: World) -> Celery:
    """An app with the broker of the workers, for who sends and asks."""
    return Celery("soak-sender", set_as_current=False, config_source=dict(world.site.conf))


def _kill(pid: int) -> None:
    # It may have ended by itself.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
