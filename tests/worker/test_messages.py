"""Messages of every kind under claims: old ones, foreign ones, forged ones and garbage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, uuid
from celery_claims.protocol import State

from tests.process.container import WorkerSpec
from tests.process.gates import Gates
from tests.process.journal import Journal
from tests.process.setup import Site, publish_copies
from tests.process.waiting import wait_until
from tests.worker.apps import create_app

from .sites import (
    BOTH,
    count_in_log,
    is_claimed,
    notes,
    redeliver,
    shared_site,
    start_together,
    wait_for_line,
    wait_for_skip,
)
from .steps import record_of

claimed = pytest.mark.parametrize("site", ["claimed"], indirect=True)

#: Seconds
LIMIT = 30

QUEUES = {
    "celery": {"exchange": "celery", "routing_key": "celery"},
    "{x}": {"exchange": "celery", "routing_key": "{x}"},
    "some": {"exchange": "topics", "exchange_type": "topic", "routing_key": "a.*"},
    "all": {"exchange": "topics", "exchange_type": "topic", "routing_key": "#"},
    "news1": {"exchange": "news", "exchange_type": "fanout", "routing_key": ""},
    "news2": {"exchange": "news", "exchange_type": "fanout", "routing_key": ""},
}


@pytest.fixture(scope="module", params=[*BOTH, "claimed on redis"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with shared_site(
        tmp_path_factory.mktemp("messages"),
        request.param.removesuffix(" on redis"),
        conf={"task_queues": QUEUES, "task_default_queue": "celery"},
        claims={"tasks": ["*", "!c.unclaimed_header"]},
        broker="redis" if request.param.endswith("redis") else "folder",
    ) as site:
        start_together(
            site,
            WorkerSpec(site.app_module, "w1", concurrency=2, queues="celery,{x},some,all,news1"),
            WorkerSpec(site.app_module, "w2", concurrency=2, queues="celery,news2"),
        )
        yield site


def message(task_id: Any, name: str = "c.quiet", **headers: Any) -> dict[str, Any]:
    """The headers of a protocol 2 message."""
    return {"lang": "py", "task": name, "id": task_id, "root_id": task_id, "retries": 0, **headers}


#: The body of a protocol 2 message without arguments.
BODY = [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


def publish(app: Celery, headers: Any, body: Any = BODY, **options: Any) -> None:
    """Publish a message as it is, to the default queue."""
    with app.connection_for_write() as connection, connection.Producer() as producer:
        producer.publish(
            body, routing_key="celery", headers=headers, **{"serializer": "json", **options}
        )


# how messages are sent


def test_protocol_1(site: Site, celery_setup_app: Celery) -> None:
    old = create_app({**site.conf, "task_protocol": 1})
    result = old.signature("c.retrying", (2,)).apply_async()
    assert celery_setup_app.AsyncResult(result.id).get(timeout=LIMIT) == 2
    runs = site.journal.wait_for_end(result.id, 3)
    assert [run.retries for run in runs] == [0, 1, 2]
    assert all((run.token is not None) == is_claimed(site) for run in runs)


@claimed
def test_copies_by_protocol_1_are_one_run(site: Site, journal: Journal, gates: Gates) -> None:
    old = create_app({**site.conf, "task_protocol": 1})
    result = publish_copies(old, old.signature("tests.late", (), {"gate": "protocol-1"}), 3)
    journal.wait_for_runs(result.id)
    wait_for_line(site, "held task", f"[{result.id}]", count=2)
    gates.open("protocol-1")
    wait_for_skip(site, result.id, 2)
    assert len(journal.runs(result.id)) == 1


@claimed
def test_a_copy_by_another_protocol_is_the_same_run(
    site: Site, celery_setup_app: Celery, journal: Journal
) -> None:
    old = create_app({**site.conf, "task_protocol": 1})
    result = publish_copies(celery_setup_app, celery_setup_app.signature("tests.work"), 1)
    result.get(timeout=LIMIT)
    publish_copies(old, old.signature("tests.work"), 1, task_id=result.id)
    wait_for_skip(site, result.id)
    assert len(journal.runs(result.id)) == 1


def test_a_task_sent_by_name_from_an_app_that_knows_nothing(site: Site, journal: Journal) -> None:
    stranger = Celery("stranger", set_as_current=False)
    stranger.conf.update(site.broker.settings())
    task_id = uuid()
    for _ in range(2 if is_claimed(site) else 1):
        stranger.send_task("tests.work", task_id=task_id)
    assert journal.wait_for_end(task_id)[0].event == "finish"
    if is_claimed(site):
        wait_for_skip(site, task_id)
    assert len(journal.runs(task_id)) == 1


class TestBeat:
    @pytest.fixture
    def site(self, tmp_path: Any) -> Iterator[Site]:
        schedule = {"often": {"task": "tests.work", "schedule": 1.0, "args": ["from beat"]}}
        with shared_site(tmp_path, conf={"beat_schedule": schedule}) as site:
            yield site

    def test_what_beat_sends_is_claimed_and_the_cleanup_is_not(
        self, site: Site, journal: Journal
    ) -> None:
        site.start_worker(log_level="DEBUG")
        site.start_beat()
        wait_until(lambda: len(journal.runs()) >= 2, what="two runs")
        first, second = journal.runs()[:2]
        assert first.task_id != second.task_id
        assert first.token is not None
        assert second.token is not None
        wait_for_line(site, "celery_claims.cleanup", "succeeded")
        wait_for_line(site, "claimed task tests.work")
        assert not count_in_log(site, "claimed task celery_claims.cleanup")


# where messages are sent


def test_a_queue_may_have_braces(site: Site, celery_setup_app: Celery) -> None:
    signature = celery_setup_app.signature("c.claim")
    copies = 2 if is_claimed(site) else 1
    result = publish_copies(celery_setup_app, signature, copies, queue="{x}")
    site.journal.wait_for_end(result.id)
    if is_claimed(site):
        wait_for_skip(site, result.id)
        (claim,) = notes(site, result.id, "claim")
        assert claim["queue"] == "{x}"


def test_a_message_in_two_queues_runs_for_both(
    site: Site, celery_setup_app: Celery, journal: Journal
) -> None:
    """A topic exchange makes two deliveries of it, which are two claims."""
    result = celery_setup_app.signature("c.claim").apply_async(queue="some", routing_key="a.b")
    journal.wait_for_end(result.id, 2)
    if is_claimed(site):
        assert {claim["queue"] for claim in notes(site, result.id, "claim")} == {"some", "all"}
        wait_for_skip(site, result.id, redeliver(site, result.id))
    assert len(journal.runs(result.id)) == 2


def test_a_broadcast_reaches_every_worker_and_is_not_claimed(
    site: Site, celery_setup_app: Celery, journal: Journal
) -> None:
    result = celery_setup_app.signature("tests.work").apply_async(queue="news1")
    runs = journal.wait_for_end(result.id, 2)
    assert len(runs) == 2
    assert [run.token for run in runs] == [None, None]


# what messages should not be

#: Celery runs these, also where they cannot be claimed: name, headers, body, id, claimed.
ODD = [
    ("a number for an id", message(123), BODY, 123, False),
    ("nought for an id", message(0), BODY, 0, False),
    ("no text for an id", message(""), BODY, "", False),
    ("nothing for an id", message(None), BODY, None, False),
    ("retries in words", message("odd-1", retries="many"), BODY, "odd-1", False),
    ("negative retries", message("odd-2", retries=-1), BODY, "odd-2", False),
    ("no retries", message("odd-3", retries=None), BODY, "odd-3", True),
    ("nesting in words", message("odd-4", replaced_task_nesting="x"), BODY, "odd-4", False),
    ("a number for a root", message("odd-5", root_id=5), BODY, "odd-5", False),
    (
        "both protocols at once",
        message("odd-6"),
        {"task": "c.quiet", "id": "odd-6", "args": [], "kwargs": {}},
        "odd-6",
        True,
    ),
    (
        "a number for an id by protocol 1",
        {},
        {"task": "c.quiet", "id": 77, "args": [], "kwargs": {}},
        77,
        False,
    ),
]

#: Celery refuses these, with a word in its log: name, headers, body, options, the words.
BROKEN = [
    ("no task", {"id": "broken-1"}, BODY, {}, "unknown message"),
    ("no headers", {}, BODY, {}, "unknown message"),
    (
        "unknown",
        message("broken-2", "no.such.task"),
        BODY,
        {},
        "unregistered task of type 'no.such",
    ),
    ("a number for a task", message("broken-3", 5), BODY, {}, "unregistered task of type 5"),
    ("an eta in words", message("broken-4", eta="soon"), BODY, {}, "invalid ETA value 'soon'"),
    ("an expiry in words", message("broken-5", expires="x"), BODY, {}, "invalid expires value 'x'"),
    ("a number for args", message("broken-6"), [5, {}, {}], {}, "[broken-6] raised unexpected"),
    (
        "not JSON",
        message("broken-7"),
        b"\xff{",
        {"content_type": "application/json", "content_encoding": "utf-8"},
        "Can't decode message body",
    ),
    (
        "not accepted",
        message("broken-8"),
        b"x",
        {"content_type": "application/x-python-serialize", "content_encoding": "binary"},
        "Refusing to deserialize untrusted content of type pickle",
    ),
    (
        "unheard of",
        message("broken-9"),
        b"x",
        {"content_type": "application/strange", "content_encoding": "binary"},
        "Refusing to deserialize untrusted content of type application/strange",
    ),
]


def assert_nothing_waits(site: Site, app: Celery) -> None:
    """The workers are well, and every message was taken."""
    results = [app.signature("tests.work", (n,)).apply_async() for n in range(4)]
    assert [result.get(timeout=LIMIT) for result in results] == [0, 1, 2, 3]
    wait_until(lambda: site.broker.waiting() == 0, what="an empty queue")


@pytest.mark.parametrize(
    ("headers", "body", "task_id", "is_claimable"),
    [row[1:] for row in ODD],
    ids=[row[0] for row in ODD],
)
def test_an_odd_message_runs_once_as_without_claims(
    site: Site, celery_setup_app: Celery, headers: Any, body: Any, task_id: Any, is_claimable: bool
) -> None:
    def runs() -> list[Any]:
        return [run for run in site.journal.runs() if run.task_id == task_id]

    before = len(runs())
    publish(celery_setup_app, headers, body)
    wait_until(lambda: len(runs()) > before and not runs()[-1].is_running, what="a run")
    assert len(runs()) == before + 1
    assert (runs()[-1].token is not None) == (is_claimable and is_claimed(site))


def test_broken_messages_are_refused_as_without_claims(
    site: Site, celery_setup_app: Celery
) -> None:
    for _, headers, body, options, _ in BROKEN:
        changes = {"serializer": None, **options} if options else {}
        publish(celery_setup_app, headers, body, **changes)
    for name, *_, words in BROKEN:
        wait_until(lambda w=words: count_in_log(site, w), what=f"{words!r} for {name}")
    assert not [run for run in site.journal.runs() if str(run.task_id).startswith("broken")]
    assert_nothing_waits(site, celery_setup_app)
    if is_claimed(site):
        for number in (4, 5, 7, 8, 9):
            record = record_of(site, f"broken-{number}")
            assert record is None or record.state is not State.CLAIMED


#: What somebody may write into our header.
FORGED = [
    True,
    "text",
    [],
    {},
    {"queue": 5},
    {"queue": ""},
    {"queue": "x" * 20_000},
    {"token": 1},
    {"grant_id": "not mine"},
    {"grant_id": ["x"], "token": "y"},
    {
        "queue": "celery",
        "task_id": "somebody else's",
        "owner": "me",
        "token": 2**53 - 1,
        "attempt": [0, 0],
        "created_at": 0,
        "expires_at": 2**60,
        "grant_id": "g",
        "root_id": "r",
        "deaths": 0,
        "lease": 1e9,
        "strict": False,
        "keep_finished": 0,
        "deliveries": 0,
        "mark_start": False,
        "trusted_until": 1e12,
        "worker": 1,
    },
]


@claimed
@pytest.mark.parametrize("forged", FORGED, ids=[repr(forged)[:25] for forged in FORGED])
@pytest.mark.parametrize("protocol", [1, 2])
def test_a_forged_header_counts_for_nothing(
    site: Site, celery_setup_app: Celery, journal: Journal, forged: Any, protocol: int
) -> None:
    ids = {name: uuid() for name in ("c.header", "c.unclaimed_header")}
    for name, task_id in ids.items():
        fields = {**message(task_id, name), "celery_claims": forged}
        if protocol == 2:
            publish(celery_setup_app, fields)
        else:
            publish(celery_setup_app, {}, {**fields, "args": [], "kwargs": {}})
    for task_id in ids.values():
        journal.wait_for_end(task_id)
    (seen,) = notes(site, ids["c.header"], "header")
    (run,) = journal.runs(ids["c.header"])
    assert run.token is not None
    assert (seen["task_id"], seen["token"]) == (ids["c.header"], run.token)
    assert run.token < 2**53 - 1
    assert notes(site, ids["c.unclaimed_header"], "header") == [None]
    (unclaimed,) = journal.runs(ids["c.unclaimed_header"])
    assert unclaimed.token is None


@claimed
def test_only_the_first_queue_is_believed(
    site: Site, celery_setup_app: Celery, journal: Journal
) -> None:
    task_id = uuid()
    publish(celery_setup_app, {**message(task_id, "c.claim"), "celery_claims": {"queue": "first"}})
    journal.wait_for_end(task_id)
    (claim,) = notes(site, task_id, "claim")
    assert claim["queue"] == "first"
