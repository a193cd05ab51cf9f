"""How a figure is made: pairs of runs in turn, their ratio, the median of the ratios.

A slow moment of the machine meets both halves of a pair, so it hardly moves their ratio; which half
goes first changes from pair to pair. Nothing absolute is compared between machines.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

__all__ = [
    "Figure",
    "Measure",
    "Point",
    "Scale",
    "Work",
    "divide",
    "percentile",
    "ratios",
    "run",
    "seconds",
]

#: One call of what is measured; its argument numbers the calls.
Work = Callable[[int], object]


@dataclass(frozen=True)
class Scale:
    """How much work a run does.

    Parameters:
        pairs: runs of each half.
        quick: small amounts, to see that everything still works; its figures say little.
    """

    pairs: int
    quick: bool

    def of(self, full: int, quick: int) -> int:
        """The amount for this run."""
        return quick if self.quick else full


class Point(NamedTuple):
    """Where a figure stands: in which plot, in which of its lines or bars, and how far right."""

    plot: str
    series: str
    x: float = 0


@dataclass(frozen=True)
class Measure:
    """Something to measure.

    Parameters:
        name: what of ours, over what of the others.
        target: what it should be, for people.
        reached: whether a figure is good enough.
        pairs: makes the values, one for each pair.
        unit: of the values; empty for a ratio.
        point: its place in a plot; None: it is in none.
    """

    name: str
    target: str
    reached: Callable[[float], bool]
    pairs: Callable[[Scale], Iterator[float]]
    unit: str = ""
    point: Point | None = None


@dataclass
class Figure:
    """What was measured."""

    name: str
    target: str
    unit: str
    point: Point | None = None
    values: list[float] = field(default_factory=list)
    reached: bool | None = None
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.median if self.values else None}


def run(measure: Measure, scale: Scale) -> Figure:
    """Measure one thing; an error becomes the figure's ``failure``, for the others go on."""
    figure = Figure(measure.name, measure.target, measure.unit, measure.point)
    try:
        figure.values = list(measure.pairs(scale))
        figure.reached = measure.reached(figure.median)
    except Exception as error:  # noqa: BLE001 - whatever it was, the other figures are wanted
        figure.failure = f"{type(error).__name__}: {error}"
    return figure


def seconds(work: Work, first: int, calls: int) -> float:
    """How long so many calls take, numbered from ``first``."""
    gc.collect()
    began = time.perf_counter()
    for number in range(first, first + calls):
        work(number)
    return time.perf_counter() - began


def ratios(
    ours: Work, base: Work, scale: Scale, *, calls: int, per_call: int = 1
) -> Iterator[float]:
    """Ours over the base, pair by pair.

    Parameters:
        calls: of ours in each run.
        per_call: how many calls of the base one call of ours stands for.
    """
    for pair in range(scale.pairs):
        halves: list[Callable[[], float]] = [
            lambda pair=pair: seconds(ours, pair * calls, calls),  # type: ignore[misc]
            lambda pair=pair: seconds(  # type: ignore[misc]
                base, pair * calls * per_call, calls * per_call
            ),
        ]
        yield divide(halves, first=pair % 2)


def divide(halves: list[Callable[[], float]], *, first: int) -> float:
    """The first half's time over the second's, whichever ran first."""
    took = [0.0, 0.0]
    for place in (first, 1 - first):
        took[place] = halves[place]()
    return took[0] / took[1]


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]
