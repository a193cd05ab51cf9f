"""Work in other processes: forked children that report, and writers that are killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from celery_claims.native import monotonic
from celery_claims.protocol import ClaimRequest, Outcome, Settlement, Success
from celery_claims.stores.sqlite import SQLiteStore

#: Seconds after which a child counts as hung.
PATIENCE = 60


class Child:
    """A forked child that runs ``work`` and reports what it returned, or its error.

    Parameters:
        work: gives something that JSON can carry.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._report, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _report(work, writing)
        os.close(writing)

    def result(self) -> Any:
        """What it returned; fails if it raised or hung."""
        os.set_blocking(self._report, True)
        signal.alarm(PATIENCE)
        try:
            with os.fdopen(self._report, "rb") as report:
                text = report.read()
        finally:
            signal.alarm(0)
        _, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, text.decode()
        return json.loads(text)


def _report(work: Callable[[], Any], writing: int) -> None:
    code = 1
    try:
        text = json.dumps(work())
        code = 0
    except BaseException:  # noqa: BLE001 - reported to the parent
        text = traceback.format_exc()
    try:
        os.write(writing, text.encode())
    finally:
        os._exit(code)


def in_child(work: Callable[[], Any]) -> Any:
    return Child(work).result()


def error_of(call: Callable[[], Any]) -> list[str]:
    """The name and text of what a call raised."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the caller looks at it
        return [type(error).__name__, str(error), type(error.__cause__).__name__]
    return ["nothing", "", ""]


def claim_and_release_for_ever(path: str, writer: str) -> None:
    """Say each claim and release on stdout once it is acknowledged; ends by being killed."""
    store = SQLiteStore(f"sqlite:///{path}", timeout=30.0)
    number = 0
    until = monotonic() + PATIENCE
    while monotonic() < until:
        number += 1
        name = f"{writer}-{number}"
        answer = store.claim([ClaimRequest("q", name, writer, 60_000, name, "root")])[0]
        assert isinstance(answer, Success)
        print(f"claimed {name} {answer.token.token}", flush=True)  # noqa: T201 - read by the test
        if number % 2:
            store.settle([Settlement(answer.token, Outcome.SUCCESS, 3_600_000)])
            print(f"finished {name} {answer.token.token}", flush=True)  # noqa: T201


if __name__ == "__main__":
    claim_and_release_for_ever(*sys.argv[1:])
