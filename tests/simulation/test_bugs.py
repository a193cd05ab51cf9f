"""A simulation that finds no bug proves nothing: it finds each of these, which break a promise.

Some were bugs of this package, which the simulation found.
"""

from __future__ import annotations

import pytest

from tests.simulation.bugs import HUNTS, Hunt
from tests.simulation.simulation import simulate

#: Seeds within which each is found; most are found by the first ten.
ENOUGH = 500


@pytest.mark.parametrize("hunt", HUNTS, ids=str)
def test_a_seeded_bug_is_found(hunt: Hunt) -> None:
    with hunt.bug():
        for seed in range(1, 1 + ENOUGH):
            violations = simulate(hunt.plan_of(seed)).violations
            # One bug may break several promises, and another one first.
            if any(hunt.promise in violation for violation in violations):
                return
    pytest.fail(f"not found within {ENOUGH} seeds; the last one told of {violations}")
