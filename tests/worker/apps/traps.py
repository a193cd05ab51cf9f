"""The trap tasks, claimed as the site's settings say."""

from .claimed import app
from .trap_tasks import (
    beat_late,
    count_questions,
    crash_once,
    hold_long,
    note_results,
    tell_accepted,
)

__all__ = ["app"]

note_results()
count_questions()
crash_once()
hold_long()
beat_late()
tell_accepted()
