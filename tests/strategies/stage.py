"""Where the behaviour tests play: places (backends), worlds (plain, async) and a source that
counts, waits and fails as it is told."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cachekit import (
    Cache,
    CacheAside,
    ReadThrough,
    RefreshAhead,
    Strategy,
    WriteAround,
    WriteBack,
    WriteThrough,
)
from cachekit.backends.memory import MemoryBackend
from cachekit.runtime import Runtime, drive
from cachekit.testing.clock import ManualClock

SHARED = ("memory", "sqlite", "redis", "memcached")
PLACES = ("embedded", *SHARED)
WORLDS = ("plain", "async")
PATIENCE = 10.0  # seconds after which a test that waits for an event has failed


def _write_back(cache: Any = None, **options: Any) -> WriteBack:
    return WriteBack(cache, **{"log": "memory", "delay": 0.01, **options})


# One word chooses the strategy: everything else in a test stays as it is.
STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "cache-aside": CacheAside,
    "read-through": ReadThrough,
    "refresh-ahead": RefreshAhead,
    "write-through": WriteThrough,
    "write-around": WriteAround,
    "write-back": _write_back,
}
SOURCE_FIRST = {name: make for name, make in STRATEGIES.items() if name != "write-back"}


class Gate:
    """A door that a call reaches and waits at until the test opens it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait_at(self) -> None:
        self.reached.set()
        if not self.opened.wait(PATIENCE):
            raise AssertionError("nobody opened the gate")

    def open(self) -> None:
        self.opened.set()


class Rows:
    """A system of record in a dict. ``calls`` lists what it was asked; ``gates`` by operation are
    reached after a read and before a write; ``errors`` by operation are raised once each."""

    def __init__(self, rows: Mapping[Any, Any] | None = None) -> None:
        self.rows = dict(rows or {})
        self.calls: list[tuple[str, Any]] = []
        self.gates: dict[str, Gate] = {}
        self.errors: dict[str, list[BaseException]] = {}

    def count(self, operation: str) -> int:
        return sum(1 for name, _ in self.calls if name == operation)

    def _enter(self, operation: str, what: Any) -> None:
        self.calls.append((operation, what))
        waiting = self.errors.get(operation)
        if waiting:
            raise waiting.pop(0)

    def _wait(self, operation: str) -> None:
        gate = self.gates.pop(operation, None)
        if gate is not None:
            gate.wait_at()

    def load(self, id: Any) -> Any:
        self._enter("load", id)
        value = self.rows.get(id)
        self._wait("load")
        return value

    def load_many(self, ids: Sequence[Any]) -> dict[Any, Any]:
        self._enter("load_many", tuple(ids))
        found = {id: self.rows[id] for id in ids if id in self.rows}
        self._wait("load_many")
        return found

    def store(self, id: Any, value: Any) -> Any:
        self._enter("store", id)
        self._wait("store")
        self.rows[id] = value
        return "stored"

    def store_many(self, values: Mapping[Any, Any]) -> None:
        self._enter("store_many", tuple(values))
        self._wait("store_many")
        self.rows.update(values)

    def delete(self, id: Any) -> None:
        self._enter("delete", id)
        self._wait("delete")
        self.rows.pop(id, None)

    def delete_many(self, ids: Sequence[Any]) -> None:
        self._enter("delete_many", tuple(ids))
        self._wait("delete_many")
        for id in ids:
            self.rows.pop(id, None)


class _Plain:
    """A plain object's methods as coroutine functions that never suspend."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._thing, name)

        async def verb(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return verb


class Opener:
    """Caches over one place and one namespace of it; the second one plays another process."""

    def __init__(self, place: str, url: str | None) -> None:
        self.place = place
        self.url = url
        self.namespace = "t" + uuid.uuid4().hex[:10]
        self.backend = MemoryBackend() if place == "memory" else None
        self.caches: list[Cache] = []

    @property
    def far(self) -> bool:
        return self.place != "embedded"

    def __call__(self, **options: Any) -> Cache:
        if self.backend is not None:
            options.setdefault("backend", self.backend)
        else:
            options.setdefault("namespace", self.namespace)
        # A machine with two busy cores may stop a test for longer than the default budget.
        cache = Cache(self.url, **{"timeout": 3.0, **options})
        self.caches.append(cache)
        return cache

    def close(self) -> None:
        for cache in self.caches:
            cache.close(timeout=3.0)


class Stage:
    """One place in one world. Bodies of tests are coroutine functions in both."""

    def __init__(self, world: str, opener: Opener) -> None:
        self.world = world
        self.open = opener

    @property
    def plain(self) -> bool:
        return self.world == "plain"

    def face(self, thing: Any) -> Any:
        """The verbs of a cache or strategy as this world calls them, awaitable."""
        return _Plain(thing) if self.plain else thing.aio

    def source(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A source function of this world; a coroutine function works in a thread, so that it can
        wait at a gate and lands even when its caller was cancelled."""
        if self.plain:
            return fn

        async def in_thread(*args: Any) -> Any:
            return await asyncio.to_thread(fn, *args)

        return in_thread

    def functions(self, rows: Rows, *names: str) -> dict[str, Callable[..., Any]]:
        return {name: self.source(getattr(rows, name)) for name in names}

    def make(
        self,
        strategy: str,
        rows: Rows,
        *,
        cache: Cache | None = None,
        given: Sequence[str] = ("load", "store", "delete"),
        **options: Any,
    ) -> Strategy:
        """A strategy by its word, over these source functions."""
        options = {"key": "row:{id}", "ttl": 60, **options}
        cache = cache if cache is not None else self.open()
        return STRATEGIES[strategy](cache, **self.functions(rows, *given), **options)

    def start(self, call: Awaitable[Any]) -> asyncio.Task[Any]:
        """Let a call run beside the test: in a thread, or as a task."""
        return asyncio.ensure_future(
            asyncio.to_thread(drive, call) if self.plain else call  # type: ignore[arg-type]  # a coroutine
        )

    async def reached(self, gate: Gate) -> None:
        assert await asyncio.to_thread(gate.reached.wait, PATIENCE), "nobody came to the gate"

    async def until(self, holds: Callable[[], bool], what: str = "it never came true") -> None:
        """Wait for background work to show; bounded."""
        for _ in range(int(PATIENCE / 0.005)):
            if holds():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(what)

    def play(self, body: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))
            try:
                await body()
            finally:
                if not self.plain:
                    for cache in self.open.caches:
                        await cache.aio.close()

        asyncio.run(main())


def opener_for(place: str, request: pytest.FixtureRequest, folder: Path) -> Opener:
    if place in ("embedded", "memory"):
        return Opener(place, None)
    if place == "sqlite":
        return Opener(place, f"sqlite:///{folder}/cache.db")
    return Opener(place, request.getfixturevalue(f"{place}_server").url)


def manual_runtime(clock: ManualClock) -> Runtime:
    """Monotonic and wall time both from one clock that only the test moves."""
    return Runtime(clock=clock, wall=lambda: clock() + 1_700_000_000, sleep=clock.advance)
