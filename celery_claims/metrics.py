"""Events as Prometheus metrics. Opens no port and writes nothing: expose the registry as you do.

::

    from celery_claims import events, metrics

    events.add_hook(metrics.PrometheusHook())
"""

from __future__ import annotations

from typing import Any

from .errors import ConfigurationError
from .events import ClaimEvent

__all__ = ["PrometheusHook"]


class PrometheusHook:
    """Counts claim events by name and task, and shows whether the store answers.

    Metrics: ``celery_claims_events_total{event, task}`` and ``celery_claims_store_up``.

    Parameters:
        registry: a ``prometheus_client.CollectorRegistry``; None: the default one.
    Raises:
        ConfigurationError: prometheus-client is not installed.
    """

    def __init__(self, registry: Any = None) -> None:
        try:
            import prometheus_client
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "PrometheusHook", "needs prometheus-client: pip install 'celery-claims[metrics]'"
            ) from error
        registry = registry or prometheus_client.REGISTRY
        self._events = prometheus_client.Counter(
            "celery_claims_events",
            "What happened to claims in this process.",
            ["event", "task"],
            registry=registry,
        )
        self._store_up = prometheus_client.Gauge(
            "celery_claims_store_up",
            "1 while the claim store answers this process, else 0.",
            registry=registry,
        )
        self._store_up.set(1)

    def __call__(self, event: ClaimEvent) -> None:
        self._events.labels(event=event.name, task=event.task).inc()
        if event.name in ("store_down", "store_up"):
            self._store_up.set(event.name == "store_up")
