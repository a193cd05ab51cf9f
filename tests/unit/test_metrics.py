"""Events become metrics; nothing is opened or written for that."""

from __future__ import annotations

import sys

import pytest
from celery_claims import ConfigurationError, events
from celery_claims.events import ClaimEvent
from celery_claims.metrics import PrometheusHook
from prometheus_client import CollectorRegistry


def test_events_are_counted_by_name_and_task() -> None:
    registry = CollectorRegistry()
    hook = PrometheusHook(registry)
    events.add_hook(hook)
    try:
        for name in ("claimed", "claimed", "skipped"):
            events.emit(ClaimEvent(name, task="proj.add", task_id="1"))
    finally:
        events.remove_hook(hook)
    counted = {
        name: registry.get_sample_value(
            "celery_claims_events_total", {"event": name, "task": "proj.add"}
        )
        for name in ("claimed", "skipped", "lost")
    }
    assert counted == {"claimed": 2, "skipped": 1, "lost": None}


def test_an_outage_of_the_store_shows_until_it_is_over() -> None:
    registry = CollectorRegistry()
    hook = PrometheusHook(registry)
    shown = []
    for name in ("claimed", "store_down", "claimed", "store_up"):
        hook(ClaimEvent(name))
        shown.append(registry.get_sample_value("celery_claims_store_up"))
    assert shown == [1, 0, 0, 1]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"celery-claims\[metrics\]"):
        PrometheusHook()
