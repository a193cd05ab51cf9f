"""Rendering with Celery on Redis: the broker keeps the claims too."""

import os
import time

from celery import Celery
from celery.utils.log import get_task_logger
from celery_claims import claimed, current_claim, install

logger = get_task_logger(__name__)

app = Celery("app", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
app.conf.update(
    task_acks_late=True,  # so that the message is still there when a worker is killed
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    # The visibility timeout keeps its default of an hour: it decides nothing any more.
)
install(app, lease=3, cleanup_every=1)  # seconds; short, to see something: 30 and 10 by default


@claimed
@app.task
def render(film, frames=20):
    token = current_claim().token  # for whatever must refuse a worker that is late
    for frame in range(frames):
        logger.info("frame %d of %s under token %d", frame, film, token)
        time.sleep(0.5)
    return frames
