"""P01 to P05 and P10: a killed, frozen or silent server costs its callers a bounded delay."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

import cachekit
from cachekit.testing.servers import MemcachedServer, RedisServer, Server, ServerMissing

T = 0.25
SLACK = 0.15


@pytest.fixture(params=[RedisServer, MemcachedServer], ids=["redis", "memcached"])
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of the test's own: it is going to be killed."""
    try:
        server = request.param()
        server.start()
    except ServerMissing as missing:
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    try:
        yield server
    finally:
        server.close()


class Caller:
    """A cached function in one world, and how long its calls take."""

    def __init__(self, url: str, world: str, **options: object) -> None:
        # No near copies: every call asks the server.
        self.cache = cachekit.Cache(url, timeout=T, coherence="strict", **options)
        self.loads = 0
        self.world = world

        @self.cache.cached(name="plain", ttl=600)
        def plain(n: int) -> int:
            self.loads += 1
            return n * 2

        @self.cache.cached(name="async", ttl=600)
        async def asynchronous(n: int) -> int:
            self.loads += 1
            return n * 2

        self.plain = plain
        self.asynchronous = asynchronous

    def calls(self, *numbers: int) -> list[float]:
        """Call with each number; the seconds each call took."""
        times = []
        if self.world == "plain":
            for n in numbers:
                started = time.perf_counter()
                assert self.plain(n) == n * 2
                times.append(time.perf_counter() - started)
            return times

        async def run() -> None:
            for n in numbers:
                started = time.perf_counter()
                assert await self.asynchronous(n) == n * 2
                times.append(time.perf_counter() - started)
            await self.cache.aio.close()

        asyncio.run(run())
        return times

    def until_hits(self, seconds: float) -> float:
        """Call one number until it is answered without a load; the seconds that took."""
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            before = self.loads
            self.calls(77)
            if self.loads == before:
                return time.perf_counter() - started
            time.sleep(0.1)
        raise AssertionError(f"no hit within {seconds} s")


@pytest.mark.parametrize("world", ["plain", "async"])
def test_p01_a_killed_server_costs_each_call_its_budget_and_hits_come_back(
    own_server: Server, world: str
) -> None:
    caller = Caller(own_server.url, world)
    caller.calls(1, 1)
    assert caller.loads == 1
    own_server.kill()
    times = caller.calls(1, 2, 3, 4, 5, 6)
    assert max(times) < 2 * T + SLACK, times
    own_server.start()
    assert caller.until_hits(10) < 10
    caller.cache.close()


@pytest.mark.parametrize("world", ["plain", "async"])
def test_p02_a_frozen_server_costs_each_call_its_budget(own_server: Server, world: str) -> None:
    caller = Caller(own_server.url, world)
    caller.calls(1, 1)
    own_server.pause()
    try:
        times = caller.calls(1, 2, 3, 4, 5, 6)
    finally:
        own_server.resume()
    assert max(times) < 2 * T + SLACK, times
    assert caller.until_hits(10) < 10
    caller.cache.close()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port whose listener never accepts: connects end, replies never come."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("scheme", ["redis", "memcached"])
@pytest.mark.parametrize("world", ["plain", "async"])
def test_p03_a_connect_that_leads_nowhere_costs_no_more(
    silent: int, world: str, scheme: str
) -> None:
    caller = Caller(f"{scheme}://127.0.0.1:{silent}", world)
    times = caller.calls(*range(6))
    assert max(times) < 2 * T + SLACK, times
    caller.cache.close()


@pytest.mark.parametrize("scheme", ["redis", "memcached"])
def test_p03_default_options_add_less_than_a_second(silent: int, scheme: str) -> None:
    with cachekit.Cache(f"{scheme}://127.0.0.1:{silent}") as cache:
        started = time.perf_counter()
        assert cache.get_or_set("k", lambda: 7) == 7
        assert time.perf_counter() - started < 1.0


def test_p04_an_open_breaker_costs_next_to_nothing_and_closes_by_itself(
    own_server: Server,
) -> None:
    caller = Caller(own_server.url, "plain", breaker_failures=3, breaker_reset=60.0)
    caller.calls(1)
    own_server.kill()
    caller.calls(1, 2, 3, 4)
    assert caller.cache.stats().breaker == "open"
    times = sorted(caller.calls(*range(100, 200)))
    assert times[94] < 0.010, times[90:]
    caller.cache.close()

    healing = Caller(own_server.url, "plain", breaker_failures=3, breaker_reset=0.5)
    healing.calls(1, 2, 3, 4)
    assert healing.cache.stats().breaker == "open"
    own_server.start()
    assert healing.until_hits(0.5 + 3) < 0.5 + 3
    assert healing.cache.stats().breaker == "closed"
    healing.cache.close()


