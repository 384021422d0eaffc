"""Calls from where nobody expects them: the sink, the near tier's own work, other loops."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from tenacity import stop_after_attempt

from cachekit import Cache, Flushed, WriteBack
from cachekit.errors import WriteBackClosed
from cachekit.protocols import Op

LONG = 15.0
TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")


def until(seen: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not seen():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


# -- the sink ----------------------------------------------------------------------------


def test_an_async_sink_that_flushes_its_own_queue_is_answered_at_once() -> None:
    told: list[Flushed] = []
    rows: dict[int, int] = {}

    async def sink(ops: Sequence[Op]) -> None:
        told.append(await asyncio.ensure_future(book.aio.flush()))
        rows.update({op.id: op.value for op in ops})

    book = WriteBack(Cache(), key="k:{id}", log="memory", sink=sink, delay=0.01)

    async def main() -> None:
        await book.aio.put(1, 1)
        assert (await book.aio.flush(LONG)).complete
        await book.aio.close()

    asyncio.run(asyncio.wait_for(main(), LONG))
    assert rows == {1: 1}
    assert not told[0].complete


def test_an_async_sink_works_in_nobodys_context() -> None:
    seen: list[str] = []

    async def sink(ops: Sequence[Op]) -> None:
        seen.append(TENANT.get())

    book = WriteBack(Cache(), key="k:{id}", log="memory", sink=sink, delay=0.01)

    async def main() -> None:
        TENANT.set("first")
        await book.aio.put(1, 1)
        await book.aio.close()

    asyncio.run(main())
    assert seen == ["nobody"]


def test_with_copies_each_try_has_the_value_as_it_was_put() -> None:
    rows: dict[int, Any] = {}
    given: list[Any] = []

    def sink(ops: Sequence[Op]) -> None:
        for op in ops:
            given.append(op.value.pop("name"))
            if len(given) == 1:
                raise ConnectionError("lost")
            rows[op.id] = (given[-1], op.value)

    book = WriteBack(Cache(), key="k:{id}", log="memory", sink=sink, delay=0.01, copy=True)
    book.put(1, {"name": "nut", "stock": 3})
    assert book.flush(LONG).complete
    assert rows == {1: ("nut", {"stock": 3})}
    assert book.get(1) == {"name": "nut", "stock": 3}
    assert book.dead() == []
    book.close()


# -- the near tier's own work ------------------------------------------------------------

ABBA = """
import faulthandler, gc, random, signal, sys, threading, time, cachekit
mode = sys.argv[1]
faulthandler.dump_traceback_later(20, exit=True)
cache, rows = cachekit.Cache(max_entries=1000), {}
book = cachekit.WriteBack(
    cache, key="k:{id}", load=lambda id: rows.get(id, 0), store_many=rows.update, log="memory",
    delay=0.001, batch=200,
)
stop, calls = False, 0

@cache.cached(key="f:{n}")
def f(n):
    return n

def put(seed):
    pick = random.Random(seed)
    while not stop:
        id = pick.randrange(3000)
        book.get(id)
        book.put(id, id)

putters = [threading.Thread(target=put, args=(k,), daemon=True) for k in range(3)]
for putter in putters:
    putter.start()
busy = False

def handler(*_):
    global busy, calls
    if busy:
        return
    busy, calls = True, calls + 1
    {"stats": cache.stats, "depth": book.depth, "get": lambda: book.get(random.randrange(3000)),
     "cached": lambda: f(random.randrange(10**9)), "flush": lambda: book.flush(0.01)}[mode]()
    busy = False

class Noisy:
    def __init__(self):
        self.me = self
    def __del__(self):
        global calls
        calls += 1
        f(random.randrange(10**9))

if mode == "gc":
    gc.set_threshold(200)
else:
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
end = time.monotonic() + 2.5
while time.monotonic() < end:
    for _ in range(200):
        f(random.randrange(10**9))
        if mode == "gc":
            Noisy()
signal.setitimer(signal.ITIMER_REAL, 0)
stop = True
for putter in putters:
    putter.join()
assert calls > 50, calls
assert book.flush(10).complete
"""


@pytest.mark.parametrize("mode", ["stats", "depth", "get", "cached", "flush", "gc"])
def test_who_asks_from_inside_the_near_tier_waits_for_nobody(mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABBA, mode], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["flush", "close"])
def test_an_end_from_inside_the_near_tier_says_that_it_could_not_wait(verb: str) -> None:
    rows: dict[int, int] = {}
    cache = Cache()
    book = WriteBack(cache, key="k:{id}", log="memory", store_many=rows.update, delay=3600)
    book.put(1, 1)
    with cache.parts.near.section:
        told = getattr(book, verb)(LONG)
    assert (told.left, told.complete) == (1, False)
    assert told.errors
    if verb == "close":  # it is done as soon as that was left
        until(lambda: rows == {1: 1})
        with pytest.raises(WriteBackClosed):
            book.put(2, 2)
    else:
        assert book.flush(LONG).complete
        book.close()


START = """
import faulthandler, signal, sys
import cachekit
faulthandler.dump_traceback_later(20, exit=True)
inside = []

