"""Priorities: claims leave the order to the broker."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.process.setup import ProcessSetup, publish_copies
from tests.process.waiting import wait_until

from .rabbits import AMQP
from .steps import ENDLESS, assert_all_acknowledged, traps, wait_for_events, workers


@dataclass(frozen=True)
class Scale:
    """What a broker means by a priority."""

    low: int
    middle: int
    high: int


REDIS = {
    "broker_transport_options": {
        "priority_steps": list(range(10)),
        "queue_order_strategy": "priority",
    }
}


@pytest.mark.parametrize(
    ("broker_kind", "scale"),
    [
        pytest.param(
            "rabbitmq",
            Scale(1, 5, 9),
            marks=traps({**AMQP, "task_queue_max_priority": 9}, lease=ENDLESS),
            id="rabbitmq",
        ),
        # There the lowest number comes first.
        pytest.param("redis", Scale(9, 5, 1), marks=traps(REDIS, lease=ENDLESS), id="redis"),
    ],
)
@workers(2)
def test_held_copies_neither_overtake_nor_block_a_higher_priority(
    celery_setup: ProcessSetup, scale: Scale
) -> None:
    """Both workers are busy and hold copies: they take nothing that they would have to keep from
    a message that comes later and is more urgent, and what waits runs in the broker's order."""
    setup = celery_setup
    late = setup.app.signature("traps.late")
    long = publish_copies(setup.app, late.clone(("end",)), 11, priority=scale.high)
    wait_for_events(setup.workers, "held", long.id, 10)
    busy = late.clone(("free",)).apply_async(priority=scale.middle)
    setup.journal.wait_for_runs(busy.id)
    low = [late.clone().apply_async(priority=scale.low) for _ in range(3)]
    high = late.clone().apply_async(priority=scale.high)
    wait_until(lambda: setup.site.broker.waiting() == 4, what="all four to wait")
    setup.gates.open("free")
    for result in (high, *low):
        result.get(timeout=20)
    order = [run.task_id for run in setup.journal.runs()]
    assert order == [long.id, busy.id, high.id, *(result.id for result in low)]
    assert setup.journal.runs(long.id)[0].is_running
    setup.gates.open("end")
    wait_for_events(setup.workers, "skipped", long.id, 10)
    assert_all_acknowledged(setup)
