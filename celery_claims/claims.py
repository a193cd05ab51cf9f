"""The claims of one app: its settings, its store, its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

from celery import Celery
from celery.app.task import Task

from .brokers import Deliveries, open_deliveries
from .config import PREFIX, Settings, TaskOptions, read_settings
from .headers import Passport
from .host import HOST, Host
from .keeper import Keeper
from .options import options_of
from .places import (
    check_broker,
    check_place,
    default_options,
    default_url,
    longest_wait,
    visibility_timeout,
)
from .run import Run, here
from .stores import Store, open_store
from .sweep import Sweeper
from .tracer import guard, wrap_tracer

__all__ = ["ATTRIBUTE", "Claims", "claims_of", "installed"]

#: Where an app keeps its ``Claims``.
ATTRIBUTE = "_celery_claims"
#: The key of a worker's configuration that takes the settings of ``install`` to spawned children.
GIVEN = "celery_claims"


class Claims:
    """The claims of one app, in each of its processes.

    Parameters:
        app: the app.
        given: settings of ``install``, without their prefix; they win over the app's own.
        host: what the process runs on.
    """

    def __init__(self, app: Celery, given: dict[str, Any], host: Host = HOST) -> None:
        self.app = app
        self.host = host
        self.given = given
        #: the running worker's claims, in the worker's own process
        self.keeper: Keeper | None = None

    def open_keeper(self, hostname: str, *, forks: bool) -> Keeper:
        """The claims of a worker that starts in this process."""
        self.app.conf[GIVEN] = dict(self.given)
        self.keeper = Keeper(
            hostname,
            self.store,
            run_when_down=self.settings.on_store_down == "run",
            can_stop=forks,
            max_wait=self.settings.max_wait,
            host=self.host,
        )
        return self.keeper

    def reconsider(self) -> None:
        """The settings have changed: nothing that was made of them is kept."""
        for name in ("settings", "url", "url_options", "store", "deliveries"):
            self.__dict__.pop(name, None)

    @cached_property
    def settings(self) -> Settings:
        """Read when a worker, beat or a command needs them: the app is configured by then.

        Raises:
            ConfigurationError: naming the setting.
        """
        found = dict(self._configured())
        given = {**self.app.conf.get(GIVEN, {}), **self.given}
        found.update({PREFIX + name: value for name, value in given.items()})
        settings = read_settings(found)
        if settings.keep_finished is None:
            timeout = visibility_timeout(self.app.connection_for_read()) or 0.0
            default = replace(settings, keep_finished=None).keep_free(TaskOptions())
            settings = replace(settings, keep_finished=max(default, 2 * timeout))
        if settings.max_wait is None:
            settings = replace(settings, max_wait=longest_wait(self.app.connection_for_read()))
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
    def url_options(self) -> dict[str, Any]:
        """What the store must know beside its URL: what the broker's place needs, and what
        ``claims_store_options`` says."""
        by_broker = {} if self.settings.url else default_options(self.app.connection_for_read())
        return {**by_broker, **self.settings.store_options}

    @cached_property
    def store(self) -> Store:
        """This process's store; it opens on first use, and anew in a forked child."""
        return self.open_store()

    def open_store(self) -> Store:
        """Another connection to the store."""
        if self.url.startswith("memory:"):
            return open_store(self.url, **self.url_options)
        return open_store(self.url, timeout=self.settings.timeout, **self.url_options)

    def check_place(self, *, forks: bool) -> None:
        """Refuse a store that does not fit the broker or the pool."""
        check_place(
            self.url,
            self.app.connection_for_read(),
            forks=forks,
            allow_local=self.settings.allow_local_store,
        )

    def problems(self, store: Store) -> list[str]:
        """What the store or the broker cannot keep of what is promised, each in one sentence."""
        settings = self.settings
        assert settings.keep_finished is not None
        return store.check() + check_broker(
            self.app.connection_for_read(),
            self.app.conf,
            keep_finished=settings.keep_finished,
            has_own_store=settings.url is not None,
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

    @cached_property
    def deliveries(self) -> Deliveries | None:
        """This process's view of the broker's unacknowledged messages; None: it needs none."""
        return self.open_deliveries()

    def open_deliveries(self) -> Deliveries | None:
        """Another connection to the broker's unacknowledged messages."""
        return open_deliveries(
            self.app.connection_for_read(),
            timeout=self.settings.timeout,
            stale_after=self.shortest_lease(),
        )

    def sweeper(self, store: Store, deliveries: Deliveries | None = None) -> Sweeper:
        """Parameters: what the sweeping thread has of its own."""
        return Sweeper(store, self.keep_free_ms(), deliveries or self.deliveries)

    def guard(self, name: str) -> None:
        """Before Celery builds a tracer of this task from its body."""
        if self.options(name) is not None:
            guard(self.app.tasks[name])

    def wrap_tracers(self, hostname: str | None) -> None:
        """After Celery built the tracers of all tasks."""
        for task in self.claimed_tasks():
            wrap_tracer(self.app, task, self.new_run, hostname)

    def new_run(self, passport: Passport) -> Run:
        keeper = self.keeper if here(passport, self.host) else None
        case = keeper.case(passport.token.grant_id) if keeper is not None else None
        return Run(passport, lambda: self.store, case, self.host.clock)


def claims_of(app: Celery) -> Claims | None:
    """The claims of an app; None: ``install`` was not called on it."""
    return getattr(app, ATTRIBUTE, None)


def installed(app: Celery) -> Claims:
    """The claims of an app that surely has them."""
    claims = claims_of(app)
    assert claims is not None
    return claims
