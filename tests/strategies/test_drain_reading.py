"""What a worker reads from its log, and what becomes of that which it can not read or carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from durable_books import LONG, QUEUE, Ledger, Shelf, count, wait_for
from tenacity import wait_fixed

from cachekit.codecs import Pickle
from cachekit.errors import BackendRefused, BackendTimeout, BackendUnavailable
from cachekit.logs.sqlite import SQLiteLog
from cachekit.protocols import Op
from cachekit.strategies.lane_leases import LEASES, LaneLeases


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with Shelf(tmp_path) as shelf:
        yield shelf


class Odd:
    """A log one of whose verbs is done by somebody else."""

    def __init__(self, log: SQLiteLog, verb: str, instead: Callable[..., Any]) -> None:
        self._log = log
        self.name, self.level, self.parts, self.tells = log.name, log.level, log.parts, log.tells
        self._verb = verb
        self._instead = instead

    def __getattr__(self, verb: str) -> Any:
        step = getattr(self._log, verb)
        if verb != self._verb:
            return step

        async def odd(*args: Any) -> Any:
            return await self._instead(step, *args)

        return odd


# -- what nobody here can read


@pytest.mark.parametrize("fault", ["away", "full", "lost"])
def test_an_unreadable_operation_is_parked_though_that_fails_at_first(
    shelf: Shelf, fault: str
) -> None:
    faults = [fault, fault]

    async def settle(step: Callable[..., Any], *args: Any) -> Any:
        if not faults:
            return await step(*args)
        if faults.pop() == "lost":
            return False
        raise (BackendUnavailable if fault == "away" else BackendRefused)(fault)

    secret = Pickle(secret=b"x" * 32)
    other = shelf.book(Ledger().write_many, worker=False, codec=secret)
    other.put(7, "of another codec")
    source, cache = Ledger(), shelf.cache()
    odd = Odd(SQLiteLog(shelf.path, QUEUE), "settle", settle)
    worker = shelf.book(source.write_many, cache, log=odd, delay=0.01, lease=0.5)
    worker.put(1, "a")
    flushed = worker.flush(LONG)
    assert (flushed.complete, flushed.left) == (True, 0)
    assert source.rows == {1: "a"}
    assert [letter.record.key for letter in shelf.letters()] == ["row:7"]
    assert count(cache, "worker_errors") == count(cache, "batches_lost") == 0
    assert worker.get(7) is None  # as the source has it


# -- what a new owner reads first


def test_a_new_owner_delivers_nothing_while_it_can_not_read_to_the_end(shelf: Shelf) -> None:
    """Something newer of the same key may have been applied already."""
    source, cache = Ledger(), shelf.cache()
    putter = shelf.book(source.write_many, worker=False)
    for value in ("older", "newer"):
        putter.put(1, value)
    stuck = [True]

    async def read(step: Callable[..., Any], world: Any, part: int, after: int, *rest: Any) -> Any:
        records = await step(world, part, after, *rest)
        if not stuck:
            return records
        if after:
            raise BackendRefused("the next one was written in another format")
        return records[:1]

    odd = Odd(SQLiteLog(shelf.path, QUEUE), "read", read)
    worker = shelf.book(source.write_many, cache, log=odd, delay=0.01)
    worker.flush(0.1)
    wait_for(lambda: count(cache, "log_errors") >= 2)
    assert source.taken == []
    stuck.clear()
    assert worker.flush(LONG).complete
    assert source.taken == [(1, "newer")]


def test_a_backlog_too_large_for_one_answer_is_read_in_smaller_ones(shelf: Shelf) -> None:
    asked: list[int] = []

    async def read(step: Callable[..., Any], world: Any, part: int, after: int, limit: int,
                   late: Any) -> Any:  # fmt: skip
        asked.append(limit)
        if limit > 5:
            raise BackendTimeout("the link is slow")
        return await step(world, part, after, limit, late)

    source = Ledger()
    shelf.book(source.write_many, worker=False).put_many({n: n for n in range(12)})
    odd = Odd(SQLiteLog(shelf.path, QUEUE), "read", read)
    worker = shelf.book(source.write_many, log=odd, delay=0.01, batch=10)
    assert worker.flush(LONG).complete
    assert source.rows == {n: n for n in range(12)}
    assert asked[:3] == [20, 10, 5]


# -- a log that takes no answer


def _away(shelf: Shelf, stuck: list[bool]) -> Any:
    async def settle(step: Callable[..., Any], *args: Any) -> Any:
        if stuck:
            raise BackendUnavailable("no route to the log")
        return await step(*args)

    return Odd(SQLiteLog(shelf.path, QUEUE), "settle", settle)


def test_nothing_more_is_delivered_until_the_log_was_told_what_is_done(shelf: Shelf) -> None:
    source, cache, stuck = Ledger(), shelf.cache(), [True]
    worker = shelf.book(
        source.write_many, cache, log=_away(shelf, stuck), delay=0.01, batch=2, lease=LONG
    )
    worker.put_many({n: n for n in range(10)})
    wait_for(lambda: count(cache, "log_errors") >= 3)
    assert len(source.taken) == 2
    stuck.clear()
    assert worker.flush(LONG).complete
    assert source.taken == [(n, n) for n in range(10)]


def test_what_is_done_is_not_done_again_though_the_worker_fails_meanwhile(shelf: Shelf) -> None:
    source, cache, stuck, given = Ledger(), shelf.cache(), [True], []

    def write_many(ops: Sequence[Op]) -> Any:
        given.append([op.id for op in ops])
        if len(given) == 1:
            source.write_many([op for op in ops if op.id != 3])
            return {3: ValueError("not yet")}
        if len(given) == 2:
            raise SystemExit(3)
        return source.write_many(ops)

    worker = shelf.book(write_many, cache, log=_away(shelf, stuck), delay=0.01, lease=LONG)
    worker.put_many({n: n for n in range(5)})
    wait_for(lambda: len(given) == 2)
    stuck.clear()
    assert worker.flush(LONG).complete
    assert given[1:] == [[3], [3]]
    assert sorted(source.taken) == [(n, n) for n in range(5)]


# -- leases while something is out


class _Nobody:
    def prolong(self) -> bool:
        return False


def test_a_batch_that_waits_for_its_next_try_keeps_its_lease_so_much_longer() -> None:
    now = [100.0]
    leases, owner = LaneLeases(lambda: now[0], 2.0), _Nobody()
    leases.out(owner, 50.0)
    try:
        now[0] += 50.0 + LEASES * 2.0 - 0.1
        assert leases.due
        now[0] += 0.2
        assert not leases.due
        leases.out(owner)
        assert leases.due
        leases.back()
        assert not leases.due
    finally:
        leases.stop()


@pytest.mark.parametrize(("lease", "pause"), [(0.6, 1.5), (0.3, 2.4)])
def test_a_row_whose_tries_lie_further_apart_than_the_lease_is_parked_beside_another_worker(
    shelf: Shelf, lease: float, pause: float
) -> None:
    source = Ledger()

    def write_many(ops: Sequence[Op]) -> Any:
        if any(op.id == 5 for op in ops):
            raise ValueError("refused")
        return source.write_many(ops)

    caches = [shelf.cache(), shelf.cache()]
    options = {"delay": 0.01, "lease": lease, "wait_between": wait_fixed(pause)}
    books = [shelf.book(write_many, cache, **options) for cache in caches]
    shelf.book(write_many, worker=False).put_many({n: n for n in range(10)})
    for book in books:
        book.put(0, 0)
    flushed = books[0].flush(LONG)
    assert (flushed.complete, flushed.left) == (True, 0)
    assert source.rows == {n: n for n in range(10) if n != 5}
    assert [letter.record.key for letter in shelf.letters()] == ["row:5"]
