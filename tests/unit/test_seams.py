"""One canary for each private part of Celery and kombu that ``docs/internals.md`` lists.

They pin what is relied on, so that a new Celery fails here, by name, and not in a worker.
"""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import signal
import socket
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from billiard.pool import RUN, ApplyResult
from celery import Celery, bootsteps, platforms, signals, states
from celery.app import trace
from celery.apps import worker
from celery.concurrency import asynpool, prefork
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.base import apply_target
from celery.events.dispatcher import EventDispatcher
from celery.exceptions import Ignore, TaskRevokedError, WorkerLostError, WorkerTerminate
from celery.local import Proxy
from celery.worker import state, strategy
from celery.worker.consumer import consumer
from celery.worker.consumer.tasks import Tasks
from celery.worker.request import Request, create_request_cls
from celery.worker.worker import WorkController
from celery_claims import seams
from celery_claims.app import FIXUP
from celery_claims.claims import claims_of
from kombu import Connection, Consumer, Exchange, Queue
from kombu.asynchronous import Hub
from kombu.common import QoS

from tests.docs.pages import ROOT, rows
from tests.process.redis_broker import RedisBroker
from tests.process.versions import (
    ACKS_AT_ONCE,
    CANCELS_SILENTLY,
    KEEPS_RUNNING_JOBS,
    NAMES_CHILDREN,
    TELLS_QOS,
)

pytestmark = pytest.mark.oldest

INTERNALS = ROOT / "docs" / "internals.md"


