"""A worker: Celery's consumer and its loop are a shell here; what they call is the real thing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from celery import bootsteps
from celery.exceptions import TaskRevokedError
from celery.utils.collections import LimitedSet
from celery.worker import strategy
from celery.worker.consumer import Consumer
from celery_claims.bootsteps import ClaimsConsumerStep, ClaimsWorkerStep
from celery_claims.brokers import Deliveries
from celery_claims.claims import ATTRIBUTE, Claims
from celery_claims.loop import Loop
from kombu import Exchange, Queue
from kombu.asynchronous.semaphore import LaxBoundedSemaphore
from kombu.common import QoS
from kombu.message import Message

from .broker import QUEUE, Channel, SimulatedDeliveries
from .pool import Forks, Threads
from .store import SimulatedStore
from .tasks import KINDS, one_app
from .world import EPOCH, Mailbox, Process, Timer

__all__ = ["Worker"]

#: To connect again, in seconds.
RECONNECT = (0.05, 2.0)
THE_QUEUE = Queue(QUEUE, Exchange(QUEUE), routing_key=QUEUE)


class SimulatedClaims(Claims):
    """What ``install`` gives to the app of one process."""

    def __init__(self, simulation: Any, process: Process, is_running: Callable[[int], bool]):
        super().__init__(one_app(), simulation.settings, process.host(is_running))
        self._simulation = simulation
        self._process = process
        self.__dict__["settings"] = simulation.claims_settings
        self.__dict__["store"] = SimulatedStore(process, simulation.store)

    def open_store(self) -> SimulatedStore:
        return SimulatedStore(self._process, self._simulation.store)

    def open_deliveries(self) -> Deliveries | None:
        broker = self._simulation.broker
        return SimulatedDeliveries(self._process, broker) if broker.is_redis else None

    def check_place(self, *, forks: bool) -> None:
        """The store is what it is."""

    def problems(self, store: Any) -> list[str]:
        return []

    def shortest_lease(self) -> float:
        return self.settings.lease

    def guard(self, name: str) -> None:
        """The tasks are every process's: done once."""

    def wrap_tracers(self, hostname: str | None) -> None:
        """As above."""


class Timers:
    """The hub's timer."""

    def __init__(self, process: Process, post: Callable[..., None]) -> None:
        self._process = process
        self._post = post
        self._timers: dict[Timer, None] = {}

    def call_after(self, secs: float, fun: Callable[..., Any], args: Any = (), **_: Any) -> Timer:
        return self._add(self._process.world.now + secs / self._process.rate, fun, args)

    def call_at(self, eta: float, fun: Callable[..., Any], args: Any = (), **_: Any) -> Timer:
        return self._add(eta - EPOCH, fun, args)

    def _add(self, when: float, fun: Callable[..., Any], args: Any) -> Timer:
        timer = self._process.world.at(when, self._fire, fun, args)
        timer.args = (timer, fun, args)
        self._timers[timer] = None
        return timer

    def _fire(self, timer: Timer, fun: Callable[..., Any], args: Any) -> None:
        del self._timers[timer]
        if self._process.alive:
            self._post(fun, *args)

    def cancel(self, timer: Timer) -> None:
        timer.cancel()
        self._timers.pop(timer, None)

    def clear(self) -> None:
        for timer in list(self._timers):
            self.cancel(timer)


class WakingLoop(Loop):
    """Without a socket. A worker that drains its pool hears of nothing but that."""

    def wake(self) -> None:
        if self._consumer.turns:
            self._consumer.mailbox.post(self._run)


class TaskConsumer:
    """As kombu's consumer of the worker's queues."""

    def __init__(self, receive: Callable[[Message], Any]) -> None:
        self._receive_callback = receive
        self.callback = receive

    def _basic_consume(self, queue: Any) -> None:
        self.callback = self._receive_callback


class Shell:
    """As Celery's consumer, as far as its strategies and the gate look at it."""

    event_dispatcher = None
    disable_rate_limits = True
    restart_count = 0
    connection_errors = (ConnectionError,)
    qos_global = True
    _maximum_prefetch_restored = True
    on_task_message: Any = ()
    _limit_task = _limit_post_eta = None

    def __init__(self, worker: Worker) -> None:
        self.app = one_app()
        #: whether it has a loop
        self.turns = True
        self.hostname = worker.name
        self.mailbox = worker.mailbox
        self.pool = worker.pool
        self.hub = object()
        self.timer = Timers(worker.process, worker.mailbox.post)
        self.controller = SimpleNamespace(
            pool_cls=worker.pool.kind, state=SimpleNamespace(revoked=LimitedSet())
        )
        self.task_buckets: Any = defaultdict(lambda: None)
        self.blueprint = SimpleNamespace(state=bootsteps.RUN)
        self.semaphore = LaxBoundedSemaphore(worker.pool.num_processes)
        worker.pool.on_free = self.semaphore.release
        self.strategies: Any = {}
        self.channel: Channel
        self.qos: QoS
        self.task_consumer: TaskConsumer
        self.connection: Any = SimpleNamespace(transport=None)
        self.apply_eta_task = partial(Consumer.apply_eta_task, self)

    def update_strategies(self) -> None:
        for name in KINDS:
            self.strategies[name] = strategy.default(self.app.tasks[name], self.app, self)

    def on_task_request(self, request: Any) -> None:
        self.semaphore.acquire(self._process_task, request)

    def _process_task(self, request: Any) -> None:
        try:
            request.execute_using_pool(self.pool)
        except TaskRevokedError:
            self.semaphore.release()

    def call_soon(self, call: Callable[..., Any], *args: Any) -> None:
        self.mailbox.post(call, *args)

    call_soon_ack = call_soon

    def _restore_prefetch_count_after_connection_restart(self, *_: Any) -> None:
        """Nothing was reduced."""

    def perform_pending_operations(self) -> None:
        while len(self.mailbox):
            call = self.mailbox.take()
            if call is not None:
                call[0](*call[1])

    def _refuse(self, *args: Any) -> None:
        raise AssertionError(f"a good message is refused: {args[-1]!r}")

    on_unknown_message = on_unknown_task = on_invalid_task = on_decode_error = _refuse


