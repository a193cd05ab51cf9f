"""How a worker's app learns its settings: the names of environment variables."""

#: Celery's settings, as JSON
CONF_VARIABLE = "CELERY_TEST_CONF"

#: the settings of ``install``, as JSON
CLAIMS_VARIABLE = "CELERY_TEST_CLAIMS"

#: the folder with the journal and the gates
FOLDER_VARIABLE = "CELERY_TEST_FOLDER"
