"""What a write, a decorated write or an event owes to other readers, and what it says of it."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from stage import Rows, Stage

from cachekit import Cache
from cachekit.errors import InvalidationFailed
from cachekit.protocols import MOST_EVENT
from cachekit.testing.servers import RedisServer

UNREACHABLE = "redis://127.0.0.1:1/0"


def _function(stage: Stage, fn: Callable[..., Any]) -> Callable[..., Any]:
    """A source function of this world that keeps its signature, which templates look at."""
    return fn if stage.plain else functools.wraps(fn)(stage.source(fn))


async def _call(stage: Stage, fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args) if stage.plain else await fn(*args)


# -- Written.pending -----------------------------------------------------------------------------


def test_every_write_that_could_not_be_told_says_so_not_only_the_first_of_its_key(
    embedded: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, rows = embedded, Rows({1: "v0"})
    cache = stage.open()
    away = Cache(UNREACHABLE)
    stage.open.caches.append(away)
    monkeypatch.setattr("cachekit.pending.MAX_PENDING", 3)

    async def body() -> None:
        told = stage.face(stage.make("cache-aside", rows, cache=cache))
        assert not (await told.put(1, "v1")).pending
        untold = stage.face(stage.make("cache-aside", rows, cache=away))
        for n in range(3):
            assert (await untold.put(1, n)).pending
        assert (await untold.delete(1)).pending
        for n in range(4):  # more than the queue holds: they become one, of the namespace
            assert (await untold.put(n, n)).pending
        assert away.stats().pending_invalidations == 1

    stage.play(body)


# -- what a tag costs ----------------------------------------------------------------------------


def test_no_tag_of_a_value_with_a_ttl_is_kept_for_ever(
    embedded: Stage, redis_server: RedisServer
) -> None:
    redis = pytest.importorskip("redis")
    stage, rows = embedded, Rows({1: "row"})
    name = f"{stage.open.namespace}-{stage.world}"
    cache = Cache(redis_server.url, namespace=name, timeout=3.0)
    stage.open.caches.append(cache)

    async def body() -> None:
        face = stage.face(cache)
        await face.set("a", 1, ttl=60, tags=["set"])
        await face.set_many({"b": 1}, ttl=60, tags=["set_many"])
        await face.get_or_set("c", lambda: 1, ttl=60, tags=["load"])
        strategy = stage.make("write-through", rows, cache=cache, tags=["row:{id}"])
        await stage.face(strategy).put(1, "new")
        await stage.face(strategy).put_many({2: "two"})
        await stage.face(strategy).get(3)

    stage.play(body)
    with redis.Redis.from_url(redis_server.url) as client:
        found = {key: client.ttl(key) for key in client.scan_iter(count=1000)}
    for tag in ("set", "set_many", "load", "row:1", "row:2", "row:3"):
        assert found[f"{{{name}:#{tag}}}".encode()] > 0, tag


# -- @invalidates --------------------------------------------------------------------------------


def test_after_an_unknown_outcome_nothing_loaded_before_the_landing_is_kept(stage: Stage) -> None:
    rows = Rows({1: "old"})
    writer = stage.open(coherence=30.0 if stage.open.far else None)
    other = stage.open(coherence="strict") if stage.open.far else writer
    strategy = stage.make("read-through", rows, cache=other, tags=["row:{id}"], wait=0.05)

    def write(id: int) -> None:
        raise TimeoutError  # and lands later

    decorated = writer.invalidates(tags=["row:{id}"])(_function(stage, write))

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) == "old"
        with pytest.raises(TimeoutError):
            await _call(stage, decorated, 1)
        assert await face.get(1) == "old"
        rows.rows[1] = "new"
        assert [await face.get(1) for _ in range(2)] == ["new", "new"]

    stage.play(body)


def test_a_known_refusal_blocks_nobody(embedded: Stage) -> None:
    stage, rows = embedded, Rows({1: "row"})
    cache = stage.open()
    strategy = stage.make("read-through", rows, cache=cache, tags=["row:{id}"])

    def write(id: int) -> None:
        raise ValueError("no")

    decorated = cache.invalidates(tags=["row:{id}"])(_function(stage, write))

    async def body() -> None:
        with pytest.raises(ValueError, match="no"):
            await _call(stage, decorated, 1)
        for _ in range(3):
            await stage.face(strategy).get(1)
        assert rows.count("load") == 1

    stage.play(body)


BROKEN = "team:{result.team}"


@pytest.mark.parametrize("keys", [["a", "b"], [BROKEN, "b"], ["b", BROKEN]])
@pytest.mark.parametrize("tags", [["rows"], [BROKEN, "rows"], ["rows", BROKEN]])
def test_one_template_that_fails_leaves_the_others_to_be_invalidated(
    embedded: Stage, keys: list[str], tags: list[str]
) -> None:
    stage, cache = embedded, embedded.open()

    def write() -> None:
        return None  # which has no team

    decorated = cache.invalidates(keys=keys, tags=tags)(_function(stage, write))

    async def body() -> None:
        face = stage.face(cache)
        await face.set("b", 1)
        await face.set("tagged", 1, tags=["rows"])
        if BROKEN in (*keys, *tags):
            with pytest.raises(AttributeError, match="team"):
                await _call(stage, decorated)
        else:
            await _call(stage, decorated)
        assert await face.get_many(["b", "tagged"]) == {}

    stage.play(body)


def test_the_functions_own_error_is_not_hidden_by_a_templates(embedded: Stage) -> None:
    stage, cache = embedded, embedded.open()

    def write(row: Any) -> None:
        raise ValueError("its own")

    decorated = cache.invalidates(tags=["team:{row.team}", "rows"])(_function(stage, write))

    async def body() -> None:
        await stage.face(cache).set("tagged", 1, tags=["rows"])
        with pytest.raises(ValueError, match="its own"):
            await _call(stage, decorated, None)
        assert await stage.face(cache).get("tagged") is None

    stage.play(body)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_invalidation_that_is_interrupted_is_owed(
    shared_stage: Stage, interrupt: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = shared_stage
    if not stage.plain and interrupt is KeyboardInterrupt:
        pytest.skip("it would end the loop of this test")
    cache, other = stage.open(), stage.open(coherence="strict")

    def write() -> None:
        return None

    decorated = cache.invalidates(keys=["k"], tags=["rows"])(_function(stage, write))

    async def interrupted(*args: Any, **kwargs: Any) -> bool:
        raise interrupt

    async def body() -> None:
        face = stage.face(other)
        await face.set_many({"k": 1})
        await face.set("tagged", 1, tags=["rows"])
        with monkeypatch.context() as patch:
            patch.setattr(cache.parts.invalidator, "tell", interrupted)
            with pytest.raises(interrupt):
                await _call(stage, decorated)
        await stage.until(lambda: cache.stats().counts.get("invalidations_replayed", 0) >= 2)
        assert await face.get_many(["k", "tagged"]) == {}

    stage.play(body)


# -- events: what fits, and what is told of -------------------------------------------------------


@dataclass(frozen=True)
class Renamed:
    text: str


@dataclass(frozen=True)
class Script:
    """As in a program that is run by its file."""

    number: int


Script.__module__ = "__main__"
LONG_NAMES = [f"some-long-name-of-a-tag:{n:05}" for n in range(3000)]


@pytest.mark.parametrize("invalidation", ["raise", "replay"])
def test_an_event_that_is_too_long_is_refused_at_once_and_poisons_nothing(
    embedded: Stage, redis_server: RedisServer, invalidation: str
) -> None:
    stage = embedded
    cache = Cache(
        redis_server.url,
        namespace=f"{stage.open.namespace}-{stage.world}",
        invalidation=invalidation,
        timeout=3.0,
        breaker_failures=1,
    )
    stage.open.caches.append(cache)
    cache.on(Renamed, lambda event: ["mine"])

    async def body() -> None:
        face = stage.face(cache)
        await face.set("k", 1, tags=["mine"])
        with pytest.raises(InvalidationFailed, match="Renamed"):
            await face.emit(Renamed("x" * MOST_EVENT))
        assert await face.get("k") is None  # its own tags were told
        stats = cache.stats()
        assert (stats.pending_invalidations, stats.breaker) == (0, "closed")
        assert await face.emit(Renamed("short")) == ["mine"]
        await face.set("k", 2)
        assert await face.get("k") == 2

    stage.play(body)


def test_an_event_of_many_tags_reaches_the_maps_of_other_processes(
    embedded: Stage, redis_server: RedisServer
) -> None:
    stage = embedded
    options: dict[str, Any] = {"namespace": f"{stage.open.namespace}-many", "timeout": 3.0}
    sender = Cache(redis_server.url, invalidation="replay", breaker_failures=1, **options)
    receiver = Cache(redis_server.url, coherence="strict", **options)
    stage.open.caches += [sender, receiver]
    sender.on(Renamed, lambda event: LONG_NAMES)
    receiver.on(Renamed, lambda event: [*LONG_NAMES[:2], "theirs"])

    async def body() -> None:
        face = stage.face(receiver)
        await asyncio.sleep(0.2)  # the follower takes its position
        await face.set("k", 1, tags=["theirs"])
        assert len(await stage.face(sender).emit(Renamed("all"))) == len(LONG_NAMES)
        await stage.until(lambda: receiver.stats().counts.get("events_received", 0) == 1)
        await stage.until(lambda: receiver.get("k") is None)
        assert sender.stats().pending_invalidations == 0
        assert sender.stats().breaker == "closed"

    stage.play(body)


def test_an_event_whose_class_no_other_process_can_know_is_warned_of_once(
    embedded: Stage, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    stage = embedded
    cache = Cache(redis_server.url, namespace=f"{stage.open.namespace}-script", timeout=3.0)
    stage.open.caches.append(cache)

    async def body() -> None:
        for event in (Renamed("a"), Script(1), Script(2)):
            await stage.face(cache).emit(event)

    with caplog.at_level(logging.WARNING, logger="cachekit"):
        stage.play(body)
    told = [line for line in caplog.messages if "__main__" in line]
    assert len(told) == 1
    assert "Script" in told[0]


def test_an_embedded_cache_has_nobody_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    with Cache() as cache, caplog.at_level(logging.WARNING, logger="cachekit"):
        cache.on(Script, lambda event: ["t"])
        assert cache.emit(Script(1)) == ["t"]
        assert cache.emit(Renamed("x" * MOST_EVENT)) == []
    assert caplog.messages == []
