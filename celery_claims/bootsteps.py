"""Where the worker's life and ours meet."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.concurrency.prefork import TaskPool as PreforkPool

from .case import Action, Case
from .claims import installed
from .config import BEATS_PER_LEASE
from .gate import Gate, Strategies
from .heartbeat import Heartbeat
from .host import Host
from .pool import PoolWatch
from .seams import announce_queue
from .touching import Touching

__all__ = ["ClaimsConsumerStep", "ClaimsWorkerStep"]


class ClaimsWorkerStep(bootsteps.StartStopStep):
    """Starts before every other step and stops after them, so that leases are renewed while the
    pool drains, and what is left is given back when it has, but before the broker restores it."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        claims = installed(worker.app)
        forks = issubclass(worker.pool_cls, PreforkPool)
        claims.check_place(forks=forks)
        self._claims = claims
        self._forks = forks
        self._heartbeat: Heartbeat | None = None
        self._keeper = claims.open_keeper(worker.hostname, forks=forks)

    def include(self, worker: Any) -> bool:
        # Not append, as the base class does: see this class.
        worker.steps.insert(0, self)
        return True

    def start(self, worker: Any) -> None:
        claims, keeper = self._claims, self._keeper
        for problem in claims.problems(claims.store):
            worker.app.log.get_default_logger("celery_claims").warning(problem)
        store, deliveries = claims.open_store(), claims.open_deliveries()
        lease = claims.shortest_lease()
        touching = None
        if deliveries is not None and claims.deliveries is not None:
            touching = Touching(deliveries, claims.deliveries, lease / BEATS_PER_LEASE)

        def act(actions: list[Action]) -> None:
            worker.consumer.claims_gate.act(actions)

        self._heartbeat = Heartbeat(
            keeper,
            store,
            shortest_lease=lease,
            touching=touching,
            sweeper=claims.sweeper(store, deliveries),
            sweep_every=claims.settings.cleanup_every,
            act=act,
        )
        self._heartbeat.start()

    def stop(self, worker: Any) -> None:
        """The pool has drained: whatever it did not run is given back."""
        self._close(worker, in_process_bodies_survive=False)

    def terminate(self, worker: Any) -> None:
        """The pool was cut off: bodies in this process may go on, and keep their leases."""
        self._close(worker, in_process_bodies_survive=not self._forks)

    def _close(self, worker: Any, *, in_process_bodies_survive: bool) -> None:
        def survives(case: Case) -> bool:
            if not case.in_executor:
                return False
            return in_process_bodies_survive or _is_alive(gate.child_of(case), keeper.host)

        keeper = self._keeper
        gate: Gate = worker.consumer.claims_gate
        gate.closing()
        keeper.closing(survives)
        # There is no next round of the loop for which an acknowledgement could wait. Celery 5.4
        # forgets it then, and its message would come back.
        worker.consumer.perform_pending_operations()
        gate.loop.close()
        if self._heartbeat is not None and not keeper.desk.active():
            self._heartbeat.stop()
            keeper.store.close()


def _is_alive(pid: int | None, host: Host) -> bool:
    """Whether a pool's process still runs, as far as this one may know."""
    return pid is not None and pid != host.pid() and host.is_running(pid)


class ClaimsConsumerStep(bootsteps.StartStopStep):
    """Puts the gate in front of the consumer, once, and learns its queues, on every connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        consumer.claims_gate = None
        claims = installed(consumer.app)
        keeper = claims.keeper
        assert keeper is not None, "the worker's step comes first"
        forks = issubclass(consumer.controller.pool_cls, PreforkPool)
        self._gate = Gate(
            consumer,
            keeper,
            claims.options,
            claims.settings.keep_free,
            claims.settings.max_held,
        )
        consumer.claims_gate = self._gate
        self._watch = PoolWatch(self._gate, keeper, forks=forks)
        consumer.pool.apply_async = self._watch.wrap(consumer.pool.apply_async)
        consumer.strategies = Strategies(self._gated)
        consumer.update_strategies = self._updating(consumer, consumer.update_strategies)
        self._claims = claims

    def _gated(self, name: str, strategy: Any) -> Any:
        self._claims.guard(name)
        return self._gate.wrap(name, strategy)

    def _updating(self, consumer: Any, update: Any) -> Any:
        def update_strategies() -> None:
            update()
            self._claims.wrap_tracers(consumer.hostname)

        return update_strategies

    def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
        consumer.claims_gate.loop.register(hub)

    def start(self, consumer: Any) -> None:
        self._gate.connected()
        self._watch.wrap_flush(consumer.pool)
        announce_queue(consumer.task_consumer, self._gate.set_queue)

    def stop(self, consumer: Any) -> None:
        self._gate.rests()
        # Also called at the end of the worker, whose own step gives the rest back.
        if consumer.blueprint.state == bootsteps.RUN:
            self._gate.disconnected()
