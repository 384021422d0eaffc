"""How flights end: handed on, cancelled, uncertain; and circles through several waits."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import cachekit
from cachekit.core.flights import Flight

WAIT = 10.0


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_cancelled_leader_hands_on_and_a_waiter_loads() -> None:
    async def main() -> None:
        cache, started, loads = cachekit.Cache(), asyncio.Event(), []

        @cache.cached
        async def load(x: int) -> str:
            loads.append(x)
            if len(loads) == 1:
                started.set()
                await asyncio.Event().wait()
            return "v"

        leader = asyncio.create_task(load(1))
        await started.wait()
        waiters = [asyncio.create_task(load(1)) for _ in range(5)]
        await _settle()
        leader.cancel()
        assert await asyncio.wait_for(asyncio.gather(*waiters), WAIT) == ["v"] * 5
        assert len(loads) == 2
        with pytest.raises(asyncio.CancelledError):
            await leader
        assert len(cache.parts.runtime.asyncio().flights) == 0

    asyncio.run(main())


def test_a_cancelled_waiter_leaves_the_load_to_the_others() -> None:
    async def main() -> None:
        cache, gate, started, loads = cachekit.Cache(), asyncio.Event(), asyncio.Event(), []

        @cache.cached
        async def load(x: int) -> str:
            loads.append(x)
            started.set()
            await gate.wait()
            return "v"

        leader = asyncio.create_task(load(1))
        await started.wait()
        waiters = [asyncio.create_task(load(1)) for _ in range(3)]
        await _settle()
        waiters[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiters[0]
        gate.set()
        assert await asyncio.wait_for(asyncio.gather(leader, *waiters[1:]), WAIT) == ["v"] * 3
        assert loads == [1]

    asyncio.run(main())


@pytest.mark.parametrize("load_timeout", [None, 60])
def test_a_cancellation_that_meets_the_landing_is_not_swallowed(load_timeout: Any) -> None:
    async def main() -> None:
        cache = cachekit.Cache()

        @cache.cached(load_timeout=load_timeout)
        async def load(x: int) -> str:
            return "v"

        flights = cache.parts.runtime.asyncio().flights
        flight = flights.board(Flight(load.key(1)))
        waiter = asyncio.create_task(load(1))
        await _settle()
        flight.land("v")
        asyncio.get_running_loop().call_soon(waiter.cancel)
        with pytest.raises(asyncio.CancelledError):
            await waiter
        flights.leave(flight)

    asyncio.run(main())


def test_a_keyboard_interrupt_in_a_load_reaches_its_caller_and_frees_the_key() -> None:
    cache, loads = cachekit.Cache(), []

    @cache.cached
    def load(x: int) -> str:
        loads.append(x)
        if len(loads) == 1:
            raise KeyboardInterrupt
        return "v"

    with pytest.raises(KeyboardInterrupt):
        load(1)
    assert load(1) == "v"


def _joined(flight: Flight) -> None:
    pause = threading.Event()
    while not flight._wake:
        pause.wait(0.002)


def _answer(loading: bool, **landing: Any) -> tuple[str, list[int]]:
    """What a caller gets who joined a flight before or after its load began."""
    cache, loads = cachekit.Cache(), []

    @cache.cached
    def load(x: int) -> str:
        loads.append(x)
        return "own"

    flights = cache.parts.runtime.threads.flights
    flight = flights.board(Flight(load.key(1)))
    flight.loading = loading
    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(load, 1)
        _joined(flight)
        flights.leave(flight)
        flight.loading = True
        if landing.pop("handed", False):
            flight.hand_on()
        else:
            flight.land("shared", **landing)
        return caller.result(WAIT), loads


def test_an_uncertain_value_goes_only_to_those_who_came_before_its_load_began() -> None:
    assert _answer(loading=False, certain=False) == ("shared", [])
    assert _answer(loading=True, certain=False) == ("own", [1])


def test_a_certain_value_goes_to_all_who_joined() -> None:
    assert _answer(loading=False) == ("shared", [])
    assert _answer(loading=True) == ("shared", [])


def test_after_a_flight_was_handed_on_its_waiter_leads_a_new_one() -> None:
    assert _answer(loading=True, handed=True) == ("own", [1])


def test_two_async_functions_that_call_each_other_do_not_hang() -> None:
    async def main() -> None:
        cache, inside, both = cachekit.Cache(), [], asyncio.Event()

        async def meet(name: str) -> None:
            inside.append(name)
            if len(inside) == 2:
                both.set()
            await both.wait()

        @cache.cached
        async def one(n: int) -> str:
            await meet("one")
            return "1" + await two(n)

        @cache.cached
        async def two(n: int) -> str:
            await meet("two")
            return "2" + await one(n)

        answers = await asyncio.wait_for(
            asyncio.gather(one(1), two(1), return_exceptions=True), WAIT
        )
        assert [type(a) for a in answers] == [cachekit.ReentryError] * 2

    asyncio.run(main())


def test_a_circle_through_one_of_several_waits_is_seen() -> None:
    async def main() -> None:
        cache = cachekit.Cache()
        gate, b_entered, a_waits = asyncio.Event(), asyncio.Event(), asyncio.Event()

        @cache.cached
        async def gated(n: int) -> int:
            await gate.wait()
            return n

        @cache.cached
        async def a(n: int) -> Any:
            await b_entered.wait()
            first = asyncio.create_task(b(n))
            await _settle()
            second = asyncio.create_task(gated(n))
            await _settle()
            gate.set()
            await second  # its end must not hide that the first still waits
            a_waits.set()
            return await first

        @cache.cached
        async def b(n: int) -> Any:
            b_entered.set()
            await a_waits.wait()
            return await a(n)

        other = asyncio.create_task(gated(1))
        await _settle()
        tasks = [asyncio.create_task(a(1)), asyncio.create_task(b(1))]
        try:
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 0.5)
        finally:
            for task in (*tasks, other):
                task.cancel()
            await asyncio.gather(*tasks, other, return_exceptions=True)

    asyncio.run(main())
