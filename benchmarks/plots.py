"""The figures as pictures: throughput beside bare Celery and peers, a claim among ever more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Picture

from .measuring import Figure
from .stores import GROWTH
from .workers import THROUGHPUT

__all__ = ["draw"]


def draw(figures: Sequence[Figure], folder: Path) -> Iterator[Path]:
    """Draw each plot of which there are figures.

    Returns:
        the files, as they are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for plot, onto in _PLOTS.items():
        chosen = [f for f in figures if f.point is not None and f.point.plot == plot and f.values]
        if not chosen:
            continue
        picture = Picture(figsize=(8, 4.5), layout="constrained")
        onto(picture.subplots(), chosen)
        file = folder / f"{plot}.svg"
        # Without a date, so that the same figures make the same file.
        picture.savefig(file, metadata={"Date": None})
        yield file


def _throughput(axes: Any, figures: Sequence[Figure]) -> None:
    medians = [figure.median for figure in figures]
    errors = [
        [figure.median - min(figure.values) for figure in figures],
        [max(figure.values) - figure.median for figure in figures],
    ]
    names = [figure.point.series for figure in figures if figure.point is not None]
    axes.barh(names, medians, xerr=errors, capsize=3)
    axes.invert_yaxis()
    axes.axvline(1, linestyle="--", color="black")
    axes.set_xlabel("tasks per second: with claims / without (median, lowest, highest)")


def _growth(axes: Any, figures: Sequence[Figure]) -> None:
    series: dict[str, list[tuple[float, float]]] = {}
    for figure in figures:
        if figure.point is not None:
            start = series.setdefault(figure.point.series, [(1000, 1.0)])
            start.append((figure.point.x, figure.median))
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("live claims")
    axes.set_ylabel("one claim / one among 1,000")
    axes.legend()


_PLOTS: dict[str, Callable[[Any, Sequence[Figure]], None]] = {
    THROUGHPUT: _throughput,
    GROWTH: _growth,
}
