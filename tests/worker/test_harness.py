"""The harness itself, on Celery without claims."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from billiard.pool import Pool
from celery import Celery, shared_task
from pytest_celery import CeleryTestSetup
from pytest_docker_tools.exceptions import ContainerFailed

from tests.process.container import ROOT, WorkerSpec
from tests.process.gates import Gates
from tests.process.growing import take_turns_at_the_pool
from tests.process.journal import Journal
from tests.process.local import LocalProcess
from tests.process.nodes import FolderBroker
from tests.process.redis_broker import RedisBroker
from tests.process.setup import ProcessSetup, Site, publish_copies
from tests.process.waiting import TIMEOUT, WaitTimeout, stays, wait_until

HERE = "tests/worker/test_harness.py"


def is_alive(pid: int) -> bool:
    """Whether it is there and not only its exit code."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.docker
def test_a_plain_setup_answers_its_ping(celery_setup: CeleryTestSetup) -> None:
    """Asks only what every pytest-celery setup has, so that it also runs with --docker."""
    assert celery_setup.ready(ping=True)
    assert len(celery_setup) == 3


@pytest.mark.brokers("folder", "sqlite", "redis")
def test_a_worker_runs_a_task_and_its_result_arrives(celery_setup: ProcessSetup) -> None:
    result = celery_setup.app.signature("tests.work", (42,)).apply_async()
    assert result.get(timeout=20) == 42
    (run,) = celery_setup.journal.runs(result.id)
    assert run.event == "finish"
    assert run.token is None
    celery_setup.worker.wait_for_log(f"tests.work[{result.id}] succeeded")


@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_every_pool_boots(site: Site, celery_setup_app: Celery, pool: str) -> None:
    worker = site.start_worker(pool=pool, concurrency=2)
    assert celery_setup_app.signature("tests.work", ("ok",)).apply_async().get(timeout=20) == "ok"
    assert worker.children() == []


def test_control_reaches_a_worker_by_its_node_name(celery_setup: ProcessSetup) -> None:
    name = celery_setup.worker.hostname()
    assert celery_setup.app.control.ping([name], timeout=10, limit=1) == [{name: {"ok": "pong"}}]


def test_beat_boots(site: Site) -> None:
    assert site.start_beat().status == "running"


def test_a_failed_start_shows_its_log(site: Site) -> None:
    with pytest.raises(ContainerFailed, match="no_such_module"):
        site.start_worker(app="no_such_module")


@pytest.mark.site(conf={"worker_prefetch_multiplier": 1})
def test_the_same_message_three_times_runs_three_times_at_once(celery_setup: ProcessSetup) -> None:
    """The problem: without claims a redelivered message runs beside itself."""
    worker = celery_setup.start_worker(concurrency=2)
    signature = celery_setup.app.signature("tests.late", kwargs={"gate": "end"})
    result = publish_copies(celery_setup.app, signature, 3)
    runs = celery_setup.journal.wait_for_runs(result.id, 3)
    celery_setup.gates.open("end")
    celery_setup.journal.wait_for_end(result.id, 3)
    assert celery_setup.journal.max_overlap(result.id) == 3
    assert {run.pid for run in runs} == {*celery_setup.worker.children(), *worker.children()}
    celery_setup.wait_for_log(f"tests.late[{result.id}] succeeded", 3)


@pytest.mark.site(conf={"worker_prefetch_multiplier": 1})
@pytest.mark.workers(2)
def test_two_workers_share_a_queue(celery_setup: ProcessSetup) -> None:
    signature = celery_setup.app.signature("tests.late", kwargs={"gate": "end"})
    first, second = signature.clone().apply_async(), signature.clone().apply_async()
    pids = [celery_setup.journal.wait_for_runs(result.id)[0].pid for result in (first, second)]
    celery_setup.gates.open("end")
    assert sorted(pids) == sorted(
        child for worker in celery_setup.workers for child in worker.children()
    )


def test_a_redelivered_message_runs_again(celery_setup: ProcessSetup) -> None:
    result = celery_setup.app.signature("tests.work", (1,)).apply_async()
    celery_setup.journal.wait_for_end(result.id)
    broker = celery_setup.broker
    assert isinstance(broker, FolderBroker)
    assert broker.redeliver(result.id) == 1
    assert len(celery_setup.journal.wait_for_end(result.id, 2)) == 2
    assert broker.waiting() == 0


@pytest.mark.brokers("folder", "redis")
def test_what_a_worker_has_can_be_delivered_again(celery_setup: ProcessSetup) -> None:
    """Under the delivery tag that it had; the folder would also bring what is acknowledged."""
    signature = celery_setup.app.signature("tests.late", kwargs={"gate": "end"})
    result = signature.apply_async()
    celery_setup.journal.wait_for_runs(result.id)
    assert celery_setup.broker.waiting() == 0
    assert celery_setup.broker.redeliver(result.id) == 1
    celery_setup.gates.open("end")
    assert len(celery_setup.journal.wait_for_end(result.id, 2)) == 2