@pytest.fixture
def app():
    app = Celery("canary", broker="memory://", backend="cache+memory://", set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def task(app):
    @app.task(name="canary.task", bind=True, shared=False)
    def task(self, ending=None):
        if ending is not None:
            raise ending
        return self.request.id

    app.finalize()
    return app.tasks["canary.task"]


def traced(app, task, *args):
    tracer = trace.build_tracer(task.name, task, app.loader, "canary@host", app=app)
    return tracer("id-1", args, {}, {"id": "id-1", "is_eager": False, "delivery_info": {}})


def test_strategies_are_filled_item_by_item(monkeypatch):
    """``update_strategies`` sets items of the dict that is there; it does not make another."""
    monkeypatch.setattr(consumer, "build_tracer", MagicMock())
    found = {}

    class Noting(dict):
        def __setitem__(self, name, value):
            found[name] = value

    its_task = SimpleNamespace(start_strategy=lambda app, consumer: "strategy")
    it = SimpleNamespace(
        app=SimpleNamespace(loader=None, tasks={"t": its_task}), hostname="h", strategies=Noting()
    )
    consumer.Consumer.update_strategies(it)
    assert found == {"t": "strategy"}


def test_a_redis_message_that_is_let_go_is_left_to_its_owner(tmp_path):
    """The virtual channel's own ``ack`` only makes the channel forget the message."""
    broker = RedisBroker(tmp_path)
    with broker.connect() as connection:
        connection.default_channel.basic_publish(
            connection.default_channel.prepare_message("x"), "", "q"
        )
        channel = connection.channel()
        message = channel.basic_get("q")
        assert seams.let_go(message)
        assert channel.qos.can_consume_max_estimate() is None
        channel.basic_qos(0, 1)
        assert channel.qos.can_consume()
        channel.close()
    assert broker.unacked() == [message.delivery_tag]
    assert broker.waiting("q") == 0

    # Other transports have the message nowhere else.
    with Connection("memory://") as connection:
        channel = connection.channel()
        channel.basic_publish(channel.prepare_message("x"), "", "q")
        message = channel.basic_get("q")
        assert not seams.let_go(message)
        assert message.delivery_tag in channel.qos._delivered


def test_an_unacknowledged_redis_message_is_in_a_hash_and_a_sorted_set(tmp_path):
    """By its delivery tag, with exchange and routing key, and with the time in seconds; under the
    same tag it goes back to the end of the list that is consumed next."""
    broker = RedisBroker(tmp_path)
    with broker.connect() as connection, broker.client() as client:
        channel = connection.channel()
        for body in ("first", "second"):
            channel.basic_publish(channel.prepare_message(body), "", "q")
        sent = json.loads(client.lindex("q", -1))
        tag = channel.basic_get("q").delivery_tag
        assert json.loads(client.hget("unacked", tag)) == [sent, "", "q"]
        assert abs(client.zscore("unacked_index", tag) - time.time()) < 3600
        channel.qos.restore_by_tag(tag)
        assert client.exists("unacked", "unacked_index") == 0
        sent["properties"]["delivery_info"]["redelivered"] = sent["headers"]["redelivered"] = True
        assert json.loads(client.lindex("q", -1)) == sent


def test_a_strategy_is_looked_up_and_called_per_message():
    """``create_task_handler`` calls strategy(message, payload, ack, reject, callbacks).

    The promises lead to the message through the consumer, at once or in its loop's next round.
    """
    called = []
    it = MagicMock(strategies={"t": lambda *args: called.append(args)}, restart_count=0)
    message = MagicMock(headers={"task": "t", "id": "1"})
    consumer.Consumer.create_task_handler(it)(message)
    ((its_message, payload, acknowledge, reject, callbacks),) = called
    assert its_message is message
    assert payload is None
    assert callbacks is it.on_task_message
    send = it.call_soon_ack if ACKS_AT_ONCE else it.call_soon
    acknowledge("log", "errors")
    send.assert_called_once_with(message.ack_log_error, "log", "errors")
    reject("log", "errors", False)
    send.assert_called_with(message.reject_log_error, "log", "errors", False)


def test_what_waits_for_the_loop_can_be_done_at_once():
    """``perform_pending_operations`` does what ``call_soon`` put off, where there is no hub."""
    done = []
    it = MagicMock(hub=None, _pending_operations=deque())
    consumer.Consumer.call_soon(it, done.append, "acknowledged")
    assert done == []
    consumer.Consumer.perform_pending_operations(it)
    consumer.Consumer.perform_pending_operations(it)
    assert done == ["acknowledged"]


def test_older_messages_become_protocol_2():
    """Both converters answer (body, headers, decoded, utc)."""
    body = {"task": "t", "id": "1", "args": (1,), "kwargs": {}}
    message = SimpleNamespace(headers={})
    for convert in (strategy.hybrid_to_proto2, strategy.proto1_to_proto2):
        (args, kwargs, _), headers, decoded, utc = convert(message, dict(body))
        assert (args, kwargs, decoded, utc) == ((1,), {}, True, True)
        assert headers["id"] == "1"


@pytest.mark.skipif(not CANCELS_SILENTLY, reason="emit_retry came with Celery 5.6")
def test_cancel_without_retry_is_silent():
    """``Request.cancel(pool, emit_retry=False)`` kills; it acknowledges and stores nothing."""
    request, pool = MagicMock(), MagicMock()
    Request.cancel(request, pool, emit_retry=False)
    pool.terminate_job.assert_called_once()
    request._announce_cancelled.assert_called_once_with(emit_retry=False)
    Request._announce_cancelled(request, emit_retry=False)
    request.acknowledge.assert_not_called()
    assert request.task.backend.mock_calls == []


def test_an_older_celery_stops_a_body_without_writing_a_retry():
    """Before ``emit_retry``, ``Request.cancel`` wrote RETRY over whatever the result is by now."""
    assert ("emit_retry" in inspect.signature(Request.cancel).parameters) is CANCELS_SILENTLY

    def cancel(pool, signal=None):
        raise AssertionError("it writes RETRY")

    request, pool = MagicMock(id="canary-2", cancel=cancel, worker_pid=7), MagicMock()
    seams.stop_body(request, pool)
    pool.terminate_job.assert_called_once_with(7, signal.SIGTERM)
    request._apply_result().terminate.assert_called_once_with(signal.SIGTERM)
    assert seams.was_cancelled(request)
    assert request.task.backend.mock_calls == []
    assert Request._apply_result is None


def test_task_ready_forgets_a_request():
    """``state.task_ready`` takes a request out of all that the worker keeps by task id."""
    request = MagicMock(id="canary-1")
    state.requests[request.id] = request
    state.task_ready(request)
    assert request.id not in state.requests


def test_the_prefetch_count_is_sent_if_it_is_not_what_was_sent_last():
    """``update`` calls ``callback`` with ``value``, leaves it in ``prev``; loops compare both."""
    qos = QoS(MagicMock(), 4)
    qos.update()
    qos.update()
    qos.callback.assert_called_once_with(prefetch_count=4)
    assert qos.prev == qos.value == 4
    qos.prev = None
    qos.callback = again = MagicMock()
    qos.update()
    again.assert_called_once_with(prefetch_count=4)


def test_the_tasks_step_says_whether_prefetch_counts_are_of_subscriptions():
    """``Consumer.qos_global`` is what was asked of the broker; a Celery before 5.7 has none."""
    its_consumer = MagicMock()
    its_consumer.connection.transport.driver_type = "amqp"
    for matches_spec in (True, False) if TELLS_QOS else ():
        its_consumer.connection.qos_semantics_matches_spec = matches_spec
        its_consumer.app.conf.worker_detect_quorum_queues = False
        Tasks(its_consumer).start(its_consumer)
        assert its_consumer.qos_global is not matches_spec
        assert seams.has_fixed_prefetch(its_consumer) is matches_spec
    its_consumer.connection.transport.driver_type = "redis"
    assert not seams.has_fixed_prefetch(its_consumer)
    older = MagicMock(spec=["app", "connection"])
    older.connection.transport.driver_type = "amqp"
    older.app.amqp.queues = {"q": Queue("q", queue_arguments={"x-queue-type": "quorum"})}
    assert seams.has_fixed_prefetch(older)
    older.app.amqp.queues = {"q": Queue("q")}
    assert not seams.has_fixed_prefetch(older)


def test_a_queue_is_subscribed_to_anew_on_its_channel():
    """kombu keeps the tag of each queue in ``_active_tags`` and finds a new one when asked."""
    channel = MagicMock()
    queue = Queue("canary", Exchange("canary"), "canary")
    its_consumer = Consumer(channel, [queue], auto_declare=False, callbacks=[MagicMock()])
    its_consumer.consume()
    (bound,) = its_consumer.queues
    first = its_consumer._active_tags["canary"]
    channel.reset_mock()
    seams.resubscribe(its_consumer, bound, 3, 8, channel.between)
    calls = [name for name, *_ in channel.mock_calls if name.startswith(("basic", "between"))]
    assert calls == ["basic_cancel", "between", "basic_qos", "basic_consume", "basic_qos"]
    channel.basic_cancel.assert_called_once_with(first)
    assert [call.args for call in channel.basic_qos.call_args_list] == [
        (0, 3, False),
        (0, 8, False),
    ]
    assert its_consumer._active_tags["canary"] != first
    its_consumer.cancel_by_queue("canary")
    channel.reset_mock()
    seams.resubscribe(its_consumer, bound, 3, 8, channel.between)
    assert channel.mock_calls == []


def test_every_step_is_told_of_the_event_loop():
    """``register_with_event_loop(consumer, hub)``, each time that the loop begins."""
    step = MagicMock()
    its_consumer = MagicMock(steps=[step])
    its_consumer.blueprint = bootsteps.Blueprint(steps=[])
    consumer.Consumer.register_with_event_loop(its_consumer, "hub")
    step.register_with_event_loop.assert_called_once_with(its_consumer, "hub")


def test_a_flushed_pool_gives_up_what_it_has_not_heard_of():
    """``AsynPool.flush`` takes jobs that are not accepted out of ``_cache``, sent or not, and an
    older one also those that are; one that is put back gets its callbacks."""
    pool = MagicMock(_state=RUN, synack=False, _cache={}, _active_writers=set())
    callback = MagicMock()
    jobs = {name: ApplyResult(pool._cache, callback) for name in ("sent", "unsent", "running")}
    jobs["sent"]._write_to = MagicMock()
    jobs["running"]._ack(0, 0.0, 1, None)
    assert seams.unfinished_jobs(MagicMock(_pool=pool)) == list(jobs.values())
    AsynPool.flush(pool)
    assert list(pool._cache.values()) == ([jobs["running"]] if KEEPS_RUNNING_JOBS else [])
    kept = {name: seams.keep_if_sent(MagicMock(_pool=pool), job) for name, job in jobs.items()}
    assert kept == {"sent": True, "unsent": False, "running": True}
    assert pool._cache[jobs["sent"]._job] is jobs["sent"]
    assert pool._cache[jobs["running"]._job] is jobs["running"]
    jobs["sent"]._write_to._is_alive.return_value = False
    jobs["sent"].discard()
    assert not seams.keep_if_sent(MagicMock(_pool=pool), jobs["sent"])
    owned = ApplyResult({}, Request.on_success.__get__(request := MagicMock()))
    assert seams.job_owner(owned) is request
    assert seams.job_owner(ApplyResult({}, len)) is not request


def test_a_fair_pool_says_which_child_has_a_body():
    """``_worker_pid`` once it has begun, ``_write_to`` from when it was sent; it has no other."""
    assert asynpool.SCHED_STRATEGIES[None] == asynpool.SCHED_STRATEGY_FAIR
    workers = SimpleNamespace(sched_strategy=asynpool.SCHED_STRATEGY_FAIR, _cache={})
    pool = MagicMock(_pool=workers)
    jobs = {name: ApplyResult(workers._cache, None) for name in ("new", "sent", "began", "over")}
    jobs["sent"]._write_to = SimpleNamespace(pid=1)
    jobs["began"]._ack(0, 0.0, 2, None)
    # A child that was replaced.
    jobs["began"]._write_to = SimpleNamespace(pid=3)
    jobs["over"]._ack(0, 0.0, 3, None)
    jobs["over"]._set(0, (True, None))
    requests = {name: MagicMock(_apply_result=lambda job=job: job) for name, job in jobs.items()}
    requests["none"] = MagicMock(_apply_result=None)
    killed = {name: seams.kill_child(request, pool) for name, request in requests.items()}
    assert [name for name in killed if killed[name]] == ["sent", "began"]
    assert [made.args[0] for made in pool.terminate_job.call_args_list] == [1, 2]
    assert jobs["sent"]._terminated == signal.SIGTERM

    jobs["new"]._write_to = SimpleNamespace(pid=1)
    assert not seams.kill_child(requests["sent"], pool), "the child has another one too"
    workers.sched_strategy = asynpool.SCHED_STRATEGY_FCFS
    assert not seams.kill_child(requests["began"], pool), "it may have come to another one"
    assert not seams.kill_child(requests["began"], MagicMock(_pool=None)), "the pool has ended"


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (None, None),
        (ValueError("bad"), states.FAILURE),
        (Ignore(), states.IGNORED),
    ],
    ids=["success", "failure", "ignore"],
)
def test_the_tracer_says_how_a_run_ended(app, task, ending, expected):
    """``build_tracer`` makes a function whose answer has info, with state and retval, or None."""
    answer = traced(app, task, ending)
    assert answer._fields == ("retval", "info", "runtime", "retstr")
    assert (answer.info and answer.info.state) == expected
    if expected == states.IGNORED:
        assert answer.info.retval is ending


