"""celery-claims: exclusive, renewable leases for Celery tasks.

Names are imported when they are first used, so that a store can be used without Celery.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import errors as errors
    from .app import install
    from .errors import (
        ClaimNotFound,
        ClaimsError,
        ConfigurationError,
        DeliveriesExhausted,
        StaleToken,
        StoreError,
        StoreUnavailable,
    )
    from .manager import AtomicClaimManager, ClaimStats, LeaseConfig
    from .options import claimed
    from .protocol import ClaimToken
    from .run import ClaimLost, current_claim
    from .stores import open_store

__all__ = [
    "AtomicClaimManager",
    "ClaimLost",
    "ClaimNotFound",
    "ClaimStats",
    "ClaimToken",
    "ClaimsError",
    "ConfigurationError",
    "DeliveriesExhausted",
    "LeaseConfig",
    "StaleToken",
    "StoreError",
    "StoreUnavailable",
    "__version__",
    "claimed",
    "current_claim",
    "install",
    "open_store",
]

_HOMES = {
    "AtomicClaimManager": "manager",
    "ClaimLost": "run",
    "ClaimStats": "manager",
    "ClaimToken": "protocol",
    "LeaseConfig": "manager",
    "claimed": "options",
    "current_claim": "run",
    "install": "app",
    "open_store": "stores",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__)
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
