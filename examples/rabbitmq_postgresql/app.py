"""Payroll with Celery on RabbitMQ; the claims are in the company's own PostgreSQL."""

import os
import time

from celery import Celery
from celery.utils.log import get_task_logger
from celery_claims import claimed, current_claim, install

logger = get_task_logger(__name__)

app = Celery("app", broker=os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672//"))
app.conf.update(
    task_acks_late=True,  # so that the message is still there when a worker is killed
    worker_prefetch_multiplier=1,
    task_default_queue="payroll",
    task_default_queue_type="quorum",
    task_default_exchange_type="topic",  # so that a countdown or a retry waits at RabbitMQ
    broker_channel_error_retry=True,  # a channel that RabbitMQ closes does not end the worker
    broker_connection_retry_on_startup=True,
)
install(
    app,
    url=os.environ.get("POSTGRESQL_URL", "postgresql://localhost/payroll"),
    lease=3,  # seconds; short, to see something: 30 by default
    cleanup_every=1,
)


@claimed
@app.task
def pay(month, people=20):
    token = current_claim().token  # for whatever must refuse a worker that is late
    for person in range(people):
        logger.info("paid person %d for %s under token %d", person, month, token)
        time.sleep(0.5)
    return people