def test_the_runtime_reaches_the_pool_as_it_is(app, task):
    """Of the tracer's answer the pool gets the runtime, the same object, in every ending."""

    class Marked(float):
        pass

    runtime = Marked(1.5)
    task.__trace__ = lambda *args: trace.trace_ok_t("result", None, runtime, "result")
    request = {"id": "id-1"}
    body = ((), {}, {})
    assert trace.trace_task_ret(task.name, "id-1", dict(request), body, None, None, app=app)[2] is (
        runtime
    )
    localized = (app.tasks, None, "host")
    fast = trace.fast_trace_task(task.name, "id-1", request, body, None, None, _loc=localized)
    assert fast[2] is runtime


def test_a_body_sees_its_request_on_top_of_the_stack(app):
    """``request_stack.top`` is the running request: not eager, not called directly; else None."""
    seen = []

    @app.task(name="canary.looks", bind=True, shared=False)
    def looks(self):
        top = self.request_stack.top
        seen.append((top.id, top.is_eager, top.called_directly))

    app.finalize()
    its_task = app.tasks["canary.looks"]
    assert its_task.request_stack.top is None
    traced(app, its_task)
    its_task.apply(task_id="eager-1")
    assert seen == [("id-1", False, False), ("eager-1", True, False)]


def request_of(app, task):
    """A request as Celery's own strategy makes it, and a pool that notes what it is given."""
    headers = {"id": "id-1", "task": task.name, "root_id": "id-1", "lang": "py"}
    message = MagicMock(headers=headers, payload=[(), {}, {}], body=b"", properties={})
    pool = MagicMock(spec=["apply_async"])
    made = create_request_cls(Request, task, pool, "canary@host", MagicMock(enabled=False), app=app)
    return made(
        message, app=app, task=task, hostname="canary@host", eventer=MagicMock(enabled=False),
        connection_errors=(), body=((), {}, {}), headers=headers, decoded=True, utc=True,
    ), pool  # fmt: skip


