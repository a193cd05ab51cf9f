"""Bad input chosen by the branches that it reaches: ``python -m tests.fuzz TARGET [options]``.

The options are libFuzzer's, such as ``-max_total_time=60``, a folder to keep what was found, or a
file with one input to try again. ``make fuzz`` runs every target. The same promises are held to
with hypothesis in ``tests/unit/test_bad_messages.py``, ``tests/unit/test_bad_settings.py`` and
``tests/stores/test_damage.py``.
"""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["celery_claims"]):
    from .targets import TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {'|'.join(TARGETS)} [options of libFuzzer]")
    logging.disable(logging.CRITICAL)
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


main()
