"""A queue without room: its worker writes, whatever the batch and the delay."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cachekit import Cache, QueueFull, WriteBack
from cachekit.errors import ConfigurationError
from cachekit.logs import open_log
from cachekit.protocols import Bounds, Op, OpKind

LONG = 15.0


class Table:
    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {}
        self.calls = 0

    def write_many(self, ops: Sequence[Op]) -> None:
        self.calls += 1
        for op in ops:
            if op.kind is OpKind.PUT:
                self.rows[op.id] = op.value
            else:
                self.rows.pop(op.id, None)


@pytest.mark.parametrize("log", ["memory", "sqlite"])
@pytest.mark.parametrize("keys", ["one hot key", "many keys"])
def test_who_finds_no_room_has_the_worker_write(tmp_path: Path, log: str, keys: str) -> None:
    table = Table()
    where = "memory" if log == "memory" else f"sqlite:///{tmp_path}/q.log"
    book = WriteBack(
        Cache(), key="k:{id}", log=where, sink=table, batch=500, delay=3600, max_pending=40
    )
    for n in range(200):
        book.put(0 if keys == "one hot key" else n, n)
    hot_in_memory = (keys, log) == ("one hot key", "memory")
    assert bool(table.calls) is not hot_in_memory  # which takes the room of one
    assert book.flush(LONG).complete
    assert table.rows == ({0: 199} if keys == "one hot key" else {n: n for n in range(200)})
    book.close()


def test_what_is_full_of_bytes_is_written_too(tmp_path: Path) -> None:
    table = Table()
    book = WriteBack(
        Cache(), key="k:{id}", log=f"sqlite:///{tmp_path}/q.log", sink=table, delay=3600,
        max_bytes=10_000,
    )  # fmt: skip
    for n in range(30):
        book.put(n, "x" * 1000)
    assert book.flush(LONG).complete
    assert len(table.rows) == 30
    book.close()


def test_a_put_that_may_not_wait_is_refused_and_the_next_one_finds_room() -> None:
    table = Table()
    book = WriteBack(
        Cache(), key="k:{id}", log="memory", sink=table, delay=3600, max_pending=5, block=0.0
    )
    for n in range(5):
        book.put(n, n)
    end = time.monotonic() + LONG
    refused = 0
    while time.monotonic() < end:
        try:
            book.put(5, 5)
            break
        except QueueFull:
            refused += 1
            time.sleep(0.01)
    assert refused
    assert table.rows == {n: n for n in range(5)}
    book.close()


def test_delete_waits_for_room_where_only_the_sink_can_delete() -> None:
    table = Table()
    book = WriteBack(
        Cache(), key="k:{id}", log="memory", sink=table, store=table.rows.__setitem__,
        full="write_through", delay=3600, max_pending=1,
    )  # fmt: skip
    book.put(1, "a")
    book.delete(2)  # no ConfigurationError: its room is made
    assert book.flush(LONG).complete
    assert table.rows == {1: "a"}
    book.close()


def test_what_a_log_of_ones_own_has_by_itself_is_not_said_twice(tmp_path: Path) -> None:
    def made() -> Any:
        path = f"sqlite:///{tmp_path}/q.log"
        return open_log(path, "q", namespace="", level="host", bounds=Bounds(3, 1000))

    options: list[dict[str, Any]] = [{"level": "process"}, {"max_pending": 5}, {"max_bytes": 10**6}]
    for given in options:
        with pytest.raises(ConfigurationError, match=next(iter(given))):
            WriteBack(Cache(), key="k:{id}", name="q", log=made(), sink=Table(), **given)
    cache, log = Cache(), made()
    book = WriteBack(cache, key="k:{id}", name="q", log=log, sink=Table(), worker=False, block=0.0)
    for n in range(3):
        book.put(n, n)
    with pytest.raises(QueueFull):
        book.put(3, 3)
    with pytest.raises(ConfigurationError, match="rows"):
        WriteBack(cache, key="j:{id}", name="other", log=log, sink=Table())


def test_a_worker_in_another_process_writes_what_fills_their_log(tmp_path: Path) -> None:
    """Of few keys: it knows of no put that waits."""
    table, log = Table(), f"sqlite:///{tmp_path}/q.log"
    options: dict[str, Any] = {"log": log, "delay": 3600, "max_pending": 40, "name": "q"}
    worker = WriteBack(Cache(), key="k:{id}", sink=table, **options)
    worker.work(worker._parts.runtime.threads)
    putter = WriteBack(Cache(), key="k:{id}", sink=Table(), worker=False, **options)
    for n in range(200):
        putter.put(n % 3, n)
    assert table.calls
    assert worker.flush(LONG).complete
    assert table.rows == {0: 198, 1: 199, 2: 197}
    for book in (worker, putter):
        book.close()
