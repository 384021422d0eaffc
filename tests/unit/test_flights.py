"""Flights: one load for all who ask, its end, its detachment, and circles of waits."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import cachekit
from cachekit.core.flights import Flight, FlightTable, closes_circle, led
from cachekit.errors import ReentryError

WAIT = 10.0  # seconds; only a failing test waits that long


def _together(*calls: Any) -> list[Any]:
    """Run the calls in threads of their own; their results or errors, in order."""

    def settled(call: Any) -> Any:
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return [f.result(WAIT) for f in [pool.submit(settled, call) for call in calls]]


def _until(condition: Any) -> None:
    pause = threading.Event()
    for _ in range(5_000):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it never came to be")


def boarded(table: FlightTable, ident: str) -> tuple[Flight, bool]:
    mine = Flight(ident)
    flight = table.board(mine)
    return flight, flight is mine


# -- the table ---------------------------------------------------------------------------


def test_the_first_to_board_leads_and_the_others_join_the_same_flight() -> None:
    table = FlightTable()
    first, leads = boarded(table, "k")
    assert leads
    assert boarded(table, "k") == (first, False)
    assert boarded(table, "other")[1]
    table.leave(first)
    assert boarded(table, "k")[1]


def test_of_threads_that_board_at_once_exactly_one_leads() -> None:
    for _ in range(200):
        table, barrier = FlightTable(), threading.Barrier(4)

        def board(
            table: FlightTable = table, barrier: threading.Barrier = barrier
        ) -> tuple[Flight, bool]:
            barrier.wait()
            return boarded(table, "k")

        answers = _together(*[board] * 4)
        assert [leads for _, leads in answers].count(True) == 1
        assert len({id(flight) for flight, _ in answers}) == 1


def test_a_detached_flight_leaves_the_table_to_whoever_comes_later() -> None:
    table = FlightTable()
    old, _ = boarded(table, "k")
    table.detach("k")
    assert old.detached
    new, leads = boarded(table, "k")
    assert leads
    table.leave(old)  # the old leader ends: the new flight stays
    assert boarded(table, "k") == (new, False)
    assert not new.detached


def test_leaving_and_boarding_at_once_never_removes_a_flight_of_another() -> None:
    table = FlightTable()
    wrong: list[Flight] = []

    def churn() -> None:
        for _ in range(2_000):
            flight, leads = boarded(table, "k")
            if leads:
                if boarded(table, "k")[0] is not flight and not flight.detached:
                    wrong.append(flight)
                table.leave(flight)

    def detach() -> None:
        for _ in range(2_000):
            table.detach("k")

    _together(churn, churn, churn, detach)
    assert not wrong


def test_a_tag_detaches_flights_that_carry_it_and_those_whose_tags_are_unknown() -> None:
    table = FlightTable()
    flights = {name: boarded(table, name)[0] for name in ("tagged", "other", "unknown")}
    flights["tagged"].tags = ("t", "u")
    flights["other"].tags = ("u",)
    table.detach_tagged(["t"])
    assert {name for name, f in flights.items() if f.detached} == {"tagged", "unknown"}
    assert len(table) == 1
    table.detach_all()
    assert flights["other"].detached
    assert len(table) == 0


def test_who_is_late_for_the_landing_is_told_so_and_is_not_lost() -> None:
    flight = Flight("k")
    woken: list[int] = []
    assert not flight.on_landing(lambda: woken.append(1))
    flight.land("v")
    assert woken == [1]
    assert flight.on_landing(lambda: woken.append(2))
    assert flight.value == "v"


def test_a_wake_up_is_never_lost_between_landing_and_joining() -> None:
    for _ in range(300):
        flight, barrier = Flight("k"), threading.Barrier(2)

        def join(flight: Flight = flight, barrier: threading.Barrier = barrier) -> bool:
            event = threading.Event()
            barrier.wait()
            return flight.on_landing(event.set) or event.wait(WAIT)

        def land(flight: Flight = flight, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            flight.land(1)

        assert _together(join, land)[0] is True


# -- through the read path ---------------------------------------------------------------


def test_a_cold_key_is_loaded_once_for_all_threads() -> None:
    cache, entered, gate = cachekit.Cache(), threading.Event(), threading.Event()
    loads: list[int] = []

    @cache.cached
    def load(x: int) -> str:
        loads.append(x)
        entered.set()
        gate.wait(WAIT)
        return f"v{x}"

    flights = cache.parts.runtime.threads.flights

    def open_gate() -> None:
        entered.wait(WAIT)
        _until(lambda: next(iter(flights._flights.values())).joined == 7)
        gate.set()

    assert _together(*[lambda: load(1)] * 8, open_gate)[:8] == ["v1"] * 8
    assert loads == [1]
    assert load.cache_info()[:2] == (0, 8)
    assert len(flights) == 0


def test_a_loaders_error_reaches_every_waiter_as_it_is_and_is_not_kept() -> None:
    cache, gate, entered = cachekit.Cache(), threading.Event(), threading.Event()
    error = LookupError("no such row")
    failing = True

    @cache.cached
    def load(x: int) -> str:
        if failing:
            entered.set()
            gate.wait(WAIT)
            raise error
        return "there"

    flights = cache.parts.runtime.threads.flights

    def open_gate() -> None:
        entered.wait(WAIT)
        _until(lambda: next(iter(flights._flights.values())).joined == 3)
        gate.set()

    answers = _together(*[lambda: load(1)] * 4, open_gate)[:4]
    assert all(answer is error for answer in answers)
    failing = False
    assert load(1) == "there"


@pytest.mark.parametrize("by", ["key", "tag", "clear", "function"])
def test_an_invalidation_during_a_load_keeps_its_value_from_later_callers(by: str) -> None:
    cache, values, later = cachekit.Cache(), iter(["old", "new"]), []

    @cache.cached(tags=["t"])
    def load(x: int) -> str:
        value = next(values)
        if value == "old":
            {
                "key": lambda: load.invalidate(1),
                "tag": lambda: cache.invalidate(tags=["t"]),
                "clear": cache.clear,
                "function": load.cache_clear,
            }[by]()
            later.extend(_together(lambda: load(1)))  # another thread: no re-entry
        return value

    assert load(1) == "old"  # its own caller began before
    assert later == ["new"]
    assert load(1) == "new"


def test_five_thousand_distinct_keys_leave_no_flight_behind() -> None:
    cache = cachekit.Cache()

    @cache.cached
    def load(x: int) -> int:
        if x % 7 == 0:
            raise ValueError(x)
        return x

    for x in range(5_000):
        try:
            load(x)
        except ValueError:
            pass
    assert len(cache.parts.runtime.threads.flights) == 0


# -- re-entry and circles ----------------------------------------------------------------


def test_a_load_that_asks_for_its_own_key_is_told_so_and_other_arguments_work() -> None:
    cache = cachekit.Cache()

    @cache.cached
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    @cache.cached
    def selfish(n: int) -> int:
        return selfish(n)

    @cache.cached
    def ping(n: int) -> int:
        return pong(n)

    @cache.cached
    def pong(n: int) -> int:
        return ping(n)

    assert fibonacci(30) == 832_040
    for call in (selfish, ping, pong):
        with pytest.raises(ReentryError, match="asks for its own key"):
            call(1)


def test_re_entry_through_a_child_task_is_seen() -> None:
    cache = cachekit.Cache()

    @cache.cached
    async def load(x: int) -> int:
        return await asyncio.create_task(load(x))

    async def main() -> None:
        with pytest.raises(ReentryError):
            await asyncio.wait_for(load(1), WAIT)
        assert len(cache.parts.runtime.asyncio().flights) == 0

    asyncio.run(main())


def test_a_task_that_outlives_the_load_may_ask_for_its_key() -> None:
    cache, tasks = cachekit.Cache(), []

    @cache.cached(ttl=0)
    async def load(x: int) -> int:
        if not tasks:
            gate = asyncio.Event()

            async def later() -> int:
                await gate.wait()
                return await load(x)

            tasks.append((gate, asyncio.create_task(later())))
        return x

    async def main() -> None:
        assert await load(1) == 1
        gate, task = tasks[0]
        gate.set()
        assert await asyncio.wait_for(task, WAIT) == 1

    asyncio.run(main())


def test_two_functions_that_call_each_other_from_two_threads_do_not_hang() -> None:
    for _ in range(20):
        cache, barrier, here = cachekit.Cache(), threading.Barrier(2), threading.local()

        def meet(barrier: threading.Barrier = barrier, here: Any = here) -> None:
            if not getattr(here, "met", False):
                here.met = True
                barrier.wait(WAIT)  # both loads are under way before either asks for the other

        @cache.cached
        def one(n: int, meet: Any = meet) -> str:
            meet()
            return "1" + two(n)

        @cache.cached
        def two(n: int, meet: Any = meet) -> str:
            meet()
            return "2" + one(n)

        answers = _together(lambda: one(1), lambda: two(1))
        # Without end in any cache; what counts is that both callers are told.
        assert [type(answer) for answer in answers] == [ReentryError, ReentryError]
        assert len(cache.parts.runtime.threads.flights) == 0


def test_a_circle_is_seen_along_any_number_of_waits() -> None:
    a, b, c, elsewhere = (Flight(name) for name in ("a", "b", "c", "x"))
    token = led.set((a,))
    try:
        assert not closes_circle(b)
        b.waits_for = [c]
        assert not closes_circle(b)
        c.waits_for = [a]
        assert closes_circle(b)
        c.waits_for = [b]  # a circle of others is theirs to break
        assert not closes_circle(b)
        assert not closes_circle(elsewhere)
    finally:
        led.reset(token)
