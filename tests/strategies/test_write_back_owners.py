"""Who may write a batch, and for how long: leases, workers that end in every way, event loops that
go, processes that only put. Two books over one file stand for two processes."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from durable_books import (
    LONG,
    POOLED,
    QUEUE,
    Cut,
    Fence,
    Ledger,
    Shelf,
    count,
    shows,
    wait_for,
)  # fmt: skip

from cachekit import Retrying
from cachekit.logs.sqlite import SQLiteLog
from cachekit.protocols import Op
from cachekit.strategies.endings import last_flush


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with Shelf(tmp_path) as shelf:
        yield shelf


LOGS = ("memory", "sqlite")


# -- leases


def test_no_batch_is_delivered_beyond_a_lease_that_could_not_be_renewed(shelf: Shelf) -> None:
    """A process is cut off from source and log; another one takes over, and writes something
    newer; then the first gets its source back before its log."""
    source = Ledger()
    cut, down = Cut(SQLiteLog(shelf.path, QUEUE)), threading.Event()
    tries: list[str] = []

    def write_if_up(ops: Sequence[Op]) -> None:
        tries.append("down" if down.is_set() else "up")
        if down.is_set():
            raise ConnectionError("no route to the source")
        source.write_many(ops)

    patient = {"delay": 0.01, "lease": 0.6, "retry": Retrying(base=0.01, cap=0.03)}
    mine = shelf.cache()
    book = shelf.book(write_if_up, mine, log=cut, **patient)
    book.put(0, "warm")
    assert book.flush(LONG).complete
    down.set()
    book.put(1, "old")
    wait_for(lambda: "down" in tries, "the first never tried")
    cut.off = True
    heir = shelf.book(source.write_many, **patient)
    heir.put(1, "new")
    assert heir.flush(LONG).complete
    assert source.rows[1] == "new"
    down.clear()
    before = len(tries)
    wait_for(lambda: count(mine, "log_lost") > 0 or len(tries) > before)
    cut.off = False
    book.put(2, "later")
    assert book.flush(LONG).complete
    assert source.rows == {0: "warm", 1: "new", 2: "later"}
    assert [pair for pair in source.taken if pair[0] == 1][-1] == (1, "new")


def test_a_sink_that_takes_longer_than_the_lease_ends_though_another_wants_the_log(
    shelf: Shelf,
) -> None:
    source, begun = Ledger(), threading.Event()

    def slow(ops: Sequence[Op]) -> None:
        begun.set()
        time.sleep(1.2)
        source.write_many(ops)

    one, two = (shelf.book(slow, delay=0.01, lease=0.4) for _ in range(2))
    one.put(1, "a")
    assert begun.wait(LONG)
    two.put(2, "b")
    assert one.flush(LONG).complete
    assert two.flush(LONG).complete
    assert source.rows == {1: "a", 2: "b"}
    # A machine that stops a thread for longer than the lease may cost a take-over.
    assert len(source.taken) <= 4


def test_ends_wait_for_no_other_process_that_may_write_in_an_hour(shelf: Shelf) -> None:
    source = Ledger()
    owner, other = shelf.book(source.write_many), shelf.book(source.write_many)
    owner.put(1, "a")
    assert owner.flush(LONG).complete  # and owns the queue from now on
    other.put(2, "b")
    began = time.monotonic()
    closed = other.close(30)
    assert time.monotonic() - began < 15
    assert (closed.left, closed.complete) == (1, False)
    assert owner.get(2) == "b"
    assert owner.flush(LONG).complete
    assert source.rows == {1: "a", 2: "b"}


def test_the_async_end_waits_for_no_other_process_either(shelf: Shelf) -> None:
    source = Ledger()

    async def write_many(ops: Sequence[Op]) -> None:
        source.write_many(ops)

    owner, other = shelf.book(source.write_many), shelf.book(write_many)
    owner.put(1, "a")
    assert owner.flush(LONG).complete

    async def main() -> None:
        await other.aio.put(2, "b")
        async with asyncio.timeout(15):
            assert (await other.aio.close(30)).left == 1

    asyncio.run(main())
    assert owner.flush(LONG).complete
    assert source.rows == {1: "a", 2: "b"}


@pytest.mark.parametrize("world", ["plain", "async"])
def test_a_process_that_is_not_to_work_writes_nothing_whatever_it_is_asked(
    shelf: Shelf, world: str
) -> None:
    source = Ledger()
    putter = shelf.book(source.write_many, worker=False, delay=0)

    async def use() -> list[int]:
        await putter.aio.put_many({1: "a", 2: "b"})
        return [(await putter.aio.flush(0.2)).left, (await putter.aio.close(0.2)).left]

    if world == "plain":
        putter.put_many({1: "a", 2: "b"})
        left = [putter.flush(0.2).left, putter.close(0.2).left]
    else:
        left = asyncio.run(use())
    last_flush(putter)  # as the end of the interpreter does
    assert (left, source.taken) == ([2, 2], [])
    worker = shelf.book(source.write_many)
    assert worker.flush(LONG).applied == 2
    assert source.rows == {1: "a", 2: "b"}


# -- workers that end


class _Stop(BaseException):
    """What a library ends its threads with."""


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("error", [SystemExit(3), _Stop()], ids=["SystemExit", "another"])
def test_a_worker_that_its_sink_ends_says_so_and_comes_back(
    shelf: Shelf, log: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    source, errors = Ledger(), [error]

    def write_many(ops: Sequence[Op]) -> None:
        if errors:
            raise errors.pop()
        source.write_many(ops)

    cache = shelf.cache()
    book = shelf.book(write_many, cache, **({"log": "memory"} if log == "memory" else {}))
    book.put(1, "a")
    flushed: list[Any] = []
    flushing = threading.Thread(target=lambda: flushed.append(book.flush()), daemon=True)
    flushing.start()
    flushing.join(LONG)
    assert [each.complete for each in flushed] == [True], "the flush never ended"
    assert (source.rows, book.dead()) == ({1: "a"}, [])
    assert count(cache, "worker_errors") == 1
    assert type(error).__name__ in caplog.text
    book.put(2, "b")
    assert book.flush(LONG).complete


@pytest.mark.parametrize("log", LOGS)
def test_a_worker_that_nobody_flushes_comes_back_too(shelf: Shelf, log: str) -> None:
    source, errors = Ledger(), [SystemExit(3)]

    def write_many(ops: Sequence[Op]) -> None:
        if errors:
            raise errors.pop()
        source.write_many(ops)

    options = {"log": "memory"} if log == "memory" else {}
    book = shelf.book(write_many, delay=0.01, **options)
    book.put(1, "a")
    wait_for(lambda: source.rows == {1: "a"}, "the worker did not come back")


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("end", ["flush", "close"])
def test_a_sink_that_waits_for_its_own_queue_is_not_waited_for(
    shelf: Shelf, log: str, end: str
) -> None:
    source, told = Ledger(), []

    def write_many(ops: Sequence[Op]) -> None:
        if not told:
            told.append(book.flush() if end == "flush" else book.close(3 * LONG))
        source.write_many(ops)

    options = {"log": "memory"} if log == "memory" else {}
    book = shelf.book(write_many, delay=0.01, **options)
    book.put(1, "a")
    wait_for(lambda: source.rows == {1: "a"}, "the sink waits for itself")
    assert (told[0].left, told[0].complete) == (1, False)


@pytest.mark.parametrize("log", LOGS)
def test_a_worker_is_not_ended_by_what_its_sink_cancelled(shelf: Shelf, log: str) -> None:
    """A driver cancels its own futures: a pool that is closed, a connection that is made anew."""
    source, tries = Ledger(), []

    async def write_many(ops: Sequence[Op]) -> None:
        tries.append(len(ops))
        if len(tries) == 1:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        source.write_many(ops)

    options = {"log": "memory"} if log == "memory" else {}
    book = shelf.book(write_many, delay=0.01, **options)

    async def main() -> None:
        await book.aio.put(1, "a")
        await shows(lambda: bool(source.rows))  # and nobody puts or flushes any more
        assert (await book.aio.close(LONG)).complete

    asyncio.run(main())
    assert (source.rows, book.dead()) == ({1: "a"}, [])


def test_what_can_not_be_written_while_the_interpreter_ends_is_left_and_not_parked(
    shelf: Shelf,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", POOLED, shelf.url, QUEUE],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "10 writes are left" in done.stderr
    assert shelf.letters() == []
    source = Ledger()
    heir = shelf.book(source.write_many)
    assert heir.flush(LONG).complete
    assert source.rows == {n: n for n in range(10)}


# -- loops that go


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_batch_of_a_loop_that_was_closed_under_it_is_written_by_the_next(
    shelf: Shelf, log: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, held, hangs = Ledger(), [], [True]

    async def write_many(ops: Sequence[Op]) -> None:
        if hangs:
            held.append(asyncio.get_running_loop().create_future())  # as a driver keeps its own
            await held[-1]
        source.write_many(ops)

    options = {"log": "memory"} if log == "memory" else {}
    book = shelf.book(write_many, delay=0.01, **options)

    async def begin() -> None:
        await book.aio.put(1, "a")
        await shows(lambda: bool(held))

    async def go_on() -> None:
        await book.aio.put(2, "b")
        flushed = await book.aio.flush(LONG)
        assert (flushed.left, flushed.complete) == (0, True)
        await book.aio.close(1)

    first = asyncio.new_event_loop()
    first.run_until_complete(begin())
    first.close()
    hangs.clear()
    asyncio.run(go_on())
    assert source.rows == {1: "a", 2: "b"}
    caplog.set_level(logging.CRITICAL, logger="asyncio")
    held.clear()
    gc.collect()


# -- who is who


def test_processes_with_logs_in_memory_do_not_fence_each_other_out(shelf: Shelf) -> None:
    fence = Fence()
    fence.errors = [ConnectionError("away")]
    books = [shelf.book(fence, log="memory", batch=2) for _ in range(3)]
    for n in range(12):
        books[n % 3].put(n, n)
    for book in books:
        flushed = book.flush(LONG)
        assert (flushed.left, flushed.parked) == (0, 0)
    assert fence.rows == {n: n for n in range(12)}
    assert len(fence.seen) == 3
    assert fence.refused == 0


@pytest.mark.parametrize("log", LOGS)
def test_every_delivery_of_a_lane_has_an_epoch_of_its_own(shelf: Shelf, log: str) -> None:
    fence = Fence()
    fence.errors = [ConnectionError("away"), ConnectionError("away")]
    options = {"log": "memory"} if log == "memory" else {}
    book = shelf.book(fence, batch=2, **options)
    for n in range(10):
        book.put(n, n)
    flushed = book.flush(LONG)
    assert (flushed.applied, flushed.parked) == (10, 0)
    assert (fence.refused, len(fence.seen)) == (0, 1)


class Keeping(Fence):
    """Keeps the operations of each delivery, and what their epochs were."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[list[Any], list[int]]] = []

    def write_many(self, ops: Any) -> Any:
        self.given.append((list(ops), [op.epoch for op in ops]))
        return super().write_many(ops)


