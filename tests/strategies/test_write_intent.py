"""``write_intent``: around a transaction of the user's own, nothing old is cached by anybody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stage import Gate, Opener, Rows, Stage

from cachekit import Cache, CacheKitError, WriteThrough
from cachekit.errors import BackendError


class _Around:
    """``write_intent`` of a stage's world, entered and left by hand."""

    def __init__(self, stage: Stage, cache: Cache, **what: Any) -> None:
        self._held: Any = (cache if stage.plain else cache.aio).write_intent(**what)
        self._plain = stage.plain

    async def enter(self) -> Any:
        return self._held.__enter__() if self._plain else await self._held.__aenter__()

    async def leave(self, error: BaseException | None = None) -> None:
        kind = type(error) if error is not None else None
        if self._plain:
            self._held.__exit__(kind, error, None)
        else:
            await self._held.__aexit__(kind, error, None)


def _readers(stage: Stage, rows: Rows, **options: Any) -> list[Any]:
    count = 2 if stage.open.far else 1
    made = [
        stage.make("write-through", rows, cache=stage.open(coherence="strict"), **options)
        for _ in range(count)
    ]
    return [stage.face(each) for each in made]


BY = {"key": {"keys": ["row:1"]}, "tag": {"tags": ["row:1"]}}


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("verb", ["get", "get_many"])
def test_inside_nothing_is_cached_and_after_it_the_new_row_is_seen(
    stage: Stage, by: str, verb: str
) -> None:
    rows = Rows({1: "old"})
    readers = _readers(stage, rows, tags=["row:{id}"], wait=0.05)
    cache = stage.open.caches[0]

    async def read(face: Any) -> Any:
        return await face.get(1) if verb == "get" else (await face.get_many([1])).get(1)

    async def body() -> None:
        for face in readers:
            assert await read(face) == "old"
        around = _Around(stage, cache, **BY[by])
        await around.enter()
        loads = len(rows.calls)
        for face in readers * 2:
            assert await read(face) == "old"  # not committed yet
        assert len(rows.calls) == loads + 2 * len(readers)  # asked each time
        rows.rows[1] = "new"
        await around.leave()
        for face in readers:
            assert await read(face) == "new"

    stage.play(body)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("began", ["before", "inside"])
def test_a_load_that_began_before_the_end_is_not_kept(stage: Stage, by: str, began: str) -> None:
    rows = Rows({1: "old"})
    readers = _readers(stage, rows, tags=["row:{id}"], wait=0.05)
    cache = stage.open.caches[0]

    async def body() -> None:
        around = _Around(stage, cache, **BY[by])
        gate = rows.gates["load"] = Gate()
        if began == "inside":
            await around.enter()
        late = stage.start(readers[-1].get(1))
        await stage.reached(gate)
        if began == "before":
            await around.enter()
        rows.rows[1] = "new"
        await around.leave()
        # Whoever asks in the loading process meanwhile waits for that load, and loads anew.
        assert await readers[0].get(1) == "new"
        gate.open()
        assert await late == "old"
        for face in readers:
            assert await face.get(1) == "new"

    stage.play(body)


@pytest.mark.parametrize("error", [TimeoutError("?"), asyncio.CancelledError()])
@pytest.mark.parametrize("by", BY)
def test_an_unknown_commit_leaves_the_keys_uncached_so_that_a_late_landing_shows(
    stage: Stage, by: str, error: BaseException
) -> None:
    rows = Rows({1: "old"})
    readers = _readers(stage, rows, tags=["row:{id}"], wait=0.05)
    cache = stage.open.caches[0]

    async def body() -> None:
        for face in readers:
            assert await face.get(1) == "old"
        around = _Around(stage, cache, **BY[by])
        await around.enter()
        await around.leave(error)
        for face in readers:
            assert await face.get(1) == "old"
        rows.rows[1] = "new"  # it lands now
        for face in readers:
            assert await face.get(1) == "new"

    stage.play(body)


@pytest.mark.parametrize("by", BY)
def test_a_refused_transaction_frees_the_keys_at_once(stage: Stage, by: str) -> None:
    rows = Rows({1: "old"})
    readers = _readers(stage, rows, tags=["row:{id}"], wait=0.05)
    cache = stage.open.caches[0]

    async def body() -> None:
        around = _Around(stage, cache, **BY[by])
        await around.enter()
        await around.leave(ValueError("rolled back"))
        await readers[0].get(1)
        loads = len(rows.calls)
        await readers[0].get(1)
        if stage.open.far:
            await readers[1].get(1)
        assert len(rows.calls) == loads  # cached again, for everybody

    stage.play(body)


@pytest.mark.parametrize("by", BY)
def test_the_blocks_of_a_dead_writer_end_by_themselves(shared_stage: Stage, by: str) -> None:
    stage, rows = shared_stage, Rows({1: "old"})
    readers = _readers(stage, rows, tags=["row:{id}"], wait=0.05)

    async def body() -> None:
        # The object is simply never left, as if its process had been killed.
        await _Around(stage, stage.open.caches[0], ttl=1.0, **BY[by]).enter()
        rows.rows[1] = "new"
        assert await readers[1].get(1) == "new"
        rows.rows[1] = "newer"
        assert await readers[1].get(1) == "newer"  # not cached
        await asyncio.sleep(2.3)  # memcached counts whole seconds
        await readers[1].get(1)
        loads = len(rows.calls)
        assert await readers[1].get(1) == "newer"
        assert len(rows.calls) == loads

    stage.play(body)


