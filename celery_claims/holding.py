"""The lines in which held deliveries wait, and when each asks again. Pure: ``now`` is an argument.

Deliveries of one task stand in one line and only the first of it asks the store: fifty copies of a
long task cost one question, not fifty.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

from .case import Case, Key, Phase
from .protocol import AlreadyClaimed

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "Lines", "Patience"]

#: First pause before a held delivery asks again, in seconds; it doubles from there.
FIRST_PAUSE = 0.05
#: Longest pause before a held delivery asks again, in seconds.
LONGEST_PAUSE = 5.0


@dataclass(slots=True)
class Lines:
    """The waiting deliveries of one worker.

    Parameters:
        rng: for jitter, so that the holders of one task do not ask together.
    """

    rng: random.Random
    _lines: dict[Key, deque[Case]] = field(default_factory=dict)
    _alarms: list[tuple[float, int, Case]] = field(default_factory=list)
    _count: int = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._lines

    def join(self, case: Case, *, first: bool = False) -> None:
        """Stand at the end of the line, or at its head, unless it stands there already."""
        line = self._lines.setdefault(case.key, deque())
        if case not in line:
            (line.appendleft if first else line.append)(case)

    def leave(self, case: Case, wake_at: float) -> None:
        """Out of the line; whoever is first then asks at ``wake_at``."""
        line = self._lines.get(case.key)
        if line is None or case not in line:
            return
        line.remove(case)
        if line:
            self.wake(case.key, wake_at)
        else:
            del self._lines[case.key]

    def wake(self, key: Key, at: float) -> None:
        """What the first of the line waited for has happened: it asks at ``at``."""
        line = self._lines.get(key)
        if line:
            line[0].pauses = 0
            self.set_alarm(line[0], at)

    def pause(self, case: Case, answer: AlreadyClaimed) -> float:
        """Seconds until the next question: doubling, but not past the end of the lease."""
        remaining = max(answer.expires_at - answer.now, 0) / 1000 + FIRST_PAUSE / 2
        return min(self.doubled(case), remaining)

    def doubled(self, case: Case) -> float:
        """Seconds until the next question of a case, twice as long each time."""
        pause = FIRST_PAUSE * 2.0 ** min(case.pauses, 16) * self.rng.uniform(0.8, 1.2)
        case.pauses += 1
        return min(pause, LONGEST_PAUSE)

    def set_alarm(self, case: Case, at: float) -> None:
        """Let the case ask at ``at``; an earlier alarm of it is void."""
        case.ask_at = at
        self._count += 1
        heappush(self._alarms, (at, self._count, case))

    def due(self, now: float) -> list[Case]:
        """The first of each line whose time has come; each is reported once per alarm."""
        cases = []
        while self._alarms and self._alarms[0][0] <= now:
            at, _, case = heappop(self._alarms)
            if case.phase is Phase.HELD and case.ask_at == at and self._is_first(case):
                cases.append(case)
        return cases

    def next_alarm(self) -> float | None:
        """When ``due`` may have something to say again."""
        return self._alarms[0][0] if self._alarms else None

    def waiting(self) -> list[Case]:
        """Every case in a line."""
        return [case for line in self._lines.values() for case in line]

    def dissolve(self) -> list[Case]:
        """End all lines; who stood in them."""
        cases = self.waiting()
        self._lines.clear()
        self._alarms.clear()
        return cases

    def _is_first(self, case: Case) -> bool:
        line = self._lines.get(case.key)
        return line is not None and line[0] is case


@dataclass(slots=True)
class Patience:
    """When held deliveries have waited for so long that they must go back to their queue.

    Parameters:
        limit: seconds from a delivery's arrival; None: it may wait for ever.
    """

    limit: float | None
    _ends: list[tuple[float, int, Case]] = field(default_factory=list)
    _count: int = 0

    def begin(self, case: Case) -> None:
        """The case is held from now on, which it was not."""
        if self.limit is not None and case.at_broker:
            self._count += 1
            heappush(self._ends, (case.received_at + self.limit, self._count, case))

    def over(self, now: float) -> list[Case]:
        """Held cases whose time is over; each is reported once."""
        cases = []
        while self._ends and self._ends[0][0] <= now:
            _, _, case = heappop(self._ends)
            if case.phase is Phase.HELD and case not in cases:
                cases.append(case)
        return cases

    def next_end(self) -> float | None:
        """When ``over`` may have something to say."""
        return self._ends[0][0] if self._ends else None

    def forget_all(self) -> None:
        """None of them waits any more."""
        self._ends.clear()
