"""P57: a flush tells the truth and keeps to its time; what the level "memory" can lose. P58:
write-through with the source or the cache away."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flush_desks import LOSER, Desk, Through
from neighbour import Neighbour
from shared_rows import SharedRows
from tenacity import stop_after_attempt

from cachekit import Cache, Flushed, WriteBack, WriteThrough
from cachekit.errors import BackendError
from cachekit.testing.servers import RedisServer

MARGIN = 0.5  # seconds that a flush may take beyond its time, besides a batch
BUSY = 0.5  # and what a machine with two busy cores takes
HEALS_WITHIN = 10.0

# A kind of log, and the world of its source and its callers.
PLACES = [("memory", "plain"), ("sqlite", "plain"), ("sqlite", "async"), ("redis", "async")]
if os.environ.get("CACHEKIT_NIGHTLY") == "1":
    PLACES += [("memory", "async"), ("redis", "plain")]


def _url(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if kind == "redis":
        url: str = request.getfixturevalue("redis_server").url
        return url
    return "memory" if kind == "memory" else f"sqlite:///{folder}/log"


@pytest.fixture(params=PLACES, ids="-".join)
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Desk]:
    kind, world = request.param
    made = Desk(kind, world, _url(kind, tmp_path, request))
    yield made
    made.close()


def _rows(count: int) -> dict[int, str]:
    return {n: f"row {n}" for n in range(count)}


# -- P57 ---------------------------------------------------------------------------------


def test_a_flush_of_a_healthy_source_returns_when_all_is_there(desk: Desk) -> None:
    book = desk.book(batch=100)
    desk.put_many(book, _rows(25))
    told, took = desk.flush(book, None)
    assert told == Flushed(applied=25, parked=0, left=0, complete=True)
    assert desk.source.rows == _rows(25)
    assert took < 10
    again, took = desk.flush(book, 5.0)
    assert again == Flushed()
    assert took < 1.0


def test_a_flush_into_a_sink_that_hangs_keeps_to_its_time(desk: Desk) -> None:
    book = desk.book()
    desk.source.open.clear()
    desk.put_many(book, _rows(25))
    told, took = desk.flush(book, 0.3)
    assert told == Flushed(applied=0, parked=0, left=25, complete=False)
    assert 0.25 < took < 0.3 + MARGIN + BUSY
    assert desk.source.rows == {}
    assert desk.source.entered.is_set()
    told, took = desk.flush(book, 0.0)
    assert (told.left, told.complete) == (25, False)
    assert took < MARGIN + BUSY
    desk.source.open.set()
    told, _ = desk.flush(book, 20.0)
    assert told.complete
    assert desk.source.rows == _rows(25)


def test_a_flush_into_a_source_that_is_down_keeps_to_its_time(desk: Desk) -> None:
    book = desk.book()
    desk.source.error = ConnectionError("down")
    desk.put_many(book, _rows(25))
    told, took = desk.flush(book, 0.3)
    assert (told.applied, told.parked, told.left, told.complete) == (0, 0, 25, False)
    assert told.errors == ["ConnectionError: down"]
    assert took < 0.3 + MARGIN + BUSY
    assert desk.source.rows == {}


def test_a_flush_says_what_was_parked_and_why(desk: Desk) -> None:
    book = desk.book(stop=stop_after_attempt(1), batch=100)
    desk.source.bad = {3, 17}
    desk.put_many(book, _rows(25))
    told, _ = desk.flush(book, 20.0)
    assert (told.applied, told.parked, told.left, told.complete) == (23, 2, 0, True)
    assert told.errors == ["ValueError: refused"] * 2
    assert desk.source.rows == {n: row for n, row in _rows(25).items() if n not in (3, 17)}


def test_a_flush_that_ends_in_the_middle_counts_what_the_source_has(desk: Desk) -> None:
    book = desk.book()
    desk.source.pause = 0.1
    desk.put_many(book, _rows(60))
    told, took = desk.flush(book, 0.35)
    has = len(desk.source.rows)
    assert took < 0.35 + MARGIN + desk.source.pause + BUSY
    assert not told.complete
    assert 0 < told.applied <= 60 - told.left <= has  # never more than the source has
    assert has <= 60 - told.left + 20  # a batch may have landed since, and one be on its way out
    told, _ = desk.flush(book, None)
    assert told.complete
    assert desk.source.rows == _rows(60)


def test_a_flush_waits_for_nothing_that_is_put_after_it_began(desk: Desk) -> None:
    book = desk.book()
    desk.source.open.clear()
    desk.put_many(book, _rows(5))

    def more() -> None:
        """From another loop: that of an async sink waits in the flush."""
        desk.source.entered.wait(10)
        asyncio.run(book.aio.put_many({f"late {n}": n for n in range(3)}))
        desk.source.open.set()

    late = threading.Thread(target=more)
    late.start()
    told, _ = desk.flush(book, 20.0)
    late.join()
    assert told == Flushed(applied=5, parked=0, left=0, complete=True)
    assert desk.source.rows == _rows(5)
    assert book.depth() == 3


@pytest.mark.parametrize("desk", PLACES[1:], ids="-".join, indirect=True)
def test_a_flush_where_nobody_drains_says_that_all_is_left(desk: Desk) -> None:
    book = desk.book(worker=False)
    desk.put_many(book, _rows(25))
    told, took = desk.flush(book, 0.3)
    assert told == Flushed(applied=0, parked=0, left=25, complete=False)
    assert took < 0.3 + MARGIN + BUSY
    assert desk.source.rows == {}


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_flush_tells_the_truth_about_what_another_process_drains(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rows, namespace = SharedRows(tmp_path / "rows.db"), f"flush-{uuid.uuid4().hex[:10]}"
    url = _url(kind, tmp_path, request)
    setup = {
        "log": url, "url": None, "rows": rows.path, "cache": {"namespace": namespace},
        "book": {"delay": 0.01, "batch": 10, "stop": None, "lease": 5.0},
    }  # fmt: skip
    with Cache(namespace=namespace) as cache, Neighbour(setup) as other:
        book = WriteBack(cache, key="row:{id}", log=url, worker=False, store_many=rows.store_many)
        other.ask("setattr(rows, 'pause', 0.1)")
        other.ask("books['row'].put('first', 0)")  # its worker owns the log
        assert book.flush(20.0).complete
        book.put_many(_rows(60))
        began = time.monotonic()
        told = book.flush(0.35)
        took, has = time.monotonic() - began, len(rows.all()) - 1
        assert took < 0.35 + MARGIN + 0.1 + BUSY
        assert not told.complete
        assert told.applied + told.left == 60
        assert told.applied <= has <= told.applied + 20
        assert book.flush(30.0).complete
        assert rows.all() == {"first": 0, **_rows(60)}
        # It dies: what is left stays, and this process is told so.
        other.kill()
        book.put_many({f"after {n}": n for n in range(5)})
        told = book.flush(0.2)
        assert told == Flushed(applied=0, parked=0, left=5, complete=False)


def test_a_row_that_was_put_several_times_and_refused_is_told_as_parked(desk: Desk) -> None:
    book = desk.book(stop=stop_after_attempt(1))
    desk.source.bad = {"bad"}
    for n in range(3):
        desk.put_many(book, {"bad": n})
    desk.put_many(book, {"good": 1})
    told, _ = desk.flush(book, 20.0)
    assert desk.source.rows == {"good": 1}
    assert (told.parked, told.left, told.complete) == (1, 0, True)
    assert told.errors == ["ValueError: refused"]
    assert told.applied == 1 or desk.kind != "memory"  # a log counts those replaced by newer ones


def _can_not_know(desk: Desk, book: WriteBack) -> None:
    """It raises, or says that it was not completed: in its time."""
    began = time.monotonic()
    with contextlib.suppress(BackendError):
        told, _ = desk.flush(book, 0.3)
        assert not told.complete
    assert time.monotonic() - began < 0.3 + MARGIN + BUSY


@pytest.mark.parametrize("world", ["plain", "async"])
def test_a_flush_keeps_to_its_time_while_the_log_does_not_answer(world: str) -> None:
    with RedisServer() as server:
        desk = Desk("redis", world, server.url)
        try:
            book = desk.book()
            desk.put_many(book, _rows(5))
            server.pause()
            _can_not_know(desk, book)
            server.resume()
            told, _ = desk.flush(book, 20.0)
            assert told.complete
            assert desk.source.rows == _rows(5)
            server.stop()
            _can_not_know(desk, book)
        finally:
            server.start()
            desk.close()


def test_closing_keeps_to_its_time_with_a_sink_that_hangs(desk: Desk) -> None:
    book = desk.book()
    desk.source.open.clear()
    desk.put_many(book, _rows(25))
    began = time.monotonic()
    told = desk.run(lambda: book.close(0.3), lambda: book.aio.close(0.3))
    took = time.monotonic() - began
    assert told == Flushed(applied=0, parked=0, left=25, complete=False)
    assert took < 0.3 + MARGIN + BUSY


@pytest.mark.parametrize(
    ("pause", "slow", "options", "most"),
    [
        # More than the source can take: no more than may wait.
        (0.0, 0.05, {"max_pending": 200, "delay": 3600.0, "batch": 100}, 200),
        # Few in much time: no more than was put within the delay, and what a batch takes.
        (0.005, 0.0, {"delay": 0.1, "batch": 1000}, (0.1 + 0.3) / 0.005),
    ],
    ids=["bounded by max_pending", "bounded by the delay"],
)
def test_a_kill_loses_no_more_of_the_memory_level_than_the_documented_window(
    pause: float, slow: float, options: dict[str, Any], most: float, tmp_path: Path
) -> None:
    files = {name: (tmp_path / name).open("ab") for name in ("acknowledged", "written")}
    descriptors = [file.fileno() for file in files.values()]
    process = subprocess.Popen(
        [sys.executable, "-c", LOSER, *map(str, [*descriptors, pause, slow]), repr(options)],
        pass_fds=descriptors,
    )
    until = time.monotonic() + 20
    while os.path.getsize(tmp_path / "written") < 800 and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    for file in files.values():
        file.close()
    told, had = (
        [int(line) for line in (tmp_path / name).read_text().split("\n")[:-1]]
        for name in ("acknowledged", "written")
    )
    lost = sorted(set(told) - set(had))
    assert len(told) > 100
    assert len(lost) <= most
    assert lost == list(range(len(told)))[len(told) - len(lost) :]  # the last ones, none between


# -- P58 ---------------------------------------------------------------------------------


VERBS: dict[str, tuple[Callable[[WriteThrough], Any], Any]] = {
    "put": (lambda book: book.put("a", "new"), "new"),
    "put_many": (lambda book: book.put_many({"a": "new", "b": "new"}), "new"),
    "delete": (lambda book: book.delete("a"), None),
    "aio.put": (lambda book: asyncio.run(book.aio.put("a", "new")), "new"),
    "aio.delete": (lambda book: asyncio.run(book.aio.delete("a")), None),
}


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, Through]]:
    with RedisServer() as server:
        made = Through(server, tmp_path_factory.mktemp("through"))
        try:
            yield server, made
        finally:
            server.resume()
            made.close()


def _both_old(it: Through) -> None:
    it.error = None
    it.book.put_many({"a": "old", "b": "old"})
    until = time.monotonic() + HEALS_WITHIN
    while [it.book.get("a"), it.elsewhere("a"), it.elsewhere("b")] != ["old"] * 3:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("verb", "noticed"),
    [("put", True), ("aio.delete", True), ("put_many", False), ("delete", False)],
)
def test_a_write_with_the_cache_away_succeeds_pending_and_no_old_value_outlives_the_healing(
    verb: str, noticed: bool, through: tuple[RedisServer, Through]
) -> None:
    """``noticed``: the breaker is open, and nothing of the write ever goes to the server: only
    what is told after the healing can."""
    (server, it), (write, new) = through, VERBS[verb]
    _both_old(it)
    server.pause()
    try:
        while noticed and it.cache.stats().breaker != "open":
            it.cache.get("nothing")
        written = write(it.book)
        assert written.pending
        assert it.rows.load("a") == new
        assert [it.book.get("a"), asyncio.run(it.book.aio.get("a"))] == [new, new]
    finally:
        server.resume()
    healed = time.monotonic()
    seen = []
    while (value := it.elsewhere("a")) != new:
        assert time.monotonic() - healed < HEALS_WITHIN
        seen.append(value)
        time.sleep(0.02)
    assert set(seen) <= {"old"}
    for _ in range(10):  # and never again
        assert it.elsewhere("a") == it.book.get("a") == new
    until = time.monotonic() + HEALS_WITHIN
    while it.cache.stats().pending_invalidations:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("verb", "error", "away"),
    [
        *itertools.product(
            ("put", "delete", "aio.put"),
            (ValueError("refused"), ConnectionError("gone")),
            (False,),
        ),
        ("put", ConnectionError("gone"), True),
        ("aio.delete", ValueError("refused"), True),
    ],
)
def test_a_write_that_the_source_refused_raises_its_error_and_leaves_no_new_value(
    verb: str, error: Exception, away: bool, through: tuple[RedisServer, Through]
) -> None:
    (server, it), (write, _) = through, VERBS[verb]
    _both_old(it)
    it.error = error
    if away:
        server.pause()
    try:
        with pytest.raises(type(error)) as told:
            write(it.book)
        assert told.value is error
        assert it.book.get("a") == "old"
    finally:
        server.resume()
    assert it.elsewhere("a") == "old"
    assert it.book.get("a") == "old"
    assert it.rows.load("a") == "old"
