"""``celery claims ...`` shows what the store holds, and says what is wrong in one line."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.celery import celery
from celery_claims import AtomicClaimManager, claimed, install, open_store
from celery_claims.stores import Store
from click.testing import CliRunner, Result
from kombu import Connection

Invoke = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_shared_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared tasks of other tests in this process would be tasks of these apps too."""
    monkeypatch.setattr("celery._state._on_app_finalizers", set())


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'claims.db'}"


@pytest.fixture
def app(url: str) -> Celery:
    app = Celery("proj", broker="memory://", set_as_current=False)
    install(app, url=url)

    @claimed
    @app.task(name="proj.add", shared=False)
    def add() -> None: ...

    return app


@pytest.fixture
def store(url: str) -> Any:
    with open_store(url) as store:
        yield store


@pytest.fixture
def invoke(app: Celery) -> Invoke:
    def invoke(*args: str) -> Result:
        return CliRunner().invoke(celery, ["-A", app, "claims", *args])  # type: ignore[list-item]

    return invoke


@pytest.fixture
def filled(store: Store) -> AtomicClaimManager:
    """One long claim, one short one that may have run out, and one that is finished."""
    manager = AtomicClaimManager(store)
    manager.claim("celery", "live", "w1", 60_000)
    answer = manager.claim("celery", "done", "w1", 60_000)
    manager.release(answer.token)  # type: ignore[union-attr]
    manager.claim("other", "gone", "w2", 1_000)
    return manager