@pytest.mark.parametrize("first", ["outer", "inner"])
def test_two_intents_on_one_tag_both_have_to_end(shared_stage: Stage, first: str) -> None:
    stage, rows = shared_stage, Rows({1: "old"})
    readers = _readers(stage, rows, tags=["row:{id}"], wait=0.05)

    async def body() -> None:
        outer, inner = (
            _Around(stage, cache, keys=["row:1"], tags=["row:1"]) for cache in stage.open.caches[:2]
        )
        await outer.enter()
        await inner.enter()
        order = [outer, inner] if first == "outer" else [inner, outer]
        await order[0].leave()
        assert [await face.get(1) for face in readers] == ["old"] * 2
        rows.rows[1] = "new"
        assert [await face.get(1) for face in readers] == ["new"] * 2
        rows.rows[1] = "newer"
        await order[1].leave()
        assert [await face.get(1) for face in readers] == ["newer"] * 2

    stage.play(body)


def test_a_save_inside_an_intent_joins_it_and_fills_nothing(shared_stage: Stage) -> None:
    stage, rows = shared_stage, Rows({1: "old"})
    readers = _readers(stage, rows, tags=["row:{id}"], wait=0.05)

    async def body() -> None:
        around = _Around(stage, stage.open.caches[0], keys=["row:1"], tags=["row:1"])
        await around.enter()
        await readers[0].put(1, "mine")
        rows.rows[1] = "theirs"  # the transaction goes on after the save
        assert [await face.get(1) for face in readers] == ["theirs"] * 2
        rows.rows[1] = "last"
        await around.leave()
        assert [await face.get(1) for face in readers] == ["last"] * 2

    stage.play(body)


@pytest.mark.parametrize("fails", ["refused", "unknown", "killed"])
def test_the_tags_that_a_save_drops_are_blocked_while_it_writes(
    shared_stage: Stage, fails: str
) -> None:
    """A list of rows, tagged; the save of one row makes the list outdated."""
    stage, rows = shared_stage, Rows({1: "old"})
    writer = stage.make(
        "write-through", rows, cache=stage.open(coherence="strict"), wait=0.05, invalidates=["rows"]
    )
    cache = stage.open(coherence="strict")
    reader = stage.face(cache)

    async def listed() -> Any:
        return await reader.get_or_set("list", lambda: sorted(rows.rows.values()), tags=["rows"])

    async def body() -> None:
        face = stage.face(writer)
        assert await listed() == ["old"]
        if fails == "killed":
            gate = rows.gates["store"] = Gate()
            task = stage.start(face.put(1, "new"))
            await stage.reached(gate)
            assert await listed() == ["old"]  # loaded, and not kept: the write is under way
            gate.open()
            await task
        else:
            error = TimeoutError("?") if fails == "unknown" else ValueError("no")
            rows.errors["store"] = [error]
            with pytest.raises(type(error)):
                await face.put(1, "new")
            assert await listed() == ["old"]
            if fails == "unknown":
                rows.rows[1] = "new"  # lands late
            else:
                rows.rows[1] = "other"
                assert await listed() == ["old"]  # a refused write blocks nothing: it is cached
                await reader.invalidate(tags=["rows"])
        assert await listed() == sorted(rows.rows.values())

    stage.play(body)


def test_while_the_far_tier_is_away_the_transaction_runs_and_its_end_is_told_later() -> None:
    cache = Cache("redis://127.0.0.1:1/0", timeout=0.05)
    with cache:
        with cache.write_intent(keys=["k"], tags=["t"]) as intent:
            ran = True
        assert ran
        assert intent.pending
        assert cache.stats().pending_invalidations == 2


def test_strict_raises_before_the_transaction() -> None:
    with Cache("redis://127.0.0.1:1/0", timeout=0.05, strict=True) as cache:
        ran = False
        with pytest.raises(BackendError), cache.write_intent(keys=["k"]):
            ran = True
        assert not ran


def test_wrong_arguments_are_refused_before_anything_is_blocked() -> None:
    with Cache() as cache:
        for wrong in ({"keys": "k"}, {"tags": "t"}):
            with pytest.raises(TypeError, match="list"):
                cache.write_intent(**wrong)  # type: ignore[arg-type]
        with pytest.raises((ValueError, CacheKitError)):
            cache.write_intent(keys=["k"], ttl=-1)


def test_a_write_through_inside_its_own_intent_does_not_wait(embedded: Stage) -> None:
    stage = embedded
    cache = stage.open()
    rows = Rows({1: "old"})
    strategy = WriteThrough(
        cache, key="row:{id}", load=stage.source(rows.load), store=stage.source(rows.store)
    )

    async def body() -> None:
        around = _Around(stage, cache, keys=["row:1"])
        await around.enter()
        await stage.face(strategy).put(1, "new")
        await around.leave()
        assert await stage.face(strategy).get(1) == "new"

    stage.play(body)


def test_pending_is_false_after_an_ordinary_end(open_shared: Opener) -> None:
    with open_shared().write_intent(keys=["k"], tags=["t"]) as intent:
        pass
    assert not intent.pending
