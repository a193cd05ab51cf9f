"""Settings: read from any mapping, checked once, with their relations.

In a Celery configuration each name carries the prefix ``claims_``; ``install(app, lease=60)`` takes
it without. Durations are seconds.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from .checks import check_count, check_flag, shown
from .errors import ConfigurationError

__all__ = ["PREFIX", "Settings", "TaskOptions", "read_settings"]

PREFIX = "claims_"

#: Shortest lease, in seconds: below it one slow round trip would lose it.
MIN_LEASE = 1.0
#: Longest lease, in seconds: a dead worker's task must not wait longer.
MAX_LEASE = 3600.0
#: Renewals within one lease: two may fail before it is over.
BEATS_PER_LEASE = 3
#: ``claims_keep_finished`` where it is not set and no visibility timeout is longer, in seconds.
KEEP_FINISHED = 7200.0
#: ``claims_store_timeout`` where it is not set, in seconds: short, for the event loop waits too.
STORE_TIMEOUT = 2.0
#: Above this AMQP reads a prefetch count as unlimited.
MAX_PREFETCH = 65_535


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How one task is claimed; what is None comes from the settings.

    Parameters:
        lease: seconds that the task's claim is valid without renewal.
        strict: stop a run when its lease can no longer be trusted, even if only the store is down.
        keep_finished: seconds that a finished attempt is remembered; 0 forgets it at once.
        max_deliveries: count of started runs that may die before the task fails for good.
        max_hold: seconds that one run may take before it is stopped and given back.
    """

    lease: float | None = None
    strict: bool | None = None
    keep_finished: float | None = None
    max_deliveries: int | None = None
    max_hold: float | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``claims_*`` may say.

    Parameters:
        url: where claims are kept; None: the broker's own place. Default None.
        tasks: patterns of task names to claim without a decorator; ``!`` excludes. Default none.
        lease: seconds that a claim is valid without renewal. Default 30.
        keep_finished: seconds that a finished attempt is remembered; None: two hours, or twice
            the broker's visibility timeout if that is longer; 0 forgets at once. Default None.
        max_deliveries: count of started runs that may die before the task fails. Default 20.
        max_hold: seconds that one run may take; None: no limit. Default None.
        strict: stop runs when their lease can no longer be trusted. Default False.
        on_store_down: ``wait`` (deliveries wait for the store) or ``run`` (they run unclaimed).
            Default ``wait``.
        cleanup_every: seconds between cleanups. Default 10.
        store_timeout: seconds that the worker waits for one answer of the store; None: 2, or a
            third of a shorter lease. Default None.
        max_held: count of duplicates that may wait beside the prefetch count. Default 1000.
        max_wait: seconds that a duplicate may be held before it goes back to its queue; None:
            900 on RabbitMQ, no limit elsewhere. Default None.
        allow_local_store: allow a store of one host or process with a network broker.
            Default False.
        store_options: the store's own options that are not in its URL, by name; they win over
            those of the broker, whose place is the default. Default none.
    """

    url: str | None = None
    tasks: tuple[str, ...] = ()
    lease: float = 30.0
    keep_finished: float | None = None
    max_deliveries: int = 20
    max_hold: float | None = None
    strict: bool = False
    on_store_down: str = "wait"
    cleanup_every: float = 10.0
    store_timeout: float | None = None
    max_held: int = 1000
    max_wait: float | None = None
    allow_local_store: bool = False
    store_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def timeout(self) -> float:
        """``store_timeout`` with its default filled in, in seconds."""
        if self.store_timeout is None:
            return min(STORE_TIMEOUT, self.lease / BEATS_PER_LEASE)
        return self.store_timeout

    def claims(self, task_name: str) -> bool:
        """Whether ``tasks`` names this task: some pattern does and none that begins with ``!``."""
        excluded = any(fnmatchcase(task_name, p[1:]) for p in self.tasks if p.startswith("!"))
        return not excluded and any(
            fnmatchcase(task_name, p) for p in self.tasks if not p.startswith("!")
        )

    def for_task(self, options: TaskOptions) -> TaskOptions:
        """The options of one task with what it leaves open filled in.

        Raises:
            ConfigurationError: naming the option.
        """
        given = {
            f.name: getattr(self, f.name)
            for f in fields(TaskOptions)
            if getattr(options, f.name) is None
        }
        filled = replace(options, **given)
        check_options(filled, prefix="")
        return filled

    def keep_free(self, options: TaskOptions) -> float:
        """Seconds that attempt and counters outlive a claim that was given back or expired.

        They must be there when the message comes again, also where finished ones are forgotten.
        """
        return options.keep_finished or KEEP_FINISHED


def read_settings(
    mapping: Mapping[str, Any], prefix: str = PREFIX, *, whole: bool = True
) -> Settings:
    """Settings from those keys of a mapping that carry the prefix, in any case.

    Parameters:
        mapping: e.g. ``app.conf``.
        prefix: in front of every name, in the keys and in error messages.
    Raises:
        ConfigurationError: naming the setting as the user wrote it.
    """
    known = {f.name for f in fields(Settings)}
    given: dict[str, Any] = {}
    for key, value in mapping.items():
        name = str(key).lower()
        if not name.startswith(prefix):
            continue
        name = name[len(prefix) :]
        if name not in known:
            raise ConfigurationError(str(key), f"no such setting{_suggestion(name, known, prefix)}")
        given[name] = value
    if "tasks" in given:
        given["tasks"] = _patterns(given["tasks"], prefix)
    settings = Settings(**given)
    _check(settings, prefix)
    if whole:
        _check_timeout(settings, settings.lease, f"{prefix}store_timeout")
    return settings


def read_options(given: Mapping[str, Any]) -> TaskOptions:
    """The keyword arguments of ``@claimed``.

    Raises:
        ConfigurationError: naming the option.
    """
    known = {f.name for f in fields(TaskOptions)}
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"claimed({name}=...)", f"no such option{_suggestion(name, known)}"
            )
    options = TaskOptions(**given)
    check_options(options, prefix="claimed: ")
    return options


def _suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return (
        f"; did you mean {prefix}{close[0]}?" if close else f". Known: {', '.join(sorted(known))}"
    )


def _patterns(value: object, prefix: str) -> tuple[str, ...]:
    name = f"{prefix}tasks"
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ConfigurationError(name, f"expected a list of patterns, got {shown(value)}")
    patterns = tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.lstrip("!"):
            raise ConfigurationError(name, f"not a pattern: {shown(pattern)}")
    if patterns and all(p.startswith("!") for p in patterns):
        raise ConfigurationError(
            name, "only exclusions: begin with a pattern that includes, like '*'"
        )
    return patterns


def _check(settings: Settings, prefix: str) -> None:
    if settings.url is not None and (
        not isinstance(settings.url, str) or "://" not in settings.url
    ):
        raise ConfigurationError(
            f"{prefix}url", f"expected a URL or None, got {shown(settings.url)}"
        )
    check_options(
        TaskOptions(
            lease=settings.lease,
            strict=settings.strict,
            keep_finished=settings.keep_finished,
            max_deliveries=settings.max_deliveries,
            max_hold=settings.max_hold,
        ),
        prefix,
    )
    _seconds(f"{prefix}lease", settings.lease, MIN_LEASE, MAX_LEASE)
    check_count(f"{prefix}max_deliveries", settings.max_deliveries, 1, 1_000_000)
    check_flag(f"{prefix}strict", settings.strict)
    check_flag(f"{prefix}allow_local_store", settings.allow_local_store)
    _check_store_options(f"{prefix}store_options", settings.store_options, prefix)
    check_count(f"{prefix}max_held", settings.max_held, 0, MAX_PREFETCH // 2)
    if settings.max_wait is not None:
        _seconds(f"{prefix}max_wait", settings.max_wait, 1.0, 365 * 86_400.0)
    _seconds(f"{prefix}cleanup_every", settings.cleanup_every, 1.0, 86_400.0)
    _seconds(f"{prefix}store_timeout", settings.timeout, 0.05, MAX_LEASE)
    if settings.on_store_down not in ("wait", "run"):
        raise ConfigurationError(
            f"{prefix}on_store_down",
            f"expected 'wait' or 'run', got {shown(settings.on_store_down)}",
        )


def _check_store_options(name: str, value: object, prefix: str) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(name, f"expected options by name, got {shown(value)}")
    if "timeout" in value:
        raise ConfigurationError(name, f"no option timeout: set {prefix}store_timeout")


def _check_timeout(settings: Settings, lease: float, name: str) -> None:
    beat = lease / BEATS_PER_LEASE
    if settings.timeout > 2 * beat:
        raise ConfigurationError(
            name,
            f"{settings.timeout:g} s leaves a lease of {lease} s no second try: "
            f"set it to {2 * beat:.3g} s or less, or use a longer lease",
        )


def check_lease(settings: Settings, task: str, lease: float) -> None:
    """The relation of one task's own lease to the store's timeout.

    Raises:
        ConfigurationError: naming the task and the setting.
    """
    _check_timeout(settings, lease, f"{PREFIX}store_timeout (task {task})")


def check_options(options: TaskOptions, prefix: str) -> None:
    """Check what is set of a task's options.

    Raises:
        ConfigurationError: naming the option with ``prefix`` in front.
    """
    if options.lease is not None:
        _seconds(f"{prefix}lease", options.lease, MIN_LEASE, MAX_LEASE)
    if options.strict is not None:
        check_flag(f"{prefix}strict", options.strict)
    if options.keep_finished is not None:
        _seconds(f"{prefix}keep_finished", options.keep_finished, 0.0, 10 * 365 * 86_400.0)
    if options.max_deliveries is not None:
        check_count(f"{prefix}max_deliveries", options.max_deliveries, 1, 1_000_000)
    if options.max_hold is not None:
        _seconds(f"{prefix}max_hold", options.max_hold, MIN_LEASE, 365 * 86_400.0)


def _seconds(name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ConfigurationError(name, f"expected seconds, got {shown(value)}")
    if not least <= value <= most:
        raise ConfigurationError(
            name, f"must be from {least:g} to {most:g} seconds, got {shown(value)}"
        )
