"""Three accidents that happen to Celery tasks, without and then with claims.

Two real workers (and beat) run ``app.py`` on a broker that is a folder. The half without claims
runs the same file, less the four lines that mention them. The verdict is computed from the journal
that the tasks write, and the exit status is 0 only if the half with claims did everything right.

    python demo.py [--only copies|kill|long]... [--plain] [--keep]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from celery import Celery

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
except ModuleNotFoundError:  # plain lines do without it
    HAS_RICH = False
else:
    HAS_RICH = True

#: What makes a line of app.py part of the cure.
CURE = ("from celery_claims import", "install(app", "@claimed", "current_claim()")

#: Seconds to wait for what should happen at once or within a lease; then the story is judged.
PATIENCE = 30.0

#: Seconds between two looks at the journal and the logs.
TICK = 0.1

#: What the workers' logs say of a copy that does not run, or runs instead of another.
LOG_LINE = re.compile(r"\b(held|skipped|taken_over|lost) task \S+\[([^\]]+)\]")

Event = dict[str, Any]


class DemoError(Exception):
    """The demo itself could not go on: a process did not start."""


@dataclass(frozen=True)
class Tally:
    """What became of one task.

    Parameters:
        runs: how often its body was started.
        finished: how often its body reached the end.
        overlaps: how many runs started while another was going on.
        lost: 1 if it never reached the end.
    """

    runs: int
    finished: int
    overlaps: int
    lost: int

    @property
    def right(self) -> bool:
        return (self.finished, self.overlaps, self.lost) == (1, 0, 0)

    def __str__(self) -> str:
        return (
            f"runs {self.runs}, finished {self.finished}, "
            f"overlaps {self.overlaps}, lost {self.lost}"
        )


def tally(events: list[Event]) -> Tally:
    """Judge one task by its journal, whose lines are in the order in which things happened."""
    going: set[int] = set()
    count: Counter[str] = Counter()
    for event in events:
        kind, pid = event["event"], event["pid"]
        count[kind] += 1
        if kind == "start":
            count["overlap"] += bool(going)
            going.add(pid)
        elif kind in ("end", "killed"):
            going.discard(pid)
    return Tally(count["start"], count["end"], count["overlap"], lost=int(not count["end"]))


class Cluster:
    """Two workers and their broker, in a folder.

    Parameters:
        folder: for everything that they write.
        claims: whether they run app.py as it is, or without its claims; the former have beat too.
        watch: called at every look at the journal while waiting.
    """

    WORKERS = ("one", "two")

    def __init__(self, folder: Path, *, claims: bool, watch: Callable[[], None]) -> None:
        self.folder = folder
        self.claims = claims
        self._watch = watch
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "outbox").mkdir(parents=True)
        (folder / "app.py").write_text(app_source(claims=claims))
        self._sender = Celery("sender", broker="filesystem://", set_as_current=False)
        self._sender.conf.broker_transport_options = {
            "data_folder_in": str(folder / "outbox"),
            "data_folder_out": str(folder / "outbox"),
            "control_folder": str(folder / "control"),
        }

    def start(self) -> None:
        """Start the processes; ``wait_until_ready`` waits for them."""
        for name in self.WORKERS:
            self._start_worker(name)
        if self.claims:
            self._spawn("beat", "beat", "--schedule", "beat-schedule")

    def wait_until_ready(self) -> None:
        """Wait for both workers; restart the one that a story killed."""
        for name in self.WORKERS:
            if self._processes[name].poll() is not None:
                self._start_worker(name)
            if not self.wait(partial(self._is_ready, name)):
                raise DemoError(f"worker {name} did not start:\n{self._log(name)}")

    def _start_worker(self, name: str) -> None:
        self._spawn(
            name, "worker", "--hostname", f"{name}@demo", "--concurrency", "1",
            "--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat",
        )  # fmt: skip

    def _spawn(self, name: str, *arguments: str) -> None:
        package = importlib.util.find_spec("celery_claims")
        assert package is not None
        assert package.origin is not None
        environment = os.environ | {
            "QUICKSTART_DIR": str(self.folder),
            "PYTHONPATH": str(Path(package.origin).parent.parent),
        }
        with open(self.folder / f"{name}.log", "wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "app", *arguments],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """End every process at once: nothing in the folder is needed any more."""
        for process in self._processes.values():
            if process.poll() is None:
                kill_group(process)

    def deliver(self, task: str, *, seconds: int, copies: int = 1) -> None:
        """Put copies of one message on the queue, each of them whole at once."""
        (self.folder / "control").mkdir(exist_ok=True)
        for _ in range(copies):
            self._sender.send_task("app.bill", ("ACME",), {"seconds": seconds}, task_id=task)
        for message in sorted((self.folder / "outbox").iterdir()):
            message.rename(self.folder / "queue" / message.name)

    def kill_runner(self, pid: int) -> None:
        """SIGKILL the worker whose child ``pid`` is, and the child with it."""
        group = os.getpgid(pid)
        name = next(name for name, it in self._processes.items() if it.pid == group)
        kill_group(self._processes[name])
        task = next(it["task"] for it in reversed(self.events()) if it["pid"] == pid)
        with open(self.folder / "journal.jsonl", "a") as journal:
            line = {"event": "killed", "time": time.time(), "task": task, "pid": pid}
            journal.write(json.dumps(line) + "\n")

    def events(self, task: str | None = None) -> list[Event]:
        """The journal so far, of one task or of all."""
        journal = self.folder / "journal.jsonl"
        if not journal.exists():
            return []
        whole_lines = journal.read_text().rpartition("\n")[0].splitlines()
        events: list[Event] = [json.loads(line) for line in whole_lines]
        return [event for event in events if task in (None, event["task"])]

    def happened(self, task: str, kind: str) -> int:
        """How often the journal has ``kind`` of a task."""
        return sum(event["event"] == kind for event in self.events(task))

    def logged(self, task: str, kind: str) -> int:
        """How often the workers logged ``kind`` of a task."""
        lines = (match for name in self.WORKERS for match in LOG_LINE.finditer(self._log(name)))
        return sum(match.groups() == (kind, task) for match in lines)

    def arrived(self, task: str) -> int:
        """How many copies of a task were started, held or, as they must not be yet, skipped."""
        denied = self.logged(task, "held") + self.logged(task, "skipped")
        return self.happened(task, "start") + denied

    def accounted(self, task: str) -> int:
        """How many copies of a task have met their end."""
        ended = self.happened(task, "end") + self.happened(task, "killed")
        return ended + self.logged(task, "skipped")

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Wait until something happened; False if it did not in ``PATIENCE`` seconds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._watch()
            time.sleep(TICK)
        self._watch()
        return True

    def _is_ready(self, name: str) -> bool:
        return " ready." in self._log(name)

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


def app_source(*, claims: bool) -> str:
    """The text of app.py, or of the same without the cure."""
    source = (Path(__file__).parent / "app.py").read_text()
    if claims:
        return source
    lines = source.splitlines(keepends=True)
    return "".join(line for line in lines if not any(part in line for part in CURE))


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process that was not waited for, and its children."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Milestone(NamedTuple):
    """What a story waits for before it goes on: that ``so_far`` reaches ``least``."""

    name: str
    so_far: Callable[[], int]
    least: int

    def reached(self) -> bool:
        return self.so_far() >= self.least


Script = Callable[[Cluster, str], Iterator[Milestone]]


def three_copies(cluster: Cluster, task: str) -> Iterator[Milestone]:
    cluster.deliver(task, seconds=2, copies=3)
    yield Milestone("the end of all three copies", partial(cluster.accounted, task), 3)


def killed_worker(cluster: Cluster, task: str) -> Iterator[Milestone]:
    cluster.deliver(task, seconds=3)
    yield Milestone("a step of the work", partial(cluster.happened, task, "step"), 1)
    cluster.deliver(task, seconds=3)
    yield Milestone("the arrival of the second copy", partial(cluster.arrived, task), 2)
    cluster.kill_runner(cluster.events(task)[0]["pid"])
    yield Milestone("the end of the second copy", partial(cluster.accounted, task), 2)


def long_task(cluster: Cluster, task: str) -> Iterator[Milestone]:
    cluster.deliver(task, seconds=6)
    yield Milestone("a lease's length of work", partial(cluster.happened, task, "step"), 4)
    cluster.deliver(task, seconds=6)
    yield Milestone("the end of both copies", partial(cluster.accounted, task), 2)


@dataclass(frozen=True)
class Story:
    """One accident.

    Parameters:
        key: for ``--only``.
        title: what happens.
        script: makes it happen.
        runs: how often the body starts if all is well.
        bare, claimed: what the user sees.
    """

    key: str
    title: str
    script: Script
    runs: int
    bare: str
    claimed: str


STORIES = (
    Story(
        "copies",
        "The same message is delivered three times",
        three_copies,
        runs=1,
        bare="every copy runs, so the customer is billed once per copy",
        claimed="one copy runs; the others wait for it and are then acknowledged unrun",
    ),
    Story(
        "kill",
        "A worker is killed (SIGKILL) in mid-task while a second copy is on its way",
        killed_worker,
        runs=2,
        bare="the second copy did not wait for the first to fail: both ran at once",
        claimed="the second copy waits; when the dead worker's lease is over, it takes over",
    ),
    Story(
        "long",
        "A task runs longer than its lease, and is delivered again in mid-run",
        long_task,
        runs=1,
        bare="the second copy starts while the first is still at work",
        claimed="the lease is renewed to the end of the run; the second copy is never run",
    ),
)


@dataclass
class Half:
    """One story, with or without claims: what to show of it."""

    story: Story
    claims: bool
    task: str
    tally: Tally = field(default_factory=lambda: tally([]))
    over: bool = False
    stalled: str | None = None

    @property
    def side(self) -> str:
        return "with claims" if self.claims else "without claims"

    @property
    def right(self) -> bool:
        good_end = self.stalled is None and self.tally.right
        return self.over and good_end and self.tally.runs == self.story.runs

    @property
    def verdict(self) -> str:
        if self.stalled:
            return f"WRONG: waited in vain for {self.stalled}"
        if self.claims:
            return "right" if self.right else "WRONG"
        return "problem not reproduced" if self.right else "wrong, as expected"


class Screen:
    """Plain lines: one for each thing that happened."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def open(self, halves: list[Half]) -> None:
        """Begin; ``halves`` change as the stories go on."""

    def close(self) -> None:
        """End; what is printed afterwards stays."""

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:5.1f}s  {text}", flush=True)

    def refresh(self) -> None:
        """Show changes of the halves."""

    def judge(self, text: str) -> None:
        print(text, flush=True)


