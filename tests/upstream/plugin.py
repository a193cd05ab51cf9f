"""A pytest plugin for Celery's own tests: every task of their app is claimed."""

from __future__ import annotations

import os
from typing import Any

import pytest
from celery_claims import install

#: Set where tasks are claimed.
CLAIMED = "UPSTREAM_CLAIMED"


@pytest.fixture(scope="session", autouse=True)
def _every_task_is_claimed(celery_session_app: Any) -> None:
    """Before the session's worker starts, which is the first to need it."""
    if os.environ.get(CLAIMED):
        install(celery_session_app, tasks=["*"])
