"""Flush and close of a cache with several write-back strategies: one time for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachekit import Cache, WriteBack
from cachekit.strategies import closing, endings

ILL = 5
T = 0.4  # seconds given; one after another they would take ILL * T
LONG = 20.0


class Street:
    """A cache with sources that hang, or are down, before some that are well."""

    def __init__(self, log: str, tmp_path: Path, *, is_async: bool = False) -> None:
        self.cache = Cache()
        self.rows: dict[str, dict[int, Any]] = {}
        self.is_async = is_async
        self.log = log if log == "memory" else f"sqlite:///{tmp_path}/log"
        self.open = threading.Event()
        self.ill = [self.book(f"ill{n}", self.down if n % 2 else self.hang) for n in range(ILL)]
        self.well = [self.book(f"well{n}") for n in range(2)]

    def book(self, name: str, fails: Callable[[], None] | None = None) -> WriteBack:
        kept = self.rows[name] = {}

        def store_many(rows: dict[int, Any]) -> None:
            if fails is not None:
                fails()
            kept.update(rows)

        async def store_many_async(rows: dict[int, Any]) -> None:
            if fails == self.hang:
                await asyncio.sleep(LONG)
            store_many(rows)

        return WriteBack(
            self.cache,
            key=name + ":{id}",
            name=name,
            store_many=store_many_async if self.is_async else store_many,
            log=self.log,
            delay=3600,
            batch=10,
        )

    def hang(self) -> None:
        self.open.wait(LONG)

    def down(self) -> None:
        raise ConnectionError("down")

    async def fill(self) -> None:
        for book in (*self.ill, *self.well):
            for n in range(15):
                await book.aio.put(n, n)

    def check(self, seconds: float) -> None:
        """What was well was written, in about the time that was given."""
        assert seconds < 0.6 * ILL * T
        assert all(self.rows[book.name] == {n: n for n in range(15)} for book in self.well)


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Callable[..., Street]]:
    made: list[Street] = []

    def make(log: str, **options: Any) -> Street:
        made.append(Street(log, tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.open.set()
        for book in (*one.ill, *one.well):
            book.close(0.0)


def took(verb: Callable[[], Any]) -> tuple[float, Any]:
    began = time.monotonic()
    found = verb()
    return time.monotonic() - began, found


async def took_async(verb: Coroutine[Any, Any, Any]) -> tuple[float, Any]:
    began = time.monotonic()
    found = await verb
    return time.monotonic() - began, found


def plain(street: Street) -> Street:
    asyncio.run(street.fill())
    return street


@pytest.mark.parametrize("log", ["memory", "sqlite", "memory, no thread starts"])
def test_flush_takes_its_time_for_all_together_and_those_that_are_well_are_written(
    street: Callable[..., Street], log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _, threadless = log.partition(", ")
    here = plain(street(log))
    if threadless:  # as at the end of the interpreter
        monkeypatch.setattr(closing._Call, "start", lambda self, name: False)
    seconds, told = took(lambda: here.cache.flush(T))
    here.check(seconds)
    assert [flushed.complete for flushed in told] == [False] * ILL + [True] * 2
    assert [flushed.left for flushed in told] == [15] * ILL + [0] * 2
    here.open.set()


@pytest.mark.parametrize("log", ["memory", "sqlite"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain sink", "async sink"])
def test_flush_of_the_async_face_takes_its_time_for_all_together(
    street: Callable[..., Street], is_async: bool, log: str
) -> None:
    here = street(log, is_async=is_async)

    async def main() -> None:
        await here.fill()
        seconds, told = await took_async(here.cache.aio.flush(T))
        here.check(seconds)
        assert [flushed.complete for flushed in told] == [False] * ILL + [True] * 2

    asyncio.run(main())


@pytest.mark.parametrize("log", ["memory", "sqlite"])
@pytest.mark.parametrize("threads", ["threads", "no thread starts"])
def test_close_takes_its_time_for_all_together_and_tells_what_is_left(
    street: Callable[..., Street],
    log: str,
    threads: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = plain(street(log))
    if threads == "no thread starts":
        monkeypatch.setattr(closing._Call, "start", lambda self, name: False)
    seconds, _ = took(lambda: here.cache.close(T))
    here.check(seconds - (0.2 * ILL if threads == "no thread starts" else 0.0))  # each its least
    lost = [r for r in caplog.records if "15 writes lost" in r.message]
    kept = [r for r in caplog.records if "15 writes are left in the log" in r.message]
    assert (len(lost), len(kept)) == ((ILL, 0) if log == "memory" else (0, ILL))
    assert {r.levelno for r in lost} <= {logging.ERROR}


@pytest.mark.parametrize("log", ["memory", "sqlite"])
def test_close_of_the_async_face_takes_its_time_for_all_together_and_tells_what_is_left(
    street: Callable[..., Street], log: str, caplog: pytest.LogCaptureFixture
) -> None:
    here = street(log, is_async=True)

    async def main() -> float:
        await here.fill()
        return (await took_async(here.cache.aio.close(T)))[0]

    here.check(asyncio.run(main()))
    what = "15 writes lost" if log == "memory" else "15 writes are left in the log"
    assert len([r for r in caplog.records if what in r.message]) == ILL


@pytest.mark.parametrize("log", ["memory", "sqlite"])
@pytest.mark.parametrize("where", ["after the loop", "in another loop"])
def test_close_writes_what_waits_for_async_sinks_whose_loop_has_ended(
    street: Callable[..., Street], log: str, where: str
) -> None:
    here = street(log, is_async=True)

    async def another() -> float:
        return took(lambda: here.cache.close(T))[0]

    asyncio.run(here.fill())
    after = where == "after the loop"
    here.check(took(lambda: here.cache.close(T))[0] if after else asyncio.run(another()))


def test_close_inside_the_loop_of_an_async_sink_does_not_wait_for_it(
    street: Callable[..., Street],
) -> None:
    """The loop can not turn meanwhile; what waits is written when it does."""
    here = street("memory", is_async=True)

    async def main() -> None:
        await here.fill()
        seconds, _ = took(lambda: here.cache.close(LONG))
        assert seconds < LONG / 4
        for _ in range(2000):
            if all(len(here.rows[book.name]) == 15 for book in here.well):
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError(here.rows)
        assert (await here.well[0].aio.close(LONG)).complete

    asyncio.run(main())


# -- from inside, in the middle, and by several


@pytest.mark.parametrize("verb", ["flush", "close"])
def test_a_sink_that_ends_its_own_cache_does_not_wait_for_itself(verb: str) -> None:
    took_: list[float] = []
    with Cache() as cache:

        def store_many(rows: dict[int, int]) -> None:
            took_.append(took(lambda: getattr(cache, verb)(LONG))[0])

        def also(rows: dict[int, int]) -> None:
            took_.append(0.0)

        mine = WriteBack(cache, key="a:{id}", store_many=store_many, log="memory", delay=0)
        WriteBack(cache, key="b:{id}", store_many=also, log="memory", delay=3600).put(1, 1)
        mine.put(1, 1)
        until = time.monotonic() + LONG
        while len(took_) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(took_) == 2
        assert max(took_) < LONG / 4


def test_the_first_error_of_a_flush_comes_when_all_have_ended() -> None:
    written: list[int] = []
    with Cache() as cache:
        broken = WriteBack(cache, key="a:{id}", store_many=print, log="memory")
        whole = WriteBack(cache, key="b:{id}", store_many=written.extend, log="memory", delay=3600)
        broken.flush = _raises  # type: ignore[method-assign]
        whole.put(1, 1)
        with pytest.raises(ZeroDivisionError):
            cache.flush(LONG)
        assert written == [1]


def _raises(*_: object) -> Any:
    raise ZeroDivisionError


def test_an_error_of_one_part_leaves_no_other_open() -> None:
    cache = Cache()
    broken = WriteBack(cache, key="a:{id}", store_many=print, log="memory")
    broken.close = _raises  # type: ignore[method-assign]
    cache.parts.runtime.pool().submit(int).result()
    with pytest.raises(ZeroDivisionError):
        cache.close()
    assert cache.parts.runtime._pool is None
    del broken.close  # type: ignore[method-assign]
    cache.close()  # asked again, since the first came to no end
    with pytest.raises(Exception, match="closed"):
        broken.put(1, 1)


def test_close_does_not_wait_for_a_strategy_that_does_not_keep_to_its_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache, gate = Cache(), threading.Event()
    late = WriteBack(cache, key="a:{id}", name="late", store_many=print, log="memory")
    late.close = lambda timeout: gate.wait(LONG)  # type: ignore[assignment, method-assign]
    late.flush = lambda timeout: gate.wait(LONG)  # type: ignore[assignment, method-assign]
    WriteBack(cache, key="b:{id}", store_many=print, log="memory")
    seconds, (told, _) = took(lambda: cache.flush(0.1))
    assert seconds < LONG / 4
    assert not told.complete
    seconds, _ = took(lambda: cache.close(0.1))
    assert seconds < LONG / 4
    assert any("late: not closed in its time" in r.message for r in caplog.records)
    gate.set()


def test_close_does_not_wait_for_work_in_the_pool_that_hangs() -> None:
    cache, gate = Cache(), threading.Event()
    cache.parts.runtime.pool().submit(gate.wait, LONG)
    assert took(lambda: cache.close(0.1))[0] < LONG / 4
    gate.set()


def test_who_closes_while_another_thread_does_waits_for_that() -> None:
    entered, gate = threading.Event(), threading.Event()
    rows: dict[int, int] = {}

    def store_many(given: dict[int, int]) -> None:
        entered.set()
        gate.wait(LONG)
        rows.update(given)

    cache = Cache()
    WriteBack(cache, key="a:{id}", store_many=store_many, log="memory", delay=3600).put(1, 1)
    first = threading.Thread(target=cache.close, args=(LONG,))
    first.start()
    assert entered.wait(LONG)
    seconds, _ = took(lambda: cache.close(0.2))  # its own time, not the other's
    assert 0.2 <= seconds < LONG / 4
    second = threading.Thread(target=cache.close, args=(LONG,))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.set()
    second.join(LONG)
    first.join(LONG)
    assert rows == {1: 1}
    assert took(cache.close)[0] < LONG / 4


def test_a_sink_that_closes_its_cache_while_another_thread_does_is_not_waited_for_in_a_circle() -> (
    None
):
    took_: list[float] = []
    entered, gate = threading.Event(), threading.Event()
    cache = Cache()

    def store_many(rows: dict[int, int]) -> None:
        entered.set()
        gate.wait(LONG)
        took_.append(took(lambda: cache.close(LONG))[0])

    WriteBack(cache, key="a:{id}", store_many=store_many, log="memory", delay=0).put(1, 1)
    assert entered.wait(LONG)
    closer = threading.Thread(target=cache.close, args=(LONG,))
    closer.start()
    while cache._closing._closer is None:
        time.sleep(0.001)
    gate.set()
    closer.join(LONG / 2)
    assert not closer.is_alive()
    assert took_[0] < LONG / 4


def test_background_loads_and_strategies_of_a_loop_share_the_time_of_close(
    street: Callable[..., Street],
) -> None:
    here = street("memory", is_async=True)

    async def main() -> float:
        await here.fill()
        here.cache.parts.runtime.asyncio().spawn(lambda: asyncio.sleep(LONG), "load")
        return (await took_async(here.cache.aio.close(1.0)))[0]

    assert asyncio.run(main()) < 1.9


def test_a_close_that_was_broken_off_can_be_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: dict[int, int] = {}
    cache = Cache()
    book = WriteBack(cache, key="a:{id}", store_many=rows.update, log="memory", delay=3600)
    book.put(1, 1)
    with monkeypatch.context() as patched:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(book, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.close()
    assert rows == {}
    cache.close()
    assert rows == {1: 1}


def test_a_handler_amid_the_caches_own_work_closes_it_just_after() -> None:
    rows: dict[int, int] = {}
    cache = Cache()
    book = WriteBack(cache, key="a:{id}", store_many=rows.update, log="memory", delay=3600)
    WriteBack(cache, key="b:{id}", store_many=print, log="memory").put(1, 1)
    book.put(1, 1)
    with cache.parts.near.section:
        seconds, _ = took(lambda: cache.close(LONG))
        assert seconds < LONG / 4
        seconds, told = took(lambda: cache.flush(LONG))
        assert seconds < LONG / 4
        assert not any(flushed.complete for flushed in told)
    end = time.monotonic() + LONG  # in a thread of its own
    while rows != {1: 1}:
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(Exception, match="closed"), contextlib.closing(cache):
        book.put(2, 2)


def test_a_strategy_that_is_dropped_leaves_no_turn_at_the_exit() -> None:
    gc.collect()
    before = set(endings._watches)
    cache = Cache()
    for n in range(20):
        WriteBack(cache, key=f"k{n}:{{id}}", store_many=print, log="memory")
    del cache
    gc.collect()
    assert set(endings._watches) <= before
