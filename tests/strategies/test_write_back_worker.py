"""The write-back worker: batches, retries, poison rows, outages, bounds, and flushes that tell the
truth. In both worlds: a plain sink has a thread, an async one a task."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest
from sinks import Sink, over
from stage import Gate, Opener, Rows, Stage
from tenacity import stop_after_attempt

from cachekit import Cache, Flushed, QueueFull, Retrying, WriteBack
from cachekit.errors import ConfigurationError, WriteBackClosed
from cachekit.protocols import Op, OpKind


def test_a_full_batch_is_written_without_waiting_for_the_delay(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    strategy = over(stage, sink, batch=3)

    async def body() -> None:
        face = stage.face(strategy)
        for n in range(2):
            await face.put(n, n)
        await asyncio.sleep(0.05)
        assert sink.batches == []
        await face.put(2, 2)
        await stage.until(lambda: len(sink.rows) == 3)
        assert sink.batches == [{0: 0, 1: 1, 2: 2}]

    stage.play(body)


def test_what_waited_as_long_as_the_delay_is_written(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    strategy = over(stage, sink, batch=1000, delay="60ms")

    async def body() -> None:
        began = time.monotonic()
        await stage.face(strategy).put(1, "a")
        await stage.until(lambda: 1 in sink.rows)
        assert time.monotonic() - began >= 0.06
        assert sink.batches == [{1: "a"}]

    stage.play(body)


def test_many_writes_of_one_key_reach_the_source_as_the_last_one(embedded: Stage) -> None:
    stage, rows = embedded, Rows({2: "old"})
    strategy = stage.make(
        "write-back", rows, given=("load", "store_many", "delete_many"), delay=3600
    )
    assert isinstance(strategy, WriteBack)

    async def body() -> None:
        face = stage.face(strategy)
        for n in range(50):
            await face.put(1, n)
        await face.delete(2)
        await face.put(2, "x")
        await face.delete(2)
        await face.put(3, "y")
        await face.delete(3)
        await face.put(3, "z")
        flushed = await face.flush(5)
        assert flushed == Flushed(applied=3, parked=0, left=0, complete=True)
        assert rows.rows == {1: 49, 3: "z"}
        assert sorted(rows.calls) == [("delete_many", (2,)), ("store_many", (1, 3))]

    stage.play(body)


def test_batches_are_no_larger_than_asked_and_keep_the_order_of_arrival(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    strategy = over(stage, sink, batch=4)

    async def body() -> None:
        face = stage.face(strategy)
        gate = sink.gate = Gate()
        for n in range(4):
            await face.put(n, n)
        await stage.reached(gate)
        for n in range(4, 14):
            await face.put(n, n)
        gate.open()
        assert (await face.flush(5)).complete
        assert [list(batch) for batch in sink.batches] == [
            [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13],
        ]  # fmt: skip

    stage.play(body)


def test_a_newer_write_waits_while_its_key_is_out_and_is_never_overtaken(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    strategy = over(stage, sink, batch=1)

    async def body() -> None:
        face = stage.face(strategy)
        gate = sink.gate = Gate()
        await face.put(1, "first")
        await stage.reached(gate)
        await face.put(1, "second")
        await face.put(1, "third")
        assert await face.get(1) == "third"
        gate.open()
        assert (await face.flush(5)).complete
        assert sink.batches == [{1: "first"}, {1: "third"}]
        assert sink.rows == {1: "third"}

    stage.play(body)


def test_a_put_beyond_the_bound_waits_and_then_raises(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    strategy = over(stage, sink, batch=1, max_pending=2, block=0.1)

    async def body() -> None:
        face = stage.face(strategy)
        gate = sink.gate = Gate()
        await face.put(1, "a")
        await stage.reached(gate)
        await face.put(2, "b")
        began = time.monotonic()
        with pytest.raises(QueueFull, match="max_pending"):
            await face.put(3, "c")
        assert 0.09 <= time.monotonic() - began < 3
        assert await face.get(2) == "b"
        await face.put(2, "newer")  # a key that waits already takes no new room
        gate.open()
        assert (await face.flush(5)).complete
        assert sink.rows == {1: "a", 2: "newer"}

    stage.play(body)


def test_a_put_that_waits_for_room_goes_on_when_there_is_some(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    strategy = over(stage, sink, batch=1, max_pending=1, block=30)

    async def body() -> None:
        face = stage.face(strategy)
        gate = sink.gate = Gate()
        await face.put(1, "a")
        await stage.reached(gate)
        waiting = stage.start(face.put(2, "b"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        gate.open()
        await asyncio.wait_for(waiting, 5)
        assert (await face.flush(5)).complete
        assert sink.rows == {1: "a", 2: "b"}

    stage.play(body)


def test_flush_keeps_to_its_time_and_says_what_is_left(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    strategy = over(stage, sink, batch=10)

    async def body() -> None:
        face = stage.face(strategy)
        gate = sink.gate = Gate()
        await face.put_many({1: "a", 2: "b"})
        began = time.monotonic()
        flushed = await face.flush(0.1)
        assert time.monotonic() - began < 2
        assert flushed == Flushed(applied=0, parked=0, left=2, complete=False)
        gate.open()
        assert (await face.flush(5)).complete

    stage.play(body)


def test_flush_does_not_wait_for_what_is_put_after_it_began(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    strategy = over(stage, sink, batch=10)

    async def body() -> None:
        face = stage.face(strategy)
        gate = sink.gate = Gate()
        await face.put(1, "a")
        flushing = stage.start(face.flush(10))
        await stage.reached(gate)
        await face.put(2, "b")
        gate.open()
        assert (await flushing).complete
        assert sink.rows == {1: "a"}
        assert strategy.depth() == 1

    stage.play(body)


def test_close_drains_and_refuses_later_puts(stage: Stage) -> None:
    sink = Sink()
    strategy = over(stage, sink)

    async def body() -> None:
        face = stage.face(strategy)
        await face.put_many({1: "a", 2: "b"})
        closed = await face.close(5)
        assert closed.complete
        assert closed.applied == 2
        assert sink.rows == {1: "a", 2: "b"}
        for call in (face.put(3, "c"), face.put_many({3: "c"})):
            with pytest.raises(WriteBackClosed):
                await call
        assert (await face.close(5)).complete
        assert sink.rows == {1: "a", 2: "b"}

    stage.play(body)


def test_close_does_not_wait_longer_than_told_for_a_sink_that_hangs(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    strategy = over(stage, sink)

    async def body() -> None:
        face = stage.face(strategy)
        gate = sink.gate = Gate()
        await face.put(1, "a")
        began = time.monotonic()
        closed = await face.close(0.2)
        took = time.monotonic() - began
        gate.open()
        assert not closed.complete
        assert took < 2

    stage.play(body)


def test_rate_bounds_the_batches_per_second(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    strategy = over(stage, sink, batch=1, rate=50)

    async def body() -> None:
        face = stage.face(strategy)
        began = time.monotonic()
        for n in range(6):
            await face.put(n, n)
        assert (await face.flush(10)).complete
        assert time.monotonic() - began >= 5 / 50

    stage.play(body)


def test_after_a_flush_no_process_keeps_the_old_value(open_shared: Opener) -> None:
    """A load of another process that began before the flush may not fill after it."""
    stage, rows = Stage("plain", open_shared), Rows({1: "old"})
    options = {"delay": 3600, "wait": 0.05}
    one, two = (
        stage.make("write-back", rows, cache=stage.open(coherence="strict"), **options)
        for _ in range(2)
    )

    async def body() -> None:
        gate = rows.gates["load"] = Gate()
        late = stage.start(stage.face(two).get(1))
        await stage.reached(gate)
        one.put(1, "new")
        assert one.flush(5).complete
        gate.open()
        assert await late == "old"
        assert [two.get(1), one.get(1)] == ["new", "new"]
        assert two.get_many([1]) == {1: "new"}

    stage.play(body)


def test_a_sink_object_gets_operations_with_versions_that_grow(embedded: Stage) -> None:
    seen: list[Op] = []

    class Ledger:
        def write_many(self, ops: Sequence[Op]) -> None:
            seen.extend(ops)

    stage = embedded
    strategy = WriteBack(
        stage.open(), key="row:{id}", log="memory", sink=Ledger(), batch=1, load=lambda id: None
    )

    async def body() -> None:
        face = stage.face(strategy)
        for n in range(5):
            await face.put("same", n)
            await face.flush(5)
        await face.delete("same")
        assert (await face.flush(5)).complete
        versions = [op.version for op in seen]
        assert versions == sorted(set(versions))
        assert [op.kind for op in seen] == [OpKind.PUT] * 5 + [OpKind.DELETE]
        assert [op.value for op in seen] == [0, 1, 2, 3, 4, None]

    stage.play(body)


def test_counts_show_what_waits_and_what_was_parked(embedded: Stage) -> None:
    stage, sink = embedded, Sink()
    sink.refuses = {1}
    cache = stage.open()
    strategy = over(stage, sink, cache, stop=stop_after_attempt(1))

    async def body() -> None:
        face = stage.face(strategy)
        await face.put_many({1: "a", 2: "b"})
        stats = cache.stats()
        assert stats.unwritten == 2
        assert stats.oldest_unwritten is not None
        assert stats.oldest_unwritten >= 0
        await face.flush(5)
        stats = cache.stats()
        assert (stats.unwritten, stats.oldest_unwritten, stats.dead_letters) == (0, None, 1)
        assert stats.counts["writes_applied"] == 1

    stage.play(body)


def test_the_log_must_be_named_and_options_make_sense() -> None:
    with Cache() as cache, pytest.raises(ConfigurationError, match=r"sqlite:///orders\.log"):
        WriteBack(cache, key="row:{id}")
    with pytest.raises(ConfigurationError, match="neither"):
        WriteBack(key="row:{id}", log="nowhere")
    with pytest.raises(ValueError):
        WriteBack(key="row:{id}", log="memory", batch=0)
    with pytest.raises(ValueError):
        WriteBack(key="row:{id}", log="memory", delay=-1)
    assert Retrying(attempts=2).attempts == 2


def test_concurrent_puts_of_one_key_end_alike_in_cache_and_source() -> None:
    rows = Rows()
    with Cache() as cache:
        strategy = WriteBack(
            cache, key="row:{id}", log="memory", delay=0.001, batch=2,
            load=rows.load, store_many=rows.store_many,
        )  # fmt: skip
        start = threading.Barrier(8)

        def writer(me: int) -> None:
            start.wait()
            for n in range(100):
                strategy.put(n % 5, (me, n))

        threads = [threading.Thread(target=writer, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shown = strategy.get_many(range(5))
        assert strategy.flush(10).complete
        assert rows.rows == shown
