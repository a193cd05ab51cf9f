"""RabbitMQ takes its messages back: lost connections, closed channels, a broker that restarts."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from celery import Celery
from celery_claims.protocol import State

from tests.process.environment import CONF_VARIABLE
from tests.process.proxy import Fault, Proxy
from tests.process.rabbit_broker import RabbitBroker
from tests.process.rabbit_server import RabbitServer, shared_server
from tests.process.setup import ProcessSetup, Site, publish_copies
from tests.process.versions import CELERY
from tests.process.waiting import stays, wait_until

from .rabbits import AMQP, RECONNECTED, lose_connections, on_rabbitmq
from .redis_steps import kill
from .steps import (
    ENDLESS,
    LEASE,
    TIMED,
    assert_all_acknowledged,
    assert_back_soon,
    events,
    stored,
    traps,
    wait_for_events,
    wait_for_record,
    wait_started,
    where,
    workers,
)

#: Seconds until RabbitMQ closes the channel of a message that is not acknowledged.
CONSUMER_TIMEOUT = 8


# lost connections


@on_rabbitmq(
    conf={
        "worker_prefetch_multiplier": 3,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    },
    lease=ENDLESS,
)
@workers(2)
def test_running_tasks_outlive_their_connection(celery_setup: ProcessSetup) -> None:
    """What runs goes on and its message waits; what was reserved is given back and runs once."""
    setup = celery_setup
    signature = setup.app.signature("traps.late", ("end",))
    ids = [signature.apply_async().id for _ in range(6)]
    wait_until(lambda: len(setup.journal.runs()) == 2, what="a run on each worker")
    running = {run.task_id: run.pid for run in setup.journal.runs()}
    setup.wait_for_log("claimed task", 6)
    lose_connections(setup)
    for task_id in running:
        wait_for_events(setup.workers, "held", task_id)
    assert len(setup.journal.runs()) == 2
    setup.gates.open("end")
    for task_id in ids:
        setup.app.AsyncResult(task_id).get(timeout=20)
    for task_id, pid in running.items():
        wait_for_events(setup.workers, "skipped", task_id)
        assert stored(setup.site, task_id) == [(pid, "SUCCESS")]
    assert sorted(run.task_id for run in setup.journal.runs()) == sorted(ids)
    assert_all_acknowledged(setup)


@on_rabbitmq(
    "classic",
    conf={"worker_cancel_long_running_tasks_on_connection_loss": False},
    lease=ENDLESS,
)
@workers(1, pool="threads")
def test_a_thread_outlives_its_connection(celery_setup: ProcessSetup) -> None:
    setup = celery_setup
    running = setup.app.signature("traps.late", ("end",)).apply_async()
    setup.journal.wait_for_runs(running.id)
    lose_connections(setup)
    wait_for_events(setup.workers, "held", running.id)
    setup.gates.open("end")
    running.get(timeout=20)
    wait_for_events(setup.workers, "skipped", running.id)
    assert len(setup.journal.runs()) == 1
    assert_all_acknowledged(setup)


@on_rabbitmq(
    "classic",
    conf={"worker_cancel_long_running_tasks_on_connection_loss": True},
    lease=ENDLESS,
)
@workers(2)
def test_tasks_that_celery_cancels_with_their_connection_run_again(
    celery_setup: ProcessSetup,
) -> None:
    """The killed run gives its claim back, and its message runs at once, after it."""
    setup = celery_setup
    result = setup.app.signature("traps.late", ("end",)).apply_async()
    (run,) = setup.journal.wait_for_runs(result.id)
    child = psutil.Process(run.pid)
    lose_connections(setup)
    child.wait(20)
    setup.journal.note_dead(run.pid)
    _, again = setup.journal.wait_for_runs(result.id, 2)
    setup.gates.open("end")
    assert result.get(timeout=20) == [again.pid, 0]
    assert setup.journal.max_overlap(result.id) == 1
    assert_all_acknowledged(setup)


@on_rabbitmq("classic", lease=ENDLESS)
@workers(1)
def test_a_body_that_was_sent_to_a_child_still_runs(celery_setup: ProcessSetup) -> None:
    """The pool forgets it with the connection, but its child does not: it runs once."""
    setup = celery_setup
    (child,) = setup.worker.children()
    psutil.Process(child).send_signal(signal.SIGSTOP)
    result = setup.app.signature("traps.late").apply_async()
    wait_until(lambda: "TaskPool: Apply" in setup.worker.logs(), what="the pool to have it")
    lose_connections(setup)
    wait_for_events(setup.worker, "held", result.id)
    psutil.Process(child).send_signal(signal.SIGCONT)
    assert result.get(timeout=20) == [child, 0]
    wait_for_events(setup.worker, "skipped", result.id)
    assert len(setup.journal.runs(result.id)) == 1
    assert_all_acknowledged(setup)


@on_rabbitmq("classic", conf={"worker_prefetch_multiplier": 4}, lease=ENDLESS)
@workers(1)
def test_a_body_that_was_not_sent_to_a_child_is_given_back(celery_setup: ProcessSetup) -> None:
    """The pool gives it up with the connection: nothing must keep its claim."""
    setup = celery_setup
    first = setup.app.signature("traps.late", ("first",)).apply_async()
    setup.journal.wait_for_runs(first.id)
    # With it Celery forgets that the only child is busy, and submits what comes.
    lose_connections(setup)
    second = setup.app.signature("traps.late", ("second",)).apply_async()
    wait_until(
        lambda: setup.worker.logs().count("TaskPool: Apply") == 2, what="the pool to have both"
    )
    lose_connections(setup)
    setup.gates.open("first")
    first.get(timeout=20)
    setup.gates.open("second")
    assert second.get(timeout=20)[1] == 0
    assert len(setup.journal.runs(first.id)) == len(setup.journal.runs(second.id)) == 1
    assert_all_acknowledged(setup)


@pytest.mark.brokers("rabbitmq")
@traps(AMQP, lease=ENDLESS)
def test_a_connection_on_which_nothing_passes(site: Site, celery_setup_app: Celery) -> None:
    """RabbitMQ gives the message to another worker; the first one ends its run, and only that."""
    broker = site.broker
    assert isinstance(broker, RabbitBroker)
    with Proxy(broker.host.server.port) as proxy:
        heartbeat = {"broker_heartbeat": 2, "broker_heartbeat_checkrate": 2}
        cut_off = {**site.conf, **heartbeat, "broker_url": broker.host.url(proxy.port)}
        one = site.start_worker(env={CONF_VARIABLE: json.dumps(cut_off)}, log_level="DEBUG")
        result = celery_setup_app.signature("traps.late", ("end",)).apply_async()
        (run,) = site.journal.wait_for_runs(result.id)
        two = site.start_worker(log_level="DEBUG")
        proxy.fault = Fault.SILENCE
        wait_for_events(two, "held", result.id)
        site.gates.open("end")
        wait_for_events(two, "skipped", result.id)
        assert result.get(timeout=5) == [run.pid, 0]
        assert len(site.journal.runs(result.id)) == 1
        one.kill()
    wait_until(lambda: broker.left() == 0, what="an empty queue")


# killed workers


@on_rabbitmq()
@workers(2)
@pytest.mark.parametrize("whole_group", [False, True], ids=["parent", "both"])
def test_a_killed_workers_task_is_taken_over(celery_setup: ProcessSetup, whole_group: bool) -> None:
    """Back soon: RabbitMQ delivers it again at once, and that waits for the lease to end."""
    setup = celery_setup
    result = setup.app.signature("traps.late", ("end",)).apply_async()
    (run,) = setup.journal.wait_for_runs(result.id)
    killed, other = where(setup.workers, run.pid)
    wait_started(setup.site, result.id)
    if whole_group:
        killed.container.kill_group("SIGKILL")
    else:
        killed.kill()
    wait_for_events(other, "held", result.id)
    wait_until(lambda: not killed.children(), what="the end of the children")
    setup.journal.note_dead(run.pid)
    _, again = setup.journal.wait_for_runs(result.id, 2)
    assert events(other, "taken_over", result.id) == 1
    setup.gates.open("end")
    assert result.get(timeout=20) == [again.pid, 1]
    assert setup.journal.max_overlap(result.id) == 1
    assert_all_acknowledged(setup, other)


@on_rabbitmq("classic", **TIMED)
@workers(2)
def test_a_killed_workers_task_is_back_when_its_lease_is_over(celery_setup: ProcessSetup) -> None:
    """Back soon, in seconds: the copy that is held meanwhile runs."""
    setup = celery_setup
    result = setup.app.signature("traps.late", ("end",)).apply_async()
    (run,) = setup.journal.wait_for_runs(result.id)
    killed, other = where(setup.workers, run.pid)
    wait_started(setup.site, result.id)
    killed_at = time.monotonic()
    kill(setup, killed)
    wait_for_events(other, "held", result.id)
    _, again = setup.journal.wait_for_runs(result.id, 2)
    assert_back_soon(killed_at, again)
    setup.gates.open("end")
    assert result.get(timeout=20) == [again.pid, 1]
    assert_all_acknowledged(setup, other)


# limits of the broker


@pytest.fixture(scope="module")
def own_server() -> RabbitServer:
    """What is done to it, the other tests must not see, nor those that run at the same time."""
    return shared_server(f"faults-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}")


class TestOwnServer:
    @pytest.fixture
    def site(
        self, request: pytest.FixtureRequest, tmp_path, own_server: RabbitServer
    ) -> Iterator[Site]:
        mark = request.node.get_closest_marker("site")
        site = Site(tmp_path, broker=RabbitBroker(tmp_path / "broker", own_server), **mark.kwargs)
        yield site
        site.teardown()

    @pytest.fixture
    def _impatient(self, own_server: RabbitServer) -> Iterator[None]:
        """Channels that are opened now live with a short ``consumer_timeout``."""
        own_server.set_option("channel_tick_interval", 500)
        own_server.set_option("consumer_timeout", CONSUMER_TIMEOUT * 1000)
        yield
        own_server.set_option("consumer_timeout", 1_800_000)
        own_server.set_option("channel_tick_interval", 60_000)

    @pytest.mark.usefixtures("_impatient")
    @traps(AMQP, max_wait=1, lease=ENDLESS)
    @workers(1)
    def test_a_task_outlives_the_consumer_timeout(self, celery_setup: ProcessSetup) -> None:
        """Its channel is closed once, and what is delivered again goes back in time, each time."""
        setup = celery_setup
        result = setup.app.signature("traps.late", ("end",)).apply_async()
        (run,) = setup.journal.wait_for_runs(result.id)
        setup.wait_for_log("PRECONDITION_FAILED")
        # Longer than the timeout: had the copy waited for it, its channel would have been closed.
        wait_for_events(setup.worker, "returned", result.id, CONSUMER_TIMEOUT + 3)
        assert setup.count_in_logs(RECONNECTED) == 2
        assert len(setup.journal.runs(result.id)) == 1
        setup.gates.open("end")
        wait_for_events(setup.worker, "skipped", result.id)
        assert result.get(timeout=5) == [run.pid, 0]
        assert stored(setup.site, result.id) == [(run.pid, "SUCCESS")]
        assert_all_acknowledged(setup)

    @pytest.mark.usefixtures("_impatient")
    @traps({"broker_channel_error_retry": False}, lease=ENDLESS)
    @workers(1)
    def test_a_worker_that_is_not_told_to_go_on_ends(self, celery_setup: ProcessSetup) -> None:
        """What the warning at its start is about."""
        setup = celery_setup
        setup.wait_for_log("broker_channel_error_retry = True")
        result = setup.app.signature("traps.late", ("end",)).apply_async()
        setup.journal.wait_for_runs(result.id)
        setup.wait_for_log("PRECONDITION_FAILED")
        setup.gates.open("end")
        assert setup.worker.container.has_exited()

    @traps(AMQP, lease=ENDLESS)
    @workers(2)
    def test_a_broker_that_restarts_under_running_tasks(
        self, celery_setup: ProcessSetup, own_server: RabbitServer
    ) -> None:
        """Persistent messages are there again, and wait for the runs that they belong to."""
        setup = celery_setup
        signature = setup.app.signature("traps.late", ("end",))
        ids = [signature.apply_async().id for _ in range(3)]
        wait_until(lambda: len(setup.journal.runs()) == 2, what="a run on each worker")
        running = {run.task_id for run in setup.journal.runs()}
        own_server.stop_app()
        own_server.start_app()
        for task_id in running:
            wait_for_events(setup.workers, "held", task_id)
        setup.gates.open("end")
        for task_id in ids:
            setup.app.AsyncResult(task_id).get(timeout=20)
        for task_id in running:
            wait_for_events(setup.workers, "skipped", task_id)
        assert sorted(run.task_id for run in setup.journal.runs()) == sorted(ids)
        assert_all_acknowledged(setup)


@on_rabbitmq(
    "quorum",
    conf={
        "task_queues": {
            "celery": {"queue_arguments": {"x-queue-type": "quorum", "x-delivery-limit": 1}}
        }
    },
)
@workers(2)
@pytest.mark.skipif(CELERY < (5, 5), reason="it asks quorum queues for what they do not have")
def test_a_hold_is_no_delivery_of_a_quorum_queue(celery_setup: ProcessSetup) -> None:
    """The queue drops what was given back more often than its limit; holds give nothing back."""
    setup = celery_setup
    signature = setup.app.signature("traps.late", ("end",))
    result = publish_copies(setup.app, signature, 5)
    wait_for_events(setup.workers, "held", result.id, 4)
    assert stays(lambda: setup.site.broker.left() == 5, 2 * LEASE)
    setup.gates.open("end")
    wait_for_events(setup.workers, "skipped", result.id, 4)
    record = wait_for_record(setup.site, result.id, lambda record: record.state is State.FINISHED)
    assert record.deliveries == 0
    assert_all_acknowledged(setup)
