"""The same questions asked with real threads and real tasks: pauses are drawn, not steps.

What the machine does in between is its own affair, so a seed gives the same plans and pauses but
not the same schedule."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from oracle import Demand, Oracle, Register

from cachekit import Cache, CacheAside, ReadThrough, WriteAround, WriteThrough
from cachekit.backends.memory import MemoryBackend

PAUSES = (0.0, 0.0, 0.0002, 0.001)
KINDS = (WriteThrough, WriteAround, CacheAside, ReadThrough)
VERBS = ("get", "get", "get", "get_many", "put", "put", "delete", "key", "tag", "clear", "intent")


class Pausing:
    """A backend whose plain steps take their time, before and after."""

    def __init__(self, inner: Any, pause: Callable[[], float]) -> None:
        self._inner, self._pause = inner, pause
        self.name, self.shared, self.log, self.bus = inner.name, inner.shared, None, None

    def open(self, world: Any) -> Any:
        store = self._inner.open(world)
        store.slots = _PausingSlots(store.slots, self._pause, world.name == "threads")
        return store


class _PausingSlots:
    def __init__(self, inner: Any, pause: Callable[[], float], threads: bool) -> None:
        self._inner, self._pause, self._threads = inner, pause, threads

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._inner, name)

        async def paused(*args: Any, **options: Any) -> Any:
            await self._rest()
            answer = await verb(*args, **options)
            await self._rest()
            return answer

        self.__dict__[name] = paused
        return paused

    async def _rest(self) -> None:
        seconds = self._pause()
        if self._threads:
            time.sleep(seconds)  # noqa: ASYNC251  # a thread of its own drives this
        else:
            await asyncio.sleep(seconds)


class Round:
    """A few callers of one or two caches over the same records. ``plain``: threads, else tasks."""

    def __init__(self, seed: int, *, plain: bool, embedded: bool) -> None:
        self.rng = random.Random(seed)
        self.plain = plain
        self.lock = threading.Lock()
        self.failures: list[BaseException] = []
        self.number = 0
        self.oracle = Oracle(time.monotonic, 0.0, lambda key, value: ("all", f"g:{key}"))
        self.ids = [f"{seed}.{i}" for i in range(self.rng.choice((1, 2)))]
        for id in self.ids:
            self.oracle.registers[id] = Register(id, self.fresh())
        backend = MemoryBackend()
        options = {} if embedded else {"coherence": "strict", "timeout": 5.0}
        self.caches = [
            Cache(backend=None if embedded else Pausing(backend, self.pause), **options)
            for _ in range(1 if embedded else 2)
        ]
        self.strategies = {
            cache: [
                kind(
                    cache,
                    key="k:{id}",
                    tags=["all", "g:{id}"],
                    ttl=60,
                    wait=0.05,
                    load=self.load if plain else self.load_async,
                    store=self.store if plain else self.store_async,
                    delete=self.delete if plain else self.delete_async,
                )
                for kind in KINDS
            ]
            for cache in self.caches
        }

    def fresh(self) -> int:
        self.number += 1
        return self.number

    def pause(self) -> float:
        return self.rng.choice(PAUSES)

    # -- the source

    def land(self, id: str, value: Any) -> int:
        with self.lock:
            return self.oracle.registers[id].land(value)

    def load(self, id: str) -> Any:
        time.sleep(self.pause())
        value = self.oracle.registers[id].value
        time.sleep(self.pause())
        return value

    async def load_async(self, id: str) -> Any:
        await asyncio.sleep(self.pause())
        value = self.oracle.registers[id].value
        await asyncio.sleep(self.pause())
        return value

    def store(self, id: str, value: Any) -> None:
        time.sleep(self.pause())
        self.land(id, value)
        time.sleep(self.pause())

    async def store_async(self, id: str, value: Any) -> None:
        await asyncio.sleep(self.pause())
        self.land(id, value)
        await asyncio.sleep(self.pause())

    def delete(self, id: str) -> None:
        self.store(id, None)

    async def delete_async(self, id: str) -> None:
        await self.store_async(id, None)

    # -- callers: one coroutine for both; in threads nothing in it suspends

    async def caller(self, cache: Cache, plans: list[tuple[str, int]]) -> None:
        for verb, at in plans:
            id = self.ids[at % len(self.ids)]
            strategy = self.rng.choice(self.strategies[cache])
            if verb in ("get", "get_many"):
                await self._read(cache, strategy, verb, id)
            else:
                await self._write(cache, strategy, verb, id)

    async def _do(self, thing: Any, name: str, *args: Any, **options: Any) -> Any:
        face = thing if self.plain else thing.aio
        answer = getattr(face, name)(*args, **options)
        return answer if self.plain else await answer

    async def _read(self, cache: Cache, strategy: Any, verb: str, id: str) -> None:
        with self.lock:
            read = self.oracle.begin(cache, None, [id])
        if verb == "get":
            value = await self._do(strategy, "get", id)
        else:
            value = (await self._do(strategy, "get_many", [id])).get(id)
        with self.lock:
            self.oracle.end(read)
            self.oracle.check(read, id, value)

    async def _write(self, cache: Cache, strategy: Any, verb: str, id: str) -> None:
        with self.lock:
            value, since = self.fresh(), self.oracle.next()
            before = {k: r.version for k, r in self.oracle.registers.items()}
        tag = None
        if verb == "put":
            await self._do(strategy, "put", id, value)
        elif verb == "delete":
            await self._do(strategy, "delete", id)
        elif verb == "key":
            await self._do(strategy, "invalidate", id)
        elif verb == "tag":
            tag = "all"
            await self._do(cache, "invalidate", tags=["all"])
        elif verb == "clear":
            await self._do(cache, "clear")
        elif self.plain:
            with cache.write_intent(keys=[strategy.key(id)]):
                self.store(id, value)
        else:
            async with cache.aio.write_intent(keys=[strategy.key(id)]):
                await self.store_async(id, value)
        with self.lock:
            if verb in ("put", "intent"):
                version = self.oracle.registers[id].newest(value)
                self.oracle.demand(id, Demand(f"{verb} returned", version, since=since))
            for key in before if verb in ("tag", "clear") else [id]:
                demand = Demand(f"{verb} returned", before[key], tag=tag, since=since)
                self.oracle.demand(key, demand)

    # -- all of them at once

    def play(self) -> None:
        plans = [
            (
                self.rng.choice(self.caches),
                [(self.rng.choice(VERBS), self.rng.randrange(2)) for _ in range(4)],
            )
            for _ in range(self.rng.randrange(3, 6))
        ]
        if self.plain:
            self._in_threads(plans)
        else:
            asyncio.run(self._in_tasks(plans))
        for cache in self.caches:
            cache.close()
        if self.failures:
            raise self.failures[0]

    def _in_threads(self, plans: list[Any]) -> None:
        from cachekit.runtime import drive

        gate = threading.Barrier(len(plans))

        def run(cache: Cache, plan: Any) -> None:
            try:
                gate.wait()
                drive(self.caller(cache, plan))
            except BaseException as error:
                self.failures.append(error)

        threads = [threading.Thread(target=run, args=plan, daemon=True) for plan in plans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
            assert not thread.is_alive(), "a caller never came back"

    async def _in_tasks(self, plans: list[Any]) -> None:
        tasks = [asyncio.create_task(self.caller(*plan)) for plan in plans]
        victim = self.rng.choice(tasks) if self.rng.random() < 0.3 else None
        if victim is not None:
            await asyncio.sleep(self.rng.random() * 0.006)
            victim.cancel()
        done, late = await asyncio.wait(tasks, timeout=30.0)
        assert not late, "a caller never came back"
        for task in done:
            if task is not victim and task.exception() is not None:
                raise task.exception()  # type: ignore[misc]  # it is one
            if task is victim and not task.cancelled() and task.exception() is not None:
                raise task.exception()  # type: ignore[misc]  # as above
        for cache in self.caches:
            await cache.aio.close()


@contextmanager
def eager_switching() -> Any:
    """Let threads take turns far more often than usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
