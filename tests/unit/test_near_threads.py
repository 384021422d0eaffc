"""The near tier under threads: bounds, exact counts, and never a value from before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import cachetools
import pytest

import cachekit
import cachekit.runtime
from cachekit.testing import ManualClock

THREADS = 6


def _all(work: Callable[[int], None]) -> None:
    barrier, errors = threading.Barrier(THREADS), []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_hits_and_misses_of_many_threads_are_counted_exactly() -> None:
    cache = cachekit.Cache()

    @cache.cached(ttl=100)
    def load(x: int) -> int:
        return x

    def work(number: int) -> None:
        for step in range(5_000):
            load(step % 50)

    _all(work)
    info = load.cache_info()
    assert info.hits + info.misses == THREADS * 5_000
    assert info.currsize == 50
    assert cache.stats().hits == info.hits


def test_the_bounds_hold_while_threads_fill_and_invalidate() -> None:
    cache = cachekit.Cache(max_entries=40, max_weight=300, weigh=lambda v: v % 20)
    near, over = cache.parts.near, []

    @cache.cached(tags=["mod:{m}"])
    def load(x: int, m: int) -> int:
        return x

    def work(number: int) -> None:
        for step in range(1_500):
            x = (step * (number + 3)) % 120
            assert load(x, x % 3) == x
            if near.live > 40 or near.weight > 300:
                over.append((near.live, near.weight))
            if step % 50 == number:
                load.invalidate(x, x % 3)
            if step % 97 == number:
                cache.invalidate(tags=["mod:1"])

    _all(work)
    # `live` is read without the lock, between the removal and the addition of one fill.
    assert not over
    entries = list(load.cached_function.table.shelf.entries())
    assert near.live == len(entries)
    assert near.weight == sum(e.value % 20 for e in entries)


@pytest.mark.parametrize("by", ["key", "tag", "clear", "text"])
def test_no_thread_sees_a_value_from_before_a_returned_invalidation(by: str) -> None:
    cache = cachekit.Cache()
    source = [0]
    told = [0]  # the version that the last returned invalidation made the oldest allowed
    stop = threading.Event()

    @cache.cached(tags=["all"])
    def load(x: int) -> int:
        return source[0]

    invalidate = {
        "key": lambda: load.invalidate(1),
        "tag": lambda: cache.invalidate(tags=["all"]),
        "clear": cache.clear,
        "text": lambda: cache.invalidate(keys=[load.key(1)]),
    }[by]

    def work(number: int) -> None:
        if number == 0:
            for _ in range(1_500):
                source[0] += 1
                invalidate()
                told[0] = source[0]
            stop.set()
            return
        while not stop.is_set():
            oldest = told[0]
            assert load(1) >= oldest

    _all(work)
    assert load(1) == source[0]


MAPPINGS: list[Callable[[], Any]] = [
    dict,
    lambda: cachetools.LRUCache(8),
    lambda: cachetools.LFUCache(8),
    lambda: cachetools.FIFOCache(8),
    lambda: cachetools.RRCache(8),
    lambda: cachetools.TTLCache(8, 0.001),
    lambda: cachetools.LRUCache(0),
]


@pytest.mark.parametrize("make", MAPPINGS)
def test_a_users_mapping_decides_what_stays_and_no_value_is_wrong(make: Any) -> None:
    cache = cachekit.Cache(near=make())
    source = dict.fromkeys(range(20), 0)

    @cache.cached(tags=["x:{x}"])
    def load(x: int) -> tuple[int, int]:
        return x, source[x]

    for step in range(1_000):
        x = (step * 7) % 20
        assert load(x) == (x, source[x])
        if step % 3 == 0:
            source[x] += 1
            [load.invalidate, lambda x: cache.invalidate(tags=[f"x:{x}"])][step % 2](x)
        assert load(x) == (x, source[x])
    load.cache_clear()
    assert load.peek(1) is cachekit.MISSING
    load(1)
    cache.clear()
    assert load.peek(1) is cachekit.MISSING


def test_a_users_mapping_keeps_types_and_functions_apart() -> None:
    cache = cachekit.Cache(near={})

    @cache.cached
    def one(x: Any) -> Any:
        return "one", x

    @cache.cached
    def two(x: Any) -> Any:
        return "two", x

    for x in (1, True, 1.0, "1", (1,), (True,)):
        for f, name in ((one, "one"), (two, "two")):
            for _ in range(2):
                found = f(x)
                assert found == (name, x)
                assert type(found[1]) is type(x)


def test_hits_in_a_users_mapping_are_counted_though_it_drops_entries_unseen() -> None:
    cache = cachekit.Cache(near=cachetools.LRUCache(2))

    @cache.cached
    def load(x: int) -> int:
        return x

    for x in (1, 1, 1, 2, 3, 4, 4):
        load(x)
    assert load.cache_info()[:2] == (3, 4)
    assert cache.parts.near.live == 0


def test_a_users_mapping_is_safe_for_threads() -> None:
    cache = cachekit.Cache(near=cachetools.LRUCache(16))

    @cache.cached
    def load(x: int) -> int:
        return x

    def work(number: int) -> None:
        for step in range(1_000):
            x = (step * (number + 1)) % 40
            assert load(x) == x

    _all(work)
    info = load.cache_info()
    assert info.hits + info.misses == THREADS * 1_000


def _until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    for _ in range(2_000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it never came to be")


def test_time_decides_and_not_the_calls() -> None:
    clock = ManualClock()
    cache = cachekit.Cache(runtime=cachekit.runtime.Runtime(clock=clock))
    loads = []

    @cache.cached(ttl=10)
    def load(x: int) -> int:
        loads.append(x)
        return len(loads)

    assert [load(1), load(1)] == [1, 1]
    clock.advance(9.999)
    assert load(1) == 1
    clock.advance(0.001)
    assert load(1) == 2


def test_within_its_grace_a_value_is_served_while_one_load_replaces_it() -> None:
    clock = ManualClock()
    cache = cachekit.Cache(runtime=cachekit.runtime.Runtime(clock=clock))
    loads: list[int] = []
    gate = threading.Event()

    @cache.cached(ttl=10, grace=5)
    def load(x: int) -> int:
        loads.append(x)
        if len(loads) > 1:
            gate.wait(10)
        return len(loads)

    assert load(1) == 1
    clock.advance(12)
    assert [load(1) for _ in range(20)] == [1] * 20
    gate.set()
    _until(lambda: load.peek(1) == 2)
    assert loads == [1, 1]
    assert load(1) == 2
    clock.advance(100)
    assert load(1) == 3  # beyond the grace nothing old is served
