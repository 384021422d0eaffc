"""A reply that is lost or a caller that is cancelled leaves neither a lease nor an old value."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from cachekit import Cache, CacheAside, WriteBack, WriteThrough
from cachekit.backends.memory import MemoryBackend, MemorySlots, MemoryStore
from cachekit.core.buffer import Buffer
from cachekit.core.ops import OpKind
from cachekit.errors import BackendTimeout


class Faulty(MemoryBackend):
    """The memory backend, with a fault before or after one verb, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: set[str] = set()  # done, but the reply never comes
        self.stuck: set[str] = set()  # never ends
        self.reached = asyncio.Event()  # somebody is stuck

    def open(self, world: Any) -> MemoryStore:
        backend = self

        class Slots(MemorySlots):
            async def acquire(self, *args: Any, **kwargs: Any) -> Any:
                grant = await super().acquire(*args, **kwargs)
                backend.reply("acquire")
                return grant

            async def void(self, *args: Any, **kwargs: Any) -> None:
                if "void" in backend.stuck:
                    backend.stuck.discard("void")
                    backend.reached.set()
                    await asyncio.Event().wait()
                await super().void(*args, **kwargs)

        store = super().open(world)
        store.slots = Slots(self.name, self._shelf)
        return store

    def reply(self, verb: str) -> None:
        if verb in self.lost:
            self.lost.discard(verb)
            raise BackendTimeout("lost", backend=self.name, operation=verb)


def test_a_lost_reply_to_acquire_makes_no_later_caller_wait_for_the_lease() -> None:
    backend = Faulty()
    with Cache(backend=backend, coherence="strict") as cache:
        backend.lost.add("acquire")
        assert cache.get_or_set("k", lambda: 1) == 1
        began = time.monotonic()
        assert cache.get_or_set("k", lambda: 2) == 2
        assert time.monotonic() - began < 5  # the lease is 10 s


def test_a_write_cancelled_after_its_source_was_written_leaves_no_old_value() -> None:
    backend, rows = Faulty(), {1: "old"}
    cache = Cache(backend=backend, coherence="strict")
    aside = CacheAside(cache, load=rows.get, store=rows.__setitem__, key="row:{id}", ttl=60)

    async def run() -> None:
        assert await aside.aio.get(1) == "old"
        backend.stuck.add("void")
        put = asyncio.create_task(aside.aio.put(1, "new"))
        await backend.reached.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert rows[1] == "new"
        assert await aside.aio.get(1) == "new"
        await cache.aio.close()

    asyncio.run(asyncio.wait_for(run(), 20))
    cache.close()


def test_an_operation_that_took_anothers_place_still_counts_for_the_flush_before_it() -> None:
    buffer = Buffer()
    mark = buffer.offer(OpKind.PUT, "k", "first", 0.0).version
    buffer.offer(OpKind.PUT, "k", "second", 1.0)
    assert buffer.undone_up_to(mark) == 1
    (op,) = buffer.take(10)
    buffer.nack([op])
    assert buffer.undone_up_to(mark) == 1
    buffer.ack(buffer.take(10))
    assert buffer.undone_up_to(mark) == 0


def test_a_flush_waits_for_the_newer_operation_on_a_key_it_was_asked_for() -> None:
    rows: dict[Any, Any] = {}
    busy, go = threading.Event(), threading.Event()

    def store_many(values: dict[Any, Any]) -> None:
        busy.set()
        assert go.wait(10)
        rows.update(values)

    with Cache() as cache:
        strategy = WriteBack(
            cache,
            load=rows.get,
            store_many=store_many,
            key="row:{id}",
            log="memory",
            delay=0,
            batch=1,
        )
        strategy.put("x", 1)
        assert busy.wait(10)
        strategy.put("k", "first")
        answers: list[Any] = []
        flush = threading.Thread(target=lambda: answers.append(strategy.flush(10)))
        flush.start()
        strategy.put("k", "second")
        go.set()
        flush.join(15)
        assert answers[0].complete
        assert rows["k"] == "second"


def test_a_write_cancelled_at_its_source_while_the_far_tier_was_away_is_still_owed() -> None:
    """No block could be put; the cancelled caller leaves the invalidation to the queue."""
    backend = Faulty()
    rows = {1: "old"}
    landed = asyncio.Event()

    async def store(id: int, value: str) -> None:
        rows[id] = value
        landed.set()
        await asyncio.Event().wait()

    async def main() -> None:
        cache = Cache(backend=backend, coherence="strict")
        other = Cache(backend=backend, coherence="strict")
        writer = WriteThrough(cache, key="row:{id}", load=rows.get, store=store)
        reader = WriteThrough(other, key="row:{id}", load=rows.get, store=store)
        assert await reader.aio.get(1) == "old"
        far = cache.parts.far
        assert far is not None
        for _ in range(10):
            far.breaker.failure()
        task = asyncio.create_task(writer.aio.put(1, "new"))
        await landed.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cache.stats().pending_invalidations == 1
        for _ in range(500):
            if await reader.aio.get(1) == "new":
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the old value stayed")

    asyncio.run(main())