def test_the_pool_gets_the_callbacks_of_the_request(app, task):
    """Celery's request class calls the pool with bound methods of the request, one per ending."""
    request, pool = request_of(app, task)
    request.execute_using_pool(pool)
    options = pool.apply_async.call_args.kwargs
    assert {options[name] for name in options if name.endswith("callback")} == {
        request.on_accepted,
        request.on_success,
        request.on_failure,
        request.on_timeout,
    }
    assert options["callback"].__self__ is request
    sent = options["args"][2]
    assert sent is request.request_dict


def test_a_cancelled_request_says_so(app, task):
    """Also where the cancellation publishes a retry, as it always did before ``emit_retry``."""
    request, _ = request_of(app, task)
    assert seams.was_cancelled(request) is False
    request._announce_cancelled(**({"emit_retry": False} if CANCELS_SILENTLY else {}))
    assert seams.was_cancelled(request) is True


def test_a_cold_shutdown_is_asked_for_by_a_flag(monkeypatch):
    """The signal's handler sets it to the exit code; the consumer's loop acts on it."""
    assert state.should_terminate is None
    assert seams.is_terminating() is False
    handlers = {}
    monkeypatch.setattr(platforms, "signals", handlers)
    worker.install_worker_term_hard_handler(MagicMock(), sig="SIGQUIT")
    handlers["SIGQUIT"]()
    try:
        assert seams.is_terminating() is True
        with pytest.raises(WorkerTerminate):
            state.maybe_shutdown()
    finally:
        state.should_terminate = None


