"""What ``install(app)`` adds to a Celery app."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

from celery import Celery, current_app, signals
from celery.app.task import Task

from .bootsteps import ClaimsConsumerStep, ClaimsWorkerStep
from .config import PREFIX, Settings, TaskOptions, read_settings
from .events import ClaimEvent, emit
from .headers import HEADER, Passport, onward
from .keeper import Keeper
from .options import CLEANUP_TASK, options_of
from .places import check_place, default_url, visibility_timeout
from .run import Run, here
from .stores import Store, open_store
from .sweep import DUTY, Sweeper
from .tracer import guard, wrap_tracer

__all__ = ["Claims", "claims_of", "install"]

#: Where an app keeps its ``Claims``.
ATTRIBUTE = "_celery_claims"


class Claims:
    """The claims of one app, in each of its processes.

    Parameters:
        app: the app.
        given: settings of ``install``, without their prefix; they win over the app's own.
    """

    def __init__(self, app: Celery, given: dict[str, Any]) -> None:
        self.app = app
        self.given = given
        #: the running worker's claims, in the worker's own process
        self.keeper: Keeper | None = None

    @cached_property
    def settings(self) -> Settings:
        """Read when a worker, beat or a command needs them: the app is configured by then.

        Raises:
            ConfigurationError: naming the setting.
        """
        found = dict(self._configured())
        found.update({PREFIX + name: value for name, value in self.given.items()})
        settings = read_settings(found)
        if settings.keep_finished is None:
            timeout = visibility_timeout(self.app.connection_for_read()) or 0.0
            default = replace(settings, keep_finished=None).keep_free(TaskOptions())
            settings = replace(settings, keep_finished=max(default, 2 * timeout))
        return settings

    def _configured(self) -> Iterator[tuple[str, Any]]:
        """``claims_*`` of the app's configuration, with or without its namespace."""
        namespace = f"{self.app.namespace}_".lower() if self.app.namespace else ""
        for key in list(self.app.conf):
            name = str(key).lower().removeprefix(namespace)
            if name.startswith(PREFIX):
                yield name, self.app.conf[key]

    @cached_property
    def url(self) -> str:
        """The store's URL.

        Raises:
            ConfigurationError: naming ``claims_url``.
        """
        return self.settings.url or default_url(self.app.connection_for_read())

    @cached_property
    def store(self) -> Store:
        """This process's store; it opens on first use, and anew in a forked child."""
        return self.open_store()

    def open_store(self) -> Store:
        """Another connection to the store."""
        if self.url.startswith("memory:"):
            return open_store(self.url)
        return open_store(self.url, timeout=self.settings.timeout)

    def check_place(self, *, forks: bool) -> None:
        """Refuse a store that does not fit the broker or the pool."""
        check_place(
            self.url,
            self.app.connection_for_read(),
            forks=forks,
            allow_local=self.settings.allow_local_store,
        )

    def options(self, name: str) -> TaskOptions | None:
        """How the task of this name is claimed; None: it is not."""
        task = self.app.tasks.get(name)
        return None if task is None else options_of(task, self.settings)

    def claimed_tasks(self) -> list[Task]:
        """Tasks of the app that are claimed."""
        return [task for name, task in self.app.tasks.items() if self.options(name) is not None]

    def shortest_lease(self) -> float:
        """Of all tasks that are claimed, in seconds."""
        leases = [self.settings.lease]
        leases += [o.lease for t in self.claimed_tasks() if (o := self.options(t.name)) and o.lease]
        return min(leases)

    def keep_free_ms(self) -> int:
        return round(self.settings.keep_free(self.settings.for_task(TaskOptions())) * 1000)

    def sweeper(self, store: Store) -> Sweeper:
        return Sweeper(store, self.keep_free_ms())

    def guard(self, name: str) -> None:
        """Before Celery builds a tracer of this task from its body."""
        if self.options(name) is not None:
            guard(self.app.tasks[name])

    def wrap_tracers(self, hostname: str | None) -> None:
        """After Celery built the tracers of all tasks."""
        for task in self.claimed_tasks():
            wrap_tracer(self.app, task, self.new_run, hostname)

    def new_run(self, passport: Passport) -> Run:
        keeper = self.keeper if here(passport) else None
        case = keeper.case(passport.token.grant_id) if keeper is not None else None
        return Run(passport, lambda: self.store, case)


def claims_of(app: Celery) -> Claims | None:
    """The claims of an app; None: ``install`` was not called on it."""
    return getattr(app, ATTRIBUTE, None)


def install(app: Celery, **settings: Any) -> None:
    """Add claims to an app. May be called again, before or after its tasks are defined.

    Parameters:
        app: the app.
        settings: as in the app's configuration, without the prefix ``claims_``; they win over it.
    Raises:
        ConfigurationError: naming the setting.
    """
    read_settings(settings, prefix="")
    claims = claims_of(app)
    if claims is not None:
        claims.given.update(settings)
        claims.__dict__.pop("settings", None)
        return
    setattr(app, ATTRIBUTE, Claims(app, settings))
    app.steps["worker"].add(ClaimsWorkerStep)
    app.steps["consumer"].add(ClaimsConsumerStep)
    app.task(name=CLEANUP_TASK, ignore_result=True, shared=False, typing=False)(cleanup)
    # The loader sends this before a worker or beat reads the schedule, and after the app's modules
    # are imported: a schedule that they set is there by then, and is added to.
    signals.import_modules.connect(_add_to_schedule, sender=app, dispatch_uid=(HEADER, id(app)))
    app.on_after_finalize.connect(_add_to_schedule, dispatch_uid=(HEADER, id(app)))
    signals.worker_process_init.connect(_in_child, dispatch_uid=HEADER)
    signals.before_task_publish.connect(_send_onward, dispatch_uid=HEADER)


def cleanup() -> int:
    """Clean expired claims up; the beat task.

    Returns:
        how many were cleaned up.
    """
    claims = claims_of(current_app._get_current_object())
    assert claims is not None
    # Takes the workers' turn, so that they do not sweep just after.
    claims.store.elect(DUTY, round(claims.settings.cleanup_every * 1000))
    sweep = claims.sweeper(claims.store).run_once()
    if sweep.cleaned:
        emit(ClaimEvent("swept", f"{sweep.cleaned} expired claims"))
    return sweep.cleaned


def _add_to_schedule(sender: Celery, **_: Any) -> None:
    claims = claims_of(sender)
    if claims is None or CLEANUP_TASK in sender.conf.beat_schedule:
        return
    every = claims.settings.cleanup_every
    entry = {"task": CLEANUP_TASK, "schedule": every, "options": {"expires": every}}
    # A new dict, for the default one is shared by every app.
    sender.conf.beat_schedule = {**sender.conf.beat_schedule, CLEANUP_TASK: entry}


def _in_child(sender: str | None = None, **_: Any) -> None:
    """A pool's process has built its tracers."""
    claims = claims_of(current_app._get_current_object())
    if claims is not None:
        claims.wrap_tracers(sender)


def _send_onward(headers: dict[str, Any] | None = None, **_: Any) -> None:
    """A retry re-publishes its custom headers: all but the first queue of the claim stay behind."""
    if headers and HEADER in headers:
        kept = onward(headers.pop(HEADER))
        if kept is not None:
            headers[HEADER] = kept
