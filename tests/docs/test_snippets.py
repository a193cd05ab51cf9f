"""What README and docs show can be copied and run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, blocks, environment, page_name

#: How a block is marked: python and console are run here, text is not for running.
LANGUAGES = {"python", "console", "text", "{toctree}"}

#: Seconds for a snippet: none does more than import Celery and start a worker.
PATIENCE = 60

pages = pytest.mark.parametrize("page", PAGES, ids=page_name)


@pages
def test_every_block_says_whether_it_can_be_run(page):
    """A block without a language would silently not be tested."""
    assert {block.language for block in blocks(page)} <= LANGUAGES


@pages
def test_python_runs(page, tmp_path):
    """The snippets of a page run one after another, as a reader would type them."""
    found = blocks(page, "python")
    if not found:
        return
    script = tmp_path / "page.py"
    lines: list[str] = []
    for block in found:
        # blank lines in between, so that a traceback has the line numbers of the page
        lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    script.write_text("\n".join(lines) + "\n")
    ran = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, f"{page_name(page)}\n{ran.stderr}"


@pages
def test_commands_run(page, tmp_path):
    """Commands are run, in a folder with the quick start; make only says what it would do."""
    shutil.copy(ROOT / "examples" / "quickstart" / "app.py", tmp_path)
    for block in blocks(page, "console"):
        for line in block.text.splitlines():
            assert line.startswith("$ "), f"{page_name(page)}:{block.line}: not a command: {line}"
            run_command(shlex.split(line[2:]), tmp_path)


def run_command(words: list[str], folder: Path) -> None:
    match words:
        case ["make", target]:
            finish(["make", "--dry-run", target], ROOT)
        case ["python", "-c", _]:
            finish([sys.executable, *words[1:]], folder)
        case ["celery", "-A", "app", "worker", *_]:
            with running_worker(words, folder):
                pass
        case ["celery", "-A", "app", "claims", *_]:
            finish([sys.executable, "-m", *words], folder)
        case ["celery", "-A", "app", "inspect", *_]:
            with running_worker(["celery", "-A", "app", "worker", "--loglevel", "INFO"], folder):
                finish([sys.executable, "-m", *words], folder)
        case _:
            pytest.fail(f"not among the commands that are run; mark it as text: {words}")


def finish(words: list[str], folder: Path) -> None:
    ran = subprocess.run(
        words,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@contextmanager
def running_worker(words: list[str], folder: Path) -> Iterator[None]:
    """Start a worker, wait until it says that it is ready, at last shut it down warmly."""
    worker = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert worker.stdout is not None
        # ends at the worker's end too; the test's own timeout bounds a silent one
        said = []
        for line in worker.stdout:
            said.append(line)
            if " ready." in line:
                break
        else:
            pytest.fail("".join(said))
        yield
        worker.terminate()
        rest, _ = worker.communicate(timeout=PATIENCE)
        assert worker.returncode == 0, "".join(said) + rest
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.communicate()


def test_readme_shows_the_quick_start_literally():
    app = (ROOT / "examples" / "quickstart" / "app.py").read_text()
    assert app in [block.text for block in blocks(ROOT / "README.md", "python")]


@pages
def test_links_lead_somewhere(page):
    """Links within the project: the file exists."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