def test_the_context_of_a_request_has_its_canvas(app, task):
    """What a failure's callbacks are read from, when the parent has to report it."""
    request, _ = request_of(app, task)
    context = seams.request_context(request)
    assert context.id == "id-1"
    assert (context.errbacks, context.chord) == (None, None)


def test_a_proxy_gives_what_it_stands_for(task):
    assert seams.actual(Proxy(lambda: task)) is task


def test_a_revoked_request_gives_its_slot_back():
    """The worker takes TaskRevokedError from a request's way to the pool for "will not run"."""
    it, request = MagicMock(), MagicMock()
    request.execute_using_pool.side_effect = TaskRevokedError("id-1")
    WorkController._process_task(it, request)
    it._quick_release.assert_called_once_with()


def test_in_process_pools_report_exits_as_a_lost_worker():
    """``apply_target``: what is no Exception reaches the callback, not as a tuple."""
    callback = MagicMock()

    def body():
        raise SystemExit(1)

    apply_target(body, callback=callback)
    ((einfo,), _) = callback.call_args
    assert not isinstance(einfo, tuple)
    assert einfo.type is WorkerLostError


def test_steps_start_in_the_order_of_the_list_and_stop_in_reverse():
    """A step at the head of the worker's list starts before the pool and stops after it."""
    done = []

    class Step(bootsteps.StartStopStep):
        def __init__(self, name):
            self.label = name

        def start(self, parent):
            done.append(("start", self.label))

        def stop(self, parent):
            done.append(("stop", self.label))

    steps = [Step("first"), Step("second")]
    parent = SimpleNamespace(steps=steps)
    blueprint = bootsteps.Blueprint()
    blueprint.start(parent)
    blueprint.stop(parent)
    assert done == [
        ("start", "first"),
        ("start", "second"),
        ("stop", "second"),
        ("stop", "first"),
    ]


def test_the_tracers_of_a_child_are_built_before_its_signal():
    """``worker_process_init`` comes after ``build_tracer``, so that what it wraps stays."""
    source = inspect.getsource(prefork.process_initializer)
    built = source.index("task.__trace__ = build_tracer(")
    sender = "hostname" if NAMES_CHILDREN else "None"
    assert built < source.index(f"worker_process_init.send(sender={sender})")


def test_the_tasks_step_updates_strategies_on_the_consumer():
    """Through the instance, so that what replaces the method there is called."""
    its_consumer = MagicMock()
    Tasks(its_consumer).start(its_consumer)
    its_consumer.update_strategies.assert_called_once_with()


def test_the_queue_of_a_message_is_announced():
    """kombu calls ``_basic_consume`` per queue; it gives ``_receive_callback`` to the channel."""
    seen = []
    with Connection("memory://") as connection:
        queue = Queue("canary", Exchange("canary"), "canary")
        its_consumer = Consumer(connection.channel(), [queue])
        its_consumer.on_message = lambda message: seen.append(("message", message.payload))
        seams.announce_queue(its_consumer, lambda queue: seen.append(("queue", queue.name)))
        its_consumer.consume()
        with connection.Producer() as producer:
            producer.publish("hello", exchange="canary", routing_key="canary")
        connection.drain_events(timeout=1)
    assert seen == [("queue", "canary"), ("message", "hello")]


