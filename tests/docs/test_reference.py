"""The reference tables of the documentation match the code."""

from __future__ import annotations

import logging
import re
from dataclasses import MISSING, fields

import pytest
from celery_claims.cli import claims
from celery_claims.config import PREFIX, Settings, TaskOptions
from celery_claims.events import NAMES
from celery_claims.inspection import EVENT_PREFIX, SENT

from .pages import ROOT, rows

CONFIGURATION = ROOT / "docs" / "configuration.md"
WATCHING = ROOT / "docs" / "watching.md"

documented = {row[0].strip("`"): row for row in rows(CONFIGURATION, "## Settings")}


def test_every_setting_is_documented_and_no_other():
    assert list(documented) == [PREFIX + field.name for field in fields(Settings)]


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda field: field.name)
def test_documented_defaults_are_the_defaults(setting):
    default = documented[PREFIX + setting.name][2].strip("`")
    made = setting.default_factory
    value = setting.default if made is MISSING else made()
    assert default == (f'"{value}"' if isinstance(value, str) else repr(value))


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda field: field.name)
def test_numbers_have_their_unit(setting):
    """In the table, and in the docstring that the table is made after."""
    unit = documented[PREFIX + setting.name][1]
    assert unit in {"seconds", "count", "flag", "word", "URL", "patterns", "mapping"}
    if unit in {"seconds", "count"}:
        described = re.search(
            rf"^ +{setting.name}: (.*?Default)", Settings.__doc__, re.MULTILINE | re.DOTALL
        )
        assert described, f"{setting.name} has no default in its docstring"
        assert unit in described[1]


def test_every_option_of_claimed_is_documented():
    section = CONFIGURATION.read_text().partition("\n## One task\n")[2]
    named = re.findall(r"`(\w+)`", section.partition("\n\n```")[0])
    assert {field.name for field in fields(TaskOptions)} <= set(named)


def test_readme_names_settings_that_exist():
    named = set(re.findall(r"\bclaims_\w+", (ROOT / "README.md").read_text()))
    known = {PREFIX + field.name for field in fields(Settings)}
    assert named - known == set()


def test_every_event_is_documented_at_its_level():
    documented_levels = {
        name: level
        for names, levels, _ in rows(CONFIGURATION, "## What the log says")
        for name, level in zip(re.findall(r"`(\w+)`", names), levels.split(", "), strict=True)
    }
    assert documented_levels == {
        name: logging.getLevelName(level).lower() for name, level in NAMES.items()
    }


def test_every_command_is_documented():
    named = [row[0].strip("`").split()[0] for row in rows(WATCHING, "## celery claims")]
    assert sorted(named) == sorted(claims.commands)


def test_every_celery_event_is_documented():
    named = {row[0].strip("`") for row in rows(WATCHING, "## Celery events")}
    assert named == {EVENT_PREFIX + name.replace("_", "-") for name in SENT}
