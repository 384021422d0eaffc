"""Tags of strategies: known from the id, or discovered from the value; and what writes drop."""

from __future__ import annotations

from typing import Any

import pytest
from stage import SOURCE_FIRST, STRATEGIES, Rows, Stage

every_strategy = pytest.mark.parametrize("word", STRATEGIES)


@every_strategy
def test_a_tag_known_from_the_id_invalidates_its_values_and_no_others(
    stage: Stage, word: str
) -> None:
    rows = Rows({1: "a", 2: "b", 3: "c"})
    cache = stage.open()
    strategy = stage.make(word, rows, cache=cache, tags=["row:{id}", "all"])

    async def body() -> None:
        face, plain = stage.face(strategy), stage.face(cache)
        await face.get_many([1, 2, 3])
        rows.rows = {1: "A", 2: "B", 3: "C"}
        rows.calls.clear()
        await plain.invalidate(tags=["row:2"])
        assert await face.get_many([1, 2, 3]) == {1: "a", 2: "B", 3: "c"}
        assert rows.calls == [("load", 2)]
        await plain.invalidate(tags=["all"])
        assert await face.get_many([1, 2, 3]) == {1: "A", 2: "B", 3: "C"}

    stage.play(body)


def _team(id: int, team: str) -> dict[str, Any]:
    return {"id": id, "team": team}


@every_strategy
@pytest.mark.parametrize("tags", [["team:{value[team]}"], lambda value: [f"team:{value['team']}"]])
def test_a_tag_discovered_from_the_value_costs_at_most_two_loads_and_then_hits(
    stage: Stage, word: str, tags: Any
) -> None:
    rows = Rows({1: _team(1, "red"), 2: _team(2, "blue")})
    cache = stage.open()
    strategy = stage.make(word, rows, cache=cache, tags=tags)

    async def body() -> None:
        face, plain = stage.face(strategy), stage.face(cache)
        for _ in range(5):
            assert await face.get(1) == _team(1, "red")
        assert rows.count("load") <= (2 if stage.open.far else 1)
        await face.get(2)
        await face.get(2)
        rows.calls.clear()
        rows.rows[1] = _team(1, "green")
        await plain.invalidate(tags=["team:blue"])
        assert await face.get(1) == _team(1, "red")
        await plain.invalidate(tags=["team:red"])
        assert await face.get(1) == _team(1, "green")
        # The new tag was discovered meanwhile: it works at once.
        await face.get(1)
        rows.rows[1] = _team(1, "black")
        await plain.invalidate(tags=["team:green"])
        assert await face.get(1) == _team(1, "black")

    stage.play(body)


@pytest.mark.parametrize("word", ["write-through", "write-back"])
def test_a_tag_of_a_written_value_works_from_the_write_on(stage: Stage, word: str) -> None:
    rows = Rows({1: _team(1, "red")})
    cache = stage.open()
    strategy = stage.make(word, rows, cache=cache, tags=["team:{value[team]}"])

    async def body() -> None:
        face, plain = stage.face(strategy), stage.face(cache)
        await face.put(1, _team(1, "blue"))
        await face.flush(5)
        assert await face.get(1) == _team(1, "blue")
        rows.rows[1] = _team(1, "gone elsewhere")
        await plain.invalidate(tags=["team:blue"])
        assert await face.get(1) == _team(1, "gone elsewhere")

    stage.play(body)


def test_discovered_tags_hold_in_batches_too(stage: Stage) -> None:
    rows = Rows({n: _team(n, f"team{n}") for n in range(4)})
    cache = stage.open()
    strategy = stage.make(
        "read-through", rows, cache=cache, given=("load_many",), tags=["team:{value[team]}"]
    )

    async def body() -> None:
        face, plain = stage.face(strategy), stage.face(cache)
        for _ in range(4):
            assert len(await face.get_many(range(4))) == 4
        loaded = rows.count("load_many")
        assert loaded <= (2 if stage.open.far else 1)
        rows.rows[2] = _team(2, "changed")
        await plain.invalidate(tags=["team:team2"])
        assert (await face.get_many(range(4)))[2] == _team(2, "changed")

    stage.play(body)


@every_strategy
def test_a_write_drops_the_tags_it_was_told_to(stage: Stage, word: str) -> None:
    rows = Rows({1: _team(1, "red")})
    cache = stage.open()
    strategy = stage.make(
        word, rows, cache=cache, invalidates=["members", "team:{value[team]}", "row:{id}"]
    )

    async def body() -> None:
        face, plain = stage.face(strategy), stage.face(cache)
        made: list[str] = []

        async def members(name: str, tag: str) -> None:
            def load() -> int:
                made.append(name)
                return len(made)

            await plain.get_or_set(name, stage.source(load), tags=[tag])

        async def all_lists() -> list[str]:
            made.clear()
            await members("list", "members")
            await members("list of red", "team:red")
            await members("list of blue", "team:blue")
            await members("list of 1", "row:1")
            return list(made)

        await all_lists()
        assert await all_lists() == []
        await face.put(1, _team(1, "blue"))
        await face.flush(5)
        assert await all_lists() == ["list", "list of blue", "list of 1"]
        await face.delete(1)
        await face.flush(5)
        assert await all_lists() == ["list", "list of 1"]
        await face.put_many({1: _team(1, "red"), 2: _team(2, "blue")})
        await face.flush(5)
        assert await all_lists() == ["list", "list of red", "list of blue", "list of 1"]

    stage.play(body)


@pytest.mark.parametrize("word", SOURCE_FIRST)
def test_a_refused_write_drops_its_tags_too(stage: Stage, word: str) -> None:
    """It may have changed something before it was refused."""
    rows = Rows({1: "old"})
    cache = stage.open()
    strategy = stage.make(word, rows, cache=cache, invalidates=["members"])

    async def body() -> None:
        face, plain = stage.face(strategy), stage.face(cache)
        await plain.set("list", "cached", tags=["members"])
        rows.errors["store"] = [ValueError("half done")]
        with pytest.raises(ValueError):
            await face.put(1, "new")
        assert await plain.get("list") is None

    stage.play(body)


def test_a_tag_function_that_fails_costs_the_caching_and_never_the_value(stage: Stage) -> None:
    rows = Rows({1: "a"})

    def tags(value: Any) -> list[str]:
        raise ZeroDivisionError

    cache = stage.open()
    strategy = stage.make("read-through", rows, cache=cache, tags=tags)

    async def body() -> None:
        face = stage.face(strategy)
        assert [await face.get(1), await face.get(1)] == ["a", "a"]
        assert rows.count("load") == 2
        assert cache.stats().counts["tag_errors"] == 2

    stage.play(body)


def test_absent_values_have_no_tags_and_are_cached(stage: Stage) -> None:
    rows = Rows()
    strategy = stage.make("read-through", rows, tags=["team:{value[team]}"])

    async def body() -> None:
        face = stage.face(strategy)
        assert [await face.get(1) for _ in range(3)] == [None] * 3
        assert rows.count("load") == 1

    stage.play(body)
