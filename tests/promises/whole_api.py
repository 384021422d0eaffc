"""Each verb of the public API once, by one cache, with another one that follows."""

from __future__ import annotations

from dataclasses import dataclass

from plights import wait_for

import cachekit


@dataclass(frozen=True)
class Changed:
    name: str


def use_all(mine: cachekit.Cache, other: cachekit.Cache) -> None:
    @mine.cached(name="f", ttl=60, tags=["n:{n}", "r:{result}"])
    def double(n: int) -> int:
        return n * 2

    @mine.cached_many(key="many:{n}", ttl=60)
    def many(numbers: list[int]) -> dict[int, int]:
        return {n: n for n in numbers}

    @mine.invalidates(tags=["n:{n}"])
    def save(n: int) -> int:
        return n

    assert [double(1), double(1), many([1, 2]), many([1, 2])] == [2, 2, {1: 1, 2: 2}, {1: 1, 2: 2}]
    assert save(1) == 1
    assert double.peek(1) is cachekit.MISSING
    assert mine.set("k", 1, ttl=60, tags=["name:x"])
    assert other.get("k") == 1
    assert mine.touch("k", 120)
    mine.emit(Changed("x"))
    wait_for(lambda: other.get("k") is None)
    with mine.write_intent(keys=["k"], tags=["t"]):
        assert other.get_or_set("k", lambda: 2, ttl=60, tags=["t"]) == 2
        assert other.get("k") is None
    mine.set("k", 3, ttl=60)
    wait_for(lambda: other.get("k") == 3)
    mine.delete("k")
    wait_for(lambda: other.get("k") is None)
    rows: dict[int, int] = {1: 1}
    for kind in (cachekit.CacheAside, cachekit.ReadThrough, cachekit.WriteThrough):
        verbs = kind(mine, load=rows.get, store=rows.__setitem__, key=kind.__name__ + ":{id}")
        assert verbs.get(1) == rows[1]
        verbs.put(1, 5)
        assert verbs.get(1) == 5
    back = cachekit.WriteBack(
        mine, load=rows.get, store=rows.__setitem__, key="wb:{id}", log="memory"
    )
    back.put(1, 6)
    assert back.get(1) == 6
    assert back.flush(5)
    assert rows[1] == 6
    mine.set("k", 4, ttl=60)
    mine.clear()
    wait_for(lambda: other.get("k") is None)


async def use_all_async(mine: cachekit.Cache, other: cachekit.Cache) -> None:
    @mine.cached(name="f", ttl=60, tags=["n:{n}", "r:{result}"])
    async def double(n: int) -> int:
        return n * 2

    @mine.cached_many(key="many:{n}", ttl=60)
    async def many(numbers: list[int]) -> dict[int, int]:
        return {n: n for n in numbers}

    aio = mine.aio
    assert [await double(1), await double(1)] == [2, 2]
    assert [await many([1, 2]), await many([1, 2])] == [{1: 1, 2: 2}] * 2
    assert await aio.set("k", 1, ttl=60, tags=["name:x"])
    assert other.get("k") == 1
    assert await aio.touch("k", 120)
    await aio.emit(Changed("x"))
    wait_for(lambda: other.get("k") is None)
    async with aio.write_intent(keys=["k"], tags=["t"]):
        assert await other.aio.get_or_set("k", lambda: 2, ttl=60, tags=["t"]) == 2
        assert other.get("k") is None
    await aio.set("k", 3, ttl=60)
    await aio.invalidate(keys=["k"], tags=["t"])
    wait_for(lambda: other.get("k") is None)
    rows: dict[int, int] = {1: 1}
    verbs = cachekit.WriteThrough(mine, load=rows.get, store=rows.__setitem__, key="w:{id}")
    assert await verbs.aio.get(1) == 1
    await verbs.aio.put(1, 5)
    assert await verbs.aio.get(1) == 5
    await aio.clear()
    assert await aio.get("k") is None
    await aio.close()
    await other.aio.close()
