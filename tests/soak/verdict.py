"""Flat or growing? Pure: what was measured in, a verdict out.

A leak is growth that goes on. Neither is a process that comes to its working size, nor a pool that
takes one more block for good, nor a log that is truncated now and then. So what counts is a rate
that is kept up:

- what was measured in the first part (the warm-up) is left out;
- the rate is the median of the slopes between all pairs of points (Theil and Sen), which up to 29
  of 100 points may spoil: a garbage collection or a checkpoint does not;
- it is taken of the whole and of each half, and the lowest counts. A step is in one half only, and
  a sawtooth is level over the whole;
- growth is that rate times the time that was watched. Tolerated is an amount, not a rate: the
  longer a run, the smaller the leaks that it finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import NamedTuple

__all__ = ["LEAST", "TOLERATED", "Finding", "Measure", "Point", "Tolerance", "find", "judge"]

#: (seconds, value)
Point = tuple[float, float]

#: Points below which nothing is said: a process that lived only for a while.
LEAST = 12
#: Points that are looked at; their pairs are of the order of its square.
MOST = 240


class Measure(NamedTuple):
    """Something that is measured again and again.

    Parameters:
        of: whose it is.
        what: in a word or two.
        kind: of ``TOLERATED``.
    """

    of: str
    what: str
    kind: str

    def __str__(self) -> str:
        return f"{self.of}: {self.what}"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much something may grow while it is watched.

    Parameters:
        amount: in the unit of what is measured.
        share: of its level; the larger of the two counts.
    """

    amount: float
    share: float = 0.0


#: By what is measured. Amounts are a few times what the same run without claims shows.
TOLERATED: Mapping[str, Tolerance] = {
    # Bytes. An allocator gives blocks of up to 1 MiB back late or never.
    "memory": Tolerance(3 * 2**20),
    "files": Tolerance(4),
    "threads": Tolerance(3),
    "sockets": Tolerance(4),
    # Bytes of a server. Its clients' buffers, and tables that wait for their vacuum.
    "size": Tolerance(2 * 2**20, 0.25),
    # How many there are goes up and down with the load of the moment.
    "count": Tolerance(30, 0.5),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one thing that was measured.

    Parameters:
        measure: which.
        points: how many were looked at.
        first, last: medians of the first and the last third.
        growth: while it was watched, at the rate that it kept up.
        tolerated: that much it may be.
    """

    measure: Measure
    points: int
    first: float
    last: float
    growth: float
    tolerated: float

    @property
    def verdict(self) -> str:
        """``flat``, ``growing``, or ``too short`` to say."""
        if self.points < LEAST:
            return "too short"
        return "growing" if self.growth > self.tolerated else "flat"


def judge(measured: Mapping[Measure, Sequence[Point]], warm_up: float) -> list[Finding]:
    """Judge each series.

    Parameters:
        measured: the points of each, in the order of time; at least one.
        warm_up: seconds from the first point of each that are left out.
    """
    return [find(measure, points, warm_up) for measure, points in measured.items()]


def find(measure: Measure, points: Sequence[Point], warm_up: float) -> Finding:
    """Judge one series; see the module."""
    tolerance = TOLERATED[measure.kind]
    warm = [each for each in points if each[0] >= points[0][0] + warm_up]
    if len(warm) < LEAST:
        level = median(value for _, value in warm or points)
        return Finding(measure, len(warm), level, level, 0.0, tolerance.amount)
    warm = thinned(warm)
    third, half = len(warm) // 3, len(warm) // 2
    first = median(value for _, value in warm[:third])
    last = median(value for _, value in warm[-third:])
    rate = min(slope(part) for part in (warm, warm[:half], warm[half:]))
    tolerated = max(tolerance.amount, tolerance.share * first)
    return Finding(measure, len(warm), first, last, rate * (warm[-1][0] - warm[0][0]), tolerated)


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most ``MOST`` of them, the first and the last among them."""
    if len(points) <= MOST:
        return points
    step = (len(points) - 1) / (MOST - 1)
    return [points[round(place * step)] for place in range(MOST)]


def slope(points: Sequence[Point]) -> float:
    """The median of the slopes between all pairs, in units a second."""
    return median(
        (late - early) / (then - now)
        for (now, early), (then, late) in combinations(points, 2)
        if then > now
    )
