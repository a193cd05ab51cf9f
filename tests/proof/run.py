"""``make proof``: every store, with threads and with processes, while everything breaks.

Prints a table of what came of it and one of what went wrong. For a violation it prints the smallest
history that shows it, and exits with 1; it also does so if something that can go wrong in a store
never did in a long run of it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .arenas import (
    Arena,
    ForgetfulRedisArena,
    LaggingRedisArena,
    MemoryArena,
    PostgresArena,
    RedisArena,
    SQLiteArena,
)
from .runs import (
    History,
    Judgement,
    Settings,
    answers_lost,
    judge,
    record,
    tokens_that_went_back,
)

KEEPING = {arena.name: arena for arena in (MemoryArena, SQLiteArena, RedisArena, PostgresArena)}

#: Operations of a run that is long enough for every kind of fault.
LONG = 50_000

#: Configurations: where a store lost writes, a search need not find out which.
LOSING_BUDGET = 10_000

HEADINGS = (
    "store", "clients", "operations", "unknown", "faults", "records", "longest", "asked s",
    "search s", "verdict",
)  # fmt: skip
FAULT_HEADINGS = ("store", "clients", "what went wrong, and how often")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make proof", description=__doc__)
    parser.add_argument("--operations", type=int, default=200_000, help="of each store, at least")
    parser.add_argument("--seed", type=int, default=None, help="of all choices; else by the time")
    parser.add_argument("--store", choices=[*KEEPING, "losing"], action="append")
    parser.add_argument("--fault-every", type=float, default=1.0, help="seconds, on the average")
    chosen = parser.parse_args(arguments)
    seed = int(time.time()) if chosen.seed is None else chosen.seed
    stores = chosen.store or [*KEEPING, "losing"]
    rows: list[Row] = []
    found: list[str] = []
    for name in stores:
        if name == "losing":
            rows += _losing(chosen.operations // 20, seed, found)
        else:
            settings = Settings(chosen.operations, seed=seed, fault_every=chosen.fault_every)
            rows += _keeping(KEEPING[name], settings, found)
    print("\n".join(_table(HEADINGS, [row.cells for row in rows])))
    print()
    print("\n".join(_table(FAULT_HEADINGS, [row.faults for row in rows])))
    print(f"\nseed {seed}: repeat it with --seed {seed}")
    print("\n\n".join(["", *found]) if found else "No history is without an order.")
    return 1 if found else 0


@dataclass(frozen=True)
class Row:
    """What is told of a run: a row of each table."""

    cells: tuple[str, ...]
    faults: tuple[str, ...]


def never_happened(history: History, least: int = LONG) -> list[str]:
    """The faults that a run was long enough for and that it did not have."""
    if len(history.operations) < least:
        return []
    return sorted(name for name, count in history.faults.items() if not count)


def _keeping(
    make: Callable[[random.Random], Arena], settings: Settings, found: list[str]
) -> Iterator[Row]:
    """Stores that keep what they answered: half of the operations by threads, half by processes."""
    with make(random.Random(settings.seed)) as arena:
        kinds = (False, True) if arena.shared else (False,)
        part = replace(settings, operations=settings.operations // len(kinds))
        for processes in kinds:
            kind = "processes" if processes else "threads"
            history = record(
                arena, replace(part, processes=processes), _progress(arena, kind, part.operations)
            )
            judgement = judge(arena, history)
            back = tokens_that_went_back(history.operations)
            if not judgement.is_good or back:
                found.append(f"{arena.name}, {kind}: {judgement.counterexample or judgement}{back}")
            found += [f"{arena.name}, {kind}: no {name}" for name in never_happened(history)]
            verdict = "linearizable" if judgement.is_good and not back else "VIOLATED"
            yield _row(arena, kind, history, judgement, verdict)
    _clear()


def _losing(operations: int, seed: int, found: list[str]) -> Iterator[Row]:
    """Stores that lose what they answered: how much, and that tokens still never go back."""
    settings = Settings(operations, seed=seed)
    for make in (ForgetfulRedisArena, LaggingRedisArena):
        with make(random.Random(seed)) as arena:
            history = record(arena, settings, _progress(arena, "threads", operations))
            strict = judge(arena, history, budget=LOSING_BUDGET, explained=False)
            lost = len(strict.violations) + len(strict.undecided)
            verdict = f"{lost} records without an order"
            if arena.fallbacks:
                verdict += f", {answers_lost(arena, history.operations)} answers lost"
            if arena.amnesias:
                forgiving = judge(arena, history, forgiving=True)
                verdict += ", else linearizable" if forgiving.is_good else ", VIOLATED"
                if not forgiving.is_good:
                    found.append(f"{arena.name}: {forgiving.counterexample or forgiving}")
            back = tokens_that_went_back(history.operations)
            verdict += ", TOKENS WENT BACK" if back else ", tokens rose"
            if back:
                found.append(f"{arena.name}: {back[0]}")
            # Without its one fault such a run shows nothing, however short it is.
            found += [f"{arena.name}: no {name}" for name in never_happened(history, 0)]
            yield _row(arena, "threads", history, strict, verdict)
    _clear()


def _row(arena: Arena, clients: str, history: History, judgement: Judgement, verdict: str) -> Row:
    cells = (
        arena.name,
        clients,
        f"{judgement.operations:,}",
        f"{judgement.unknown:,}",
        str(history.faults.total()),
        str(judgement.keys),
        f"{judgement.longest:,}",
        f"{history.seconds:.0f}",
        f"{judgement.seconds:.0f}",
        verdict,
    )
    faults = [f"{name} {count}" for name, count in sorted(history.faults.items())]
    if arena.odds:
        faults.append(f"question or answer lost {judgement.unknown:,}")
    if arena.wrong_clock and clients == "processes":
        faults.append("every client's clock wrong")
    return Row(cells, (arena.name, clients, ", ".join(faults)))


def _progress(arena: Arena, kind: str, operations: int) -> Callable[[int], None]:
    if not sys.stderr.isatty():
        return lambda done: None

    def show(done: int) -> None:
        part = min(1.0, done / operations)
        bar = "#" * int(30 * part)
        sys.stderr.write(f"\r{arena.name}, {kind} [{bar:<30}] {done:,} of {operations:,}   ")
        sys.stderr.flush()

    return show


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, tuple("-" * width for width in widths), *rows):
        yield "| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) + " |"


if __name__ == "__main__":
    sys.exit(main())
