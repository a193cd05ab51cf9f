"""What only the SQLite store promises: processes, forks, locks, and files that cannot be used."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery_claims.errors import (
    ConfigurationError,
    InvalidArgument,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
)
from celery_claims.native import monotonic
from celery_claims.protocol import (
    AlreadyClaimed,
    ClaimRequest,
    ClaimToken,
    Ended,
    Lost,
    Outcome,
    Renewal,
    Renewed,
    Settlement,
    State,
    Success,
)
from celery_claims.stores import View, open_store, sqlite, sqlite_file, sqlite_rows
from celery_claims.stores.sqlite import SQLiteStore, _filesystem_of
from celery_claims.stores.sqlite_file import APPLICATION_ID, SCHEMA_VERSION, SQL, split_statements

from tests.process.waiting import wait_until

from .children import Child, error_of, in_child

NOBODY = 65534

#: Of a finished record, its indexes included.
MOST_BYTES = 120

_COLUMNS = (
    *("token", "outcome", "nesting", "retries", "deaths", "deliveries", "started"),
    *("claimed_at", "expires_at", "settled_at", "forget_at", "priority", "queue", "task_id"),
    *("root_id", "owner", "grant_id", "task", "tag", "from_queue"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "claims.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(f"sqlite:///{path}", timeout=30.0) as store:
        assert isinstance(store, SQLiteStore)
        yield store


def request(task_id: str = "t", owner: str = "o", **changes: Any) -> ClaimRequest:
    facts = {"lease_ms": 60_000, "grant_id": f"{task_id}/{owner}/{os.urandom(4).hex()}"}
    return ClaimRequest(
        queue="q", task_id=task_id, owner=owner, root_id="root", **{**facts, **changes}
    )


def grant(store: SQLiteStore, task_id: str = "t") -> ClaimToken:
    answer = store.claim([request(task_id)])[0]
    assert isinstance(answer, Success)
    return answer.token


def finish(store: SQLiteStore, token: ClaimToken) -> None:
    store.settle([Settlement(token, Outcome.SUCCESS, 3_600_000)])


class TestDurability:
    def test_nothing_acknowledged_is_lost_when_writers_are_killed(
        self, store: SQLiteStore, path: Path
    ) -> None:
        acknowledged: dict[str, str] = {}
        for turn in range(6):
            with subprocess.Popen(
                [sys.executable, "-m", "tests.stores.children", str(path), f"writer{turn}"],
                stdout=subprocess.PIPE,
                text=True,
            ) as writer:
                assert writer.stdout is not None
                for _ in range(5 + 7 * turn):
                    line = writer.stdout.readline()
                writer.send_signal(signal.SIGKILL)
                line += writer.stdout.read()
            assert writer.returncode == -signal.SIGKILL
            for event in line.splitlines():
                state, name, _ = event.split()
                acknowledged[name] = state
        assert acknowledged
        for name, state in acknowledged.items():
            record = store.lookup([("q", name)])[0]
            assert record is not None
            assert record.state in {State(state), State.FINISHED}
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def test_synchronous_full_and_wal_are_on(self, store: SQLiteStore, path: Path) -> None:
        seen: list[int] = []
        store._file.read(lambda c: seen.append(c.execute("PRAGMA synchronous").fetchone()[0]))
        assert seen == [2]
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


class TestProcesses:
    def test_one_winner_of_each_claim_that_processes_race(self, path: Path) -> None:
        names = [f"t{number}" for number in range(40)]
        start_reading, start_writing = os.pipe()

        def race() -> list[list[Any]]:
            os.close(start_writing)
            os.read(start_reading, 1)
            store = SQLiteStore(f"sqlite:///{path}", timeout=60.0)
            answers = [store.claim([request(name, f"pid-{os.getpid()}")])[0] for name in names]
            assert {type(answer) for answer in answers} <= {Success, AlreadyClaimed}
            return [
                [answer.token.task_id, answer.token.token]
                for answer in answers
                if isinstance(answer, Success)
            ]

        children = [Child(race) for _ in range(6)]
        os.close(start_reading)
        os.close(start_writing)
        wins = [win for child in children for win in child.result()]
        assert sorted(name for name, _ in wins) == sorted(names)
        tokens = [token for _, token in sorted(wins, key=lambda win: names.index(win[0]))]
        assert len(set(tokens)) == len(tokens)

    def test_tokens_rise_strictly_over_all_processes(self, path: Path) -> None:
        def claim_and_give_back() -> list[int]:
            store = SQLiteStore(f"sqlite:///{path}", timeout=60.0)
            tokens = []
            while len(tokens) < 30:
                answer = store.claim([request()])[0]
                if isinstance(answer, Success):
                    tokens.append(answer.token.token)
                    store.settle([Settlement(answer.token, Outcome.NACKED, 3_600_000)])
            return tokens

        children = [Child(claim_and_give_back) for _ in range(4)]
        series = [child.result() for child in children]
        assert all(tokens == sorted(set(tokens)) for tokens in series)
        everything = {token for tokens in series for token in tokens}
        assert len(everything) == 120
        with SQLiteStore(f"sqlite:///{path}") as store:
            assert grant(store).token > max(everything)


class TestForks:
    def test_forks_beside_busy_threads_work_on_both_sides(self, store: SQLiteStore) -> None:
        over = threading.Event()
        errors: list[BaseException] = []

        def keep_busy(number: int) -> None:
            try:
                while not over.is_set():
                    token = grant(store, f"parent-{number}-{os.urandom(4).hex()}")
                    finish(store, token)
                    store.census()
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)

        def use() -> list[str]:
            kinds = []
            for number in range(5):
                token = grant(store, f"child-{os.getpid()}-{number}")
                kinds.append(type(store.renew([Renewal(token, 60_000)])[0]).__name__)
                finish(store, token)
            return kinds

        threads = [threading.Thread(target=keep_busy, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(30):
                assert in_child(use) == ["Renewed"] * 5
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert errors == []
        finish(store, grant(store, "parent"))
        assert store.check() == []

    def test_a_fork_finds_no_open_connection(self, store: SQLiteStore, path: Path) -> None:
        store.census()

        def open_files() -> list[str]:
            links = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
            targets = [link.readlink() for link in links if link.is_symlink()]
            return [str(target) for target in targets if target == path]

        assert open_files() != []
        assert in_child(open_files) == []
        finish(store, grant(store))

    def test_child_keeps_its_claims_when_the_parent_goes_on(self, store: SQLiteStore) -> None:
        token = grant(store)
        renewed = in_child(lambda: type(store.renew([Renewal(token, 90_000)])[0]).__name__)
        assert renewed == "Renewed"
        assert isinstance(store.renew([Renewal(token, 60_000)])[0], Renewed)
        assert in_child(lambda: type(store.claim([request()])[0]).__name__) == "AlreadyClaimed"


class TestLocks:
    @pytest.fixture
    def writer(self, store: SQLiteStore, path: Path) -> Iterator[sqlite3.Connection]:
        """Another process's transaction, which holds the write lock."""
        store.census()
        with closing(
            sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        ) as writer:
            writer.execute("BEGIN IMMEDIATE")
            yield writer

    def test_locked_file_is_waited_for_and_then_unavailable(
        self, path: Path, writer: sqlite3.Connection
    ) -> None:
        with SQLiteStore(f"sqlite:///{path}", timeout=0.3) as impatient:
            began = monotonic()
            with pytest.raises(StoreUnavailable, match=r"locked.*0\.3 s") as raised:
                impatient.claim([request()])
            assert 0.3 <= monotonic() - began < 5
            assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
            writer.execute("ROLLBACK")
            assert isinstance(impatient.claim([request()])[0], Success)

    def test_locked_file_is_used_once_it_is_free(
        self, store: SQLiteStore, writer: sqlite3.Connection
    ) -> None:
        answers: list[Any] = []
        claiming = threading.Thread(target=lambda: answers.extend(store.claim([request()])))
        claiming.start()
        claiming.join(timeout=0.2)
        assert answers == []
        writer.execute("COMMIT")
        claiming.join(timeout=30)
        assert isinstance(answers[0], Success)

    def test_reading_does_not_wait_for_writers(
        self, path: Path, writer: sqlite3.Connection
    ) -> None:
        assert writer.in_transaction
        with SQLiteStore(f"sqlite:///{path}", timeout=0.01) as impatient:
            assert impatient.lookup([("q", "t")]) == [None]
            assert impatient.census().live == 0
            for view in View:
                assert impatient.scan(view).records == ()

    def test_answers_that_change_nothing_write_nothing(
        self, store: SQLiteStore, path: Path
    ) -> None:
        held, ended = grant(store, "held"), grant(store, "ended")
        finish(store, ended)
        given_back = grant(store, "free")
        store.settle([Settlement(given_back, Outcome.NACKED, 3_600_000)])
        store.elect("duty", 60_000)
        with closing(sqlite3.connect(path)) as watcher:
            before = watcher.execute("PRAGMA data_version").fetchone()
            assert isinstance(store.claim([request("held")])[0], AlreadyClaimed)
            assert isinstance(store.renew([Renewal(ended, 60_000)])[0], Ended)
            assert isinstance(store.renew([Renewal(given_back, 60_000)])[0], Lost)
            finish(store, ended)
            assert store.expire([], keep_ms=0) == []
            assert not store.elect("duty", 60_000)
            assert watcher.execute("PRAGMA data_version").fetchone() == before
            assert isinstance(store.renew([Renewal(held, 90_000)])[0], Renewed)
            assert watcher.execute("PRAGMA data_version").fetchone() != before


