"""Every strategy has the same verbs with the same meaning, on every backend, in both worlds."""

from __future__ import annotations

import pytest
from stage import STRATEGIES, Rows, Stage, manual_runtime

from cachekit import CacheAside, WriteThrough
from cachekit.errors import ConfigurationError
from cachekit.testing.clock import ManualClock

every_strategy = pytest.mark.parametrize("word", STRATEGIES)


@every_strategy
def test_a_value_is_loaded_once_and_then_served_from_the_cache(stage: Stage, word: str) -> None:
    rows = Rows({1: "one"})
    strategy = stage.make(word, rows)

    async def body() -> None:
        face = stage.face(strategy)
        assert [await face.get(1) for _ in range(3)] == ["one"] * 3
        assert rows.calls == [("load", 1)]

    stage.play(body)


@every_strategy
def test_what_the_source_has_not_gives_the_default_and_is_asked_for_once(
    stage: Stage, word: str
) -> None:
    rows = Rows()
    strategy = stage.make(word, rows)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(7) is None
        assert await face.get(7, "nobody") == "nobody"
        assert rows.calls == [("load", 7)]

    stage.play(body)


@every_strategy
@pytest.mark.parametrize("given", ["load", "load_many", "both"])
def test_get_many_gives_what_there_is_and_loads_only_what_misses(
    stage: Stage, word: str, given: str
) -> None:
    rows = Rows({1: "one", 2: "two", 3: "three"})
    names = ("load", "load_many") if given == "both" else (given,)
    strategy = stage.make(word, rows, given=names)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(2) == "two"
        rows.calls.clear()
        assert await face.get_many([1, 2, 3, 4, 1]) == {1: "one", 2: "two", 3: "three"}
        if given == "load":
            assert sorted(rows.calls) == [("load", 1), ("load", 3), ("load", 4)]
        else:
            assert rows.calls == [("load_many", (1, 3, 4))]
        rows.calls.clear()
        assert await face.get_many(iter([1, 2, 3, 4])) == {1: "one", 2: "two", 3: "three"}
        assert await face.get_many([]) == {}
        assert rows.calls == []

    stage.play(body)


@every_strategy
def test_a_put_is_what_every_later_read_gives_and_what_the_source_holds(
    stage: Stage, word: str
) -> None:
    rows = Rows({1: "old"})
    strategy = stage.make(word, rows)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) == "old"
        written = await face.put(1, "new")
        assert not written.pending
        assert await face.get(1) == "new"
        assert (await face.flush(5)).complete
        assert rows.rows == {1: "new"}
        assert await face.get(1) == "new"

    stage.play(body)


@every_strategy
@pytest.mark.parametrize("given", [("store", "delete"), ("store_many", "delete_many")])
def test_writes_of_one_and_of_many_reach_the_source_by_whichever_function_it_has(
    stage: Stage, word: str, given: tuple[str, ...]
) -> None:
    rows = Rows({9: "nine"})
    strategy = stage.make(word, rows, given=("load", *given))

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get_many([1, 2, 3, 9]) == {9: "nine"}
        await face.put(1, "a")
        await face.put_many({2: "b", 3: "c"})
        assert await face.get_many([1, 2, 3]) == {1: "a", 2: "b", 3: "c"}
        await face.delete(9)
        await face.delete_many([1, 2])
        assert await face.get_many([1, 2, 3, 9]) == {3: "c"}
        assert await face.get(1, "gone") == "gone"
        assert (await face.flush(5)).complete
        assert rows.rows == {3: "c"}
        assert await face.get_many([1, 2, 3, 9]) == {3: "c"}

    stage.play(body)


@every_strategy
def test_a_put_of_many_uses_one_call_of_the_source_where_it_can(stage: Stage, word: str) -> None:
    rows = Rows()
    strategy = stage.make(word, rows, given=("load", "store_many"), **_quiet(word))

    async def body() -> None:
        face = stage.face(strategy)
        await face.put_many({1: "a", 2: "b", 3: "c"})
        await face.flush(5)
        assert rows.count("store_many") == 1
        assert rows.rows == {1: "a", 2: "b", 3: "c"}

    stage.play(body)


@every_strategy
def test_after_an_invalidation_the_next_read_loads(stage: Stage, word: str) -> None:
    rows = Rows({1: "old", 2: "two"})
    strategy = stage.make(word, rows)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get_many([1, 2]) == {1: "old", 2: "two"}
        rows.rows[1] = "new"
        assert await face.get(1) == "old"  # nobody told the cache
        await face.invalidate(1)
        rows.calls.clear()
        assert await face.get_many([1, 2]) == {1: "new", 2: "two"}
        assert rows.calls == [("load", 1)]

    stage.play(body)


@every_strategy
def test_none_from_the_source_lives_as_long_as_negative_ttl_says(stage: Stage, word: str) -> None:
    clock, rows = ManualClock(), Rows()
    cache = stage.open(runtime=manual_runtime(clock), coherence="strict")
    strategy = stage.make(word, rows, cache=cache, negative_ttl=5)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) is None
        clock.advance(3)
        assert await face.get(1) is None
        assert rows.count("load") == 1
        clock.advance(3)
        rows.rows[1] = "here now"
        assert await face.get(1) == "here now"
        clock.advance(30)
        assert await face.get(1) == "here now"
        assert rows.count("load") == 2

    stage.play(body)


