"""Messages of any shape on their way through Celery's own consumer code and the gate.

Also what the fuzzer drives: see ``tests/fuzz``.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import defaultdict, deque
from time import monotonic
from typing import Any
from unittest.mock import MagicMock

from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.utils.collections import LimitedSet
from celery.worker import strategy
from celery.worker.consumer import Consumer
from celery_claims.gate import Gate, Strategies
from celery_claims.headers import HEADER
from celery_claims.keeper import Keeper
from celery_claims.pool import PoolWatch
from celery_claims.stores import View
from celery_claims.stores.memory import MemoryStore
from kombu.message import Message

from tests.unit.apps import bare_app
from tests.unit.factories import options

TASK = "proj.add"
#: How Celery answers a message that its strategy refuses.
ANSWERS = ("on_invalid_task", "on_decode_error")
_tags = itertools.count(1)


@functools.cache
def one_app() -> Celery:
    """An app with one task: to make one takes longer than all else here."""
    app = bare_app(task_default_queue="celery")

    @app.task(name=TASK, acks_late=True)
    def add() -> None: ...

    app.finalize()
    return app


class Desk:
    """A worker without a pool: what it would run is in ``requests``.

    Parameters:
        store: where claims are; None: one in memory.
        answers: what is refused is answered as Celery does it, for which a message must be whole.
    """

    def __init__(self, store: Any = None, *, answers: bool = False) -> None:
        self._answers = answers
        self.app = one_app()
        task = self.app.tasks[TASK]
        self.store = store or MemoryStore(private=True)
        self.keeper = Keeper("w1@host", self.store, run_when_down=False, can_stop=False)
        self.requests: list[Any] = []
        self._consumer = consumer = MagicMock(
            app=self.app,
            hostname="w1@host",
            connection_errors=(),
            event_dispatcher=None,
            disable_rate_limits=True,
            task_buckets=defaultdict(lambda: None),
            restart_count=0,
            hub=None,
            on_task_request=self.requests.append,
        )
        consumer.controller.state.revoked = LimitedSet()
        consumer.qos.value = 1
        self.gate = Gate(consumer, self.keeper, self._options, lambda _: 7200.0, 1000)
        self._soon: deque[Any] = deque()
        # Of two names: before Celery 5.7 answers to the broker took the same way as all else.
        consumer.call_soon = consumer.call_soon_ack = self._call_soon
        self._taken: list[dict[str, Any]] = []
        watch = PoolWatch(self.gate, self.keeper, forks=False)
        consumer.pool.apply_async = watch.wrap(lambda *_, **options: self._taken.append(options))
        consumer.strategies = Strategies(self.gate.wrap)
        self.own_strategy = strategy.default(task, self.app, consumer)
        consumer.strategies[TASK] = self.own_strategy
        for name in ("on_unknown_message", "on_unknown_task", "on_invalid_task", "on_decode_error"):
            setattr(consumer, name, self._refusal(name))
        self.refusals: list[tuple[str, Any]] = []
        self.deliver = Consumer.create_task_handler(consumer)

    def _options(self, name: str) -> Any:
        return options() if name == TASK else None

    def _refusal(self, name: str) -> Any:
        def refuse(*args: Any) -> None:
            self.refusals.append((name, args[-1]))
            if self._answers and name in ANSWERS:
                getattr(Consumer, name)(self._consumer, *args)

        return refuse

    def receive(self, message: Message) -> str:
        """Let the message in, and hold its fate to the promises.

        Returns:
            ``claimed``, ``unclaimed``, ``held`` or ``refused``.
        """
        before = len(self.requests), len(self.refusals), len(self.keeper.snapshot()[1])
        self.deliver(message)
        ran, refused, held = (
            len(self.requests) - before[0],
            len(self.refusals) - before[1],
            len(self.keeper.snapshot()[1]) - before[2],
        )
        assert ran + refused + held == 1, (ran, refused, held)
        if refused:
            return "refused"
        if held:
            return "held"
        return self._check_run(self.requests[-1])

    def run(self, request: Any, *, fails: bool = False) -> None:
        """What the pool does with a request, by way of Celery's own and our callbacks."""
        request.execute_using_pool(self._consumer.pool)
        taken = self._taken.pop()
        taken["accept_callback"](1, monotonic())
        taken["callback"]((True, failure(), 0.0) if fails else (False, "null", 0.0))

    def _call_soon(self, call: Any, *args: Any) -> None:
        self._soon.append(functools.partial(call, *args))

    def turn(self) -> None:
        """What the consumer's loop does until there is nothing left to do."""
        while self._soon:
            self._soon.popleft()()

    def _check_run(self, request: Any) -> str:
        """Whatever stood in the message, only a claim of ours goes with the request."""
        header = request.request_dict.get(HEADER)
        if header is None:
            return "unclaimed"
        (record,) = self.store.lookup([(header["queue"], header["task_id"])])
        assert header["task_id"] == request.id
        assert (record.token, record.owner) == (header["token"], self.keeper.desk.owner)
        assert (record.attempt.nesting, record.attempt.retries) == tuple(header["attempt"])
        return "claimed"

    def claims(self) -> int:
        return len(self.store.scan(View.ALL).records)


def failure() -> ExceptionInfo:
    """Of a body that raised."""
    try:
        int("no number")
    except ValueError:
        return ExceptionInfo()


def message(
    headers: Any,
    body: Any = b"[[], {}, {}]",
    *,
    properties: Any = None,
    delivery_info: Any = None,
    **given: Any,
) -> Message:
    """As a transport makes it; a body that is no bytes becomes JSON."""
    fields: dict[str, Any] = {
        "body": body if isinstance(body, bytes) else json.dumps(body),
        "delivery_tag": f"tag-{next(_tags)}",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "accept": {"application/json"},
        "channel": MagicMock(),
        **given,
    }
    made = Message(**fields)
    # Kombu itself looks into the headers, where it makes the message; here any may come.
    made.headers, made.properties, made.delivery_info = headers, properties, delivery_info
    return made


def protocol_2(**given: Any) -> dict[str, Any]:
    headers = {"lang": "py", "task": TASK, "id": "id-1", "root_id": "id-1", "retries": 0}
    return {**headers, **given}


def protocol_1(**given: Any) -> dict[str, Any]:
    return {"task": TASK, "id": "id-1", "args": [], "kwargs": {}, "retries": 0, **given}