class Worker:
    """One start of a worker.

    Parameters:
        simulation: what it is part of.
        name: the node's.
        process: its own.
    """

    def __init__(self, simulation: Any, name: str, process: Process) -> None:
        plan = simulation.plan
        self.simulation = simulation
        self.name = name
        self.process = process
        self.mailbox = Mailbox(process)
        kind = Forks if plan.pool == "prefork" else Threads
        self.pool: Any = kind(process, self.mailbox.post, plan.concurrency, self._claims_of_child)
        #: a warm shutdown was asked for
        self.stopping = False
        self.channel: Channel | None = None
        self._claims = SimulatedClaims(simulation, process, self.pool.is_running)
        process.claims = self._claims
        process.start(self._main)

    def _claims_of_child(self, process: Process) -> SimulatedClaims:
        return SimulatedClaims(self.simulation, process, lambda _: False)

    def _main(self) -> None:
        app = one_app()
        setattr(app, ATTRIBUTE, self._claims)
        controller = SimpleNamespace(
            app=app, hostname=self.name, pool_cls=self.pool.kind, steps=[], consumer=None
        )
        self._step = ClaimsWorkerStep(controller)
        shell = self._shell = Shell(self)
        self._consumer_step = ClaimsConsumerStep(shell)
        shell.claims_gate.loop = WakingLoop(shell)
        shell.update_strategies()
        controller.consumer = shell
        self._controller = controller
        self._step.start(controller)
        while not self.stopping:
            self._connect()
            try:
                self._loop()
            except ConnectionError:
                self._reconnect()
        self._shut_down()

    def _connect(self) -> None:
        world, broker, shell = self.process.world, self.simulation.broker, self._shell
        world.wait(world.rng.uniform(*RECONNECT))
        while broker.service.down:
            world.wait(world.rng.uniform(*RECONNECT))
        channel = Channel(broker, self.process, self._arrived, self._lost)
        self.channel = shell.channel = channel
        shell.connection.transport = channel.connection
        shell.qos = QoS(channel.set_prefetch, self.simulation.plan.prefetch)
        shell.task_consumer = TaskConsumer(Consumer.create_task_handler(shell))
        self._consumer_step.start(shell)
        shell.task_consumer._basic_consume(THE_QUEUE)
        shell.qos.update()
        channel.consume()

    def _arrived(self, channel: Channel, message: Message) -> None:
        self.mailbox.post(self._receive, channel, message)

    def _receive(self, channel: Channel, message: Message) -> None:
        if channel is self.channel and channel.usable:
            self._shell.task_consumer.callback(message)

    def _lost(self, channel: Channel) -> None:
        self.mailbox.post(self._find_lost, channel)

    def _find_lost(self, channel: Channel) -> None:
        if channel is self.channel and channel.usable and not self.stopping:
            raise ConnectionResetError

    def _loop(self) -> None:
        """Until it shall stop, or raises ConnectionError."""
        shell = self._shell
        while not self.stopping:
            self._turn()
            if shell.qos.prev != shell.qos.value:
                shell.qos.update()

    def _turn(self) -> None:
        call = self.mailbox.take()
        if call is not None:
            call[0](*call[1])

    def _reconnect(self) -> None:
        shell = self._shell
        shell.channel.usable = False
        if shell.channel.open:
            shell.channel.lose()
        shell.semaphore.clear()
        if self.simulation.plan.clears_timers:
            shell.timer.clear()
        if self.pool.flush is not None:
            self.pool.flush()
        self.process.world.tell(self.process, "connects anew")
        self._consumer_step.stop(shell)

    def stop(self) -> None:
        """Ask for a warm shutdown."""
        self.mailbox.post(self._stop)

    def _stop(self) -> None:
        self.stopping = True

    def _shut_down(self) -> None:
        world, channel = self.process.world, self._shell.channel
        world.tell(self.process, "shuts down")
        channel.leaving = True
        channel.cancel()
        self._shell.semaphore._waiting.clear()
        self._shell.turns = False
        self._shell.blueprint.state = bootsteps.CLOSE
        self._consumer_step.stop(self._shell)
        while not self.pool.is_idle():
            self._turn()
        self._step.stop(self._controller)
        self._shell.perform_pending_operations()
        channel.close()
        world.tell(self.process, "has shut down")
        world.after(0.0, self.process.end)
