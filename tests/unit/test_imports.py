"""Who may import whom. Read from the source, so that a lazy import inside a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import celery_claims
import pytest

PACKAGE = Path(celery_claims.__file__).parent

#: The only modules that may import Celery and its family.
INTEGRATION = {
    "app",
    "bootsteps",
    "claims",
    "cli",
    "delivered",
    "gate",
    "incoming",
    "inspection",
    "options",
    "pool",
    "run",
    "seams",
    "stopping",
    "tracer",
}

#: Decisions: events in, actions out.
PURE = {
    "brokers.redis_names",
    "case",
    "checks",
    "config",
    "desk",
    "errors",
    "headers",
    "holding",
    "parts",
    "protocol",
    "settling",
}

CELERY_FAMILY = {"amqp", "billiard", "celery", "kombu", "vine"}

#: What reads a clock, starts a thread or talks to the world.
WORLD = {
    "asyncio",
    "datetime",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "select",
    "signal",
    "socket",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}

#: Third-party packages, and who may import each.
DRIVERS = {
    "psycopg": {"stores.postgres"},
    "redis": {"stores.redis"},
    "valkey": {"stores.redis"},
    "sqlite3": {"stores.sqlite"},
    "prometheus_client": {"metrics"},
    "click": {"cli"},
    "rich": {"cli"},
    # The conformance suite; not pytest, which a user of a store need not have.
    "hypothesis": {"testing"},
}


def module_name(path: Path) -> str:
    """``stores.base`` for ``celery_claims/stores/base.py``; a package is named as itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "celery_claims"


def imported(path: Path) -> set[str]:
    """What a file imports, as absolute names; every name of a ``from`` import is listed."""
    package = ["celery_claims", *path.relative_to(PACKAGE).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_name(path): path for path in FILES}
#: ``gate`` for ``gate``, and ``stores.redis`` for ``stores.redis.scripts``
each_module = pytest.mark.parametrize("name", sorted(MODULES))


def test_the_rules_are_about_modules_that_exist() -> None:
    assert {"protocol", "errors", "stores.base", "stores.memory"} <= set(MODULES)
    assert set(MODULES) >= INTEGRATION | PURE


@each_module
def test_only_the_integration_imports_celery(name: str) -> None:
    found = roots(MODULES[name]) & CELERY_FAMILY
    assert not found or name in INTEGRATION, f"{name} imports {found}"


@each_module
def test_a_driver_is_imported_by_its_own_store_only(name: str) -> None:
    for driver in roots(MODULES[name]) & set(DRIVERS):
        assert any(name.startswith(owner) for owner in DRIVERS[driver]), f"{name} imports {driver}"


@each_module
def test_nothing_else_is_imported_from_outside(name: str) -> None:
    known = {*sys.stdlib_module_names, *CELERY_FAMILY, *DRIVERS, "celery_claims"}
    assert roots(MODULES[name]) <= known


@each_module
def test_nothing_imports_the_testing_module(name: str) -> None:
    found = {item for item in imported(MODULES[name]) if item.startswith("celery_claims.testing")}
    assert not found or name.partition(".")[0] == "testing"


@pytest.mark.parametrize("name", sorted(PURE & set(MODULES)))
def test_decisions_touch_nothing_of_the_world(name: str) -> None:
    assert not roots(MODULES[name]) & WORLD


@pytest.mark.parametrize(
    ("name", "may"), [("errors", set()), ("checks", {"errors"}), ("protocol", {"checks", "errors"})]
)
def test_the_protocol_stands_alone(name: str, may: set[str]) -> None:
    own = {item for item in imported(MODULES[name]) if item.startswith("celery_claims.")}
    assert {item.split(".")[1] for item in own} <= may
    assert roots(MODULES[name]) <= {*sys.stdlib_module_names, "celery_claims"}


def test_importing_everything_but_the_integration_loads_no_celery() -> None:
    """Also not by way of another module, and not by the package itself."""
    names = [
        name
        for name in MODULES
        if name not in INTEGRATION and name.partition(".")[0] not in {"metrics", "testing"}
        # These need their extras.
        if not name.startswith(("brokers.redis", "stores.redis", "stores.postgres"))
    ]
    modules = sorted(name if name == "celery_claims" else f"celery_claims.{name}" for name in names)
    program = (
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
        f"print(*sorted({CELERY_FAMILY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == []


def test_a_relative_import_is_read_as_what_it_is(tmp_path: Path) -> None:
    """The rules above hold only if this reader sees every kind of import."""
    assert "celery_claims.protocol.Record" in imported(MODULES["stores.base"])
    assert "celery_claims.errors.InvalidArgument" in imported(MODULES["protocol"])
    assert "__future__" in roots(MODULES["protocol"])
