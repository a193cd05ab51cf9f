"""What is shipped."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import celery_claims
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.version import Version

from benchmarks import promises

PACKAGE = Path(celery_claims.__file__).parent
ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "tests" / "constraints.txt"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_version_is_told_once() -> None:
    assert metadata.version("celery-claims") == celery_claims.__version__
    assert str(Version(celery_claims.__version__)) == celery_claims.__version__


def test_every_public_name_exists() -> None:
    assert len(celery_claims.__all__) == len(set(celery_claims.__all__))
    for name in celery_claims.__all__:
        assert getattr(celery_claims, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        celery_claims.no_such_name  # noqa: B018


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {path for path in PACKAGE.rglob("*") if path.is_file()}
    shipped = {path for path in sources if path.suffix in {".py", ".sql", ".lua"}}
    expected = {path.relative_to(PACKAGE.parent).as_posix() for path in shipped}
    assert names == expected | {"celery_claims/py.typed"}
    assert any(name.endswith(".sql") for name in names)


def test_the_wheel_works_without_the_source(wheel: Path, tmp_path: Path) -> None:
    """Straight from the archive: nothing may count on files beside it."""
    program = (
        f"import sys; sys.path.insert(0, {str(wheel)!r})\n"
        "from celery_claims import open_store\n"
        "import celery_claims\n"
        f"assert celery_claims.__file__.startswith({str(wheel)!r}), celery_claims.__file__\n"
        "for url in ('memory://', 'sqlite:///claims.db'):\n"
        "    with open_store(url) as store: print(store.census().live)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.split(), done.stderr) == (["0", "0"], "")


def test_development_is_pinned_without_addresses() -> None:
    lines = [
        line for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")
    ]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+(; python_version [^/@]+)?", line), line
    pinned = {Requirement(line).name for line in lines}
    wanted = metadata.requires("celery-claims") or []
    needed = {re.sub(r"[-_.]+", "-", Requirement(item).name).lower() for item in wanted}
    assert needed - {"celery-claims"} <= pinned


def test_make_explains_itself() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout
    targets = "help demo test test-versions lint fuzz bench bench-quick numbers docs"
    for target in targets.split():
        assert re.search(rf"^  make {target} +\w", shown, re.MULTILINE), target


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "lines",
    [
        ["tasks/s, prefork: Redis"],
        ["tasks/s, prefork: folder", "tasks/s, prefork: RabbitMQ"],
        ["tasks/s, 100", "worker_deduplicate"],
        ["publish to", "memory:", "resident memory", "import"],
        ["redis:"],
        ["postgresql:"],
        ["sqlite:"],
    ],
    ids=lambda lines: lines[0].partition(",")[0].strip(":"),
)
def test_the_benchmarks_run(lines: list[str], tmp_path: Path) -> None:
    """Their figures are for people; here they only must not rot."""
    figures = tmp_path / "figures.json"
    only = [word for line in lines for word in ("--only", line)]
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", str(figures), *only],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    found = json.loads(figures.read_text())["figures"]
    assert len(found) > 1
    assert all(len(figure["values"]) == 1 for figure in found)


def test_the_numbers_are_those_promised() -> None:
    """One of them; the tests of the promises have the others."""
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks.promises", "--broker", "redis", "--only", "20 times"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert re.search(r"^redis +1 / 0 +20 / 1 +1 / 0 ", shown.stdout, re.MULTILINE), shown.stdout


@pytest.mark.parametrize(
    ("number", "kept"),
    [("1 / 0", True), ("2 / 0", False), ("1 / 1", False), ("8.0 s", True), ("8.1 s", False)],
)
def test_a_number_that_is_not_as_promised_fails(
    monkeypatch: pytest.MonkeyPatch, number: str, kept: bool
) -> None:
    """``make numbers`` is a test, and not only a table."""
    is_time = number.endswith("s")
    (story,) = (
        story for story in promises.STORIES if ("SIGKILL" if is_time else "20 times") in story.name
    )
    monkeypatch.setattr(promises, "told", lambda *_, claimed: number if claimed else "20 / 1")
    shown = CliRunner().invoke(promises.main, ["--broker", "redis", "--only", story.name])
    assert shown.exit_code == (0 if kept else 1), shown.output
    assert ("promised " + story.promised in shown.output) == (not kept)


def test_the_changelog_has_a_place_for_the_next_release() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"


def test_tests_sleep_only_where_they_poll() -> None:
    """Nothing is synchronised by hoping that a time is long enough."""
    sleepers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("*.py")
        if any(_is_sleep(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert sleepers == {"tests/process/waiting.py"}


def _is_sleep(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "sleep"
    return isinstance(node, ast.ImportFrom) and any(name.name == "sleep" for name in node.names)
