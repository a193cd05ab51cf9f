"""The public names are those that are written down, and come from where they are said to."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import celery_claims
import pytest

SOURCE = ast.parse(Path(celery_claims.__file__).read_text())


def names_for_type_checkers() -> dict[str, str]:
    """name -> module, as the block under ``TYPE_CHECKING`` imports them."""
    (block,) = (
        node
        for node in SOURCE.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.asname or alias.name: node.module or ""
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_all_is_what_is_exported() -> None:
    """A name that a type checker sees can be imported, and the other way round."""
    seen = {name for name, module in names_for_type_checkers().items() if module}
    assert set(celery_claims.__all__) == seen | {"__version__"}
    assert sorted(set(celery_claims.__all__)) == sorted(celery_claims.__all__)
    assert dir(celery_claims) == sorted(celery_claims.__all__)


@pytest.mark.parametrize("name", sorted(set(celery_claims.__all__) - {"__version__"}))
def test_a_name_comes_from_where_type_checkers_look(name: str) -> None:
    module = names_for_type_checkers()[name]
    assert getattr(celery_claims, name).__module__ == f"celery_claims.{module}"


@pytest.mark.parametrize("name", ["_version", "errors"])
def test_modules_are_imported_as_such(name: str) -> None:
    """``from celery_claims import errors`` is documented; the submodule is found by Python."""
    program = f"from celery_claims import {name}; print({name}.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == f"celery_claims.{name}"


def test_a_star_imports_what_is_written_down() -> None:
    namespace: dict[str, object] = {}
    exec("from celery_claims import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(celery_claims.__all__)


def test_the_surface_stays_small() -> None:
    """About a dozen and a half names; a new one is a promise for years."""
    assert len(celery_claims.__all__) <= 20
