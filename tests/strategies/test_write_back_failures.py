"""Write-back when the source refuses: poison rows, partial failures, outages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import pytest
from sinks import Sink, over
from stage import Opener, Rows, Stage
from tenacity import stop_after_attempt, wait_fixed

from cachekit import Cache


@pytest.mark.parametrize("bad", [{0}, {7}, {15}, {3, 4, 11}, set(range(16))])
def test_poison_rows_are_parked_alone_and_the_others_land(stage: Stage, bad: set[int]) -> None:
    sink = Sink()
    sink.refuses = set(bad)
    strategy = over(stage, sink, batch=17, stop=stop_after_attempt(2))

    async def body() -> None:
        face = stage.face(strategy)
        await face.put_many({n: f"v{n}" for n in range(16)})
        flushed = await face.flush(10)
        assert flushed.complete
        assert (flushed.applied, flushed.parked, flushed.left) == (16 - len(bad), len(bad), 0)
        assert sink.rows == {n: f"v{n}" for n in range(16) if n not in bad}
        letters = strategy.dead()
        assert {letter.op.id for letter in letters} == bad
        assert all("ValueError" in letter.error for letter in letters)
        assert all(letter.op.value == f"v{letter.op.id}" for letter in letters)
        assert flushed.errors
        assert strategy.depth() == 0
        if len(bad) == 1:  # log2(16) halvings and the last row's second try
            assert len(sink.batches) <= 2 * 4 + 3

    stage.play(body)


def test_a_parked_value_is_not_shown_any_more(stage: Stage) -> None:
    """The source will never have it: what is read is what the source has."""
    rows, sink = Rows({1: "old"}), Sink()
    sink.refuses = {1}
    strategy = over(stage, sink, stop=stop_after_attempt(1), load=stage.source(rows.load))

    async def body() -> None:
        face = stage.face(strategy)
        await face.put(1, "refused")
        assert await face.get(1) == "refused"
        assert (await face.flush(5)).parked == 1
        assert await face.get(1) == "old"

    stage.play(body)


def test_only_the_rows_a_sink_names_are_tried_again_and_parked(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    sink.refuses, sink.names = {2, 5}, True
    strategy = over(stage, sink, batch=9, stop=stop_after_attempt(3))

    async def body() -> None:
        face = stage.face(strategy)
        await face.put_many({n: n for n in range(8)})
        flushed = await face.flush(5)
        assert (flushed.applied, flushed.parked) == (6, 2)
        assert {letter.op.id for letter in strategy.dead()} == {2, 5}
        assert sink.batches[0].keys() == set(range(8))
        assert all(len(batch) == 1 for batch in sink.batches[1:])
        assert len(sink.batches) == 1 + 3 + 3

    stage.play(body)


def test_a_named_row_that_is_accepted_on_the_second_try_is_not_parked(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    sink.refuses, sink.names = {1}, True
    write = sink.write

    def heals(values: Mapping[Any, Any]) -> Any:
        answer = write(values)
        sink.refuses = set()
        return answer

    sink.write = heals  # type: ignore[method-assign]
    strategy = over(stage, sink, batch=3)

    async def body() -> None:
        face = stage.face(strategy)
        await face.put_many({0: "a", 1: "b"})
        flushed = await face.flush(5)
        assert (flushed.applied, flushed.parked) == (2, 0)
        assert sink.rows == {0: "a", 1: "b"}
        assert strategy.dead() == []

    stage.play(body)


@pytest.mark.parametrize(
    "error", [ConnectionError("refused"), TimeoutError(), ConnectionResetError()]
)
def test_an_outage_is_waited_out_and_nothing_is_parked(stage: Stage, error: BaseException) -> None:
    sink = Sink()
    sink.down = error
    strategy = over(
        stage, sink, batch=4, stop=stop_after_attempt(1), wait_between=_ten_milliseconds()
    )

    async def body() -> None:
        face = stage.face(strategy)
        await face.put_many({n: n for n in range(4)})
        await stage.until(lambda: len(sink.batches) >= 5)
        flushed = await face.flush(0.05)
        assert not flushed.complete
        assert (flushed.left, flushed.applied, flushed.parked) == (4, 0, 0)
        await face.put(0, "newest")
        assert await face.get(0) == "newest"
        sink.down = None
        assert (await face.flush(5)).complete
        assert sink.rows == {0: "newest", 1: 1, 2: 2, 3: 3}
        assert strategy.dead() == []
        assert all(len(batch) <= 4 for batch in sink.batches)

    stage.play(body)


def test_close_with_the_source_down_keeps_to_its_time_names_what_is_left_and_stops_trying(
    embedded: Stage,
) -> None:
    stage, sink = embedded, Sink()
    sink.down = ConnectionError("refused")
    strategy = over(stage, sink, wait_between=_ten_milliseconds())

    async def body() -> None:
        face = stage.face(strategy)
        await face.put_many({1: "a", 2: "b"})
        began = time.monotonic()
        closed = await face.close(0.2)
        assert time.monotonic() - began < 3
        assert (closed.left, closed.complete) == (2, False)
        await asyncio.sleep(0.1)
        tried = len(sink.batches)
        await asyncio.sleep(0.2)
        assert len(sink.batches) == tried, "the worker goes on after close"

    stage.play(body)


def test_a_poison_row_is_parked_and_the_others_land_while_the_far_tier_is_away(
    open_shared: Opener,
) -> None:
    """What the cache can not be told must not stop the worker."""
    sink = Sink()
    sink.refuses = {1}
    cache = Cache(backend=_Broken(), timeout=0.1)
    strategy = over(Stage("plain", open_shared), sink, cache, batch=5, stop=stop_after_attempt(1))
    strategy.put_many({n: n for n in range(4)})
    flushed = strategy.flush(10)
    assert (flushed.applied, flushed.parked, flushed.left) == (3, 1, 0)
    assert sink.rows == {0: 0, 2: 2, 3: 3}
    assert cache.stats().pending_invalidations > 0
    cache.close(timeout=1)


def _ten_milliseconds() -> Any:
    return wait_fixed(0.01)


class _Broken:
    """A backend that can not be reached."""

    name, shared, bus, log = "broken", True, None, None

    def open(self, world: Any) -> Any:
        raise ConnectionError("nobody there")
