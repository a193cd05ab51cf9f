"""What a process uses, as Linux tells in ``/proc``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["measure_process", "processes_of"]

PROC = Path("/proc")


def processes_of(pid: int) -> Iterator[tuple[str, int]]:
    """A worker's processes: ``parent`` or ``child``, and the pid."""
    yield "parent", pid
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            yield "child", child.pid


def measure_process(pid: int) -> dict[str, float]:
    """Its memory in bytes, and how many files, sockets and threads it has; empty if it is gone.

    Memory is what is its own and no file's (``RssAnon``). Of the whole (RSS) a part is code that is
    read when it first runs; the private part (USS) of a forked child rises as pages are copied on
    a write; and a shared page's part (PSS) hangs on how many other processes there are. No leak can
    hide from it, but in a file or in swap.
    """
    try:
        status = dict(
            line.split(":", 1) for line in (PROC / str(pid) / "status").read_text().splitlines()
        )
        targets = [_target(each) for each in (PROC / str(pid) / "fd").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    if "RssAnon" not in status:
        # It has exited and nobody has asked for its exit code.
        return {}
    sockets = sum(target.startswith("socket:") for target in targets)
    return {
        "memory": 1024.0 * int(status["RssAnon"].split()[0]),
        "files": len(targets) - sockets,
        "sockets": sockets,
        "threads": int(status["Threads"]),
    }


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:
        # Closed meanwhile: it was open when it was listed.
        return ""
