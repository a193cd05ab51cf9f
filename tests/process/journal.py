"""The journal: what the task bodies did, one JSON line each, appended by all processes.

Times are of the monotonic clock, which is one clock for all processes of a host.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .waiting import TIMEOUT, wait_until


@dataclass(frozen=True)
class Run:
    """One time that a task's body was entered.

    Parameters:
        task_id: the task.
        pid: the process that ran it.
        started, ended: seconds; ``ended`` is None while the body runs.
        event: how it ended: ``finish``, the name of an exception, or ``died``.
        token: the fencing token, None without claims.
        retries: the attempt.
    """

    task_id: str
    pid: int
    started: float
    ended: float | None
    event: str | None
    token: int | None
    retries: int

    @property
    def is_running(self) -> bool:
        return self.ended is None


class Journal:
    """The journal of one test.

    Parameters:
        path: the file; made by the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **facts: Any) -> None:
        """Append a line. One ``write`` with O_APPEND: lines of several processes never mix."""
        line = json.dumps({"event": event, "at": time.monotonic(), "pid": os.getpid(), **facts})
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)

    @contextmanager
    def run(self, request: Any) -> Iterator[None]:
        """Note the start and the end of a task's body.

        Parameters:
            request: ``self.request`` of a bound task.
        """
        run = f"{os.getpid()}-{time.monotonic_ns()}"
        self.write(
            "start", task_id=request.id, run=run, token=_token(), retries=request.retries or 0
        )
        try:
            yield
        except BaseException as error:
            self.write(type(error).__name__, task_id=request.id, run=run)
            raise
        self.write("finish", task_id=request.id, run=run)

    def note_dead(self, *pids: int) -> None:
        """Tell that these processes are gone, so that their open runs count as ended now."""
        for pid in pids:
            self.write("died", of=pid)

    def lines(self) -> list[dict[str, Any]]:
        """Every whole line, in the order they were written."""
        if not self.path.exists():
            return []
        # The last one may be seen before all of it is written.
        whole, _, _ = self.path.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.split("\n") if line]

    def runs(self, task_id: str | None = None) -> list[Run]:
        """The runs, of one task or of all, in the order they started."""
        lines = self.lines()
        ends = {line["run"]: line for line in lines if line["event"] != "start" and "run" in line}
        deaths = [line for line in lines if line["event"] == "died"]
        starts = [line for line in lines if line["event"] == "start"]
        runs = [_run(start, ends.get(start["run"]) or _death(start, deaths)) for start in starts]
        return [run for run in runs if task_id in (None, run.task_id)]

    def wait_for_runs(self, task_id: str, count: int = 1, timeout: float = TIMEOUT) -> list[Run]:
        """Wait until so many runs of the task have started."""

        def started() -> list[Run] | None:
            runs = self.runs(task_id)
            return runs if len(runs) >= count else None

        return wait_until(
            started, timeout, what=lambda: f"{count} runs of {task_id} in {self.lines()}"
        )

    def wait_for_end(self, task_id: str, count: int = 1, timeout: float = TIMEOUT) -> list[Run]:
        """Wait until so many runs of the task have ended, however."""

        def ended() -> list[Run] | None:
            runs = self.runs(task_id)
            return runs if sum(not run.is_running for run in runs) >= count else None

        return wait_until(
            ended, timeout, what=lambda: f"{count} ends of {task_id} in {self.lines()}"
        )

    def max_overlap(self, task_id: str) -> int:
        """The most runs of the task that were in its body at one moment."""
        changes = []
        for run in self.runs(task_id):
            changes.append((run.started, 1))
            if run.ended is not None:
                changes.append((run.ended, -1))
        most = now = 0
        # At equal times the end comes first: the one did not see the other.
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most


def _run(start: dict[str, Any], end: dict[str, Any] | None) -> Run:
    return Run(
        task_id=start["task_id"],
        pid=start["pid"],
        started=start["at"],
        ended=end["at"] if end else None,
        event=end["event"] if end else None,
        token=start["token"],
        retries=start["retries"],
    )


def _death(start: dict[str, Any], deaths: list[dict[str, Any]]) -> dict[str, Any] | None:
    later = (line for line in deaths if line["of"] == start["pid"] and line["at"] >= start["at"])
    return next(later, None)


def _token() -> int | None:
    # Looked up and not imported: an app without claims must stay one.
    claims = sys.modules.get("celery_claims")
    claim = claims.current_claim() if claims is not None else None
    return None if claim is None else claim.token
