"""``cachekit.dax`` among threads and processes, and when something of its own fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from dax_desk import Desk, is_hit, item, key, response
from dax_stand import Make

# -- threads and processes -----------------------------------------------------------------


def test_a_crowd_that_misses_makes_one_request(stand: Make, desk: Desk) -> None:
    on = stand()
    desk.put_raw("a", v=1)
    crowd, started = 12, threading.Barrier(12)
    release = threading.Event()

    def wait(operation: str, body: Any) -> None:
        if operation == "GetItem":
            release.wait(20)

    on.wire.rule(wait)

    def ask(_: int) -> Any:
        started.wait(20)
        return on.get("a")

    with ThreadPoolExecutor(crowd) as pool:
        asked = [pool.submit(ask, n) for n in range(crowd)]
        flights = on.dax._store.flights._flights
        end = time.monotonic() + 20
        while sum(len(flight._wake) for flight in list(flights.values())) < crowd - 1:
            assert time.monotonic() < end, "not all of them wait"
            time.sleep(0.001)
        release.set()
        answers = [each.result(30)["Item"] for each in asked]
    assert answers == [item("a", v=1)] * crowd
    assert on.requests() == ["GetItem"]
    assert len({id(answer["v"]) for answer in answers}) == crowd, "callers share an answer"


def test_when_the_one_that_asks_fails_the_others_ask_themselves(stand: Make, desk: Desk) -> None:
    on = stand()
    desk.put_raw("a", v=1)
    entered, release = threading.Event(), threading.Event()
    first = [True]

    def fail_once(operation: str, body: Any) -> None:
        if operation == "GetItem" and first[0]:
            first[0] = False
            entered.set()
            release.wait(20)
            raise KeyError("the first request fails")

    on.wire.rule(fail_once)
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(on.get, "a")
        assert entered.wait(20)
        follower = pool.submit(on.get, "a")
        release.set()
        with pytest.raises(KeyError):
            leader.result(30)
        assert follower.result(30)["Item"] == item("a", v=1)
    assert not len(on.dax._store.flights)


def test_no_reader_after_a_write_is_served_a_read_from_before_it(stand: Make, desk: Desk) -> None:
    on = stand(return_images=False, flight_wait=30)
    desk.put_raw("a", v=1)
    entered, release = threading.Event(), threading.Event()

    def old(operation: str, body: Any) -> Any:
        if operation == "GetItem" and not entered.is_set():
            entered.set()
            release.wait(20)
            return response(200, {"Item": item("a", v=1)})
        return None

    on.wire.rule(old)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(on.get, "a")
        assert entered.wait(20)
        on.update("a", 2)
        threading.Timer(1.0, release.set).start()
        assert on.get("a")["Item"]["v"] == {"N": "2"}
        assert slow.result(30)["Item"]["v"] == {"N": "1"}
    assert on.get("a")["Item"]["v"] == {"N": "2"}


def test_threads_that_read_and_write_see_what_is_there_at_rest(stand: Make, desk: Desk) -> None:
    on = stand(settle=0)
    wrong: list[str] = []

    def work(number: int) -> None:
        pk = f"k{number % 3}"
        for step in range(12):
            if (step + number) % 3 == 0:
                on.put(pk, v=number * 100 + step)
            elif (step + number) % 3 == 1:
                on.update(pk, number * 100 + step)
            else:
                answer = on.get(pk)
                if "Item" in answer and answer["Item"]["pk"] != {"S": pk}:
                    wrong.append(pk)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert not wrong
    for number in range(3):
        assert on.get(f"k{number}").get("Item") == desk.get_raw(f"k{number}")
    assert on.dax.stats()["faults"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_starts_empty_and_serves(stand: Make) -> None:
    on = stand(settle=0)
    on.put("a", v=1)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with on.dax._store.gate:
            held.set()
            release.wait(60)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert held.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # instead of waiting for ever
        try:
            empty = not on.dax.stats()["items"]
            first = on.get("a")
            os._exit(0 if empty and not is_hit(first) and first["Item"] == item("a", v=1) else 1)
        finally:
            os._exit(2)
    release.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_hit(on.get("a"))


# -- faults of its own ---------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["item", "page", "keep_item", "keep_page", "evict"])
def test_a_fault_of_the_cache_fails_no_request_and_leaves_nothing_stale(
    stand: Make, desk: Desk, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    on = stand()
    on.put("old", v=1)
    on.query("old")
    with monkeypatch.context() as patch:

        def fails(*_: Any, **__: Any) -> Any:
            raise RuntimeError("broken")

        patch.setattr(on.dax._store, broken, fails)
        on.put("a", v=1)
        assert on.get("b").get("Item") is None
        assert on.get("a", ReturnConsumedCapacity="NONE")["Item"] == item("a", v=1)
        assert on.query("a")["Count"] == 1
        on.update("old", 2)
        on.client.batch_get_item(RequestItems={on.table: {"Keys": [key("z")]}})
    assert on.dax.stats()["faults"]
    assert on.get("old")["Item"] == item("old", v=2)
    assert on.query("old")["Items"] == [item("old", v=2)]
    assert not len(on.dax._store.flights)


def test_a_cache_that_keeps_failing_is_left_alone(
    stand: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = stand()
    asked: list[int] = []

    def fails(*_: Any) -> Any:
        asked.append(1)
        raise RuntimeError("broken")

    monkeypatch.setattr(on.dax._store, "item", fails)
    for _ in range(30):
        on.get("a", ReturnConsumedCapacity="NONE")
    assert len(asked) < 12


def test_an_interrupt_passes_and_quarantines_what_was_being_written(stand: Make) -> None:
    on = stand()
    on.put("a", v=1)

    def interrupt(operation: str, body: Any) -> None:
        if operation == "PutItem":
            raise KeyboardInterrupt

    on.wire.rule(interrupt)
    with pytest.raises(KeyboardInterrupt):
        on.put("a", v=2)
    on.get("a")
    assert on.asks(lambda: on.get("a"))[1] == ["GetItem"]


def test_a_read_that_was_interrupted_keeps_nobody_waiting(stand: Make) -> None:
    on = stand()
    first = [True]

    def interrupt(operation: str, body: Any) -> None:
        if operation == "GetItem" and first.pop():
            raise KeyboardInterrupt

    undo = on.wire.rule(interrupt)
    with pytest.raises(KeyboardInterrupt):
        on.get("a")
    undo()
    on.get("a")
    assert is_hit(on.get("a"))