@pytest.mark.parametrize("log", LOGS)
def test_what_a_sink_was_given_is_not_changed_by_a_later_delivery(shelf: Shelf, log: str) -> None:
    fence = Keeping()
    fence.errors = [ValueError("one is bad"), ConnectionError("away")]
    options = {"log": "memory"} if log == "memory" else {}
    book = shelf.book(fence, batch=4, **options)
    for n in range(8):
        book.put(n, n)
    assert book.flush(LONG).complete
    assert len(fence.given) >= 4
    for ops, epochs in fence.given:
        assert [op.epoch for op in ops] == epochs


class Eating(Fence):
    """Uses up what it is given, and brings values into a form of its own."""

    def write_many(self, ops: Any) -> Any:
        for op in ops:
            op.value = f"<{op.value}>"
        try:
            return super().write_many(tuple(ops))
        finally:
            ops.clear()


@pytest.mark.parametrize("log", LOGS)
def test_a_sink_may_use_up_what_it_is_given(shelf: Shelf, log: str) -> None:
    fence = Eating()
    fence.errors = [ConnectionError("away")]
    options = {"log": "memory"} if log == "memory" else {}
    book = shelf.book(fence, batch=4, **options)
    for turn in range(2):
        for n in range(8):
            book.put(n, n + turn)
        flushed = book.flush(LONG)
        assert (flushed.complete, flushed.left, flushed.parked) == (True, 0, 0)
        assert fence.rows == {n: f"<{n + turn}>" for n in range(8)}
