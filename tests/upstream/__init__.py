"""Celery's own integration tests, with every task claimed; ``make upstream``."""
