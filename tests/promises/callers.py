"""Every way to read and load through the public API, in plain and in async code."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import cachekit

WORLDS = ("plain", "async")


def square(n: int) -> int:
    return n * n


class Caller:
    """Caches without near copies: what its calls answer, the far tier was asked for.

    ``problems`` collects each exception and each wrong value. One instance, one world."""

    def __init__(self, url: str, world: str, **options: Any) -> None:
        self.world = world
        self.events: Counter[str] = Counter()
        self.problems: list[object] = []
        self.loads = 0
        self.calls = 0
        options = {"timeout": 0.25, "breaker_failures": 1_000_000, **options}
        self.cache = cachekit.Cache(
            url,
            coherence="strict",
            invalidation="replay",
            observers=[lambda event, fields: self.events.update([event])],
            **options,
        )

        @self.cache.cached(key="f:{n}", ttl=600, tags=["all", "n:{n}"])
        def plain(n: int) -> int:
            self.loads += 1
            return square(n)

        @self.cache.cached(key="f:{n}", ttl=600, tags=["all", "n:{n}"])
        async def asynchronous(n: int) -> int:
            self.loads += 1
            return square(n)

        @self.cache.cached_many(key="m:{n}", ttl=600)
        def plain_many(numbers: list[int]) -> dict[int, int]:
            return {n: square(n) for n in numbers}

        @self.cache.cached_many(key="m:{n}", ttl=600)
        async def asynchronous_many(numbers: list[int]) -> dict[int, int]:
            return {n: square(n) for n in numbers}

        self.plain, self.asynchronous = plain, asynchronous
        self.plain_many, self.asynchronous_many = plain_many, asynchronous_many
        self.rows = cachekit.CacheAside(
            self.cache, load=square, key="row:{id}", store=lambda id, value: None, ttl=600
        )

    def expect(self, got: object, wanted: object) -> None:
        self.calls += 1
        if got != wanted:
            self.problems.append((got, wanted))

    def _plain(self, n: int, writes: bool) -> None:
        cache = self.cache
        self.expect(self.plain(n), square(n))
        self.expect(cache.get_or_set(f"g:{n}", lambda: square(n), ttl=600), square(n))
        self.expect(self.plain_many([n, n + 1]), {n: square(n), n + 1: square(n + 1)})
        self.expect(self.rows.get(n), square(n))
        self.expect(cache.get(f"g:{n}", square(n)), square(n))
        if writes:
            self.expect(cache.set(f"s:{n}", square(n), ttl=600) in (True, False), True)
            self.rows.put(n, square(n))
            cache.invalidate(keys=[f"g:{n}"], tags=[f"n:{n}"])

    async def _async(self, n: int, writes: bool) -> None:
        aio = self.cache.aio
        self.expect(await self.asynchronous(n), square(n))
        self.expect(await aio.get_or_set(f"g:{n}", lambda: square(n), ttl=600), square(n))
        found = await self.asynchronous_many([n, n + 1])
        self.expect(found, {n: square(n), n + 1: square(n + 1)})
        self.expect(await self.rows.aio.get(n), square(n))
        self.expect(await aio.get(f"g:{n}", square(n)), square(n))
        if writes:
            self.expect(await aio.set(f"s:{n}", square(n), ttl=600) in (True, False), True)
            await self.rows.aio.put(n, square(n))
            await aio.invalidate(keys=[f"g:{n}"], tags=[f"n:{n}"])

    def call(self, numbers: Iterable[int], *, writes: bool = True) -> None:
        """All verbs once for each number."""
        if self.world == "plain":
            for n in numbers:
                try:
                    self._plain(n, writes)
                except Exception as error:
                    self.problems.append(error)
            return

        async def run() -> None:
            for n in numbers:
                try:
                    await self._async(n, writes)
                except Exception as error:
                    self.problems.append(error)
            await self.cache.aio.close(0.02)

        asyncio.run(run())

    def hits(self, numbers: Iterable[int], seconds: float = 10.0) -> float:
        """Call until no number needs a load any more; the seconds that took."""
        wanted = list(numbers)
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            before = self.loads
            self._reads(wanted)
            if self.loads == before and not self.problems:
                return time.monotonic() - started
            if self.problems:
                break
            time.sleep(0.05)
        raise AssertionError(f"no hits within {seconds} s: {self.problems[:3]}")

    def _reads(self, numbers: list[int]) -> None:
        if self.world == "plain":
            for n in numbers:
                self.expect(self.plain(n), square(n))
            return

        async def run() -> None:
            for n in numbers:
                self.expect(await self.asynchronous(n), square(n))
            await self.cache.aio.close(0.02)

        asyncio.run(run())

    def crowd(self, workers: int, end: threading.Event, *, writes: bool = True) -> threading.Thread:
        """Start a crowd of threads or tasks that call until ``end``; join the answer."""

        def work(worker: int) -> None:
            turn = 0
            while not end.is_set():
                turn += 1
                try:
                    self._plain((worker * 7 + turn) % 40, writes and turn % 3 == 0)
                except Exception as error:
                    self.problems.append(error)
                end.wait(0.002)

        async def work_async(worker: int) -> None:
            turn = 0
            while not end.is_set():
                turn += 1
                try:
                    await self._async((worker * 7 + turn) % 40, writes and turn % 3 == 0)
                except Exception as error:
                    self.problems.append(error)
                await asyncio.sleep(0.01)

        async def run() -> None:
            await asyncio.gather(*map(work_async, range(workers)))
            await self.cache.aio.close(0.02)

        def threads() -> None:
            crowd = [threading.Thread(target=work, args=(w,), daemon=True) for w in range(workers)]
            for thread in crowd:
                thread.start()
            for thread in crowd:
                thread.join(60)

        whole = threads if self.world == "plain" else lambda: asyncio.run(run())
        thread = threading.Thread(target=whole, daemon=True)
        thread.start()
        return thread
