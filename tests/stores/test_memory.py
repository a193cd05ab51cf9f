"""What only the memory store promises."""

from __future__ import annotations

import threading

import pytest
from celery_claims.errors import ConfigurationError
from celery_claims.protocol import AlreadyClaimed, ClaimRequest, Success
from celery_claims.stores import open_store
from celery_claims.stores.memory import PARTS, MemoryStore

from .children import in_child


def request(grant_id: str = "g", task_id: str = "t") -> ClaimRequest:
    return ClaimRequest("q", task_id, "o", 60_000, grant_id, "root")


def test_stores_of_one_name_share_their_claims() -> None:
    assert isinstance(open_store("memory://shared").claim([request("1")])[0], Success)
    assert isinstance(open_store("memory://shared/").claim([request("2")])[0], AlreadyClaimed)
    assert isinstance(open_store("memory://other").claim([request("3")])[0], Success)


def test_private_stores_share_nothing() -> None:
    for number in range(3):
        store = MemoryStore("memory://private", private=True)
        assert isinstance(store.claim([request(str(number))])[0], Success)


def test_it_says_that_other_processes_see_nothing() -> None:
    assert not MemoryStore(private=True).shared
    assert MemoryStore(private=True).check() == []


@pytest.mark.parametrize("url", ["memory:x", "memory://x?clock=1", "memory://x#y", "sqlite:///x"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        MemoryStore(url)
    assert raised.value.setting == "claims_url"


def test_forked_child_goes_on_with_its_copy_beside_busy_threads() -> None:
    store = MemoryStore(private=True)
    over = threading.Event()

    def keep_busy() -> None:
        while not over.is_set():
            store.claim([request()])
            store.census()
            store.elect("duty", 1)

    threads = [threading.Thread(target=keep_busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert in_child(lambda: [store.census().live, store.elect("mine", 1)]) == [1, True]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert isinstance(store.claim([request("later")])[0], AlreadyClaimed)


def test_one_thread_at_a_time_decides_on_a_task() -> None:
    together: list[int] = []
    meeting = threading.Barrier(2)

    def clock() -> int:
        try:
            together.append(meeting.wait(timeout=0.3))
        except threading.BrokenBarrierError:
            meeting.reset()
        return 1_700_000_000_000_000

    store = MemoryStore(clock=clock, private=True)
    answers: list[object] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.extend(store.claim([request(str(n))])))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == []
    assert sorted(type(answer).__name__ for answer in answers) == ["AlreadyClaimed", "Success"]


def test_a_thread_that_is_stopped_within_a_claim_does_not_stop_another_task_of_its_queue() -> None:
    together = threading.Barrier(2)

    def clock() -> int:
        together.wait(timeout=10)
        return 1_700_000_000_000_000

    store = MemoryStore(clock=clock, private=True)
    by_part = {hash(f"t{n}") % PARTS: f"t{n}" for n in range(100)}
    answers: list[object] = []
    threads = [
        threading.Thread(target=lambda t=t: answers.extend(store.claim([request(task_id=t)])))
        for t in list(by_part.values())[:2]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(answer) for answer in answers] == [Success, Success]
