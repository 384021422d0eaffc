"""What the user's functions raise reaches the caller as it was, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest
from stage import SOURCE_FIRST, STRATEGIES, Gate, Opener, Rows, Stage

from cachekit import Cache, ReadThrough

every_strategy = pytest.mark.parametrize("word", STRATEGIES)
source_first = pytest.mark.parametrize("word", SOURCE_FIRST)


class Refused(Exception):
    """A source's own error, with state that must survive."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Base(BaseException):
    """Neither an Exception nor known to anybody."""


ERRORS = [KeyError("k"), Refused(7), RecursionError("deep"), MemoryError(), LookupError()]


@every_strategy
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_loaders_error_passes_unwrapped_and_the_next_read_loads(
    embedded: Stage, word: str, error: BaseException
) -> None:
    _loader_error(embedded, word, error)


@pytest.mark.parametrize("word", ["read-through", "cache-aside", "write-back"])
def test_a_loaders_error_passes_unwrapped_on_every_backend(stage: Stage, word: str) -> None:
    _loader_error(stage, word, Refused(3))


def _loader_error(stage: Stage, word: str, error: BaseException) -> None:
    rows = Rows({1: "one", 2: "two"})
    strategy = stage.make(word, rows)

    async def body() -> None:
        face = stage.face(strategy)
        rows.errors["load"] = [error]
        with pytest.raises(type(error)) as caught:
            await face.get(1)
        assert caught.value is error
        assert caught.value.__context__ is None, "our own errors must not show as its context"
        assert caught.value.__cause__ is None
        assert await face.get(1) == "one"
        rows.errors["load"] = [error]
        with pytest.raises(type(error)) as caught:
            await face.get_many([1, 2])
        assert caught.value is error
        assert await face.get_many([1, 2]) == {1: "one", 2: "two"}

    stage.play(body)


@every_strategy
def test_stop_iteration_from_a_plain_loader_passes_the_plain_face(word: str) -> None:
    opener = Opener("memory", None)
    stage, error = Stage("plain", opener), StopIteration("end")
    rows = Rows({1: "one"})
    strategy = stage.make(word, rows)
    rows.errors["load"] = [error]
    with pytest.raises(StopIteration) as caught:
        strategy.get(1)
    assert caught.value is error
    rows.errors["load"] = [error]
    with pytest.raises(StopIteration):
        strategy.get_many([1])
    assert strategy.get(1) == "one"
    opener.close()


@source_first
def test_stop_iteration_from_a_writer_passes_the_plain_face(word: str) -> None:
    opener = Opener("memory", None)
    stage, error = Stage("plain", opener), StopIteration("end")
    rows = Rows({1: "one"})
    strategy = stage.make(word, rows)
    assert strategy.get(1) == "one"
    rows.errors["store"] = [error]
    with pytest.raises(StopIteration) as caught:
        strategy.put(1, "two")
    assert caught.value is error
    assert strategy.get(1) == "one"
    opener.close()


@source_first
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_refused_write_raises_its_error_and_leaves_no_new_value(
    embedded: Stage, word: str, error: BaseException
) -> None:
    _refused_write(embedded, word, error)


@source_first
def test_a_refused_write_leaves_no_new_value_on_any_backend(stage: Stage, word: str) -> None:
    _refused_write(stage, word, Refused(9))


def _refused_write(stage: Stage, word: str, error: BaseException) -> None:
    rows = Rows({1: "old", 2: "two"})
    strategy = stage.make(word, rows, given=("load", "store", "store_many", "delete"))

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get_many([1, 2]) == {1: "old", 2: "two"}
        for operation, call in {
            "store" if word != "cache-aside" else "store_many": lambda: face.put(1, "never"),
            "store_many": lambda: face.put_many({1: "never", 2: "never"}),
            "delete": lambda: face.delete(1),
        }.items():
            rows.errors = {operation: [error]}
            with pytest.raises(type(error)) as caught:
                await call()
            assert caught.value is error
            assert await face.get(1) == "old"
            assert await face.get_many([1, 2]) == {1: "old", 2: "two"}
        # Nothing stays in the way: the key is cached again.
        rows.calls.clear()
        assert await face.get(1) == "old"
        assert rows.calls == []

    stage.play(body)


@source_first
@pytest.mark.parametrize(
    "raised",
    [TimeoutError, ConnectionResetError, sqlite3.OperationalError, asyncio.CancelledError],
)
def test_a_write_of_unknown_outcome_that_lands_late_leaves_no_older_value(
    stage: Stage, word: str, raised: type[BaseException]
) -> None:
    _lands_late(stage, word, raised)


