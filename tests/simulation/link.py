"""How a process asks a server, and all that may become of a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from celery_claims.errors import StoreUnavailable

from .world import Process, World

__all__ = ["Link", "Service"]

A = TypeVar("A")

#: Of a server that answers, there or back, in seconds.
QUICK = (0.0001, 0.002)


class Service:
    """A server, as far as its state decides what becomes of questions.

    Parameters:
        name: for errors.
        timeout: seconds after which who asked gives up.
    """

    def __init__(self, world: World, name: str, timeout: float) -> None:
        self.world = world
        self.name = name
        self.timeout = timeout
        self.down = False
        self.slow = False
        #: what part of the questions goes wrong
        self.loses = 0.0
        self.healed_at = -1e9
        #: when it last did not answer somebody in time
        self.silent_at = -1e9
        #: called with who has no answer, or none in time
        self.on_silence: Callable[[Process, str], object] = lambda _process, _what: None

    def is_bad(self) -> bool:
        return self.down or self.slow or self.loses >= 1

    def was_bad(self, seconds: float) -> bool:
        """Whether it was, within the last seconds."""
        return self.is_bad() or self.world.now - self.healed_at < seconds

    def delay(self) -> float:
        if self.slow:
            return self.world.rng.uniform(0, 1.5 * self.timeout)
        return self.world.rng.uniform(*QUICK)


class Link:
    """One process's way to a server."""

    def __init__(self, process: Process, service: Service) -> None:
        self.process = process
        self.service = service

    def ask(self, what: str, effect: Callable[[], A]) -> A:
        """Put a question, and wait for the answer.

        Parameters:
            effect: what the server does, in one step.
        Raises:
            StoreUnavailable: no answer came; the effect may be there, or come later.
        """
        process, service, world = self.process, self.service, self.process.world
        process.step()
        if service.down:
            self._give_up(what, "is down", world.rng.uniform(0, service.timeout))
        goes = world.rng.random() if service.loses else 1.0
        if goes < service.loses / 3:
            self._give_up(what, "never arrives", service.timeout)
        there = service.delay()
        if goes < 2 * service.loses / 3:
            there = service.timeout + world.rng.expovariate(1 / service.timeout)
        if there >= service.timeout:
            # What waits in a buffer somewhere is done, whether or not anybody still wants it.
            world.after(there, self._late, what, effect)
            self._give_up(what, "is late", service.timeout)
        world.wait(there)
        if service.down:
            self._give_up(what, "is down", service.timeout - there)
        answer = effect()
        world.tell(process, "%s", what)
        process.step()
        back = service.delay()
        if goes < service.loses or there + back >= service.timeout:
            self._give_up(what, "is done, and its answer is lost", service.timeout - there)
        world.wait(back)
        return answer

    def _late(self, what: str, effect: Callable[[], object]) -> None:
        if not self.service.down:
            self.service.on_silence(self.process, what)
            effect()
            self.process.world.tell(self.process, "%s, late", what)

    def _give_up(self, what: str, why: str, wait: float) -> None:
        self.service.silent_at = self.process.world.now
        self.process.world.wait(max(wait, 0.0))
        self.service.silent_at = self.process.world.now
        self.service.on_silence(self.process, what)
        self.process.world.tell(self.process, "%s: %s", what, why)
        raise StoreUnavailable(self.service.name, why)