class LiveScreen(Screen):
    """A table that follows the runs, with the last events below it."""

    LAST = 8

    def open(self, halves: list[Half]) -> None:
        self._halves = halves
        self._said: list[str] = []
        self._live = Live(console=Console(), auto_refresh=False)
        self._live.start()

    def close(self) -> None:
        self.refresh()
        self._live.stop()

    def say(self, text: str) -> None:
        self._said.append(f"{time.monotonic() - self._started:5.1f}s  {text}")
        self.refresh()

    def refresh(self) -> None:
        table = Table(title="celery-claims: two workers, three accidents", expand=True)
        table.add_column("story", ratio=3)
        for name in ("runs", "finished", "overlaps", "lost"):
            table.add_column(name, justify="right")
        table.add_column("", ratio=2)
        for half in self._halves:
            table.add_row(*self._row(half), end_section=half.claims)
        self._live.update(Group(table, *self._said[-self.LAST :]), refresh=True)

    def _row(self, half: Half) -> list[str]:
        it = half.tally
        title = half.side if half.claims else f"{half.story.title}\n{half.side}"
        if half.over:
            style = "green" if half.right else "red" if half.claims else "yellow"
            return [title, *map(str, (it.runs, it.finished, it.overlaps, it.lost)),
                    f"[{style}]{half.verdict}[/]"]  # fmt: skip
        going = it.runs > 0
        return [title, *(map(str, (it.runs, it.finished, it.overlaps, "")) if going else [""] * 4),
                "[blue]running[/]" if going else "[dim]to come[/]"]  # fmt: skip