@every_strategy
def test_negative_ttl_zero_asks_the_source_every_time(stage: Stage, word: str) -> None:
    rows = Rows()
    strategy = stage.make(word, rows, negative_ttl=0)

    async def body() -> None:
        face = stage.face(strategy)
        assert [await face.get(1), await face.get(1)] == [None, None]
        assert rows.count("load") == 2

    stage.play(body)


@every_strategy
def test_a_value_is_not_served_beyond_its_ttl(stage: Stage, word: str) -> None:
    clock, rows = ManualClock(), Rows({1: "old"})
    cache = stage.open(runtime=manual_runtime(clock))
    strategy = stage.make(word, rows, cache=cache, ttl=10)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) == "old"
        rows.rows[1] = "new"
        clock.advance(7)  # before refresh-ahead's part of the life begins
        assert await face.get(1) == "old"
        clock.advance(3.1)
        assert await face.get(1) == "new"

    stage.play(body)


@every_strategy
def test_disabled_reads_ask_the_source_and_give_the_same_shape(stage: Stage, word: str) -> None:
    rows = Rows({1: "one", 2: None})
    cache = stage.open()
    strategy = stage.make(word, rows, cache=cache, given=("load", "load_many"))

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get_many([1, 2, 3]) == {1: "one"}
        with cache.disabled():
            assert await face.get_many([1, 2, 3]) == {1: "one"}
            assert await face.get(1) == "one"
            assert await face.get(3, "none") == "none"
        assert rows.count("load_many") == 2

    stage.play(body)


@every_strategy
def test_close_twice_is_fine_and_says_that_nothing_is_left(stage: Stage, word: str) -> None:
    strategy = stage.make(word, Rows())

    async def body() -> None:
        face = stage.face(strategy)
        await face.put(1, "a")
        assert (await face.close()).complete
        assert (await face.close()).complete

    stage.play(body)


@every_strategy
def test_a_function_that_was_not_given_is_named(stage: Stage, word: str) -> None:
    strategy = stage.make(word, Rows(), given=("load",))

    async def body() -> None:
        face = stage.face(strategy)
        with pytest.raises(ConfigurationError, match="store"):
            await face.put(1, "a")
        with pytest.raises(ConfigurationError, match="delete"):
            await face.delete(1)

    stage.play(body)


def test_a_key_may_be_a_function_of_the_id(stage: Stage) -> None:
    rows = Rows({(1, 2): "x"})
    strategy = stage.make("read-through", rows, key=lambda id: f"pair:{id[0]}-{id[1]}", name="p")

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get((1, 2)) == "x"
        assert strategy.key((1, 2)) == "pair:1-2"
        rows.rows[(1, 2)] = "y"
        await stage.face(stage.open.caches[0]).invalidate(keys=["pair:1-2"])
        assert await face.get((1, 2)) == "y"

    stage.play(body)


def test_ids_of_different_types_do_not_share_a_key(stage: Stage) -> None:
    rows = Rows({1: "int", "1": "text"})
    strategy = stage.make("read-through", rows)

    async def body() -> None:
        face = stage.face(strategy)
        assert [await face.get(1), await face.get("1")] == ["int", "text"]
        assert await face.get_many(["1", 1]) == {1: "int", "1": "text"}

    stage.play(body)


def test_plain_source_functions_serve_the_async_face_too(stage: Stage) -> None:
    rows = Rows({1: "one"})
    strategy = WriteThrough(
        stage.open(), key="row:{id}", load=rows.load, store=rows.store, delete=rows.delete
    )

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) == "one"
        assert (await face.put(1, "two")).result == "stored"
        assert await face.get(1) == "two"
        await face.delete(1)
        assert await face.get(1) is None

    stage.play(body)


def test_an_async_source_is_refused_by_the_plain_face_with_the_remedy() -> None:
    import cachekit

    async def load(id: int) -> None:
        raise AssertionError("must not be called")

    with cachekit.Cache() as cache:
        strategy = CacheAside(cache, key="row:{id}", load=load)
        with pytest.raises(ConfigurationError, match=r"\.aio"):
            strategy.get(1)


def test_a_strategy_without_a_cache_says_so() -> None:
    with pytest.raises(ConfigurationError, match="no cache"):
        WriteThrough(key="row:{id}", load=lambda id: id).get(1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"key": None}, "key"),
        ({"key": "a:{x}:{y}"}, "one name"),
        ({"key": "row:{id}", "tags": "user:{id}"}, "list"),
        ({"key": "row:{id}", "tags": ["user:{nobody}"]}, "nobody"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_at_birth(
    options: dict[str, object], told: str
) -> None:
    import cachekit

    with cachekit.Cache() as cache, pytest.raises(ConfigurationError, match=told):
        CacheAside(cache, load=lambda id: id, **options)  # type: ignore[arg-type]


def test_an_unknown_option_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="tll"):
        CacheAside(key="row:{id}", tll=5)


def _quiet(word: str) -> dict[str, object]:
    """Write-back waits for the flush, so that what is put at once is one batch."""
    return {"delay": 60} if word == "write-back" else {}
