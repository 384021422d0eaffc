"""P21-P26 through the decorator: errors, re-entry, background refresh, negative caching; on an
embedded cache and over Redis. (P20, P22 and P27 have files of their own.)"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from stage import Opener, manual_runtime

from cachekit import Cache, ReentryError
from cachekit.core.flights import Flight
from cachekit.errors import LoadTimeoutError
from cachekit.runtime import BACKGROUND_LIMIT
from cachekit.testing.clock import ManualClock


@pytest.fixture(params=["embedded", "redis"])
def cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else None
    opener = Opener(request.param, url)
    yield opener()
    opener.close()


class Oops(Exception):
    pass


def test_p21_an_error_reaches_64_threads_unwrapped_and_the_next_call_loads(cache: Cache) -> None:
    error, calls, seen = Oops("once"), [], []
    gate, entered = threading.Event(), threading.Event()

    @cache.cached(ttl=60, name="p21")
    def load(n: int) -> int:
        calls.append(n)
        if len(calls) == 1:
            entered.set()
            gate.wait(10)
            raise error
        return n

    def call() -> None:
        try:
            load(1)
        except Oops as caught:
            seen.append(caught)

    threads = [threading.Thread(target=call) for _ in range(64)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    _until(lambda: _joined(cache) == 63)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 64
    assert all(each is error for each in seen)
    assert calls == [1]
    assert load(1) == 1
    assert calls == [1, 1]


def test_p21_an_error_reaches_500_tasks_unwrapped(cache: Cache) -> None:
    error, calls = Oops("once"), []

    @cache.cached(ttl=60, name="p21")
    async def load(n: int) -> int:
        calls.append(n)
        if len(calls) == 1:
            await asyncio.sleep(0.05)
            raise error
        return n

    async def main() -> None:
        answers = await asyncio.gather(*(load(1) for _ in range(500)), return_exceptions=True)
        assert all(each is error for each in answers)
        assert calls == [1]
        assert await load(1) == 1
        await cache.aio.close()

    asyncio.run(main())


def test_p22_a_waiter_that_gives_up_on_time_leaves_the_load_to_the_others(cache: Cache) -> None:
    loads = []

    @cache.cached(ttl=60, name="p22")
    async def slow(n: int) -> int:
        loads.append(n)
        await asyncio.sleep(0.2)
        return n

    async def main() -> None:
        leader = asyncio.create_task(slow(1))
        await asyncio.sleep(0.02)
        patient = asyncio.create_task(slow(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await slow(1)
        assert await asyncio.gather(leader, patient) == [1, 1]
        assert loads == [1]
        await cache.aio.close()

    asyncio.run(main())


def test_p22_no_caller_waits_longer_than_the_load_timeout(cache: Cache) -> None:
    gate = threading.Event()

    @cache.cached(ttl=60, name="p22", load_timeout=0.2)
    def hangs(n: int) -> int:
        gate.wait(10)
        return n

    took, errors = [], []

    def call() -> None:
        began = time.monotonic()
        try:
            hangs(1)
        except LoadTimeoutError as error:
            errors.append(error)
        took.append(time.monotonic() - began)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    gate.set()
    assert len(errors) == 8
    assert max(took) < 2.0


def test_p24_a_load_may_ask_for_other_arguments_and_not_for_its_own_key(cache: Cache) -> None:
    @cache.cached(ttl=60, name="p24")
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(30) == 832040

    @cache.cached(ttl=60, name="p24 itself")
    def itself(n: int) -> int:
        return itself(n) + 1  # type: ignore[no-any-return]

    with pytest.raises(ReentryError, match="its own key"):
        itself(1)
    with pytest.raises(ReentryError):
        itself(1)

    @cache.cached(ttl=60, name="p24 there")
    def there(n: int) -> int:
        return back(n)

    @cache.cached(ttl=60, name="p24 back")
    def back(n: int) -> int:
        return there(n)

    with pytest.raises(ReentryError):
        there(1)


def test_p24_a_child_task_that_asks_for_its_parents_key_gets_an_error_and_no_hang(
    cache: Cache,
) -> None:
    @cache.cached(ttl=60, name="p24")
    async def parent(n: int) -> int:
        return await asyncio.create_task(child(n))

    async def child(n: int) -> int:
        return (await parent(n)) + 1

    async def main() -> None:
        with pytest.raises(ReentryError):
            await asyncio.wait_for(parent(1), 5)
        await cache.aio.close()

    asyncio.run(main())


def test_p24_two_functions_that_call_each_other_from_two_threads_do_not_deadlock(
    cache: Cache,
) -> None:
    met = threading.Barrier(2)
    depth: dict[str, int] = {"a": 0, "b": 0}

    @cache.cached(ttl=60, name="p24 a")
    def a(n: int) -> str:
        depth["a"] += 1
        if depth["a"] == 1:
            met.wait(10)
            return "a" + b(n)
        return "a"

    @cache.cached(ttl=60, name="p24 b")
    def b(n: int) -> str:
        depth["b"] += 1
        if depth["b"] == 1:
            met.wait(10)
            return "b" + a(n)
        return "b"

    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda f=f: answers.append(f(1)), daemon=True) for f in (a, b)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    assert len(answers) == 2


def test_p25_stale_if_error_until_the_grace_ends_and_then_the_error(cache: Cache) -> None:
    clock = ManualClock()
    opener = Opener("memory" if cache.parts.far is not None else "embedded", None)
    made = opener(runtime=manual_runtime(clock))
    broken, loads = [False], []

    @made.cached(ttl=10, grace=30, name="p25")
    def load(n: int) -> int:
        loads.append(n)
        if broken[0]:
            raise Oops
        return n

    assert load(1) == 1
    broken[0] = True
    clock.advance(15)
    for _ in range(5):
        assert load(1) == 1
        _until(lambda: not len(made.parts.runtime.threads.flights))
    assert 2 <= len(loads) <= 6
    clock.advance(30)
    with pytest.raises(Oops):
        load(1)
    opener.close()


def test_p25_background_refreshes_are_one_per_key_and_bounded() -> None:
    clock = ManualClock()
    with Cache(runtime=manual_runtime(clock)) as cache:
        gate, loads = threading.Event(), []
        keys = BACKGROUND_LIMIT * 3

        @cache.cached(ttl=10, grace=100, name="p25")
        def load(n: int) -> int:
            if clock() > 1010:
                loads.append(n)
                gate.wait(10)
            return n

        for n in range(keys):
            load(n)
        clock.advance(15)
        before = threading.active_count()
        for _ in range(3):
            for n in range(keys):
                assert load(n) == n  # served at once, all of them
        assert threading.active_count() - before <= BACKGROUND_LIMIT
        assert len(loads) <= BACKGROUND_LIMIT
        assert cache.stats().counts["refreshes_skipped"] > 0
        gate.set()
        _until(lambda: not len(cache.parts.runtime.threads.flights))
        assert len(loads) == len(set(loads)) == BACKGROUND_LIMIT


@pytest.mark.parametrize("asynchronous", [False, True])
def test_p26_none_is_cached_and_has_its_own_ttl(asynchronous: bool) -> None:
    clock = ManualClock()
    with Cache(runtime=manual_runtime(clock)) as cache:
        loads: list[int] = []

        @cache.cached(ttl=100, negative_ttl=5)
        def plain(n: int) -> int | None:
            loads.append(n)
            return None

        @cache.cached(ttl=100, negative_ttl=5)
        async def coroutine(n: int) -> int | None:
            loads.append(n)
            return None

        def call(n: int) -> Any:
            return asyncio.run(coroutine(n)) if asynchronous else plain(n)

        assert [call(1), call(1)] == [None, None]
        assert loads == [1]
        clock.advance(6)
        assert call(1) is None
        assert loads == [1, 1]


def test_p26_a_flood_of_unknown_ids_keeps_the_near_tier_within_its_bound() -> None:
    with Cache(max_entries=1000) as cache:

        @cache.cached(ttl=600, negative_ttl=60)
        def find(n: int) -> None:
            return None

        for n in range(100_000):
            find(n)
        assert cache.stats().entries <= 1000
        assert len(cache.parts.runtime.threads.flights) == 0


def test_p20_looks_at_a_cold_key_do_not_keep_its_load_from_being_shared(cache: Cache) -> None:
    """A stream of ``get`` boards and leaves; who loads must not be handed from one to the next."""
    loads: list[int] = []
    looking = True

    def load() -> int:
        loads.append(1)
        time.sleep(0.1)
        return 7

    def look() -> None:
        while looking:
            cache.get("k")

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for thread in lookers:
        thread.start()
    answers: list[int] = []
    callers = [
        threading.Thread(target=lambda: answers.append(cache.get_or_set("k", load, ttl=60)))
        for _ in range(20)
    ]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(20)
    looking = False
    for thread in lookers:
        thread.join(20)
    assert answers == [7] * 20
    assert len(loads) == 1


def _joined(cache: Cache) -> int:
    flights: list[Flight] = list(cache.parts.runtime.threads.flights._flights.values())
    return sum(flight.joined for flight in flights)


def _until(holds: Any) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)