def rows(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_list_shows_live_claims(invoke: Invoke, filled: AtomicClaimManager) -> None:
    shown = {row["id"]: row for row in rows(invoke("list", "--json"))}
    assert {"live"} <= set(shown) <= {"live", "gone"}
    assert shown["live"]["owner"] == "w1"
    assert 0 < shown["live"]["left"] <= 60


def test_list_all_shows_every_state(invoke: Invoke, filled: AtomicClaimManager) -> None:
    shown = {row["id"]: row["state"] for row in rows(invoke("list", "--all", "--json"))}
    assert set(shown) == {"live", "done", "gone"}
    assert shown["done"] == "finished"


def test_list_keeps_to_a_queue_and_a_limit(invoke: Invoke, filled: AtomicClaimManager) -> None:
    assert {r["queue"] for r in rows(invoke("list", "--all", "--queue", "other", "--json"))} == {
        "other"
    }
    assert len(rows(invoke("list", "--all", "--limit", "2", "--json"))) == 2


def test_list_without_a_terminal_is_tab_separated(
    invoke: Invoke, filled: AtomicClaimManager
) -> None:
    header, *lines = invoke("list").output.splitlines()
    assert header.split("\t")[:3] == ["task", "id", "queue"]
    assert any(line.split("\t")[1] == "live" for line in lines)


def test_show_finds_a_task_by_its_id(invoke: Invoke, filled: AtomicClaimManager) -> None:
    (row,) = rows(invoke("show", "done", "--json"))
    assert (row["state"], row["outcome"], row["queue"]) == ("finished", "success", "celery")
    (row,) = rows(invoke("show", "gone", "--queue", "other", "--json"))
    assert row["owner"] == "w2"


def test_show_says_where_it_looked_in_vain(invoke: Invoke) -> None:
    result = invoke("show", "nobody")
    assert result.exit_code == 1
    assert "no record of task 'nobody' in queue celery" in result.output


def test_stats_counts_records(invoke: Invoke, filled: AtomicClaimManager) -> None:
    counts = rows(invoke("stats", "--json"))
    assert counts["finished"] == 1
    assert counts["live"] + counts["orphaned"] == 2


def test_cleanup_reports_what_it_did(invoke: Invoke, filled: AtomicClaimManager) -> None:
    result = rows(invoke("cleanup", "--json"))
    assert result["cleaned"] == result["seen"] <= 1
    assert "expired claims cleaned up" in invoke("cleanup").output


def test_check_names_the_store_and_the_claimed_tasks(invoke: Invoke, url: str) -> None:
    assert rows(invoke("check", "--json")) == {
        "store": url,
        "tasks": ["proj.add"],
        "problems": [],
    }


def test_check_fails_if_no_task_is_claimed(url: str) -> None:
    app = Celery("empty", broker="memory://", set_as_current=False)
    install(app, url=url)
    result = CliRunner().invoke(celery, ["-A", app, "claims", "check"])  # type: ignore[list-item]
    assert result.exit_code == 1
    assert "no task is claimed" in result.output


def test_check_looks_at_a_redis_broker(url: str) -> None:
    """Without connecting to it; the store is another here."""
    app = Celery("slow", broker="redis://nowhere.invalid", set_as_current=False)
    app.conf.broker_transport_options = {"visibility_timeout": 1.5}
    install(app, url=url, allow_local_store=True)
    result = CliRunner().invoke(celery, ["-A", app, "claims", "check"])  # type: ignore[list-item]
    assert result.exit_code == 1
    assert "problem: visibility_timeout in broker_transport_options is 1.5" in result.output


@pytest.mark.parametrize(("pool", "code"), [("threads", 0), ("solo", 0), ("prefork", 1)])
def test_check_goes_by_the_pool_of_the_settings(pool: str, code: int) -> None:
    """Claims in memory fit a pool of one process, and no other."""
    app = Celery("threads", broker="memory://", set_as_current=False)
    app.conf.worker_pool = pool
    install(app, url=f"memory://{pool}")

    @app.task(name="proj.add")
    @claimed
    def add() -> None: ...

    result = CliRunner().invoke(celery, ["-A", app, "claims", "check"])  # type: ignore[list-item]
    assert result.exit_code == code
    assert ("this pool runs tasks in others" in result.output) == bool(code)


def test_a_broker_without_its_driver_is_told_what_to_install(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: object) -> None:
        raise ModuleNotFoundError("No module named 'redis'", name="redis")

    monkeypatch.setattr(Connection, "transport", property(missing))
    app = Celery("driverless", broker="redis://nowhere.invalid", set_as_current=False)
    install(app, url=url)
    result = CliRunner().invoke(celery, ["-A", app, "claims", "check"])  # type: ignore[list-item]
    assert result.exit_code == 1
    assert "pip install 'celery[redis]'" in result.output
    assert "Traceback" not in result.output


def test_a_wrong_setting_is_one_line_and_no_traceback() -> None:
    app = Celery("wrong", broker="memory://", set_as_current=False)
    install(app)
    app.conf.claims_leese = 3
    result = CliRunner().invoke(celery, ["-A", app, "claims", "stats"])  # type: ignore[list-item]
    assert result.exit_code == 1
    assert "did you mean claims_lease?" in result.output
    assert "Traceback" not in result.output


def test_an_app_without_claims_is_told_what_to_do() -> None:
    app = Celery("bare", broker="memory://", set_as_current=False)
    result = CliRunner().invoke(celery, ["-A", app, "claims", "list"])  # type: ignore[list-item]
    assert result.exit_code == 1
    assert "install(app)" in result.output


@pytest.fixture
def damaged(filled: AtomicClaimManager, url: str) -> None:
    """Two records of somebody else's making; one of them is a claim."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other, other:
        other.execute("UPDATE claims SET deaths = 'x' WHERE task_id IN (x'6c697665', x'646f6e65')")


def test_what_cannot_be_read_is_shown_beside_the_rest(
    invoke: Invoke, damaged: None, url: str
) -> None:
    """With the statement that deletes it; and nothing is hidden by it."""
    result = invoke("list", "--all", "--json")
    assert [row["id"] for row in json.loads(result.stdout)] == ["gone"]
    assert result.stderr.count("unreadable: row") == 2
    assert json.loads(invoke("stats", "--json").stdout)["unreadable"] == 1
    shown = invoke("show", "live")
    assert shown.exit_code == 1 and "DELETE FROM claims WHERE id = " in shown.stderr
    result = invoke("check", "--json")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    statement = problem.partition("to delete it: ")[2]
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other, other:
        other.execute(statement)
    assert invoke("check").exit_code == 0


def test_cleanup_tells_how_many_it_could_not_read(invoke: Invoke, damaged: None, url: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other, other:
        other.execute("UPDATE claims SET expires_at = 5 WHERE outcome = 0")
    result = invoke("cleanup")
    assert result.exit_code == 0
    assert "1 of 1 expired" in result.stdout and "1 more cannot be read" in result.stdout


@pytest.mark.parametrize("task_id", ["\ud800", "a\nb\tc", "\x1b[2J", "\x00"])
def test_ids_of_any_characters_stay_in_their_cell(
    invoke: Invoke, store: Store, task_id: str
) -> None:
    """Nor do they end the command, for the terminal's encoding cannot have all of them."""
    AtomicClaimManager(store).claim("celery", task_id, "w1", 60_000)
    result = invoke("list")
    assert result.exit_code == 0, result.exception
    head, row = result.stdout.splitlines()
    assert row.split("\t")[1] == task_id.encode("unicode_escape").decode()
    assert len(row.split("\t")) == len(head.split("\t"))
    assert invoke("show", task_id).exit_code == 0
    assert rows(invoke("list", "--json"))[0]["id"] == task_id
