"""Loads, writes and invalidations that cross: no old value stays, whoever is slow.

Two caches over one backend play two processes; gates put every step where it hurts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stage import SOURCE_FIRST, STRATEGIES, Gate, Rows, Stage
from steps import STEPS

from cachekit import Strategy, WriteThrough

source_first = pytest.mark.parametrize("word", SOURCE_FIRST)


def _pair(stage: Stage, word: str, rows: Rows, **options: Any) -> tuple[Strategy, Strategy]:
    """Two processes with the same strategy; no near copies hide what the backend holds."""
    return tuple(  # type: ignore[return-value]
        stage.make(word, rows, cache=stage.open(coherence="strict"), wait=0.05, **options)
        for _ in range(2)
    )


@source_first
@pytest.mark.parametrize("order", ["first-ends-first", "second-ends-first"])
def test_two_racing_writers_leave_what_the_source_holds_or_nothing(
    shared_stage: Stage, word: str, order: str
) -> None:
    stage, rows = shared_stage, Rows({1: "old"})
    one, two = _pair(stage, word, rows)

    async def body() -> None:
        assert await stage.face(one).get(1) == "old"
        gates = {"one": Gate(), "two": Gate()}
        # Both have blocked the key before either writes the source.
        rows.gates["store"] = gates["one"]
        first = stage.start(stage.face(one).put(1, "one"))
        await stage.reached(gates["one"])
        rows.gates["store"] = gates["two"]
        second = stage.start(stage.face(two).put(1, "two"))
        await stage.reached(gates["two"])
        steps = [("one", first), ("two", second)]
        for name, task in steps if order == "first-ends-first" else reversed(steps):
            gates[name].open()
            await task
        for each in (one, two):
            assert await stage.face(each).get(1) == rows.rows[1]
            assert await stage.face(each).get_many([1]) == {1: rows.rows[1]}

    stage.play(body)


def test_the_writer_that_wrote_the_source_first_but_ends_last_does_not_leave_its_value(
    shared_stage: Stage,
) -> None:
    """W1 writes the source and is held before its fill; W2 comes and goes completely."""
    stage, rows = shared_stage, Rows({1: "old"})
    held = Gate()

    def store_and_wait(id: int, value: str) -> None:
        rows.rows[id] = value
        if value == "one":
            held.wait_at()

    slow = WriteThrough(
        stage.open(coherence="strict"),
        key="row:{id}",
        ttl=60,
        store=stage.source(store_and_wait),
        load=stage.source(rows.load),
    )
    quick = stage.make("write-through", rows, cache=stage.open(coherence="strict"), wait=0.05)

    async def body() -> None:
        first = stage.start(stage.face(slow).put(1, "one"))
        await stage.reached(held)
        await stage.face(quick).put(1, "two")
        held.open()
        await first
        for each in (slow, quick):
            assert await stage.face(each).get(1) == "two"

    stage.play(body)


def test_two_writers_of_one_process_leave_what_the_source_holds(embedded: Stage) -> None:
    stage, rows = embedded, Rows({1: "old"})
    held = Gate()

    def store(id: int, value: str) -> None:
        rows.rows[id] = value
        if value == "one":
            held.wait_at()

    strategy = WriteThrough(
        stage.open(), key="row:{id}", store=stage.source(store), load=stage.source(rows.load)
    )

    async def body() -> None:
        face = stage.face(strategy)
        first = stage.start(face.put(1, "one"))
        await stage.reached(held)
        await face.put(1, "two")
        held.open()
        await first
        assert await face.get(1) == "two"

    stage.play(body)


def _tags(step: str) -> list[str]:
    return ["is:{value}"] if "discovered" in step else ["row:{id}"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("verb", ["get", "get_many"])
@pytest.mark.parametrize("word", ["cache-aside", "write-through", "write-back"])
def test_a_load_that_began_before_never_fills_after(
    stage: Stage, word: str, step: str, verb: str
) -> None:
    _late_load(stage, word, step, verb, stage.open(coherence="strict"), None)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("word", ["cache-aside", "write-through", "write-back"])
def test_a_load_in_another_process_never_fills_after(
    shared_stage: Stage, word: str, step: str
) -> None:
    stage = shared_stage
    caches = [stage.open(coherence="strict") for _ in range(2)]
    _late_load(stage, word, step, "get", *caches)


def _late_load(
    stage: Stage, word: str, step: str, verb: str, home: Any, elsewhere: Any | None
) -> None:
    rows = Rows({1: "old"})
    tags = _tags(step)
    # With discovered tags the first fill is the second load; make that the one that is late.
    actor = stage.make(word, rows, cache=home, tags=tags, wait=0.05)
    reader = actor
    if elsewhere is not None:
        reader = stage.make(word, rows, cache=elsewhere, tags=tags, wait=0.05)

    async def body() -> None:
        face = stage.face(reader)
        if "discovered" in step:
            assert await face.get(1) == "old"
            await face.invalidate(1)
        gate = rows.gates["load"] = Gate()
        late = stage.start(face.get(1) if verb == "get" else face.get_many([1]))
        await stage.reached(gate)
        await STEPS[step](stage, actor, rows)
        gate.open()
        assert await late == ("old" if verb == "get" else {1: "old"})
        now = rows.rows.get(1)
        for each in (reader, actor):
            assert await stage.face(each).get(1) == now
            assert await stage.face(each).get_many([1]) == ({} if now is None else {1: now})

    stage.play(body)


@pytest.mark.parametrize("step", [s for s in STEPS if "discovered" not in s])
@pytest.mark.parametrize("word", ["cache-aside", "write-through"])
def test_who_asks_after_is_not_served_by_a_load_from_before(
    stage: Stage, word: str, step: str
) -> None:
    """The old flight is still in the air; a new caller must not join it."""
    rows = Rows({1: "old"})
    strategy = stage.make(word, rows, cache=stage.open(), tags=_tags(step), wait=0.05)

    async def body() -> None:
        face = stage.face(strategy)
        gate = rows.gates["load"] = Gate()
        late = stage.start(face.get(1))
        await stage.reached(gate)
        await STEPS[step](stage, strategy, rows)
        assert await face.get(1) == rows.rows.get(1)
        gate.open()
        assert await late == "old"
        assert await face.get(1) == rows.rows.get(1)

    stage.play(body)


@source_first
def test_a_read_between_block_and_source_write_fills_nothing(
    shared_stage: Stage, word: str
) -> None:
    stage, rows = shared_stage, Rows({1: "old"})
    one, two = _pair(stage, word, rows)

    async def body() -> None:
        gate = rows.gates["store"] = Gate()
        writing = stage.start(stage.face(one).put(1, "new"))
        await stage.reached(gate)
        for each in (one, two):
            assert await stage.face(each).get(1) == "old"  # not written yet: that is right
            assert await stage.face(each).get_many([1]) == {1: "old"}
        gate.open()
        await writing
        for each in (one, two):
            assert await stage.face(each).get(1) == "new"
            assert await stage.face(each).get_many([1]) == {1: "new"}

    stage.play(body)


@source_first
@pytest.mark.parametrize("verb", ["get", "get_many"])
def test_a_load_that_began_during_a_write_neither_fills_nor_is_joined_after_it(
    stage: Stage, word: str, verb: str
) -> None:
    """It read the old row while the writer was at the source, and lands when that has long gone."""
    rows = Rows({1: "old"})
    strategy = stage.make(word, rows, cache=stage.open(), wait=0.05)

    async def body() -> None:
        face = stage.face(strategy)
        at_source = rows.gates["store"] = Gate()
        writing = stage.start(face.put(1, "new"))
        await stage.reached(at_source)
        reading = rows.gates["load"] = Gate()
        late = stage.start(face.get(1) if verb == "get" else face.get_many([1]))
        await stage.reached(reading)
        at_source.open()
        await writing
        assert await face.get(1) == "new"  # not the flight that is still in the air
        await face.invalidate(1)
        reading.open()
        assert await late == ("old" if verb == "get" else {1: "old"})
        assert await face.get(1) == "new"
        assert await face.get_many([1]) == {1: "new"}

    stage.play(body)


@pytest.mark.parametrize("step", ["invalidate", "invalidate-tag", "clear"])
def test_a_writer_that_an_invalidation_overtook_does_not_fill(
    shared_stage: Stage, step: str
) -> None:
    """The source changed by other means while the write was under way."""
    stage, rows = shared_stage, Rows({1: "old"})
    one, two = _pair(stage, "write-through", rows, tags=["row:{id}"])

    async def body() -> None:
        gate = rows.gates["store"] = Gate()
        writing = stage.start(stage.face(one).put(1, "mine"))
        await stage.reached(gate)
        gate.open()
        await writing
        gate = rows.gates["store"] = Gate()
        writing = stage.start(stage.face(one).put(1, "again"))
        await stage.reached(gate)
        await STEPS[step](stage, two, rows)
        gate.open()
        await writing
        rows.rows[1] = "theirs"
        for each in (one, two):
            assert await stage.face(each).get(1) == "theirs"

    stage.play(body)


@pytest.mark.parametrize("word", STRATEGIES)
def test_a_background_refresh_that_began_before_a_write_does_not_bring_the_old_value_back(
    shared_stage: Stage, word: str
) -> None:
    stage, rows = shared_stage, Rows({1: "old"})
    strategy = stage.make(word, rows, cache=stage.open(coherence="strict"), early=0.0001)

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) == "old"
        await asyncio.sleep(0.02)  # 0.01 % of 60 s: due for refresh
        gate = rows.gates["load"] = Gate()
        assert await face.get(1) == "old"
        await stage.reached(gate)
        await face.put(1, "new")
        await face.flush(5)
        gate.open()
        await stage.until(lambda: not any(w.flights for w in _worlds(stage)))
        assert await face.get(1) == "new"
        assert await face.get_many([1]) == {1: "new"}

    stage.play(body)


def _worlds(stage: Stage) -> list[Any]:
    return list(stage.open.caches[0].parts.runtime.worlds())
