"""Gates: a task's body waits at one until the test opens it. A gate is a file."""

from __future__ import annotations

from pathlib import Path

from .waiting import wait_until

#: Seconds; shorter than a test may take, so that a forgotten gate names itself.
GATE_TIMEOUT = 60.0


class Gates:
    """The gates of one test.

    Parameters:
        folder: shared by the test and its workers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, name: str) -> None:
        """Let everything through that waits at the gate or will come to it."""
        (self.folder / name).touch()

    def is_open(self, name: str) -> bool:
        return (self.folder / name).exists()

    def wait(self, name: str, timeout: float = GATE_TIMEOUT) -> None:
        """Wait until the gate is open."""
        wait_until(lambda: self.is_open(name), timeout, what=f"gate {name!r} was never opened")
