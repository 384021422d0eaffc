"""How a batch is carried: refused rows put aside, outages, tenacity's objects, the pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tenacity

from cachekit import Cache, Retrying, WriteBack
from cachekit.protocols import Op

LONG = 15.0
BAD = range(0, 40, 4)


class Table:
    """Refuses ``bad`` rows, by an error of the whole batch."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        self.bad = set(bad)
        self.rows: dict[int, Any] = {}
        self.calls: list[tuple[float, list[int]]] = []
        self.outages = 0

    def write_many(self, ops: Sequence[Op]) -> None:
        self.calls.append((time.monotonic(), [op.id for op in ops]))
        if self.outages:
            self.outages -= 1
            raise ConnectionError("away")
        if bad := [op.id for op in ops if op.id in self.bad]:
            raise ValueError(f"refused {bad}")
        self.rows.update({op.id: op.value for op in ops})

    def alone(self, id: int) -> int:
        return sum(ids == [id] for _, ids in self.calls)


def book_over(table: Any, **options: Any) -> WriteBack:
    given = {"key": "k:{id}", "log": "memory", "sink": table, "delay": 0.01, **options}
    return WriteBack(Cache(), **given)


def test_rows_that_are_refused_wait_together_and_hold_up_nobody_of_their_batch() -> None:
    table = Table(BAD)
    book = book_over(table, batch=40, wait_between=tenacity.wait_fixed(0.3))
    began = time.monotonic()
    book.put_many({n: n for n in range(40)})
    told = book.flush(LONG)
    took = time.monotonic() - began
    assert (len(book.dead()), told.left) == (10, 0)
    assert set(table.rows) == set(range(40)) - set(BAD)
    assert {table.alone(id) for id in BAD} == {5}  # Retrying's attempts
    assert 4 * 0.3 <= took < 5 * 4 * 0.3  # not 10 x 4 pauses
    last_good = max(at for at, ids in table.calls if not set(ids) & set(BAD))
    first_again = [at for at, ids in table.calls if ids == [0]][1]
    assert last_good < first_again  # none of the others waited for a pause
    book.close()


def test_a_row_that_is_taken_at_a_later_try_is_not_parked() -> None:
    table = Table([1, 2])
    book = book_over(table, batch=10, wait_between=tenacity.wait_fixed(0.1))
    book.put_many({n: n for n in range(5)})
    end = time.monotonic() + LONG
    while not (table.alone(1) and table.alone(2)) and time.monotonic() < end:
        time.sleep(0.01)
    table.bad = {2}
    told = book.flush(LONG)
    assert told.complete
    assert set(table.rows) == {0, 1, 3, 4}
    assert [letter.op.id for letter in book.dead()] == [2]
    book.close()


@pytest.mark.parametrize("ways", ["memory", "sqlite"])
@pytest.mark.parametrize(
    "stop",
    [
        tenacity.stop_after_attempt(3), tenacity.stop_after_delay(0.2),
        tenacity.stop_before_delay(0.2),
        tenacity.stop_any(tenacity.stop_after_attempt(50), tenacity.stop_after_delay(0.2)),
    ],
    ids=lambda stop: type(stop).__name__,
)  # fmt: skip
def test_every_stop_object_ends_a_row_that_is_refused(ways: str, stop: Any, tmp_path: Path) -> None:
    table = Table([3])
    log = "memory" if ways == "memory" else f"sqlite:///{tmp_path}/q.log"
    book = book_over(table, log=log, stop=stop, wait_between=tenacity.wait_fixed(0.03))
    book.put_many({n: n for n in range(5)})
    told = book.flush(LONG)
    assert (len(book.dead()), told.left) == (1, 0)
    assert table.alone(3) > 1
    book.close()


