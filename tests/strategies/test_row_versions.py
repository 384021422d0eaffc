"""Loads older than what stands in the cache are not stored (a database replica that lags)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stage import Rows, Stage


def _row(version: int) -> dict[str, int]:
    return {"version": version}


def _reader(stage: Stage, rows: Rows, **options: Any) -> Any:
    strategy = stage.make(
        "write-through",
        rows,
        cache=stage.open(coherence="strict"),
        row_version=lambda row: row["version"],
        **options,
    )
    return stage.face(strategy)


def test_a_background_refresh_from_a_lagging_replica_does_not_replace_the_newer_row(
    shared_stage: Stage,
) -> None:
    stage, rows = shared_stage, Rows({1: _row(5)})
    face = _reader(stage, rows, early=0.0001)  # due at once, of a ttl of 60 s
    counts = stage.open.caches[0].stats

    async def body() -> None:
        assert await face.get(1) == _row(5)
        await asyncio.sleep(0.02)
        rows.rows[1] = _row(4)
        assert await face.get(1) == _row(5)
        await stage.until(lambda: counts().counts.get("fills_older", 0) >= 1)
        assert await face.get(1) == _row(5)
        rows.rows[1] = _row(6)
        for _ in range(500):
            if await face.get(1) == _row(6):
                return
            await asyncio.sleep(0.005)
        raise AssertionError("the newer row was never stored")

    stage.play(body)


def test_an_outdated_entry_still_tells_the_version_that_must_be_reached(
    shared_stage: Stage,
) -> None:
    """The tag is invalidated: the entry is a miss, but its version is there to compare with."""
    stage, rows = shared_stage, Rows({1: _row(5)})
    face = _reader(stage, rows, tags=["rows"])
    cache = stage.face(stage.open.caches[0])

    async def body() -> None:
        assert await face.get(1) == _row(5)
        await cache.invalidate(tags=["rows"])
        rows.rows[1] = _row(4)  # the replica has not caught up
        assert await face.get(1) == _row(4)
        rows.rows[1] = _row(6)
        assert await face.get(1) == _row(6)  # what lagged was not kept
        assert await face.get(1) == _row(6)
        assert stage.open.caches[0].stats().counts["fills_older"] == 1

    stage.play(body)


@pytest.mark.parametrize("version", [5, 6])
def test_an_equal_or_newer_row_is_stored(shared_stage: Stage, version: int) -> None:
    stage, rows = shared_stage, Rows({1: _row(5)})
    face = _reader(stage, rows, tags=["rows"])
    cache = stage.face(stage.open.caches[0])

    async def body() -> None:
        await face.get(1)
        await cache.invalidate(tags=["rows"])
        rows.rows[1] = _row(version)
        assert await face.get(1) == await face.get(1) == _row(version)
        assert rows.count("load") == 2

    stage.play(body)


def test_after_an_invalidation_of_the_key_there_is_nothing_to_compare_with(
    shared_stage: Stage,
) -> None:
    stage, rows = shared_stage, Rows({1: _row(5)})
    face = _reader(stage, rows)

    async def body() -> None:
        await face.get(1)
        await face.invalidate(1)
        rows.rows[1] = _row(4)
        assert await face.get(1) == await face.get(1) == _row(4)
        assert rows.count("load") == 2

    stage.play(body)


def test_a_function_that_fails_or_gives_no_int_stores_without_a_version(
    shared_stage: Stage,
) -> None:
    stage, rows = shared_stage, Rows({1: {"other": 1}, 2: {"version": "x"}})
    face = _reader(stage, rows)

    async def body() -> None:
        for id in (1, 2):
            assert await face.get(id) == await face.get(id) == rows.rows[id]
        assert rows.count("load") == 2
        assert stage.open.caches[0].stats().counts["row_version_errors"] == 1

    stage.play(body)


def test_it_must_be_a_function(embedded: Stage) -> None:
    with pytest.raises(TypeError, match="row_version"):
        embedded.make("read-through", Rows(), row_version=3)
