"""What goes wrong in a chaos run, and when: a seeded schedule of faults."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import psutil

from tests.process.proxy import Fault, Proxy
from tests.process.waiting import stays, wait_until

from .world import World

__all__ = ["FAULTS", "Faults"]

#: By name, with their share of all faults.
FAULTS = {
    "kill a worker": 4,
    "kill a parent": 2,
    "kill a child": 4,
    "freeze a worker": 3,
    "freeze a parent": 3,
    "cut the broker": 2,
    "silence the broker": 1,
    "restart the broker": 1,
    "cut the store": 2,
    "silence the store": 1,
    "restart the store": 1,
}

#: How long a silent connection is so, in leases: now and then longer than a lease.
SILENCE = (0.2, 1.3)
#: How long somebody is frozen, in leases: mostly for so long that another worker takes over.
FREEZE = (0.5, 3.0)


class Faults:
    """Lets faults happen, one after the other.

    Parameters:
        world: to whom.
        rng: decides which, and when.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._frozen: list[tuple[float, Callable[[], None]]] = []
        self.counts = dict.fromkeys(FAULTS, 0)

    def happen(self) -> str:
        """One fault; its name. Counted is what happened to somebody."""
        (name,) = self._rng.choices(list(FAULTS), weights=list(FAULTS.values()))
        if getattr(self, name.replace(" ", "_"))() is False:
            return f"{name}: there is none"
        self.counts[name] += 1
        return name

    def end(self) -> None:
        """Nothing goes wrong any more; what is frozen goes on."""
        for _, resume in self._frozen:
            resume()
        self._frozen.clear()

    def thaw(self) -> None:
        """Let go on what was frozen for long enough."""
        now = time.monotonic()
        due = [item for item in self._frozen if item[0] <= now]
        for item in due:
            self._frozen.remove(item)
            item[1]()

    def kill_a_worker(self) -> None:
        worker = self._rng.choice(self._world.workers)
        pids = self._world.pids(worker)
        began = time.monotonic()
        worker.container.kill_group("SIGKILL")
        self._dead("kill a worker", began, pids)
        self._world.replace(worker)

    def kill_a_parent(self) -> None:
        """The system kills its children with it, in the middle of what they run."""
        worker = self._rng.choice(self._world.workers)
        pids = self._world.pids(worker)
        began = time.monotonic()
        worker.container.kill("SIGKILL")
        wait_until(lambda: not worker.children(), what="the children of a killed worker")
        self._dead("kill a parent", began, pids | {worker.container.pid})
        self._world.replace(worker)

    def kill_a_child(self) -> bool:
        """Whether there was one: a worker that has just been started has none yet."""
        worker = self._rng.choice(self._world.workers)
        began = time.monotonic()
        try:
            pid = self._rng.choice(sorted(worker.children()))
            os.kill(pid, signal.SIGKILL)
        except (IndexError, psutil.NoSuchProcess, ProcessLookupError):
            return False
        self._dead("kill a child", began, frozenset({pid}))
        return True

    def freeze_a_worker(self) -> None:
        """Another worker takes over, and then this one wakes up in the middle of what it ran."""
        self._freeze("freeze a worker", children=True)

    def freeze_a_parent(self) -> None:
        """Its children go on, under leases that nobody renews."""
        self._freeze("freeze a parent", children=False)

    def _freeze(self, name: str, *, children: bool) -> None:
        world = self._world
        worker = self._rng.choice(world.workers)
        began, pids = time.monotonic(), world.pids(worker)
        worker.pause(children=children)

        def resume() -> None:
            worker.resume()
            world.note(name, began, pids)

        until = began + world.plan.lease * self._rng.uniform(*FREEZE)
        self._frozen.append((until, resume))

    def cut_the_broker(self) -> None:
        self._cut("cut the broker", self._world.broker_proxy)

    def silence_the_broker(self) -> None:
        self._silence("silence the broker", self._world.broker_proxy)

    def restart_the_broker(self) -> None:
        world, began = self._world, time.monotonic()
        if world.plan.broker == "redis":
            world.broker_server.kill()
            world.broker_server.start()
        else:
            world.broker_server.stop_app()
            world.broker_server.start_app()
        world.note("restart the broker", began)

    def cut_the_store(self) -> None:
        self._cut("cut the store", self._world.store_proxy)

    def silence_the_store(self) -> None:
        self._silence("silence the store", self._world.store_proxy)

    def restart_the_store(self) -> None:
        world, began = self._world, time.monotonic()
        if world.plan.store == "redis":
            world.store_server.kill()
        else:
            world.store_server.stop(signal.SIGQUIT)
        world.store_server.start()
        world.note("restart the store", began)

    def _cut(self, name: str, proxy: Proxy) -> None:
        began = time.monotonic()
        proxy.cut()
        self._world.note(name, began)

    def _silence(self, name: str, proxy: Proxy) -> None:
        """Half-open connections, which end when something passes again."""
        began = time.monotonic()
        proxy.fault = Fault.SILENCE
        seconds = self._world.plan.lease * self._rng.uniform(*SILENCE)
        stays(lambda: True, seconds)
        proxy.fault = Fault.NONE
        # What was swallowed is missing in the stream; such a connection is of no use.
        proxy.cut()
        self._world.note(name, began)

    def _dead(self, name: str, began: float, pids: frozenset[int]) -> None:
        self._world.site.journal.note_dead(*pids)
        self._world.note(name, began, pids)
