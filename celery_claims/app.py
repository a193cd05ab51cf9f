"""What ``install(app)`` adds to a Celery app."""

from __future__ import annotations

from typing import Any

from celery import Celery, current_app, signals

from . import inspection as _inspection  # noqa: F401 - registers celery inspect claims
from .bootsteps import ClaimsConsumerStep, ClaimsWorkerStep
from .claims import ATTRIBUTE, Claims, claims_of, installed
from .config import read_settings
from .events import ClaimEvent, emit
from .headers import HEADER, onward
from .options import CLEANUP_TASK
from .seams import actual
from .sweep import DUTY

__all__ = ["install"]

#: What Celery calls with a pickled copy of the app, which a spawned child gets.
FIXUP = "celery_claims.app:install"


def install(app: Celery, **settings: Any) -> None:
    """Add claims to an app. May be called again, before or after its tasks are defined.

    Parameters:
        app: the app.
        settings: as in the app's configuration, without the prefix ``claims_``; they win over it.
    Raises:
        ConfigurationError: naming the setting.
    """
    read_settings(settings, prefix="", whole=False)
    claims = claims_of(app)
    if claims is not None:
        claims.given.update(settings)
        claims.reconsider()
        return
    setattr(app, ATTRIBUTE, Claims(app, settings))
    app.fixups.add(FIXUP)
    app.steps["worker"].add(ClaimsWorkerStep)
    app.steps["consumer"].add(ClaimsConsumerStep)
    app.task(name=CLEANUP_TASK, ignore_result=True, shared=False, typing=False, bind=True)(cleanup)
    # The loader sends this before a worker or beat reads the schedule, and after the app's modules
    # are imported: a schedule that they set is there by then, and is added to.
    signals.import_modules.connect(_when_imported, sender=app, dispatch_uid=(HEADER, id(app)))
    signals.worker_process_init.connect(_in_child, dispatch_uid=HEADER)
    signals.before_task_publish.connect(_send_onward, dispatch_uid=HEADER)


def cleanup(task: Any) -> int:
    """Clean expired claims up; the beat task.

    Returns:
        how many were cleaned up.
    """
    claims = installed(task.app)
    # Takes the workers' turn, so that they do not sweep just after.
    claims.store.elect(DUTY, round(claims.settings.cleanup_every * 1000))
    sweep = claims.sweeper(claims.store).run_once()
    if sweep.cleaned or sweep.given_back:
        emit(ClaimEvent("swept", str(sweep)))
    return sweep.cleaned


def _when_imported(sender: Celery, **_: Any) -> None:
    """Before the modules of ``include`` are imported; the hook of the loader comes after them."""
    loader = sender.loader
    hook = loader.on_worker_init

    def on_worker_init() -> None:
        hook()
        _add_to_schedule(sender)

    loader.on_worker_init = on_worker_init


def _add_to_schedule(sender: Celery) -> None:
    claims = claims_of(sender)
    if claims is None or CLEANUP_TASK in sender.conf.beat_schedule:
        return
    every = claims.settings.cleanup_every
    entry = {"task": CLEANUP_TASK, "schedule": every, "options": {"expires": every}}
    # A new dict, for the default one is shared by every app.
    sender.conf.beat_schedule = {**sender.conf.beat_schedule, CLEANUP_TASK: entry}


def _in_child(sender: str | None = None, **_: Any) -> None:
    """A pool's process has built its tracers."""
    claims = claims_of(actual(current_app))
    if claims is not None:
        claims.wrap_tracers(sender)


def _send_onward(headers: dict[str, Any] | None = None, **_: Any) -> None:
    """A retry re-publishes its custom headers: all but the first queue of the claim stay behind."""
    if headers and HEADER in headers:
        kept = onward(headers.pop(HEADER))
        if kept is not None:
            headers[HEADER] = kept
