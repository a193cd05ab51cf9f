"""What tests of local processes are parametrized by, where pytest runs with ``--docker``.

They are left out there, but only after they were collected; and pytest refuses a parameter that no
fixture of a test asks for.
"""

from __future__ import annotations

import pytest


@pytest.fixture
def broker_kind() -> None:
    """See ``fixtures.broker_kind``."""


@pytest.fixture
def backend_kind() -> None:
    """See ``fixtures.backend_kind``."""


@pytest.fixture(autouse=True)
def _kinds(broker_kind: None, backend_kind: None) -> None:
    """Every test asks for them."""