@pytest.mark.site(
    conf={
        "broker_transport_options": {
            "global_keyprefix": "ours-",
            "sep": ":",
            "priority_steps": [0, 5],
        }
    }
)
@pytest.mark.brokers("redis")
def test_a_redis_broker_is_asked_by_the_names_of_its_site(
    site: Site, celery_setup_app: Celery
) -> None:
    work = celery_setup_app.signature("tests.work")
    for priority in (0, 3, 9):
        work.apply_async(priority=priority)
    assert isinstance(site.broker, RedisBroker)
    assert site.broker.waiting() == 3
    with site.broker.client() as client:
        assert client.llen("ours-celery") == 2
        assert client.llen("ours-celery:5") == 1


def test_a_killed_pool_child_is_replaced(celery_setup: ProcessSetup) -> None:
    worker = celery_setup.worker
    stuck = celery_setup.app.signature("tests.late", kwargs={"gate": "never"}).apply_async()
    (run,) = celery_setup.journal.wait_for_runs(stuck.id)
    assert worker.children() == [run.pid]
    os.kill(run.pid, 9)
    celery_setup.journal.note_dead(run.pid)
    worker.wait_for_log("WorkerLostError")
    wait_until(lambda: worker.children() not in ([], [run.pid]), what="a new child")
    assert celery_setup.journal.runs(stuck.id)[0].event == "died"
    assert celery_setup.app.signature("tests.work", (2,)).apply_async().get(timeout=20) == 2


def test_a_killed_parent_takes_its_children_along(celery_setup: ProcessSetup) -> None:
    """On Linux Celery asks for it (PR_SET_PDEATHSIG); nothing of the task is put back."""
    worker = celery_setup.worker
    stuck = celery_setup.app.signature("tests.work", kwargs={"gate": "never"}).apply_async()
    (run,) = celery_setup.journal.wait_for_runs(stuck.id)
    worker.kill()
    assert worker.container.status == "exited"
    assert worker.wait() == -9
    wait_until(lambda: not is_alive(run.pid), what="the child's end")
    assert celery_setup.broker.waiting() == 0


def test_teardown_ends_orphans(tmp_path: Path) -> None:
    """Also of those that left the session."""
    spawn = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    process = LocalProcess([sys.executable, "-c", spawn], tmp_path, env={}, name="parent")
    process.start()
    assert process.wait(10) == 0
    (orphan,) = process.children()
    process.destroy()
    assert not is_alive(orphan)


def test_a_killed_group_is_gone_at_once(celery_setup: ProcessSetup) -> None:
    container = celery_setup.worker.container
    (child,) = container.children()
    container.kill_group("SIGKILL")
    assert container.has_exited()
    wait_until(lambda: container.children() == [], what=f"the end of {child}")


def test_a_restarted_worker_works(celery_setup: ProcessSetup) -> None:
    worker = celery_setup.worker
    before = worker.container.pid
    worker.restart()
    assert worker.container.pid != before
    assert worker.logs().count(" ready.") == 2
    assert celery_setup.app.signature("tests.work", (3,)).apply_async().get(timeout=20) == 3


def test_a_terminated_worker_finishes_its_task_first(celery_setup: ProcessSetup) -> None:
    """Warm shutdown."""
    worker = celery_setup.worker
    result = celery_setup.app.signature("tests.work", (4,), {"gate": "end"}).apply_async()
    celery_setup.journal.wait_for_runs(result.id)
    worker.kill("SIGTERM")
    worker.wait_for_log("Warm shutdown")
    assert worker.container.status == "running"
    celery_setup.gates.open("end")
    assert worker.wait() == 0
    assert result.get(timeout=5) == 4


def test_a_paused_worker_does_nothing_until_resumed(celery_setup: ProcessSetup) -> None:
    worker = celery_setup.worker
    worker.pause(children=True)
    result = celery_setup.app.signature("tests.work", (5,)).apply_async()
    assert stays(lambda: not celery_setup.journal.runs(result.id), 0.5)
    worker.resume()
    assert result.get(timeout=20) == 5


def test_teardown_ends_a_paused_worker(site: Site) -> None:
    worker = site.start_worker()
    pids = [worker.container.pid, *worker.children()]
    worker.pause(children=True)
    site.teardown()
    assert [pid for pid in pids if is_alive(pid)] == []


