"""What a read keeps, serves and asks for while writers, refreshes and other readers are at work."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from stage import Gate, Rows, Stage, manual_runtime

from cachekit import Cache, Strategy
from cachekit.errors import ConfigurationError
from cachekit.runtime import Runtime
from cachekit.strategies.discovery import MAX_TAGS
from cachekit.testing.clock import ManualClock

LEASE = 30.0
UNREACHABLE = "redis://127.0.0.1:1/0"

Write = Callable[[Stage, Cache, Strategy], Awaitable[None]]
Read = Callable[[Stage, Strategy], Awaitable[Any]]

# -- loads that begin under a block and outlast it -----------------------------------------------


async def _put(stage: Stage, cache: Cache, strategy: Strategy) -> None:
    await stage.face(strategy).put(1, "new")


def _intent(**names: list[str]) -> Write:
    async def write(stage: Stage, cache: Cache, strategy: Strategy) -> None:
        if stage.plain:
            with cache.write_intent(**names, ttl=LEASE):
                raise TimeoutError
        async with cache.aio.write_intent(**names, ttl=LEASE):
            raise TimeoutError

    return write


async def _decorated(stage: Stage, cache: Cache, strategy: Strategy) -> None:
    def write(id: int) -> None:
        raise TimeoutError

    await _call(stage, cache.invalidates(keys=["row:{id}"])(_function(stage, write)), 1)


def _function(stage: Stage, fn: Callable[..., Any]) -> Callable[..., Any]:
    """A source function of this world that keeps its signature, which templates look at."""
    return fn if stage.plain else functools.wraps(fn)(stage.source(fn))


async def _call(stage: Stage, fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args) if stage.plain else await fn(*args)


WRITES: dict[str, Write] = {
    "put": _put,
    "intent by key": _intent(keys=["row:1"]),
    "intent by tag": _intent(tags=["rows"]),
    "@invalidates": _decorated,
}


async def _get(stage: Stage, strategy: Strategy) -> Any:
    return await stage.face(strategy).get(1)


async def _get_many(stage: Stage, strategy: Strategy) -> Any:
    return (await stage.face(strategy).get_many([1]))[1]


READS: dict[str, Read] = {"get": _get, "get_many": _get_many}


async def _late_write_and_later_load(
    stage: Stage, rows: Rows, cache: Cache, strategy: Strategy, write: Write, read: Read
) -> None:
    """A write of unknown outcome lands just before its block ends; a load that began before the
    landing ends after the block."""
    clock = cache.parts.runtime.clock
    assert isinstance(clock, ManualClock)
    rows.errors["store"] = [TimeoutError()]
    with pytest.raises(TimeoutError):
        await write(stage, cache, strategy)
    gates = [rows.gates.setdefault(verb, Gate()) for verb in ("load", "load_many")]
    late = stage.start(read(stage, strategy))
    await stage.until(lambda: any(gate.reached.is_set() for gate in gates))
    rows.gates.clear()
    clock.advance(LEASE - 1)
    rows.rows[1] = "new"
    clock.advance(2)
    for gate in gates:
        gate.open()
    assert await late == "old"
    assert [await read(stage, strategy) for _ in range(2)] == ["new", "new"]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("url", [None, UNREACHABLE])
def test_a_load_that_began_under_a_block_and_outlasts_it_is_not_kept(
    embedded: Stage, url: str | None, write: str, read: str
) -> None:
    """Also while the far tier, which would refuse the load, is away."""
    stage, rows = embedded, Rows({1: "old"})
    options: dict[str, Any] = {"coherence": 3600.0, "invalidation": "replay"} if url else {}
    cache = Cache(url, runtime=manual_runtime(ManualClock()), **options)
    stage.open.caches.append(cache)
    given = ("load", "load_many", "store") if read == "get_many" else ("load", "store")
    strategy = stage.make(
        "write-through", rows, cache=cache, given=given, tags=["rows"], ttl=600, write_lease=LEASE
    )

    async def body() -> None:
        await _late_write_and_later_load(stage, rows, cache, strategy, WRITES[write], READS[read])

    stage.play(body)


def test_a_load_whose_tags_only_its_result_tells_is_not_kept_under_any_blocked_tag(
    embedded: Stage,
) -> None:
    stage, rows = embedded, Rows({1: "old"})
    cache = stage.open(runtime=manual_runtime(ManualClock()))
    strategy = stage.make("write-through", rows, cache=cache, tags=["kind:{result}"], ttl=600)

    async def body() -> None:
        write = _intent(tags=["kind:old"])
        await _late_write_and_later_load(stage, rows, cache, strategy, write, _get)

    stage.play(body)


# -- coherence="strict": everybody looks for himself, and only who misses loads --------------------

READERS, READS_EACH = 24, 15


def test_a_warm_key_is_never_loaded_however_many_read_it_at_once(shared_stage: Stage) -> None:
    stage, rows = shared_stage, Rows({1: "row"})
    strategy = stage.make("read-through", rows, cache=stage.open(coherence="strict"), ttl=600)

    async def reader() -> None:
        for _ in range(READS_EACH):
            assert await stage.face(strategy).get(1) == "row"

    async def body() -> None:
        await stage.face(strategy).get(1)
        await asyncio.gather(*(stage.start(reader()) for _ in range(READERS)))
        assert rows.count("load") == 1

    stage.play(body)


# -- a forced refresh ----------------------------------------------------------------------------


def test_a_forced_refresh_wins_over_the_older_load_of_another_process(shared_stage: Stage) -> None:
    stage, rows = shared_stage, Rows({1: "old"})

    def decorated() -> Any:
        def load(id: int) -> Any:
            return rows.load(id)

        cache = stage.open(coherence="strict")
        return cache.cached(key="doc:{id}", name="doc", ttl=600)(_function(stage, load))

    one, other = decorated(), decorated()

    async def body() -> None:
        gate = rows.gates["load"] = Gate()
        older = stage.start(_call(stage, other, 1))
        await stage.reached(gate)
        rows.rows[1] = "new"
        assert await _call(stage, one.refresh, 1) == "new"
        gate.open()
        assert await older == "old"
        assert [await _call(stage, read, 1) for read in (one, other)] == ["new", "new"]

    stage.play(body)


# -- touch ---------------------------------------------------------------------------------------


def test_after_touch_the_own_near_copy_lives_no_longer_than_the_new_ttl(stage: Stage) -> None:
    clock = ManualClock()
    cache = stage.open(runtime=manual_runtime(clock), coherence=3600.0 if stage.open.far else None)

    async def body() -> None:
        face = stage.face(cache)
        await face.set("k", 1, ttl=600)
        assert await face.get("k") == 1
        assert await face.touch("k", 60)
        assert await face.get("k") == 1
        clock.advance(61)
        assert await face.get("k") is None

    stage.play(body)


# -- results with more tags than are remembered ----------------------------------------------------


@pytest.mark.parametrize("count", [MAX_TAGS, MAX_TAGS + 1])
def test_a_result_with_too_many_tags_is_counted_and_told(
    shared_stage: Stage, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    stage, cache, rows = shared_stage, shared_stage.open(coherence="strict"), Rows({1: "row"})

    def load(id: int) -> Any:
        return rows.load(id)

    read = cache.cached(
        key="doc:{id}", name="doc", ttl=60, tags=lambda row: [f"t{n}" for n in range(count)]
    )(_function(stage, load))

    async def body() -> None:
        with caplog.at_level(logging.WARNING, logger="cachekit"):
            for _ in range(4):
                assert await _call(stage, read, 1) == "row"

    stage.play(body)
    kept = count <= MAX_TAGS
    assert rows.count("load") == (2 if kept else 4)
    assert cache.stats().counts.get("tag_errors", 0) == (0 if kept else 4)
    assert sum(f"more than {MAX_TAGS} tags" in line for line in caplog.messages) == (not kept)


# -- one cache's loads are its own -----------------------------------------------------------------


def test_a_runtime_belongs_to_one_cache() -> None:
    """Two that shared it would share loads by key: one tenant would get the other's value."""
    runtime = Runtime()
    with Cache(namespace="a", runtime=runtime):
        with pytest.raises(ConfigurationError, match="one cache"):
            Cache(namespace="b", runtime=runtime)
        with pytest.raises(ConfigurationError, match="one cache"):
            Cache(namespace="a", runtime=runtime)