@pytest.mark.parametrize("world", ["plain", "async"])
def test_p05_strict_raises_the_documented_error_within_the_budget(
    own_server: Server, world: str
) -> None:
    cache = cachekit.Cache(own_server.url, timeout=T, strict=True)
    own_server.kill()

    async def aio() -> None:
        await cache.aio.get_or_set("k", lambda: 1)

    started = time.perf_counter()
    with pytest.raises(cachekit.errors.BackendError):
        if world == "plain":
            cache.get_or_set("k", lambda: 1)
        else:
            asyncio.run(aio())
    assert time.perf_counter() - started < T + SLACK
    cache.close()


def test_p06_a_hundred_threads_against_a_frozen_server_all_end(own_server: Server) -> None:
    caller = Caller(own_server.url, "plain")
    caller.calls(1)
    own_server.pause()
    times: list[float] = []
    gate = threading.Barrier(100)

    def call(n: int) -> None:
        gate.wait(10)
        times.extend(caller.calls(n))

    threads = [threading.Thread(target=call, args=(n,), daemon=True) for n in range(100)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        own_server.resume()
    assert len(times) == 100
    assert max(times) < 3 * (2 * T + SLACK), max(times)
    caller.cache.close()


def test_p06_two_hundred_tasks_against_a_frozen_server_leave_the_loop_free(
    own_server: Server,
) -> None:
    cache = cachekit.Cache(own_server.url, timeout=T, coherence="strict")

    @cache.cached(name="f", ttl=60)
    async def double(n: int) -> int:
        return n * 2

    lags: list[float] = []

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            lags.append(loop.time() - before - 0.01)

    async def run() -> float:
        await double(0)
        own_server.pause()
        watching = asyncio.create_task(watch())
        started = time.perf_counter()
        assert await asyncio.gather(*(double(n) for n in range(200))) == [n * 2 for n in range(200)]
        took = time.perf_counter() - started
        watching.cancel()
        own_server.resume()
        await cache.aio.close()
        return took

    try:
        took = asyncio.run(run())
    finally:
        own_server.resume()
    assert took < 3 * (2 * T + SLACK), took
    # p99 of the lag while 200 calls time out at once, their own work included.
    assert sorted(lags)[int(len(lags) * 0.99) - 1] < 0.05, sorted(lags)[-5:]
    cache.close()


@pytest.mark.parametrize("world", ["plain", "async"])
def test_p10_an_invalidation_that_can_not_be_told_raises(own_server: Server, world: str) -> None:
    cache = cachekit.Cache(own_server.url, timeout=T)
    cache.set("k", 1)
    own_server.kill()

    async def aio() -> None:
        await cache.aio.invalidate(keys=["k"])

    with pytest.raises(cachekit.InvalidationFailed):
        if world == "plain":
            cache.invalidate(keys=["k"])
        else:
            asyncio.run(aio())
    assert cache.get("k") is None  # this process at least forgot
    cache.close()


@pytest.mark.parametrize("what", ["key", "tag", "all"])
def test_p10_a_queued_invalidation_arrives_after_healing(what: str) -> None:
    with RedisServer(("--save", "", "--appendonly", "yes", "--appendfsync", "always")) as server:
        mine = cachekit.Cache(
            server.url, timeout=T, invalidation="replay", coherence="strict", breaker_reset=0.3
        )
        other = cachekit.Cache(server.url, timeout=T, coherence="strict", breaker_reset=0.3)
        mine.set("k", "old", ttl=600, tags=["t"])
        assert other.get("k") == "old"
        server.kill()
        if what == "key":
            mine.invalidate(keys=["k"])
        elif what == "tag":
            mine.invalidate(tags=["t"])
        else:
            mine.clear()
        assert mine.stats().pending_invalidations == 1
        server.start()
        healed = time.perf_counter()
        while mine.stats().pending_invalidations and time.perf_counter() - healed < 10:
            time.sleep(0.05)
        assert mine.stats().pending_invalidations == 0
        assert other.get("k") is None
        assert mine.get("k") is None
        mine.close()
        other.close()