def test_modules_are_imported_under_a_signal_of_the_app(app):
    """``import_modules`` is sent with the app as its sender."""
    senders = []

    def note(sender, **_):
        senders.append(sender)

    signals.import_modules.connect(note)
    try:
        app.loader.import_default_modules()
    finally:
        signals.import_modules.disconnect(note)
    assert senders == [app]


def test_the_loader_calls_its_hook_once_the_modules_are_imported(app):
    """Looked up on the instance, when the worker, or beat, begins."""
    calls = []
    app.loader.import_default_modules = lambda: calls.append("imported")
    app.loader.on_worker_init = lambda: calls.append("hook")
    app.loader.init_worker()
    assert calls == ["imported", "hook"]


def test_an_app_takes_its_fixups_to_spawned_children(app):
    """Named by text, they are called with the app that unpickling made."""
    app.fixups.add(FIXUP)
    again = pickle.loads(pickle.dumps(app))
    assert FIXUP in again.fixups
    assert claims_of(again) is not None


def test_a_message_that_is_refused_is_answered_by_the_consumer():
    """Rejected, or acknowledged where it cannot be decoded; the gate calls both as Celery does."""
    invalid, undecoded = MagicMock(), MagicMock(headers={}, body=b"")
    worker_consumer = MagicMock(connection_errors=())
    consumer.Consumer.on_invalid_task(worker_consumer, b"", invalid, ValueError())
    consumer.Consumer.on_decode_error(worker_consumer, undecoded, ValueError())
    invalid.reject_log_error.assert_called_once()
    undecoded.ack.assert_called_once_with()


def test_a_dispatcher_without_groups_sends_every_event():
    """What a worker without -E sends is in the groups."""
    sender = MagicMock()
    for groups, sent in (((), True), (("worker",), False)):
        dispatcher = EventDispatcher(sender, enabled=False, groups=groups)
        dispatcher.enabled = True
        dispatcher._publish = MagicMock()
        dispatcher.send("claim-held")
        assert dispatcher._publish.called is sent


def test_a_blueprint_tells_that_it_runs():
    blueprint = bootsteps.Blueprint(steps=[])
    assert blueprint.state is None
    parent = SimpleNamespace(steps=[])
    blueprint.start(parent)
    assert blueprint.state == bootsteps.RUN
    blueprint.stop(parent)
    assert blueprint.state != bootsteps.RUN


def test_a_hub_reads_sockets_and_its_timer_can_be_cancelled():
    hub = Hub()
    reader, writer = socket.socketpair()
    calls = []
    try:
        hub.add_reader(reader, calls.append, "readable")
        hub.timer.call_after(0.0, calls.append, ("rang",))
        hub.timer.call_after(0.0, calls.append, ("cancelled",)).cancel()
        writer.send(b"!")
        for _ in range(3):
            next(hub.loop)
        assert set(calls) == {"readable", "rang"}
    finally:
        hub.close()
        reader.close()
        writer.close()


def test_the_pool_tells_a_request_which_process_began_it(app, task):
    request, _ = request_of(app, task)
    assert (request.worker_pid, request.time_start) == (None, None)
    request.on_accepted(4711, time.monotonic())
    assert request.worker_pid == 4711 and request.time_start
    assert list(inspect.signature(AsynPool.terminate_job).parameters)[:2] == ["self", "pid"]


def test_a_redis_channel_says_how_it_keeps_messages():
    """And which queues an exchange has."""
    channel = Connection("redis://").transport.Channel
    assert channel.ack_emulation is True
    assert channel.keyprefix_queue % "exchange" != channel.keyprefix_queue
    assert "ack_emulation" in channel.from_transport_options


def test_a_connection_knows_its_other_servers():
    connection = Connection("sentinel://one:1;sentinel://two:2")
    assert connection.alt == ["sentinel://one:1", "sentinel://two:2"]


def test_every_listed_part_has_its_canary():
    """The table and this file name each other."""
    source = ast.parse(Path(__file__).read_text())
    written = {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
    canaries = {name for name in written if name.startswith("test_")}
    listed = {row[-1].strip("`") for row in rows(INTERNALS, "## Private parts of Celery and kombu")}
    assert listed == canaries - {"test_every_listed_part_has_its_canary"}
