"""P27: many distinct keys leave no flight, block, thread, task or descriptor behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time

import pytest

import cachekit
from cachekit.testing.servers import RedisServer

KEYS = 5_000


def test_five_thousand_keys_leave_no_flight_behind() -> None:
    cache = cachekit.Cache(max_entries=100)
    row = cachekit.WriteThrough(
        cache, load=lambda id: id, store=lambda id, value: None, key="row:{id}", ttl=60
    )

    @cache.cached(ttl=60)
    def plain(n: int) -> int:
        return n

    @cache.cached(ttl=60)
    async def asynchronous(n: int) -> int:
        return n

    async def run() -> int:
        for n in range(KEYS):
            await asynchronous(n)
        return len(cache.parts.runtime.asyncio().flights)

    threads = threading.active_count()
    for n in range(KEYS):
        plain(n)
        row.get(n)
        row.put(n, n)
        row.invalidate(n)
    assert asyncio.run(run()) == 0
    assert len(cache.parts.runtime.threads.flights) == 0
    assert len(cache.parts.near.writers) == 0
    assert cache.stats().entries <= 100
    assert threading.active_count() == threads


def test_a_loader_that_fails_leaves_nothing_behind() -> None:
    cache = cachekit.Cache()

    @cache.cached(ttl=60)
    def fails(n: int) -> int:
        raise LookupError(n)

    for n in range(KEYS):
        with pytest.raises(LookupError):
            fails(n)
    assert len(cache.parts.runtime.threads.flights) == 0
    assert cache.stats().entries == 0


def test_thirty_caches_opened_and_closed_leave_no_descriptor_or_thread(
    redis_server: RedisServer,
) -> None:
    def round_trip(number: int) -> None:
        cache = cachekit.Cache(redis_server.url, namespace=f"p27-{number}", timeout=2.0)
        cache.set("k", number)

        async def run() -> None:
            assert await cache.aio.get("k") == number
            await cache.aio.close()

        asyncio.run(run())
        cache.close()

    round_trip(0)
    gc.collect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for number in range(30):
        round_trip(number)
    gc.collect()
    end = time.monotonic() + 5.0
    # A thread that listens closes its own socket, soon after close() told it to.
    while time.monotonic() < end and (
        len(os.listdir("/proc/self/fd")) > descriptors + 1 or threading.active_count() > threads
    ):
        time.sleep(0.02)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1
    assert threading.active_count() <= threads
