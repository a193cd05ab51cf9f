"""The same tasks, claimed as the site's settings say."""

from celery_claims import install

from . import claims_settings, worker_app

app = worker_app()
install(app, **claims_settings())