@source_first
@pytest.mark.parametrize("raised", [Base, KeyboardInterrupt, SystemExit])
def test_an_interrupted_plain_write_that_lands_late_leaves_no_older_value(
    open_cache: Opener, word: str, raised: type[BaseException]
) -> None:
    stage = Stage("plain", open_cache)
    rows = Rows({1: "old"})
    strategy = stage.make(word, rows, cache=stage.open(coherence="strict"))
    assert strategy.get(1) == "old"
    rows.errors = {"store": [raised()]}
    with pytest.raises(raised):
        strategy.put(1, "new")
    assert [strategy.get(1), strategy.get(1)] == ["old", "old"]
    rows.rows[1] = "new"
    assert strategy.get(1) == "new"


def _lands_late(stage: Stage, word: str, raised: type[BaseException]) -> None:
    """The source says "I do not know", readers come, then the write lands after all."""
    rows = Rows({1: "old"})
    strategy = stage.make(
        word,
        rows,
        cache=stage.open(coherence="strict"),
        given=("load", "store_many") if word == "cache-aside" else ("load", "store"),
    )

    async def body() -> None:
        face = stage.face(strategy)
        assert await face.get(1) == "old"
        rows.errors = {"store": [raised()], "store_many": [raised()]}
        with pytest.raises(raised):
            await face.put(1, "new")
        assert await face.get(1) == "old"  # it has not landed yet
        assert await face.get_many([1]) == {1: "old"}
        rows.rows[1] = "new"  # now it has
        assert await face.get(1) == "new"
        assert await face.get_many([1]) == {1: "new"}

    stage.play(body)


@pytest.mark.parametrize("word", ["write-through", "cache-aside"])
def test_the_block_of_an_unknown_outcome_ends_after_its_write_lease(
    stage: Stage, word: str
) -> None:
    rows = Rows({1: "old"})
    strategy = stage.make(word, rows, write_lease=1.0, wait=0.05)

    async def body() -> None:
        face = stage.face(strategy)
        rows.errors["store"] = [TimeoutError()]
        with pytest.raises(TimeoutError):
            await face.put(1, "new")
        assert [await face.get(1), await face.get(1)] == ["old", "old"]
        assert rows.count("load") == 2  # blocked: everybody loads, nobody fills

        async def cached() -> bool:
            before = rows.count("load")
            await face.get(1)
            await face.get(1)
            return rows.count("load") <= before + 1

        for _ in range(200):
            if await cached():
                break
            await asyncio.sleep(0.05)
        assert await cached()

    stage.play(body)


@source_first
def test_a_cancelled_write_leaves_no_older_value_when_it_lands(
    open_shared: Opener, word: str
) -> None:
    stage = Stage("async", open_shared)
    rows = Rows({1: "old"})
    writer = stage.make(word, rows, cache=stage.open(coherence="strict"))
    reader = stage.make(word, rows, cache=stage.open(coherence="strict"))

    async def body() -> None:
        gate = rows.gates["store"] = Gate()
        task = stage.start(stage.face(writer).put(1, "new"))
        await stage.reached(gate)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for each in (writer, reader):
            assert await stage.face(each).get(1) == "old"
        gate.open()
        await stage.until(lambda: rows.rows[1] == "new")
        for each in (writer, reader):
            assert await stage.face(each).get(1) == "new"

    stage.play(body)


def test_an_error_reaches_all_who_wait_for_the_load_and_is_not_cached(stage: Stage) -> None:
    gate, error, calls = Gate(), Refused(1), []

    def load(id: int) -> str:
        calls.append(id)
        if len(calls) == 1:
            gate.wait_at()
            raise error
        return "fine"

    cache = stage.open()
    strategy = ReadThrough(cache, key="row:{id}", load=stage.source(load))

    async def body() -> None:
        face = stage.face(strategy)
        first = stage.start(face.get(1))
        await stage.reached(gate)
        others = [stage.start(face.get(1)) for _ in range(8)]
        await stage.until(lambda: _waiting(cache, "row:1") == 8)
        gate.open()
        for task in (first, *others):
            with pytest.raises(Refused) as caught:
                await task
            assert caught.value is error
        assert len(calls) == 1
        assert await face.get(1) == "fine"

    stage.play(body)


def test_keyboard_interrupt_in_a_loader_is_not_swallowed_and_frees_the_key() -> None:
    rows = Rows({1: "one"})
    with Cache() as cache:
        strategy = ReadThrough(cache, key="row:{id}", load=rows.load)
        rows.errors["load"] = [KeyboardInterrupt()]
        with pytest.raises(KeyboardInterrupt):
            strategy.get(1)
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(strategy.get(1)), daemon=True)
        thread.start()
        thread.join(5)
        assert found == ["one"]


def _waiting(cache: Cache, ident: str) -> int:
    worlds = cache.parts.runtime.worlds()
    return sum(f.joined for w in worlds for f in w.flights._flights.values() if f.ident == ident)
