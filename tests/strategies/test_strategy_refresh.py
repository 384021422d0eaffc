"""Refresh in the background, grace, stale-if-error, and copies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stage import PATIENCE, STRATEGIES, Gate, Rows, Stage, manual_runtime

from cachekit import Cache, RefreshAhead
from cachekit.backends.memory import MemoryBackend
from cachekit.testing.clock import ManualClock

every_strategy = pytest.mark.parametrize("word", STRATEGIES)


def _timed(stage: Stage, **options: Any) -> tuple[ManualClock, Cache]:
    clock = ManualClock()
    return clock, stage.open(runtime=manual_runtime(clock), **options)


@pytest.mark.parametrize("coherence", [1.0, "strict"])
def test_a_read_late_in_a_values_life_is_answered_at_once_and_refreshes_behind_once(
    stage: Stage, coherence: float | str
) -> None:
    clock, cache = _timed(stage, coherence=coherence)
    rows = Rows({1: "old"})
    strategy = stage.make("refresh-ahead", rows, cache=cache, ttl=10, early=0.8)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) == "old"
        rows.rows[1] = "new"
        clock.advance(7.9)
        assert await face.get(1) == "old"
        assert rows.count("load") == 1
        clock.advance(0.2)
        gate = rows.gates["load"] = Gate()
        reads = [stage.start(face.get(1)) for _ in range(10)]
        for read in reads:  # every one of them, while the refresh is held
            assert await _within(read) == "old"
        await stage.reached(gate)
        assert await _within(stage.start(face.get(1))) == "old"
        assert await _within(stage.start(face.get_many([1]))) == {1: "old"}
        gate.open()
        await stage.until(lambda: _quiet(cache))
        assert await face.get(1) == "new"
        assert rows.count("load") == 2
        # The refreshed value lives its own ttl.
        clock.advance(7.9)
        assert await face.get(1) == "new"
        assert rows.count("load") == 2

    stage.play(body)


async def _within(task: Any) -> Any:
    return await asyncio.wait_for(task, PATIENCE / 2)


def _quiet(cache: Cache) -> bool:
    return not any(len(world.flights) for world in cache.parts.runtime.worlds())


def test_refreshes_of_two_processes_of_one_key_do_not_load_twice(shared_stage: Stage) -> None:
    stage, clock, rows = shared_stage, ManualClock(), Rows({1: "old"})
    strategies = [
        stage.make(
            "refresh-ahead",
            rows,
            cache=stage.open(runtime=manual_runtime(clock), coherence="strict"),
            ttl=10,
        )
        for _ in range(2)
    ]

    async def body() -> None:
        for each in strategies:
            assert await stage.face(each).get(1) == "old"
        assert rows.count("load") == 1
        clock.advance(9)
        gate = rows.gates["load"] = Gate()
        assert await stage.face(strategies[0]).get(1) == "old"
        await stage.reached(gate)
        assert await stage.face(strategies[1]).get(1) == "old"
        await stage.until(lambda: _quiet(stage.open.caches[1]))
        gate.open()
        await stage.until(lambda: _quiet(stage.open.caches[0]))
        assert rows.count("load") == 2

    stage.play(body)


def test_a_failed_background_refresh_keeps_the_value_and_rests(stage: Stage) -> None:
    clock, cache = _timed(stage)
    rows = Rows({1: "old"})
    strategy = stage.make("refresh-ahead", rows, cache=cache, ttl=10)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) == "old"
        clock.advance(9)
        rows.errors["load"] = [ConnectionError("down")]
        assert await face.get(1) == "old"
        await stage.until(lambda: cache.stats().counts.get("refresh_failed") == 1)
        await stage.until(lambda: _quiet(cache))
        assert await face.get(1) == "old"

    stage.play(body)


@every_strategy
def test_grace_serves_the_old_value_while_the_source_fails_and_then_raises(
    stage: Stage, word: str
) -> None:
    clock, cache = _timed(stage)
    rows = Rows({1: "old"})
    strategy = stage.make(word, rows, cache=cache, ttl=10, grace=20)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) == "old"
        rows.errors["load"] = [ConnectionError("down") for _ in range(1000)]
        clock.advance(15)
        for _ in range(3):
            assert await face.get(1) == "old"
            assert await face.get_many([1]) == {1: "old"}
            await stage.until(lambda: _quiet(cache))
        clock.advance(16)
        with pytest.raises(ConnectionError):
            await face.get(1)
        with pytest.raises(ConnectionError):
            await face.get_many([1])
        rows.errors.clear()
        rows.rows[1] = "new"
        assert await face.get(1) == "new"

    stage.play(body)


@every_strategy
def test_in_grace_the_value_is_served_at_once_and_renewed_behind(stage: Stage, word: str) -> None:
    clock, cache = _timed(stage)
    rows = Rows({1: "old"})
    strategy = stage.make(word, rows, cache=cache, ttl=10, grace=20)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) == "old"
        rows.rows[1] = "new"
        clock.advance(15)
        gate = rows.gates["load"] = Gate()
        for _ in range(5):
            assert await _within(stage.start(face.get(1))) == "old"
        await stage.reached(gate)
        gate.open()
        await stage.until(lambda: _quiet(cache))
        assert await face.get(1) == "new"
        assert rows.count("load") == 2

    stage.play(body)


def test_grace_never_serves_what_was_invalidated(stage: Stage) -> None:
    clock, cache = _timed(stage)
    rows = Rows({1: "old"})
    strategy = stage.make("read-through", rows, cache=cache, ttl=10, grace=100, tags=["row:{id}"])

    async def body() -> None:
        face, plain = stage.face(strategy), stage.face(cache)
        for step in (
            lambda: face.invalidate(1),
            lambda: plain.invalidate(tags=["row:1"]),
            plain.clear,
        ):
            rows.rows[1] = "old"
            await face.invalidate(1)
            assert await face.get(1) == "old"
            clock.advance(15)
            rows.rows[1] = "new"
            await step()
            rows.errors["load"] = [ConnectionError()]
            with pytest.raises(ConnectionError):
                await face.get(1)
            assert await face.get(1) == "new"

    stage.play(body)


@every_strategy
def test_with_copy_no_caller_can_change_what_others_get(stage: Stage, word: str) -> None:
    rows = Rows({1: {"tags": ["a"]}})
    strategy = stage.make(word, rows, copy=True)

    async def body() -> None:
        face = stage.face(strategy)
        for _ in range(3):
            first = await face.get(1)
            first["tags"].append("spoilt")
            many = await face.get_many([1])
            assert many == {1: {"tags": ["a"]}}
            many[1]["tags"].clear()
        mine = {"tags": ["mine"]}
        await face.put(1, mine)
        mine["tags"].append("spoilt")
        assert await face.get(1) == {"tags": ["mine"]}
        await face.flush(5)
        assert rows.rows[1] == {"tags": ["mine"]}
        assert await face.get(1) == {"tags": ["mine"]}

    stage.play(body)


def test_refresh_ahead_takes_beta_in_place_of_early() -> None:
    with Cache() as cache:
        made = RefreshAhead(cache, key="row:{id}", load=lambda id: id, ttl=10, beta=1.0)
        assert made.policy.early is None
        assert made.policy.beta == 1.0
        plain = RefreshAhead(cache, key="other:{id}", load=lambda id: id, ttl=10)
        assert plain.policy.early == 0.8


def test_what_was_read_while_a_forced_refresh_told_the_far_tier_is_kept_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tag invalidation detached the refresh's flight, so the read led one of its own, and found
    the old entry that was about to go."""
    rows = {1: "old"}
    with Cache(backend=MemoryBackend(), coherence=30.0) as cache:

        @cache.cached(key="row:{id}", ttl=600, tags=["rows"], wait=0.05)
        def row(id: int) -> str:
            return rows[id]

        assert row(1) == "old"
        far = cache.parts.far
        assert far is not None
        void = far.void

        async def after_others(world: Any, keys: Any, deadline: Any) -> None:
            rows[1] = "new"
            cache.parts.invalidator.detach((), ["rows"])
            assert row(1) == "old"  # it began before the refresh returned
            await void(world, keys, deadline)

        async def refused(*args: Any, **options: Any) -> bool:
            return False

        monkeypatch.setattr(far, "void", after_others)
        monkeypatch.setattr(far, "fill", refused)
        assert row.refresh(1) == "new"
        monkeypatch.undo()
        assert row(1) == "new"