@pytest.mark.parametrize("fails", ["refused", "away"])
def test_a_wait_object_is_asked_with_the_error(fails: str) -> None:
    table, asked = Table([1] if fails == "refused" else []), list[str]()
    table.outages = 0 if fails == "refused" else 2

    def wait(error: BaseException) -> float:
        asked.append(type(error).__name__)
        return 0.01

    book = book_over(table, wait_between=tenacity.wait_exception(wait))
    book.put(1, 1)
    assert book.flush(LONG).complete
    assert set(asked) == {"ValueError" if fails == "refused" else "ConnectionError"}
    book.close()


def test_an_object_that_raises_is_replaced_by_the_default() -> None:
    class Wait(tenacity.wait.wait_base):
        def __call__(self, retry_state: tenacity.RetryCallState) -> float:
            raise ZeroDivisionError

    class Stop(tenacity.stop.stop_base):
        def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
            raise ZeroDivisionError

    table = Table([1])
    book = book_over(
        table, wait_between=Wait(), stop=Stop(), retry=Retrying(attempts=3, base=0.001, cap=0.01)
    )
    book.put_many({1: 1, 2: 2})
    assert book.flush(LONG).complete
    assert table.rows == {2: 2}
    assert table.alone(1) == 3
    book.close()


def test_tries_during_an_outage_are_not_a_rows_own() -> None:
    table = Table([1])
    table.outages = 8
    book = book_over(table, retry=Retrying(attempts=3, base=0.001, cap=0.01))
    book.put(1, 1)
    assert book.flush(LONG).parked == 1
    assert table.alone(1) == 8 + 3
    book.close()


def test_the_pace_holds_for_every_delivery_and_ends_with_the_strategy() -> None:
    table = Table([2])
    book = book_over(table, batch=4, rate=20, retry=Retrying(attempts=1))
    book.put_many({n: n for n in range(4)})
    assert book.flush(LONG).complete
    times = [at for at, _ in table.calls]
    assert len(times) >= 4
    assert times[-1] - times[0] >= 0.9 * (len(times) - 1) / 20
    book.close()

    slow = book_over(table := Table(), batch=1, rate=0.05)
    slow.put_many({1: 1, 2: 2})
    end = time.monotonic() + LONG
    while not table.rows and time.monotonic() < end:
        time.sleep(0.01)
    began = time.monotonic()
    told = slow.close(0.2)
    assert time.monotonic() - began < 5
    assert (told.left, told.complete) == (1, False)
    time.sleep(0.3)
    assert len(table.calls) == 1  # nothing is written after close


@pytest.mark.parametrize("count", [1, 6])
def test_an_end_while_rows_are_aside_leaves_them_in_the_log(count: int, tmp_path: Path) -> None:
    log = f"sqlite:///{tmp_path}/q.log"
    table = Table(range(count))
    book = book_over(table, log=log, batch=10, wait_between=tenacity.wait_fixed(60))
    book.put_many({n: n for n in range(8)})
    end = time.monotonic() + LONG
    while len(table.rows) < 8 - count and time.monotonic() < end:
        time.sleep(0.01)
    told = book.close(0.1)
    assert (told.left, told.parked) == (count, 0)
    table.bad = set()
    again = book_over(table, log=log)
    again.work(again._parts.runtime.threads)
    assert again.flush(LONG).complete
    assert table.rows == {n: n for n in range(8)}
    again.close()


def test_an_async_sink_is_served_in_the_same_way() -> None:
    table = Table([1, 2, 3])

    class Sink:
        async def write_many(self, ops: Sequence[Op]) -> None:
            await asyncio.sleep(0)
            table.write_many(ops)

    book = book_over(Sink(), batch=8, wait_between=tenacity.wait_fixed(0.05))

    async def main() -> None:
        await book.aio.put_many({n: n for n in range(8)})
        assert (await book.aio.flush(LONG)).complete
        assert len(book.dead()) == 3
        await book.aio.close()

    asyncio.run(main())
    assert {table.alone(id) for id in (1, 2, 3)} == {5}
