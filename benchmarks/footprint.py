"""What installing claims costs before any task is claimed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from .measuring import Measure, Scale


def import_time(target: float) -> Measure:
    """Milliseconds that importing celery_claims takes after celery, in a process of its own."""

    def pairs(scale: Scale) -> Iterator[float]:
        for _ in range(scale.pairs):
            yield float(_output(_IMPORT))

    return Measure(
        "import time of celery_claims after a worker's celery",
        f"at most {target} ms",
        lambda found: found <= target,
        pairs,
        "ms",
    )


#: What a worker has imported anyhow comes first.
_IMPORT = """
import time
import celery.apps.worker, celery.worker.consumer, celery.concurrency.prefork
began = time.perf_counter()
import celery_claims
print(1000 * (time.perf_counter() - began))
"""


def _output(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
