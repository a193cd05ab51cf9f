"""Celery as it is: no claims."""

from . import worker_app

app = worker_app()
