"""An app that is configured as Django's are: every setting in capitals, with a prefix."""

from __future__ import annotations

import json
import os

from celery import Celery
from celery_claims import install

from tests.process.environment import CONF_VARIABLE
from tests.process.folder import make_folders_atomic

from . import claims_settings, tasks

__all__ = ["app", "tasks"]

make_folders_atomic()
settings = {
    f"CELERY_{name.upper()}": value for name, value in json.loads(os.environ[CONF_VARIABLE]).items()
}
settings |= {f"CELERY_CLAIMS_{name.upper()}": value for name, value in claims_settings().items()}

app = Celery("namespaced")
install(app)
app.config_from_object(settings, namespace="CELERY")
