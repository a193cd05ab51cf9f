"""Settings, options, URLs and commands with anything in them: our own error, and it names what."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.celery import celery
from celery_claims import claimed, install, open_store
from celery_claims.config import Settings, TaskOptions, read_settings
from celery_claims.errors import ConfigurationError
from celery_claims.stores import SCHEMES
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.test_bad_messages import ANYTHING

NAMES = [field.name for field in fields(Settings)]
OPTIONS = [field.name for field in fields(TaskOptions)]


@settings(max_examples=200, deadline=None)
@given(given_=st.dictionaries(st.sampled_from(NAMES), ANYTHING, min_size=1, max_size=3))
def test_settings_are_taken_whole_or_refused_by_name(given_: dict[str, Any]) -> None:
    try:
        taken = read_settings({f"claims_{name}": value for name, value in given_.items()})
    except ConfigurationError as error:
        refused = str(error)
    else:
        # What is taken can be used: a task with no options of its own gets all of it.
        assert taken.for_task(TaskOptions()).lease == taken.lease
        assert taken.timeout > 0 and taken.claims("a.b") in (True, False)
        return
    assert refused.startswith("claims_") and len(refused) < 500


@given(name=st.text(max_size=30), value=ANYTHING)
def test_an_unknown_setting_is_refused_by_name(name: str, value: Any) -> None:
    key = f"claims_{name}"
    if key.lower().removeprefix("claims_") in NAMES:
        return
    with pytest.raises(ConfigurationError) as raised:
        read_settings({key: value})
    assert raised.value.setting == key


@settings(max_examples=200, deadline=None)
@given(given_=st.dictionaries(st.sampled_from(OPTIONS) | st.text(max_size=9), ANYTHING, max_size=3))
def test_options_are_taken_or_refused_by_name(given_: dict[str, Any]) -> None:
    def body() -> None: ...

    try:
        claimed(**given_)(body)
    except ConfigurationError as error:
        refused = str(error)
    else:
        return
    assert refused.startswith("claimed") and len(refused) < 500


HOSTILE = st.lists(
    st.sampled_from(
        [
            *("//", "/", ":", "@", "?", "&", "=", "#", "%", "%00", "%zz", "%2", "%ff", "%0a"),
            *("[", "]", "[::1]", ",", ";", " ", "\t", "\n", "\x00", "\ud800", "ü", "'", '"', "\\"),
            *(
                "host",
                "user",
                "secret",
                "99999",
                "-1",
                "0",
                "1e9",
                "db",
                "localhost",
                "..",
                "{",
                "}",
            ),
            *("prefix", "slots", "wait_replicas", "schema", "pool_size", "auto_create", "timeout"),
            *("synchronous", "ssl_cert_reqs", "master_name", "options", "host=", "memory"),
        ]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(scheme=st.sampled_from(sorted(SCHEMES)) | st.text(max_size=6), rest=HOSTILE)
@example("redis", "user:secret@[::1")
@example("postgresql", "user:secret@host:99999/db")
@example("sqlite", "/%00")
@example("redis", "localhost?db=x&socket_timeout=secret")
@example("redis", "localhost:" + "9" * 5000)
@example("redis", "localhost/" + "9" * 5000)
def test_urls_open_a_store_or_are_refused(scheme: str, rest: str) -> None:
    """Without a call to any server, and the error is one line's worth."""
    try:
        store = open_store(f"{scheme}://{rest}")
    except ConfigurationError as error:
        refused = error
    else:
        assert store.name
        store.close()
        return
    assert refused.setting and refused.problem


@pytest.mark.parametrize("url", [None, 5, b"redis://", "", "redis", "://", "sqlite:", [], "x" * 99])
def test_what_is_no_url_is_refused(url: Any) -> None:
    with pytest.raises(ConfigurationError):
        open_store(url)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.setattr("celery._state._on_app_finalizers", set())
    app = Celery("proj", broker="memory://", set_as_current=False)
    install(app, url=f"sqlite:///{tmp_path / 'claims.db'}")
    return app


WORDS = st.lists(
    st.sampled_from(
        [
            *("list", "show", "stats", "cleanup", "check", "nonsense"),
            *("--queue", "--limit", "--json", "--all", "--expired", "--live", "--help", "--nope"),
            *("-1", "0", "1", "99999999999999999999", "q", "", "\x00", "\ud800", "x" * 20_000),
            *("{x}", "'; --", "ü", "--queue=", "--limit=x"),
        ]
    ),
    max_size=5,
)


def test_commands_end_with_a_word_whatever_their_arguments(app: Celery) -> None:
    """A wrong argument is a usage error (2) or a refusal (1), never a traceback."""

    @settings(max_examples=120, deadline=None)
    @given(words=WORDS)
    @example(["show", "\ud800"])
    @example(["list", "--queue", "\x00"])
    @example(["show", "x" * 20_000])
    def check(words: list[str]) -> None:
        result = CliRunner().invoke(celery, ["-A", app, "claims", *words])  # type: ignore[list-item]
        assert result.exception is None or isinstance(result.exception, SystemExit), words
        assert result.exit_code in (0, 1, 2)

    check()


@pytest.mark.parametrize(
    ("url", "arguments", "words"),
    [
        ("sqlite:////no/such/folder/claims.db", ["list"], "create it"),
        ("sqlite:///claims.db?nope=1", ["stats"], "unknown option 'nope'"),
        ("redsi://localhost", ["check"], "did you mean redis"),
        ("sqlite:///claims.db", ["list", "--limit", "0"], "--limit"),
    ],
)
def test_a_command_of_its_own_process_says_what_is_wrong_in_one_line(
    tmp_path: Path, url: str, arguments: list[str], words: str
) -> None:
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\nfrom celery_claims import install\n"
        f"app = Celery('proj', broker='memory://')\ninstall(app, url={url!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "proj", "claims", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert words in done.stderr and "Traceback" not in done.stderr
