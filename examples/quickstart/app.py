"""Billing with Celery and celery-claims, on a broker that is a folder: no server needed."""

import json
import os
import pathlib
import time

from celery import Celery
from celery_claims import claimed, current_claim, install

folder = pathlib.Path(os.environ.get("QUICKSTART_DIR", "quickstart-data")).absolute()
for name in ("queue", "taken", "control"):
    (folder / name).mkdir(parents=True, exist_ok=True)

app = Celery("app", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(folder / "queue"),
        "data_folder_out": str(folder / "queue"),
        "processed_folder": str(folder / "taken"),
        "store_processed": True,
        "control_folder": str(folder / "control"),
        "polling_interval": 0.2,
    },
    task_acks_late=True,
    worker_prefetch_multiplier=1,
)
install(app, lease=3)  # seconds; short, to see a takeover soon: the default is 30


def write(event: str, **facts: object) -> None:
    """Add a line to the journal: what the tasks did, and what the demo judges by."""
    with open(folder / "journal.jsonl", "a") as journal:
        journal.write(json.dumps({"event": event, "time": time.time(), **facts}) + "\n")


@claimed
@app.task(bind=True)
def bill(self, customer, seconds=2):
    run = {"task": self.request.id, "customer": customer, "pid": os.getpid()}
    run["token"] = current_claim().token
    write("start", **run)
    for _ in range(seconds):
        time.sleep(1)
        write("step", **run)
    write("end", **run)
