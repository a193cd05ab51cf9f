"""A record that the store cannot read: its task waits, and no other does."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing

from celery_claims.protocol import ClaimRequest
from celery_claims.stores.packing import pack_text

from tests.process.setup import ProcessSetup, Site, publish_copies
from tests.process.waiting import wait_until

from .steps import (
    LEASE,
    assert_all_acknowledged,
    claims_file,
    events,
    in_pools,
    record_of,
    store_of,
    traps,
    wait_finished,
    wait_for_events,
    wait_started,
    workers,
)


def change(site: Site, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(claims_file(site), timeout=30)) as other, other:
        assert other.execute(statement, values).rowcount == 1


def damage(site: Site, task_id: str) -> None:
    change(site, "UPDATE claims SET grant_id = 5 WHERE task_id = ?", pack_text(task_id))


@traps()
@in_pools("prefork", "threads")
def test_its_deliveries_are_held_until_it_is_deleted(celery_setup: ProcessSetup, pool: str) -> None:
    """Not run under a claim that may be somebody's, not lost, and not asked for in a hurry."""
    setup, worker = celery_setup, celery_setup.worker
    task_id = uuid.uuid4().hex
    with store_of(setup.site) as store:
        store.claim([ClaimRequest("celery", task_id, "dead", 1_000, "its-grant", task_id)])
    damage(setup.site, task_id)
    held = publish_copies(setup.app, setup.app.signature("traps.late"), 2, task_id=task_id)
    wait_for_events(worker, "unreadable", task_id)
    others = [publish_copies(setup.app, setup.app.signature("traps.late"), 1).id for _ in range(3)]
    wait_finished(setup.site, *others)
    assert "store_down" not in worker.logs()
    assert setup.journal.runs(task_id) == []
    (line,) = (
        line
        for line in worker.logs().splitlines()
        if f"unreadable task traps.late[{task_id}]" in line
    )
    change(setup.site, line.partition("to delete it: ")[2].partition(". Who")[0])
    wait_finished(setup.site, held.id)
    wait_for_events(worker, "skipped", task_id)
    assert len(setup.journal.runs(task_id)) == 1
    assert_all_acknowledged(setup)


@traps()
@workers(1, pool="prefork", concurrency=3)
def test_other_leases_are_renewed_and_its_end_is_recorded_when_it_can_be(
    celery_setup: ProcessSetup,
) -> None:
    """One batch renews them all: the leases of the others outlive it by far."""
    setup, worker = celery_setup, celery_setup.worker
    signature = setup.app.signature("traps.late", ("end",))
    bad, good = (publish_copies(setup.app, signature, 1).id for _ in range(2))
    for task_id in (bad, good):
        wait_started(setup.site, task_id)
    damage(setup.site, bad)
    wait_for_events(worker, "unreadable", bad)
    first = record_of(setup.site, good)
    assert first is not None

    def outlived() -> bool:
        record = record_of(setup.site, good)
        return record is not None and record.expires_at > first.expires_at + 2_000 * LEASE

    wait_until(outlived, what="a lease that is renewed again and again")
    setup.gates.open("end")
    wait_finished(setup.site, good)
    setup.journal.wait_for_end(bad)
    assert events(worker, "lost", good) == events(worker, "lost", bad) == 0
    change(setup.site, "UPDATE claims SET grant_id = x'00' WHERE task_id = ?", pack_text(bad))
    wait_finished(setup.site, bad)
    assert len(setup.journal.runs(bad)) == 1
    assert_all_acknowledged(setup)
