"""A worker's sweep in a process of its own: it opens a store, says so, waits, and sweeps."""

from __future__ import annotations

import sys

from celery_claims import open_store
from celery_claims.sweep import Sweeper

KEEP_MS = 3_600_000


def main(url: str) -> None:
    with open_store(url) as store:
        sweeper = Sweeper(store, KEEP_MS)
        print("ready", flush=True)
        sys.stdin.read()
        while sweeper.run_once().seen:
            pass


if __name__ == "__main__":
    main(sys.argv[1])