class Reporter:
    """Tells the screen what is new in the journal and the logs of the half that is going on."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._half: Half | None = None

    def follow(self, cluster: Cluster, half: Half) -> None:
        self._cluster, self._half = cluster, half
        self._seen = 0
        self._logged: Counter[str] = Counter()

    def look(self) -> None:
        half = self._half
        if half is None or half.over:
            return
        events = self._cluster.events(half.task)
        half.tally = tally(events)
        for event in events[self._seen :]:
            self._tell(half, event)
        self._seen = len(events)
        self._tell_logged(half)
        self._screen.refresh()

    def _tell(self, half: Half, event: Event) -> None:
        token = f", token {event['token']}" if "token" in event else ""
        text = {
            "start": f"process {event['pid']} starts the work{token}",
            "end": f"process {event['pid']} finishes the work",
            "killed": f"process {event['pid']} and its worker are killed",
        }.get(event["event"])
        if text:
            self._screen.say(f"{half.side}: {text}")

    def _tell_logged(self, half: Half) -> None:
        meaning = {
            "held": "a copy is held: the work is going on elsewhere",
            "taken_over": "a held copy takes over: the lease of the dead worker is over",
            "skipped": "a copy is acknowledged unrun: the work is finished",
        }
        for kind, text in meaning.items():
            count = self._cluster.logged(half.task, kind)
            for _ in range(count - self._logged[kind]):
                self._screen.say(f"{half.side}: {text}")
            self._logged[kind] = count


def play(cluster: Cluster, half: Half, screen: Screen, reporter: Reporter) -> None:
    """Run one half of a story to its end and judge it."""
    cluster.wait_until_ready()
    screen.say(f"{half.story.title} - {half.side}")
    reporter.follow(cluster, half)
    for milestone in half.story.script(cluster, half.task):
        if not cluster.wait(milestone.reached):
            half.stalled = milestone.name
            break
    reporter.look()
    half.over = True
    screen.refresh()


def conclude(halves: list[Half], screen: Screen) -> bool:
    """Print a verdict per story; True if the halves with claims are right."""
    for bare, claimed in zip(halves[::2], halves[1::2], strict=True):
        screen.judge(f"\n{bare.story.title}")
        for half, meaning in ((bare, bare.story.bare), (claimed, claimed.story.claimed)):
            screen.judge(f"  {half.side + ':':<15} {half.tally} -> {half.verdict}")
            if half.claims == half.right:
                screen.judge(f"  {'':<15} {meaning}")
    return all(half.right for half in halves if half.claims)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that no process is left over."""

    def unwind(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, unwind) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(stories: list[Story], screen: Screen, folder: Path) -> bool:
    """Play the stories; True if all is right with claims."""
    halves = [
        Half(story, claims, f"{story.key}-{'claimed' if claims else 'bare'}")
        for story in stories
        for claims in (False, True)
    ]
    reporter = Reporter(screen)
    with ExitStack() as stack:
        clusters = {
            claims: Cluster(folder / name, claims=claims, watch=reporter.look)
            for claims, name in ((False, "without"), (True, "with"))
        }
        for cluster in clusters.values():
            stack.callback(cluster.stop)
            cluster.start()
        screen.open(halves)
        stack.callback(screen.close)
        screen.say("two workers start without claims, two workers and beat with claims")
        for half in halves:
            play(clusters[half.claims], half, screen, reporter)
    return conclude(halves, screen)


def choose_screen(output: IO[str], *, plain: bool) -> Screen:
    """A live table on a terminal, plain lines elsewhere."""
    return LiveScreen() if HAS_RICH and output.isatty() and not plain else Screen()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    keys = [story.key for story in STORIES]
    parser.add_argument("--only", action="append", choices=keys, help="only this story")
    parser.add_argument("--plain", action="store_true", help="lines instead of a live table")
    parser.add_argument("--keep", action="store_true", help="keep journals and logs")
    options = parser.parse_args()
    stories = [story for story in STORIES if story.key in (options.only or keys)]
    screen = choose_screen(sys.stdout, plain=options.plain)
    folder = Path(tempfile.mkdtemp(prefix="claims-demo-"))
    right = False
    try:
        with ended_by_signals():
            right = run(stories, screen, folder)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except DemoError as error:
        print(error, file=sys.stderr)
    finally:
        if right and not options.keep:
            shutil.rmtree(folder)
        else:
            print(f"journals and logs: {folder}", file=sys.stderr)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
