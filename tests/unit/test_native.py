"""Locks and threads that gevent does not touch, and forks that leave them whole."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

from celery_claims.native import Wakeup, across_forks, allocate_lock, start_thread


def run(program: str) -> None:
    """Run a program in an interpreter of its own; it asserts by itself."""
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


def test_thread_runs_and_ends() -> None:
    name: list[str] = []
    go = Wakeup()

    def work() -> None:
        go.wait(30)
        name.append(threading.current_thread().name)

    thread = start_thread(work, "heart")
    assert thread.is_alive()
    assert not thread.join(0)
    go.set()
    assert thread.join(30)
    assert not thread.is_alive()
    assert name == ["heart"]


def test_wakeup_counts_several_calls_as_one() -> None:
    wakeup = Wakeup()
    assert not wakeup.wait(0)
    wakeup.set()
    wakeup.set()
    assert wakeup.wait(0)
    assert not wakeup.wait(0)
    assert not wakeup.wait(-1)


def test_gevent_is_not_imported() -> None:
    run("import celery_claims.native, sys; assert 'gevent' not in sys.modules")


def test_native_under_gevent_whatever_is_imported_first() -> None:
    for first, second in (("native", "patch"), ("patch", "native")):
        lines = {
            "native": "from celery_claims.native import Wakeup, allocate_lock, start_thread",
            "patch": "from gevent import monkey; monkey.patch_all()",
        }
        run(
            lines[first]
            + "\n"
            + lines[second]
            + textwrap.dedent(
                """
                from gevent.monkey import get_original
                assert type(allocate_lock()) is type(get_original("_thread", "allocate_lock")())
                asked, answered = Wakeup(), Wakeup()
                ident = get_original("_thread", "get_ident")
                where = []

                def work():
                    asked.wait(30)
                    where.append(ident())
                    answered.set()

                thread = start_thread(work, "heart")
                asked.set()
                # Nothing yields to the hub here: a green thread would never come to its turn.
                assert answered.wait(30)
                assert thread.join(30)
                assert where != [ident()]
                """
            )
        )


def test_things_are_told_of_a_fork() -> None:
    events: list[str] = []

    class Thing:
        def __init__(self) -> None:
            self.lock = allocate_lock()

        def before_fork(self) -> None:
            self.lock.acquire()
            events.append("before")

        def after_fork_in_parent(self) -> None:
            self.lock.release()
            events.append("parent")

        def after_fork_in_child(self) -> None:
            self.lock = allocate_lock()
            events.append("child")

    thing = Thing()
    across_forks(thing)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if events == ["before", "child"] and not thing.lock.locked() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert events == ["before", "parent"]
    assert not thing.lock.locked()
    del thing
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert events == ["before", "parent"]