class TestNewFiles:
    def test_two_workers_may_make_the_file_together(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The one that looks while the other writes does not take half of it for foreign."""
        url = f"sqlite:///{path}"
        other = threading.Thread(target=lambda: SQLiteStore(url, timeout=30.0).census())
        look = sqlite_file._number

        def slow_look(connection: sqlite3.Connection, name: str) -> int:
            found = look(connection, name)
            if other.ident is None:
                other.start()
                # It cannot finish before the look is over; if it could, it would by then.
                other.join(0.5)
            return found

        monkeypatch.setattr(sqlite_file, "_number", slow_look)
        with SQLiteStore(url, timeout=30.0) as store:
            assert isinstance(store.claim([request()])[0], Success)
        other.join(30)
        assert not other.is_alive()


class TestUnusableFiles:
    def test_garbage_is_corrupt_and_left_alone(self, path: Path) -> None:
        path.write_bytes(b"not a database, but something dear to somebody" * 100)
        before = path.read_bytes()
        with SQLiteStore(f"sqlite:///{path}") as store, pytest.raises(StoreCorrupt) as raised:
            store.claim([request()])
        assert "not a database" in str(raised.value)
        assert isinstance(raised.value.__cause__, sqlite3.DatabaseError)
        assert path.read_bytes() == before

    def test_damaged_pages_are_corrupt(self, path: Path) -> None:
        with SQLiteStore(f"sqlite:///{path}") as store:
            store.claim([request(f"t{number}") for number in range(500)])
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
        with SQLiteStore(f"sqlite:///{path}") as store:
            for call in (store.census, lambda: store.claim([request()])):
                with pytest.raises(StoreCorrupt):
                    call()

    def test_foreign_database_is_refused_and_left_alone(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("CREATE TABLE claims (somebody TEXT)")
        before = path.read_bytes()
        with (
            SQLiteStore(f"sqlite:///{path}") as store,
            pytest.raises(StoreCorrupt, match="another application"),
        ):
            store.claim([request()])
        assert path.read_bytes() == before

    def test_newer_schema_is_refused(self, store: SQLiteStore, path: Path) -> None:
        store.census()
        store.close()
        with closing(sqlite3.connect(path)) as other, other:
            other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        with (
            SQLiteStore(f"sqlite:///{path}") as again,
            pytest.raises(StoreCorrupt, match=r"newer celery-claims.*upgrade"),
        ):
            again.census()

    def test_file_is_marked_as_ours(self, store: SQLiteStore, path: Path) -> None:
        store.census()
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
            assert other.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)

    @pytest.mark.parametrize(
        "change",
        ["owner = 5", "task_id = x'ff'", "token = 'x'", "outcome = 'x'", "attempt = 1"],
    )
    def test_rows_of_somebody_else_are_corrupt(
        self, store: SQLiteStore, path: Path, change: str
    ) -> None:
        if change == "attempt = 1":
            statement = "ALTER TABLE claims RENAME COLUMN nesting TO attempt"
        else:
            statement = f"UPDATE claims SET {change}"
        grant(store)
        with closing(sqlite3.connect(path)) as other, other:
            other.execute(statement)
        page = store.scan(View.ALL)
        (unreadable,) = page.unreadable
        assert page.records == () and page.cursor is None
        assert store.census().live == (change != "outcome = 'x'")
        with closing(sqlite3.connect(path)) as other, other:
            other.execute(unreadable.removal)
        assert store.scan(View.ALL).unreadable == ()

    def test_missing_table_is_corrupt(self, store: SQLiteStore, path: Path) -> None:
        store.census()
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("DROP TABLE high_water")
        with pytest.raises(StoreCorrupt, match="schema"):
            store.claim([request()])

    def test_missing_folder_is_named(self, tmp_path: Path) -> None:
        with (
            SQLiteStore(f"sqlite:///{tmp_path}/missing/claims.db") as store,
            pytest.raises(StoreUnavailable, match=r"missing does not exist: create it") as raised,
        ):
            store.claim([request()])
        assert isinstance(raised.value.__cause__, sqlite3.OperationalError)

    def test_folder_instead_of_a_file(self, tmp_path: Path) -> None:
        with (
            SQLiteStore(f"sqlite:///{tmp_path}") as store,
            pytest.raises(StoreUnavailable, match="is a folder"),
        ):
            store.claim([request()])

    def test_store_goes_on_after_its_folder_was_made(self, tmp_path: Path) -> None:
        with SQLiteStore(f"sqlite:///{tmp_path}/later/claims.db") as store:
            with pytest.raises(StoreUnavailable):
                store.claim([request()])
            (tmp_path / "later").mkdir()
            assert isinstance(store.claim([request()])[0], Success)

    def test_read_only_folder_says_what_to_do(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o555)
            _, text, cause = _as_nobody(Path(folder, "claims.db"), expected="StoreReadOnly")
            assert "writable" in text
            assert cause == "OperationalError"
            assert os.listdir(folder) == []

    def test_read_only_file_says_what_to_do(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "claims.db")
            with SQLiteStore(f"sqlite:///{path}") as store:
                grant(store)
            path.chmod(0o444)
            Path(folder).chmod(0o555)
            _, text, _ = _as_nobody(path, expected="StoreReadOnly")
            assert "writable" in text

    def test_full_disk_changes_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(SQL, "synchronous_full", "PRAGMA max_page_count = 40")
        with SQLiteStore(f"sqlite:///{path}") as store:
            kept: list[str] = []

            def fill() -> None:
                for number in range(1000):
                    token = grant(store, f"{number}-" + "x" * 5000)
                    kept.append(token.task_id)

            with pytest.raises(StoreFull, match="no room is left") as raised:
                fill()
            assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
            assert store.census().live == len(kept) > 0
            assert store.lookup([("q", kept[-1])]) != [None]
        monkeypatch.undo()
        with SQLiteStore(f"sqlite:///{path}") as store:
            grant(store, "x" * 5000)

    def test_file_that_may_not_grow_is_an_error_of_the_store(self, path: Path) -> None:
        def fill() -> list[str]:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            store = SQLiteStore(f"sqlite:///{path}")
            grant(store)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            batch = [request(f"{number}-" + "x" * 5000) for number in range(200)]
            return [*error_of(lambda: store.claim(batch)), str(store.census().live)]

        kind, _, cause, live = in_child(fill)
        assert kind in {"StoreFull", "StoreUnavailable"}
        assert cause == "OperationalError"
        assert live == "1"


def _as_nobody(path: Path, expected: str) -> list[str]:
    """The error of a claim by a user without rights; root is not held by permissions."""

    def claim() -> list[str]:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        store = SQLiteStore(f"sqlite:///{path}")
        return error_of(lambda: store.claim([request()]))

    result: list[str] = in_child(claim)
    assert result[0] == expected, result
    return result


class TestUrls:
    def test_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for url, path in (
            ("sqlite:///claims.db", tmp_path / "claims.db"),
            ("sqlite:////var/lib/claims.db", Path("/var/lib/claims.db")),
            ("sqlite:///a%20b%3F.db", tmp_path / "a b?.db"),
            ("sqlite:///claims.db?synchronous=NORMAL", tmp_path / "claims.db"),
        ):
            store = open_store(url)
            assert isinstance(store, SQLiteStore)
            assert store.path == str(path)
            assert store.shared

    def test_relative_path_does_not_move_with_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with open_store("sqlite:///claims.db") as store:
            monkeypatch.chdir("/")
            store.census()
        assert (tmp_path / "claims.db").exists()

    def test_unusual_paths_are_opened(self, tmp_path: Path) -> None:
        for name in ("a b", "a?b", "a#b", "a%b", "\N{SNOWMAN}", "it's"):
            quoted = name.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
            with open_store(f"sqlite:///{tmp_path}/{quoted}") as store:
                store.census()
            assert (tmp_path / name).exists()

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("sqlite://", "slashes"),
            ("sqlite:///", "slashes"),
            ("sqlite://claims.db", "slashes"),
            ("sqlite://host/claims.db", "slashes"),
            ("sqlite:///a%00b", "slashes"),
            ("sqlite:///:memory:", "memory://"),
            ("sqlite:///x.db?sync=full", "unknown option 'sync'"),
            ("sqlite:///x.db?synchronous=off", "full or normal"),
            ("sqlite:///x.db?synchronous=", "full or normal"),
            ("sqlit:///x.db", "did you mean sqlite"),
        ],
    )
    def test_bad_urls(self, url: str, problem: str) -> None:
        with pytest.raises(ConfigurationError, match=problem) as raised:
            open_store(url)
        assert raised.value.setting == "claims_url"

    @pytest.mark.parametrize("timeout", [0, -1, True, None, "5", float("nan"), float("inf")])
    def test_bad_timeouts(self, timeout: Any) -> None:
        with pytest.raises(InvalidArgument) as raised:
            SQLiteStore("sqlite:///x.db", timeout=timeout)
        assert raised.value.argument == "timeout"


class TestCheck:
    def test_nothing_to_say_of_a_local_file(self, store: SQLiteStore) -> None:
        assert store.check() == []

    def test_synchronous_normal_is_told(self, path: Path) -> None:
        with SQLiteStore(f"sqlite:///{path}?synchronous=normal") as store:
            (concern,) = store.check()
        assert "synchronous" in concern

    def test_network_filesystem_is_told(
        self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("celery_claims.stores.sqlite._filesystem_of", lambda path: "nfs4")
        (concern,) = store.check()
        assert "nfs4" in concern

    def test_filesystem_is_that_of_the_innermost_mount(self) -> None:
        assert _filesystem_of("/proc/self") == "proc"
        assert _filesystem_of("/") not in {"", "proc"}

    def test_journal_without_shared_memory_is_told(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(SQL, "use_wal", "PRAGMA journal_mode = delete")
        with SQLiteStore(f"sqlite:///{path}") as store:
            grant(store)
            (concern,) = store.check()
        assert "journal mode is delete" in concern

    def test_unusable_file_is_an_error(self, tmp_path: Path) -> None:
        with (
            SQLiteStore(f"sqlite:///{tmp_path}/missing/x.db") as store,
            pytest.raises(StoreUnavailable),
        ):
            store.check()


class TestRows:
    def test_tasks_of_the_same_hash_have_records_of_their_own(
        self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_rows, "_HASH_BITS", 0)
        tokens = [grant(store, f"t{number}") for number in range(8)]
        again = store.claim([request(f"t{number}") for number in range(8)])
        assert [type(answer) for answer in again] == [AlreadyClaimed] * 8
        with pytest.raises(StoreCorrupt, match="too many tasks have the hash"):
            store.claim([request("t8")])
        finish(store, tokens[3])
        assert isinstance(store.renew([Renewal(tokens[3], 60_000)])[0], Ended)
        assert isinstance(store.renew([Renewal(tokens[4], 60_000)])[0], Renewed)
        store.settle([Settlement(tokens[5], Outcome.SUCCESS, 0)])
        assert isinstance(store.claim([request("t8")])[0], Success)
        kept = store.lookup([("q", f"t{number}") for number in range(9)])
        assert [record is None for record in kept] == [number == 5 for number in range(9)]
        census = store.census()
        assert (census.live, census.finished) == (7, 1)

    def test_row_that_no_call_finds_is_told_of(self, store: SQLiteStore, path: Path) -> None:
        grant(store)
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE claims SET id = id + 8")
        (unreadable,) = store.scan(View.LIVE).unreadable
        assert "id" in unreadable.problem

    @pytest.mark.parametrize("view", [View.ALL, View.LIVE])
    def test_records_of_one_queue_are_found_among_those_of_others(
        self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, view: View
    ) -> None:
        monkeypatch.setattr(sqlite, "SCAN_PART", 7)
        rare = {"t5", "t6", "t7", "t40"}
        for number in range(60):
            queue = "rare" if f"t{number}" in rare else "q"
            answer = store.claim([replace(request(f"t{number}"), queue=queue)])[0]
            assert isinstance(answer, Success)
            if number % 2 and view is View.ALL:
                finish(store, answer.token)
        for limit in (1, 2, 100):
            found: list[str] = []
            cursor = None
            while True:
                page = store.scan(view, queue="rare", cursor=cursor, limit=limit)
                assert len(page.records) <= limit
                found += [record.task_id for record in page.records]
                cursor = page.cursor
                if cursor is None:
                    break
            assert len(found) == len(rare) and set(found) == rare

    def test_what_only_a_claim_needs_is_not_kept_of_a_finished_one(
        self, store: SQLiteStore, path: Path
    ) -> None:
        tokens = [grant(store, name) for name in ("free", "finished")]
        store.settle([Settlement(tokens[0], Outcome.NACKED, 3_600_000)])
        finish(store, tokens[1])
        with closing(sqlite3.connect(path)) as other:
            other.row_factory = sqlite3.Row
            free, finished = other.execute("SELECT * FROM claims ORDER BY outcome").fetchall()
        assert (free["owner"], free["grant_id"]) == (b"o", tokens[0].grant_id.encode())
        gone = ("owner", "grant_id", "expires_at", "task", "tag", "from_queue", "priority")
        assert [finished[name] for name in gone] == [None] * len(gone)

    def test_a_finished_record_takes_little(self, path: Path) -> None:
        count = 8000
        with SQLiteStore(f"sqlite:///{path}?synchronous=normal", timeout=30.0) as store:
            for _ in range(count // 100):
                names = [str(uuid.uuid4()) for _ in range(100)]
                asked = [replace(request(name), queue="celery", root_id=name) for name in names]
                tokens = [each.token for each in store.claim(asked) if isinstance(each, Success)]
                assert len(tokens) == len(asked)
                store.settle([Settlement(token, Outcome.SUCCESS, 7_200_000) for token in tokens])
        with closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path.stat().st_size / count <= MOST_BYTES


class TestCost:
    @pytest.mark.parametrize(
        "name",
        [
            name
            for name, statement in SQL.items()
            if "FROM claims" in statement or statement.startswith(("UPDATE claims", "--"))
            if name not in {"schema", "keep"}
        ],
    )
    def test_statements_of_claims_search_an_index(self, store: SQLiteStore, name: str) -> None:
        """Only the census may read everything."""
        parameters: Any = dict.fromkeys(
            ["now", "most", "after_expiry", "after_id", "id", *_COLUMNS], 1
        )
        if "?" in SQL[name]:
            parameters = (1,) * (len(_COLUMNS) + 1 if name == "change" else SQL[name].count("?"))
        plan = store._file.read(
            lambda c: [
                row["detail"]
                for row in c.execute(f"EXPLAIN QUERY PLAN {SQL[name]}", parameters).fetchall()
            ]
        )
        if name.startswith("census"):
            assert any("SCAN" in step for step in plan)
        else:
            assert not any(step.startswith("SCAN") for step in plan), plan
            assert not any("TEMP B-TREE" in step for step in plan), plan

    def test_only_what_is_forgotten_is_written_down_for_all(
        self, store: SQLiteStore, path: Path
    ) -> None:
        """A claim has a page less to write; and a forgotten grant does not come back."""

        def high_water() -> int:
            with closing(sqlite3.connect(path)) as other:
                return int(other.execute("SELECT token FROM high_water").fetchone()[0])

        finish(store, grant(store, "finished"))
        gone = grant(store, "gone")
        assert high_water() == 0
        store.settle([Settlement(gone, Outcome.SUCCESS, 0)])
        assert high_water() == gone.token + 1
        assert isinstance(store.renew([Renewal(gone, 60_000)])[0], Lost)
        store.claim([request("expired", lease_ms=1)])
        (orphan,) = wait_until(lambda: store.scan(View.ORPHANED).records)
        assert store.expire([orphan.as_expiry()], keep_ms=0) == [True]
        assert high_water() == orphan.token
        store.settle([Settlement(grant(store, "short"), Outcome.SUCCESS, 1)])
        (short,) = store.lookup([("q", "short")])
        assert short is not None
        wait_until(lambda: store.expire([], keep_ms=0) or store.lookup([("q", "short")]) == [None])
        assert high_water() == short.token + 1

    def test_schema_is_split_into_its_statements(self) -> None:
        statements = split_statements(SQL["schema"])
        assert len(statements) == 8
        assert all(sqlite3.complete_statement(f"{statement};") for statement in statements)
