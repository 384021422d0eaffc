"""Keys without a function: the same verbs on both faces, on every backend."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from stage import Opener, Stage, manual_runtime

import cachekit
from cachekit import MISSING, AsyncCache, Cache
from cachekit.testing.clock import ManualClock

VERBS = (
    "get", "set", "delete", "get_or_set", "get_many", "set_many", "get_or_set_many", "touch",
    "invalidate", "clear", "emit", "stats", "close",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_both_faces_have_the_verb_with_the_same_parameters(verb: str) -> None:
    plain, asynchronous = getattr(Cache, verb), getattr(AsyncCache, verb)
    names = [list(inspect.signature(each).parameters) for each in (plain, asynchronous)]
    if verb == "close":
        names = [[n for n in each if n != "timeout"] for each in names]
    assert names[0] == names[1]
    assert inspect.iscoroutinefunction(asynchronous) == (verb != "stats")


def test_what_is_set_is_got_until_it_is_deleted(stage: Stage) -> None:
    cache = stage.open()

    async def body() -> None:
        face = stage.face(cache)
        assert await face.get("k") is None
        assert await face.get("k", "nothing") == "nothing"
        assert await face.get("k", MISSING) is MISSING
        assert await face.set("k", {"a": [1, 2]}) is True
        assert await face.get("k") == {"a": [1, 2]}
        assert await face.set("k", "newer")
        assert await face.get("k") == "newer"
        await face.delete("k")
        assert await face.get("k", MISSING) is MISSING
        await face.delete("never there")

    stage.play(body)


def test_none_is_a_value(stage: Stage) -> None:
    cache, loads = stage.open(), []

    async def body() -> None:
        face = stage.face(cache)
        await face.set("k", None)
        assert await face.get("k", MISSING) is None
        assert await face.get_many(["k", "other"]) == {"k": None}

        def load() -> None:
            loads.append(1)

        for _ in range(3):
            assert await face.get_or_set("loaded", stage.source(load)) is None
        assert loads == [1]

    stage.play(body)


def test_many_keys_in_one_call(stage: Stage) -> None:
    cache = stage.open()

    async def body() -> None:
        face = stage.face(cache)
        assert await face.set_many({"a": 1, "b": 2}, tags=["t"]) == 2
        assert await face.get_many(["a", "x", "b", "a"]) == {"a": 1, "b": 2}
        assert await face.get_many([]) == {}
        await face.invalidate(tags=["t"])
        assert await face.get_many(["a", "b"]) == {}

    stage.play(body)


def test_get_or_set_loads_once(stage: Stage) -> None:
    cache, loads = stage.open(), []

    def load() -> str:
        loads.append(1)
        return "loaded"

    async def body() -> None:
        face = stage.face(cache)
        assert [await face.get_or_set("k", stage.source(load), ttl=60) for _ in range(3)] == [
            "loaded"
        ] * 3
        assert loads == [1]
        await face.delete("k")
        await face.get_or_set("k", stage.source(load), ttl=60)
        assert loads == [1, 1]
        await face.set("k", "set")
        assert await face.get_or_set("k", stage.source(load)) == "set"
        assert await face.get_or_set("zero", stage.source(load), ttl=0) == "loaded"
        assert await face.get("zero", MISSING) is MISSING

    stage.play(body)


def test_get_or_set_many_loads_what_misses_in_one_call(stage: Stage) -> None:
    cache, asked = stage.open(), []

    def load(keys: list[str]) -> dict[str, str]:
        asked.append(list(keys))
        return {key: key.upper() for key in keys if key != "absent"}

    async def body() -> None:
        face = stage.face(cache)
        await face.set("b", "there")
        found = await face.get_or_set_many(
            ["a", "b", "absent", "c", "a"], stage.source(load), ttl=9
        )
        assert found == {"a": "A", "b": "there", "c": "C"}
        assert asked == [["a", "absent", "c"]]
        assert await face.get_or_set_many(["a", "b", "c"], stage.source(load)) == found
        assert len(asked) == 1
        await face.get_or_set_many(["absent"], stage.source(load))
        assert asked[1:] == [["absent"]]

    stage.play(body)


def test_get_or_set_many_refuses_a_loader_that_gives_no_mapping(stage: Stage) -> None:
    cache = stage.open()

    async def body() -> None:
        with pytest.raises(TypeError, match="mapping"):
            await stage.face(cache).get_or_set_many(["a"], stage.source(lambda keys: ["A"]))

    stage.play(body)


def test_touch_gives_a_new_life_and_says_whether_there_was_one(stage: Stage) -> None:
    clock = ManualClock()
    cache = stage.open(runtime=manual_runtime(clock), coherence="strict")

    async def body() -> None:
        face = stage.face(cache)
        assert await face.touch("k", 10) is False
        await face.set("k", "v", ttl=10, tags=["t"])
        clock.advance(8)
        assert await face.touch("k", 10) is True
        clock.advance(8)
        assert await face.get("k") == "v"
        clock.advance(3)
        assert await face.get("k") is None
        await face.set("k", "v", ttl=10, tags=["t"])
        assert await face.touch("k", 100)
        await face.invalidate(tags=["t"])
        assert await face.get("k") is None, "touch must not lose the tags"
        assert await face.touch("k", 100) is False

    stage.play(body)


def test_ttl_counts_from_the_set_in_every_spelling(stage: Stage) -> None:
    from datetime import timedelta

    clock = ManualClock()
    cache = stage.open(runtime=manual_runtime(clock), ttl="1h")

    async def body() -> None:
        face = stage.face(cache)
        await face.set("number", 1, ttl=10)
        await face.set("text", 1, ttl="10s")
        await face.set("delta", 1, ttl=timedelta(seconds=10))
        await face.set("by value", 10, ttl=lambda value: value)
        await face.set("default", 1)
        keys = ["number", "text", "delta", "by value", "default"]
        clock.advance(9)
        assert set(await face.get_many(keys)) == set(keys)
        clock.advance(1.1)
        assert set(await face.get_many(keys)) == {"default"}
        clock.advance(3600)
        assert await face.get_many(keys) == {}
        assert await face.set("zero", 1, ttl=0) is False
        assert await face.get("zero") is None

    stage.play(body)


def test_set_with_ttl_zero_removes_what_was_there(stage: Stage) -> None:
    cache = stage.open()

    async def body() -> None:
        face = stage.face(cache)
        await face.set("k", "old")
        assert await face.set("k", "new", ttl=0) is False
        assert await face.get("k") is None

    stage.play(body)


def test_clear_forgets_everything_and_the_cache_goes_on(stage: Stage) -> None:
    cache = stage.open()

    async def body() -> None:
        face = stage.face(cache)
        await face.set_many({"a": 1, "b": 2})
        await face.clear()
        assert await face.get_many(["a", "b"]) == {}
        await face.set("a", 3)
        assert await face.get("a") == 3

    stage.play(body)


def test_the_faces_share_one_cache(open_cache: Opener) -> None:
    cache = open_cache()
    stage = Stage("async", open_cache)

    async def body() -> None:
        cache.set("k", "from the plain face", tags=["t"])
        assert await cache.aio.get("k") == "from the plain face"
        await cache.aio.invalidate(tags=["t"])
        assert cache.get("k") is None
        await cache.aio.set("k", "from the async face")
        assert cache.get("k") == "from the async face"
        cache.delete("k")
        assert await cache.aio.get("k") is None
        assert cache.aio is cache.aio

    stage.play(body)


@pytest.mark.parametrize("key", ["", 7, None, b"bytes", ["list"]])
def test_what_is_no_key_is_refused(stage: Stage, key: Any) -> None:
    cache = stage.open()

    async def body() -> None:
        face = stage.face(cache)
        for call in (
            face.get(key), face.set(key, 1), face.delete(key), face.touch(key, 1),
            face.get_or_set(key, stage.source(lambda: 1)), face.invalidate(keys=[key]),
            face.invalidate(tags=[key]), face.set("k", 1, tags=[key]),
        ):  # fmt: skip
            with pytest.raises((TypeError, ValueError)):
                await call

    stage.play(body)


def test_one_text_in_place_of_a_list_is_refused(stage: Stage) -> None:
    cache = stage.open()

    async def body() -> None:
        face = stage.face(cache)
        for call in (
            face.invalidate(keys="k"), face.invalidate(tags="t"), face.set("k", 1, tags="t"),
            face.get_many("keys"), face.get_or_set_many("keys", stage.source(lambda keys: {})),
        ):  # fmt: skip
            with pytest.raises(TypeError, match="list"):
                await call

    stage.play(body)


def test_stats_count_what_happened(stage: Stage) -> None:
    cache = stage.open()

    async def body() -> None:
        face = stage.face(cache)
        await face.get_or_set("k", stage.source(lambda: 1), ttl=60)
        await face.get_or_set("k", stage.source(lambda: 1), ttl=60)
        await face.delete("k")
        stats = cache.stats()
        assert (stats.loads, stats.hits, stats.misses, stats.invalidations) == (1, 1, 1, 1)
        assert stats.hit_ratio == 0.5
        assert stats.breaker == ("closed" if stage.open.far else "none")

    stage.play(body)


def test_set_of_what_the_codec_can_not_give_back_raises_and_keeps_nothing(
    shared_stage: Stage,
) -> None:
    stage = shared_stage
    cache = stage.open()

    async def body() -> None:
        face = stage.face(cache)
        with pytest.raises(cachekit.errors.CodecError):
            await face.set("k", object())
        assert await face.get("k", MISSING) is MISSING

    stage.play(body)
