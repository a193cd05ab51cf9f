"""Celery apps for tests. Workers and the test itself build them alike, from a site's settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery

from tests.process.environment import CLAIMS_VARIABLE, CONF_VARIABLE, FOLDER_VARIABLE
from tests.process.folder import make_folders_atomic
from tests.process.gates import Gates
from tests.process.growing import take_turns_at_the_pool
from tests.process.journal import Journal


def create_app(conf: Mapping[str, Any]) -> Celery:
    """An app with these settings and every shared task of this package."""
    make_folders_atomic()
    from . import tasks  # noqa: F401 - registers the shared tasks

    app = Celery("tests", set_as_current=False)
    app.conf.update(conf)
    return app


def worker_app() -> Celery:
    """The app of a worker process, from its environment."""
    take_turns_at_the_pool()
    app = create_app(json.loads(os.environ[CONF_VARIABLE]))
    app.set_default()
    # The plugin's own task of this name is in pytest's process only, for its import is slow.
    app.task(name="pytest_celery.vendors.worker.tasks.ping")(ping)
    return app


def ping() -> str:
    """What ``CeleryTestSetup.ready(ping=True)`` asks for."""
    return "pong"


def claims_settings() -> dict[str, Any]:
    """What a worker process shall give to ``install``, from its environment."""
    settings: dict[str, Any] = json.loads(os.environ[CLAIMS_VARIABLE])
    return settings


def journal() -> Journal:
    """The test's journal, in a worker process."""
    return Journal(Path(os.environ[FOLDER_VARIABLE]) / "journal.jsonl")


def gates() -> Gates:
    """The test's gates, in a worker process."""
    return Gates(Path(os.environ[FOLDER_VARIABLE]) / "gates")