def test_processes_and_files_of_a_worker_can_be_looked_at(celery_setup: ProcessSetup) -> None:
    worker = celery_setup.worker
    assert len(worker.get_running_processes_info(["pid"])) == 2
    assert worker.get_running_processes_info(filters={"pid": worker.container.pid})
    assert "ready." in worker.container.get_text("output.log")["output.log"]
    assert worker.container.exec_run(["pwd"]) == (0, f"{worker.container.folder}\n".encode())
    assert worker.container.env["PYTHONUNBUFFERED"] == "1"
    assert worker.version


def test_the_journal_counts_overlaps(journal: Journal) -> None:
    class Request:
        id = "t"
        retries = 0

    with journal.run(Request), journal.run(Request):
        assert journal.max_overlap("t") == 2
    with pytest.raises(ZeroDivisionError), journal.run(Request):
        raise ZeroDivisionError
    assert [run.event for run in journal.runs("t")] == ["finish", "finish", "ZeroDivisionError"]
    assert journal.max_overlap("t") == 2
    assert journal.max_overlap("another") == 0


def test_a_gate_lets_through_what_waits_at_it(gates: Gates) -> None:
    waiter = threading.Thread(target=gates.wait, args=("g",), daemon=True)
    waiter.start()
    assert stays(waiter.is_alive, 0.1)
    gates.open("g")
    waiter.join(10)
    assert not waiter.is_alive()
    with pytest.raises(WaitTimeout, match="'h'"):
        gates.wait("h", timeout=0.05)


@shared_task(name="tests.in_process")
def doubled(number: int) -> int:
    return 2 * number


@pytest.mark.celery(broker_url="memory://", result_backend="cache+memory://")
def test_a_worker_in_this_process(celery_app: Celery, celery_worker: object) -> None:
    """The plugin's own in-process fixtures."""
    assert celery_app.signature("tests.in_process", (21,)).apply_async().get(timeout=10) == 42


@pytest.mark.workers(WorkerSpec(name="one", pool="solo"), WorkerSpec(name="two", pool="threads"))
def test_workers_of_different_kinds(celery_setup: ProcessSetup) -> None:
    names = {worker.hostname().partition("@")[0] for worker in celery_setup.workers}
    assert names == {"one", "two"}
    assert celery_setup.worker.spec.pool == "solo"


@pytest.mark.parametrize(
    ("option", "come_from"), [((), "tests/process/fixtures.py"), (("--docker",), "pytest_celery")]
)
def test_the_docker_option_chooses_whose_fixtures_run(
    option: tuple[str, ...], come_from: str
) -> None:
    command = [
        *(sys.executable, "-m", "pytest", "--fixtures-per-test", "-p", "no:cacheprovider", *option),
        f"{__file__}::test_a_plain_setup_answers_its_ping",
        f"{__file__}::test_a_gate_lets_through_what_waits_at_it",
    ]
    shown = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    # The plugin runs a test once for each of its brokers whose client is installed.
    lines = [text for text in shown.splitlines() if text.startswith("celery_worker_cluster ")]
    assert lines
    assert all(come_from in line for line in lines)
    # A test that needs a local process is left out on Docker.
    assert ("test_a_gate" in shown) == (not option)


def test_with_the_docker_option_every_test_can_be_collected() -> None:
    """Those that need local processes are left out, and are no errors."""
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--docker", "--collect-only", "--quiet"),
            *("-p", "no:cacheprovider", "tests"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout
    collected = [line.partition("[")[0] for line in shown.stdout.splitlines() if "::" in line]
    assert set(collected) == {f"{HERE}::test_a_plain_setup_answers_its_ping"}


def test_two_threads_take_turns_at_a_pool_that_grows() -> None:
    """Without it the second one takes a process that is not started yet for one that is gone."""
    take_turns_at_the_pool()
    pool = Pool(1, threads=False)
    starting, go_on = threading.Event(), threading.Event()
    make = pool.WorkerProcess

    def make_slowly(worker: Any) -> Any:
        process = make(worker)
        start = process.start

        def start_late() -> None:
            starting.set()
            assert go_on.wait(TIMEOUT)
            start()

        process.start = start_late
        return process

    pool.WorkerProcess = make_slowly
    try:
        pool.grow(1)
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(pool._maintain_pool)
            assert starting.wait(TIMEOUT)
            second = threads.submit(pool._maintain_pool)
            assert stays(lambda: not second.done(), 0.2)
            go_on.set()
            assert first.result(TIMEOUT) is second.result(TIMEOUT) is None
        assert len(pool._pool) == 2
    finally:
        go_on.set()
        # Its own way to end waits for threads that this pool does not have.
        pool._terminate.cancel()
        for process in pool._pool:
            process.terminate()
            process.join(TIMEOUT)
