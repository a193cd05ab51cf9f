"""What may break the promises on a Redis server, told at a worker's start."""

from __future__ import annotations

from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from ..errors import StoreError
from .redis_link import Link

__all__ = ["find_concerns"]


def find_concerns(link: Link, *, replicas_are_waited_for: bool) -> list[str]:
    """A sentence for each concern; what may not be asked is one too.

    Raises:
        StoreError: a server does not answer.
    """
    concerns: list[str] = []
    for name, server in sorted(link.servers().items()):
        where = f"{name}: " if name else ""
        facts = _Facts(link, server)
        found = [
            _eviction(facts),
            _persistence(facts),
            None if replicas_are_waited_for else _replicas(facts),
        ]
        concerns += [where + concern for concern in found if concern]
    return concerns


def _eviction(facts: _Facts) -> str | None:
    policy = facts.config("maxmemory-policy") or facts.info("memory").get("maxmemory_policy")
    if policy is None:
        return (
            "maxmemory-policy could not be checked (CONFIG and INFO are not allowed): "
            "it must be noeviction"
        )
    if policy == "noeviction":
        return None
    return (
        f"maxmemory-policy is {policy}: a claim may be evicted and its task run twice; "
        "set it to noeviction"
    )


def _persistence(facts: _Facts) -> str | None:
    append_only, save = facts.config("appendonly"), facts.config("save")
    if append_only is None:
        enabled = facts.info("persistence").get("aof_enabled")
        append_only = {"1": "yes", "0": "no"}.get(enabled or "")
    if append_only == "yes":
        return None
    if append_only is None or save is None:
        return (
            "persistence could not be checked (CONFIG or INFO is not allowed): "
            "without it a restart forgets which tasks are finished"
        )
    if save:
        return None
    return (
        "neither AOF nor RDB is on: a restart forgets which tasks are finished; set appendonly yes"
    )


def _replicas(facts: _Facts) -> str | None:
    connected = facts.info("replication").get("connected_slaves")
    if connected is None:
        return (
            "replicas could not be checked (INFO is not allowed): "
            "a failover may lose claims unless wait_replicas is set"
        )
    if connected == "0":
        return None
    return (
        f"{connected} replica(s) and no wait_replicas: a failover may lose the last claims, and "
        "their tasks run twice; set claims_store_options = {'wait_replicas': 1}"
    )


class _Facts:
    """What a server tells of itself, None or nothing where it may not be asked."""

    def __init__(self, link: Link, server: Any) -> None:
        self._link = link
        self._server = server

    def config(self, name: str) -> str | None:
        answer = self._ask("CONFIG", "GET", name)
        if not answer:
            return None
        values = answer.values() if isinstance(answer, dict) else answer[1::2]
        return _text(next(iter(values)))

    def info(self, section: str) -> dict[str, str]:
        answer = self._ask("INFO", section)
        if answer is None:
            return {}
        if isinstance(answer, dict):
            return {str(name): _text(value) for name, value in answer.items()}
        lines = _text(answer).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def _ask(self, *command: Any) -> Any:
        try:
            return self._link.on_server(self._server, *command)
        except StoreError as error:
            # Not allowed, renamed away, or not offered by a managed service.
            if isinstance(error.__cause__, (NoPermissionError, ResponseError)):
                return None
            raise


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
