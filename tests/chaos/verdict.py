"""What a chaos run comes to. Pure: the journal, the ledger and the faults in, a verdict out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from tests.process.journal import Run

from .ledger import Write
from .load import Sent
from .world import Happening

__all__ = ["Verdict", "judge"]

#: Seconds within which a death after the end of a body explains that its end is not known.
UNRECORDED = 5.0
#: How a body ends that is not to be run again under the same attempt.
ENDS = ("finish", "Retry")

#: Why an attempt may run again.
KILLED = "killed"
LOST_CLAIM = "its claim was lost"
UNKNOWN_END = "killed or cut off before its end was recorded"
#: Why a task has no end though no claim lost it.
GONE = {
    "swallowed": "never delivered",
    "swallowed_retries": "a retry of it never delivered",
    "unclaimed": "waits for the visibility timeout",
    "unsent": "not sent by Celery",
}
EXPLAINED = (KILLED, LOST_CLAIM, UNKNOWN_END)


@dataclass
class Verdict:
    """The numbers of a run. What is promised to be nothing is in ``violations``, told in full.

    Parameters:
        sent: tasks that were sent for sure, each of a chain or chord counted.
        finished: those of them that ran to their end.
        swallowed: those whose last message the broker is proven to have given away and forgotten;
            without claims also those that no worker ever saw, for whatever reason.
        swallowed_retries: those of them that had been run, and whose retry nobody saw, with what
            follows them.
        unclaimed: those whose message a worker died with before it had claimed it: it waits at the
            broker for the visibility timeout, as without claims.
        unsent: those that Celery was to send and did not: a retry, to a broker with a fault, or the
            body of a chord, by a process that was killed.
        lost: all others that never ended.
        repeated: runs of an attempt beyond its first, by why there was another.
        overlaps: runs beside another one of the same task, by what explains it.
        stale_tried, stale_refused, stale_accepted: writes of a run after one of a later run.
        violations: what must not be, with the timeline of the task.
        losses_of_the_broker: of each swallowed task what is known.
    """

    sent: int = 0
    finished: int = 0
    swallowed: int = 0
    swallowed_retries: int = 0
    unclaimed: int = 0
    unsent: int = 0
    lost: int = 0
    repeated: Counter[str] = field(default_factory=Counter)
    overlaps: Counter[str] = field(default_factory=Counter)
    stale_tried: int = 0
    stale_refused: int = 0
    stale_accepted: int = 0
    violations: list[str] = field(default_factory=list)
    losses_of_the_broker: list[str] = field(default_factory=list)


def judge(
    sent: Sequence[Sent],
    runs: Sequence[Run],
    writes: Sequence[Write],
    happenings: Sequence[Happening],
    lease: float,
    dropped: Mapping[str, int],
    late: Collection[str] = (),
    seen: Collection[str] | None = None,
    unclaimed: Mapping[str, int] | None = None,
    ways: Mapping[str, Collection[str]] | None = None,
) -> Verdict:
    """Judge a run after everything has come to rest.

    Parameters:
        sent: what was sent.
        runs: what ran.
        writes: what the ledger saw, in its order.
        happenings: the faults.
        lease: seconds.
        dropped: ids of tasks of whose newest attempt the broker gave each message away and never
            heard of it again, with the retries of that attempt.
        late: ids of tasks that had not ended when the wait for them was over.
        seen: None holds the run to the promises: what never ended is lost unless it was dropped.
            Else the ids of messages that some worker had, of later attempts with the attempt; what
            is not among them counts as never delivered.
        unclaimed: as ``dropped``, of messages that are still unacknowledged, under an attempt that
            nobody was granted.
        ways: of each task the ways that its messages went at the broker, to be told.
    """
    verdict = Verdict()
    of_task: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        of_task[run.task_id].append(run)
    trial = _Trial(verdict, happenings, lease, dropped, late, seen, unclaimed or {}, ways or {})
    trial.count_sent(sent, of_task)
    for task_runs in of_task.values():
        trial.count_repeated(task_runs)
        trial.count_overlaps(task_runs)
    trial.count_writes(writes, of_task)
    return verdict


def _awaited(runs: Sequence[Run]) -> int:
    """The retries of the attempt whose message is missing."""
    return max((run.retries + 1 for run in runs if run.event == "Retry"), default=0)


@dataclass
class _Trial:
    verdict: Verdict
    happenings: Sequence[Happening]
    lease: float
    dropped: Mapping[str, int]
    late: Collection[str]
    seen: Collection[str] | None
    unclaimed: Mapping[str, int]
    ways: Mapping[str, Collection[str]]

    def count_sent(self, sent: Iterable[Sent], of_task: dict[str, list[Run]]) -> None:
        for each in (one for one in sent if one.sure):
            # What follows a message that is gone, of a chain or chord, could not run either.
            gone = ""
            for place, task_id in enumerate(each.ids, start=1):
                self.verdict.sent += 1
                runs = of_task[task_id]
                if any(run.event == "finish" for run in runs):
                    self.verdict.finished += 1
                    if task_id in self.late:
                        self._violate(f"{each.kind} ended too late", runs, task_id)
                    continue
                gone = gone or self._why_gone(task_id, runs)
                if not gone and each.kind == "chord" and place == len(each.ids):
                    header = [of_task[one] for one in each.ids[:-1]]
                    gone = "unsent" if self._is_bodiless(task_id, header) else ""
                before = [run for one in each.ids for run in of_task[one]]
                if gone:
                    self._count_gone(gone)
                    what = f"{each.kind}, {place} of {len(each.ids)}, {GONE[gone]}"
                    self.verdict.losses_of_the_broker.append(self._tell(what, before, task_id))
                else:
                    self.verdict.lost += 1
                    self._violate(f"{each.kind} never finished", before, task_id)

    def _count_gone(self, why: str) -> None:
        verdict = self.verdict
        verdict.swallowed += why.startswith("swallowed")
        verdict.swallowed_retries += why == "swallowed_retries"
        verdict.unclaimed += why == "unclaimed"
        verdict.unsent += why == "unsent"

    def _why_gone(self, task_id: str, runs: Sequence[Run]) -> str:
        """Which of ``GONE`` it is, empty if none."""
        if self._is_gone(task_id, runs):
            return "swallowed_retries" if runs else "swallowed"
        if self.unclaimed.get(task_id, -1) >= _awaited(runs):
            return "unclaimed"
        return "unsent" if self._is_unsent(runs) else ""

    def _is_unsent(self, runs: Sequence[Run]) -> bool:
        """Whether Celery rejected it, for its retry was not sent while the broker had a fault."""
        last = max(runs, key=lambda run: run.started, default=None)
        return last is not None and last.event == "Reject" and self._had_no_broker(last)

    def _is_bodiless(self, task_id: str, header: Iterable[Sequence[Run]]) -> bool:
        """Whether a chord's body was never sent, for who was about to send it died.

        Celery lets one run of the header send it, by a claim of its own that outlasts a short
        lease: the second run of that task finds it taken, and leaves it to a process that is dead.
        """
        if self.ways.get(task_id):
            return False
        again = [run for runs in header if len(runs) > 1 for run in runs if run.event == "finish"]
        return any(self._explains(run, (run.ended or 0.0) + UNRECORDED) for run in again)

    def _had_no_broker(self, run: Run) -> bool:
        ended = float("inf") if run.ended is None else run.ended
        return any(
            each.what.endswith("the broker") and each.began <= ended and each.ended >= run.started
            for each in self.happenings
        )

    def _is_gone(self, task_id: str, runs: Sequence[Run]) -> bool:
        """Whether its last message reached no worker, for which the broker is to blame.

        One that is still queued, or that was never there, is no such message.
        """
        awaited = _awaited(runs)
        if self.dropped.get(task_id, -1) >= awaited:
            return True
        if self.seen is None:
            return False
        return (f"{task_id} attempt {awaited}" if awaited else task_id) not in self.seen

    def count_repeated(self, runs: list[Run]) -> None:
        attempts: dict[int, list[Run]] = defaultdict(list)
        for run in sorted(runs, key=lambda run: run.started):
            attempts[run.retries].append(run)
        for of_attempt in attempts.values():
            for before, _ in pairwise(of_attempt):
                why = self._why_again(before)
                self.verdict.repeated[why] += 1
                if why not in EXPLAINED:
                    self._violate(f"ran again: {why}", runs, before.task_id)

    def count_overlaps(self, runs: list[Run]) -> None:
        for one, two in combinations(sorted(runs, key=lambda run: run.started), 2):
            if one.ended is not None and one.ended <= two.started:
                continue
            why = self._why_beside(one, two)
            self.verdict.overlaps[why] += 1
            if why == "nothing":
                self._violate("two runs at once", runs, one.task_id)

    def count_writes(self, writes: Sequence[Write], of_task: dict[str, list[Run]]) -> None:
        newest: dict[str, float] = {}
        for write in writes:
            if write.started < newest.get(write.task_id, 0.0):
                self.verdict.stale_tried += 1
                if not write.accepted:
                    self.verdict.stale_refused += 1
                    continue
                self.verdict.stale_accepted += 1
                self._violate("a stale write was taken", of_task[write.task_id], write.task_id)
            elif write.accepted:
                newest[write.task_id] = write.started

    def _why_again(self, before: Run) -> str:
        """Why an attempt was started again after this run of it."""
        if before.event == "died":
            return KILLED
        end = before.ended if before.ended is not None else float("inf")
        # The end of a body is recorded after it: until then it is not known to be over.
        disturbed = self._explains(before, end + UNRECORDED)
        if before.event in ENDS:
            return UNKNOWN_END if disturbed else "it had ended"
        if before.event == "ClaimLost":
            # What it lost, a fault before its first line may have taken.
            disturbed = disturbed or self._explains(before, end, early=self.lease)
            return LOST_CLAIM if disturbed else f"{LOST_CLAIM} without a fault"
        return KILLED if disturbed else f"ended by {before.event or 'nobody knows what'}"

    def _why_beside(self, one: Run, two: Run) -> str:
        """What explains that a run began while another one of its task was not over."""
        return self._explains(one, two.started + self.lease) or "nothing"

    def _explains(self, run: Run, until: float, early: float = 0.0) -> str:
        """A fault since its start that can have taken this run's lease; empty if there was none.

        What happens to the broker takes no lease, nor does a moment without the store.

        Parameters:
            early: seconds before its start that count as well.
        """
        for each in self.happenings:
            if each.began > until or each.ended < run.started - early:
                continue
            if run.pid in each.pids:
                return each.what
            if each.what.endswith("the store") and each.ended - each.began >= self.lease / 3:
                return each.what
        return ""

    def _violate(self, what: str, runs: Sequence[Run], task_id: str) -> None:
        self.verdict.violations.append(self._tell(what, runs, task_id))

    def _tell(self, what: str, runs: Sequence[Run], task_id: str) -> str:
        """The timeline of a task and of the faults around it."""
        lines = [f"{what}: task {task_id}"]
        lines += [f"  a message: {way}" for way in self.ways.get(task_id, ())]
        for run in sorted(runs, key=lambda run: run.started):
            ended = "…" if run.ended is None else f"{run.ended:.2f}"
            lines.append(
                f"  {run.started:.2f} to {ended}  pid {run.pid}  attempt {run.retries}  "
                f"token {run.token}  {run.event or 'no end'}"
            )
        first = min((run.started for run in runs), default=0.0)
        last = max((run.ended or run.started for run in runs), default=0.0)
        lines += [
            f"  {each.began:.2f} to {each.ended:.2f}  {each.what} {sorted(each.pids)}"
            for each in self.happenings
            if first - 10 <= each.began <= last + 10
        ]
        return "\n".join(lines)
