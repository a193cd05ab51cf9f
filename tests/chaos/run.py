"""One chaos run, from the first message to the verdict."""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.process.environment import CLAIMS_VARIABLE, CONF_VARIABLE, FOLDER_VARIABLE
from tests.process.waiting import WaitTimeout, stays, wait_until

from .environment import LEDGER, PROTECTION
from .faults import Faults
from .load import KINDS, Load
from .trace import UNACKED, Message, commands_in, dropped_in, told, traces, unanswered_in
from .verdict import Verdict, judge
from .world import Plan, World, made

__all__ = ["Outcome", "run"]

#: How long a broker must have nothing before what is missing is taken to be gone, in leases: far
#: longer than a message is neither queued nor unacknowledged on its way to a worker.
FORGOTTEN = 2

#: An id.
_ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
#: A message in a worker's hands, in its log: as the gate says it, and as Celery does. An id alone
#: may only be one that another message names, of the body of a chord for one.
_SEEN = re.compile(
    rf"(?:\b(?:claimed|taken_over|held|skipped) task \S+\[({_ID})\]:|"
    rf"\bTask \S+\[({_ID})\] received)"
)
#: A grant in a log: the id, and the retries of its attempt.
_GRANT = re.compile(rf"\[({_ID})\]: token \d+, attempt \(\d+, (\d+)\)")

#: What a gate says first of a message, and again when it is held no more.
_AT_THE_GATE = re.compile(rf"\b(claimed|taken_over|held|skipped) task \S+\[({_ID})\]:")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run came to, and the faults that it survived."""

    verdict: Verdict
    faults: Mapping[str, int]
    logs: Mapping[str, str]


def run(plan: Plan, tell: Tell = lambda _: None) -> Outcome:
    """Let chaos happen, wait until everything has come to rest, and judge.

    Parameters:
        plan: what kind of run.
        tell: called with what happens, for somebody who watches.
    """
    with (
        tempfile.TemporaryDirectory(prefix="claims-chaos-") as folder,
        made(plan, Path(folder)) as world,
    ):
        load = Load(sender(world), random.Random(f"load {plan.seed}"), plan.lease)
        faults = Faults(world, random.Random(f"faults {plan.seed}"))
        world.start_workers()
        disturb(world, load, faults, tell)
        faults.end()
        late = rest(world, load, tell)
        logs = world.site.logs()
        broker = world.broker_server
        found = traces(commands_in(broker.folder)) if plan.broker == "redis" else {}
        verdict = judge(
            load.sent,
            world.site.journal.runs(),
            world.ledger.writes(),
            world.happenings,
            plan.lease,
            dropped_in(found),
            late,
            # What else may keep messages from workers cannot be followed, and is not on trial.
            None if plan.protection == "claims" else seen_in(logs),
            unclaimed_in(found, logs),
            told(found),
        )
    return Outcome(verdict, faults.counts, logs)


def sender(world: World) -> Any:
    """The app of the workers, in this process and on a connection without faults."""
    site = world.site
    direct = world.broker_server.port, world.broker_proxy.port
    conf = dict(site.conf)
    conf["broker_url"] = conf["broker_url"].replace(f":{direct[1]}/", f":{direct[0]}/")
    # The module reads its environment when it is imported, as it does in a worker.
    os.environ.update(
        {
            CONF_VARIABLE: json.dumps(conf),
            CLAIMS_VARIABLE: json.dumps(site.claims),
            FOLDER_VARIABLE: str(site.folder),
            PROTECTION: world.plan.protection,
            LEDGER: site.extra_env[LEDGER],
        }
    )
    from . import tasks

    tasks.app.conf.update(conf)
    tasks.app.set_default()
    return tasks.app


def disturb(world: World, load: Load, faults: Faults, tell: Tell) -> None:
    """Send and break things until the time is over."""
    plan, began = world.plan, time.monotonic()
    kinds = random.Random(f"kinds {plan.seed}")
    next_fault = began + plan.pause
    count = 0
    while time.monotonic() < began + plan.seconds:
        while count < (time.monotonic() - began) * plan.rate:
            load.send(kinds.choice(KINDS))
            count += 1
        faults.thaw()
        world.replace_the_dead()
        if time.monotonic() >= next_fault:
            tell(faults.happen())
            next_fault = time.monotonic() + kinds.expovariate(1 / plan.pause)
        stays(lambda: True, 0.05)


def rest(world: World, load: Load, tell: Tell) -> set[str]:
    """Wait until everything that was sent has ended, and for what may still come again.

    The ids of the tasks that had not ended in time, whatever became of them since.
    """
    wanted = {task_id for sent in load.sent if sent.sure for task_id in sent.ids}
    lease = world.plan.lease

    def left() -> set[str]:
        world.replace_the_dead()
        return wanted - {run.task_id for run in world.site.journal.runs() if run.event == "finish"}

    if not came_to_rest(left, world.has_messages, world.plan.rest, FORGOTTEN * lease):
        tell(f"{len(left())} tasks have not ended")
    late = left()
    # A run that should not be would begin now.
    stays(lambda: True, 2 * lease)
    return late


def came_to_rest(
    left: Callable[[], object],
    has_messages: Callable[[], bool],
    patience: float,
    forgotten: float,
    interval: float = 0.5,
) -> bool:
    """Wait for tasks, but not for those whose messages nobody has; whether all of them ended.

    A message is acknowledged late, and what follows a task is sent before that: a broker that has
    nothing at all, queued or unacknowledged, brings nothing any more, whoever is to blame for it.

    Parameters:
        left: what has not ended.
        has_messages: whether the broker has any.
        patience: seconds, at most.
        forgotten: seconds without any message after which none will come.
        interval: seconds between two looks.
    """
    had = time.monotonic()

    def is_over() -> bool:
        nonlocal had
        if not left():
            return True
        if has_messages():
            had = time.monotonic()
        return time.monotonic() - had >= forgotten

    # It is told by what is left.
    with suppress(WaitTimeout):
        wait_until(is_over, patience, interval=interval)
    return not left()


def unclaimed_in(found: Mapping[Message, list[str]], logs: Mapping[str, str]) -> Mapping[str, int]:
    """Tasks that the broker gave away once more than any worker heard of: a message of each is
    unacknowledged, and its worker died before it asked for a claim, or its connection broke while
    kombu noted it. By id, with the retries of the newest attempt."""
    given: Counter[str] = Counter()
    for message, way in found.items():
        given[message.task_id] += way.count(UNACKED)
    heard = heard_in(logs)
    return {
        task_id: retries
        for task_id, retries in unanswered_in(found).items()
        if given[task_id] > heard[task_id]
    }


def heard_in(logs: Mapping[str, str]) -> Counter[str]:
    """How many deliveries of each task the gates tell of; what is held is told of again later."""
    heard: Counter[str] = Counter()
    for log in logs.values():
        held: Counter[str] = Counter()
        for event, task_id in _AT_THE_GATE.findall(log):
            if event != "held" and held[task_id]:
                held[task_id] -= 1
                continue
            heard[task_id] += 1
            held[task_id] += event == "held"
    return heard


def seen_in(logs: Mapping[str, str]) -> set[str]:
    """The ids of messages that workers had, and the later attempts that were granted."""
    text = "\n".join(logs.values())
    later = {f"{task_id} attempt {retries}" for task_id, retries in _GRANT.findall(text)}
    return {task_id for found in _SEEN.findall(text) for task_id in found if task_id} | later