def handler(*_):
    book = inside and inside[0]
    if book:
        book.put(-1, 1)

signal.signal(signal.SIGALRM, handler)
cache = cachekit.Cache()
for n in range(600):
    rows = {}
    book = cachekit.WriteBack(cache, key=f"k{n}:{{id}}", log="memory", store_many=rows.update,
                              delay=0.001)
    inside[:] = [book]
    signal.setitimer(signal.ITIMER_REAL, 0.00001 + n % 25 * 0.00001)
    book.put(1, 1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    inside.clear()
    assert book.close(10).complete
    assert rows[1] == 1
"""


def test_a_put_from_a_handler_while_its_thread_starts_the_worker_waits_for_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# -- loops -------------------------------------------------------------------------------


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LONG)

    def end(self) -> None:
        async def cancel() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(cancel())
        self.stop()
        self.loop.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LONG)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["ends", "is closed", "stands still"])
@pytest.mark.parametrize("log", ["memory", "sqlite"])
def test_a_loop_that_lives_has_the_worker_of_one_that_does_not(
    how: str, log: str, tmp_path: Path
) -> None:
    rows: dict[int, int] = {}

    async def sink(ops: Sequence[Op]) -> None:
        rows.update({op.id: op.value for op in ops})

    where = "memory" if log == "memory" else f"sqlite:///{tmp_path}/q.log"
    book = WriteBack(Cache(), key="k:{id}", log=where, sink=sink, delay=0.3)
    first, second = Loop(), Loop()
    first.run(book.aio.put(1, 1))  # the worker is here
    if how == "ends":
        second.run(book.aio.put(2, 2))
        first.end()
    elif how == "is closed":  # with what runs in it
        second.run(book.aio.put(2, 2))
        first.stop()
        first.loop.close()
        del first
        gc.collect()
    else:
        until(lambda: 1 in rows)
        first.stop()
        second.run(book.aio.put(2, 2))
    until(lambda: rows == {1: 1, 2: 2})
    second.run(book.aio.put(3, 3))
    assert second.run(book.aio.flush(LONG)).complete
    assert rows[3] == 3
    second.run(book.aio.close())
    second.end()


def test_a_close_that_was_cancelled_is_finished_by_the_next_one() -> None:
    rows: dict[int, int] = {}
    may: asyncio.Event

    async def sink(ops: Sequence[Op]) -> None:
        await may.wait()
        rows.update({op.id: op.value for op in ops})

    book = WriteBack(Cache(), key="k:{id}", log="memory", sink=sink, delay=0.01, batch=2)

    async def main() -> None:
        nonlocal may
        may = asyncio.Event()
        for n in range(10):
            await book.aio.put(n, n)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await book.aio.close(LONG)
        may.set()
        assert (await book.aio.close(LONG)).complete

    asyncio.run(main())
    assert rows == {n: n for n in range(10)}


def test_a_flush_counts_what_was_accepted_before_it_and_nothing_else() -> None:
    may, begun = threading.Event(), threading.Event()

    def sink(ops: Sequence[Op]) -> dict[Any, Exception]:
        begun.set()
        assert may.wait(LONG)
        return {op.id: ValueError("bad") for op in ops if op.value == "bad"}

    book = WriteBack(
        Cache(),
        key="k:{id}",
        log="memory",
        sink=sink,
        delay=0.01,
        batch=1,
        stop=stop_after_attempt(1),
    )
    for n in range(3):
        book.put(n, "good")
    assert begun.wait(LONG)
    told: list[Flushed] = []
    flush = threading.Thread(target=lambda: told.append(book.flush(LONG)))
    flush.start()
    time.sleep(0.1)  # it knows now what it waits for
    for n in range(3, 8):
        book.put(n, "bad")
    may.set()
    flush.join(LONG)
    assert told == [Flushed(applied=3, parked=0, left=0)]
    until(lambda: len(book.dead()) == 5)
    book.put(9, "bad")
    told.append(book.flush(LONG))
    assert (told[1].applied, told[1].parked, told[1].errors) == (0, 1, ["ValueError: bad"])
    book.close()
