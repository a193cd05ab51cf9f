"""Settings of a Redis broker that do not go with claims."""

from __future__ import annotations

from typing import Any

import pytest
from celery_claims.brokers.redis_concerns import find_concerns
from kombu import Connection


def concerns(
    url: str = "redis://broker", keep: float = 7200.0, own: bool = False, **options: Any
) -> list[str]:
    connection = Connection(url, transport_options=options)
    return find_concerns(connection, keep_finished=keep, has_own_store=own)


@pytest.mark.parametrize("url", ["redis://broker", "sentinel://one;sentinel://two"])
def test_nothing_is_wrong_with_the_defaults(url: str) -> None:
    assert concerns(url) == []
    assert concerns(url, visibility_timeout=43_200, keep=86_400.0) == []


@pytest.mark.parametrize("timeout", [2.5, "3600", 0, -1, True, None])
def test_a_visibility_timeout_that_is_not_whole_seconds(timeout: Any) -> None:
    (concern,) = concerns(visibility_timeout=timeout)
    assert "visibility_timeout" in concern
    assert repr(timeout) in concern


def test_a_memory_that_is_shorter_than_the_visibility_timeout() -> None:
    (concern,) = concerns(keep=60.0)
    assert "claims_keep_finished" in concern
    assert "3600" in concern


def test_forgetting_at_once_is_on_purpose() -> None:
    assert concerns(keep=0.0) == []


def test_no_acknowledgements_at_all() -> None:
    (concern,) = concerns(ack_emulation=False)
    assert "ack_emulation" in concern


@pytest.mark.parametrize(("own", "told"), [(False, "messages and claims"), (True, "messages are")])
def test_several_brokers(own: bool, told: str) -> None:
    (concern,) = concerns("redis://one;redis://two", own=own)
    assert "sentinels" in concern
    assert told in concern
