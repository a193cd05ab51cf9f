"""Celery's test nodes and clusters as local processes, where there is no Docker engine.

``local`` answers what a Docker container object answers, ``container`` makes pytest-celery's
containers of it, ``nodes`` its workers, brokers and backends, ``setup`` its setup and options;
``journal``, ``gates`` and ``waiting`` are what tests synchronise with.
"""
