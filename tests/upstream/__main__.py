"""``python -m tests.upstream``: run Celery's own integration tests without claims and with every
task claimed, on a Redis broker, and compare. Exit code 1 if one fails with claims alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import celery
import click
from rich.console import Console

from tests.stores.redis_server import RedisServer

from .outcomes import Outcomes, read, worse
from .plugin import CLAIMED

ROOT = Path(__file__).parents[2]
#: Of Celery's, what runs on a Redis broker and needs nothing else.
FILES = ("t/integration/test_tasks.py", "t/integration/test_canvas.py")


@click.command(help=__doc__)
@click.argument("files", nargs=-1)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep what pytest printed here.")
def main(files: tuple[str, ...], keep: Path | None) -> None:
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="claims-upstream-") as made:
        folder = Path(made)
        with console.status(f"fetching the tests of Celery {celery.__version__}"):
            unpack(folder)
        found = {}
        for claimed in (False, True):
            name = "claimed" if claimed else "bare"
            with console.status(f"{name}: some minutes"):
                found[name] = run(folder, files or FILES, claimed=claimed)
            console.print(f"{name}: {found[name]}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / f"{name}.txt", keep)
    failed = worse(found["bare"], found["claimed"])
    for test in failed:
        console.print(f"fails with claims alone: {test}")
    if not found["claimed"].passed or failed:
        raise SystemExit(1)
    console.print("nothing fails that does not fail without claims")


def unpack(folder: Path) -> None:
    """The tests as they were released with the Celery that is installed."""
    source = f"celery=={celery.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-deps", "--no-binary", "celery", "--dest", str(folder), source], check=True
    )
    (archive,) = folder.glob("celery-*.tar.gz")
    with tarfile.open(archive) as packed:
        # Not the package: the one that is installed is tried.
        wanted = [member for member in packed.getmembers() if "/t/" in member.name]
        packed.extractall(folder, members=wanted, filter="data")
    next(folder.glob("celery-*/t")).rename(folder / "t")
    # Marks that Celery's own configuration names.
    marks = "amqp\n    flaky\n    order\n    timeout\n"
    folder.joinpath("pytest.ini").write_text(
        f"[pytest]\npython_classes = test_*\nmarkers =\n    {marks}"
    )


def run(folder: Path, files: tuple[str, ...], *, claimed: bool) -> Outcomes:
    """One run, on a server of its own, with a worker of prefork processes inside pytest."""
    name = "claimed" if claimed else "bare"
    report = folder / f"{name}.xml"
    with RedisServer() as server, folder.joinpath(f"{name}.txt").open("w") as output:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
            "TEST_BROKER": f"redis://localhost:{server.port}/0",
            "TEST_BACKEND": f"redis://localhost:{server.port}/1",
            "REDIS_HOST": "localhost",
            "REDIS_PORT": str(server.port),
            CLAIMED: "1" if claimed else "",
        }
        plugins = ["-p", "tests.upstream.plugin", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *plugins, f"--junitxml={report}", *files]
        subprocess.run(command, cwd=folder, env=env, stdout=output, stderr=output, check=False)
    return read(report)


if __name__ == "__main__":
    main()
