"""The replay log seen from a cache: what a dead process left, files in use by others, odd rows."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachekit import Cache, WriteThrough
from cachekit.observe import Meter
from cachekit.pending import Journal, Name, Pending
from cachekit.testing.servers import RedisServer


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "pending.db")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def _leave(log: str, *names: Name) -> None:
    """As a process that died while it owed these."""
    dead = Pending(Meter(), log)
    dead.add(names)
    dead.close()


def _left(log: str) -> list[Name]:
    successor = Pending(Meter(), log)
    successor.load()
    try:
        return list(successor.take())
    finally:
        successor.close()


def _until(holds: Callable[[], object], seconds: float = 8.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def _put(cache: Cache) -> None:
    WriteThrough(cache, load=lambda id: 1, store=lambda id, value: None, key="u:{id}").put(1, 2)


FIRST: dict[str, Callable[[Cache], Any]] = {
    "set": lambda cache: cache.set("other", 1),
    "put": _put,
    "clear": lambda cache: cache.clear(),
    "invalidate": lambda cache: cache.invalidate(keys=["other"]),
    "get": lambda cache: cache.get("other"),
}


@pytest.mark.parametrize("first", FIRST)
def test_what_was_left_is_replayed_though_the_successors_first_call_finds_nobody(
    server: RedisServer, log: str, first: str
) -> None:
    with Cache(server.url, timeout=2.0) as before:
        before.set("k", "old")
    _leave(log, ("key", "k"))
    server.pause()
    brief: dict[str, Any] = {"timeout": 0.15, "breaker_reset": 0.1}
    cache = Cache(server.url, invalidation="replay", replay_log=log, **brief)
    try:
        FIRST[first](cache)
    finally:
        server.resume()
    with cache:
        _until(lambda: cache.stats().pending_invalidations == 0)
        assert cache.get("k") is None
    assert _left(log) == []


def test_two_first_readers_both_wait_for_what_was_left(
    log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave(log, ("key", "k"))
    pending, inside, go = Pending(Meter(), log), threading.Event(), threading.Event()
    read = Journal.load

    def slowly(journal: Journal) -> list[Name]:
        inside.set()
        assert go.wait(5)
        return read(journal)

    monkeypatch.setattr(Journal, "load", slowly)
    seen: list[bool] = []

    def second() -> None:
        pending.load()
        seen.append(pending.blocking)

    threads = [threading.Thread(target=pending.load), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(5)
    threads[1].start()
    time.sleep(0.1)
    assert not seen  # it waits
    go.set()
    for thread in threads:
        thread.join(5)
    pending.close()
    assert seen == [True]


def test_a_file_that_another_holds_stops_no_event_loop_and_is_brought_up_to_date_later(
    server: RedisServer, log: str
) -> None:
    server.stop()
    cache = Cache(server.url, invalidation="replay", replay_log=log, timeout=0.3)
    cache.invalidate(keys=["first"])
    holder = sqlite3.connect(log, isolation_level=None)
    longest = 0.0

    async def watch(done: asyncio.Event) -> None:
        nonlocal longest
        while not done.is_set():
            began = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - began)

    async def main() -> None:
        done = asyncio.Event()
        watching = asyncio.create_task(watch(done))
        await asyncio.sleep(0.02)
        for number in range(5):
            await cache.aio.invalidate(keys=[f"k{number}"])
            await asyncio.sleep(0)
        done.set()
        await watching
        await cache.aio.close()

    holder.execute("BEGIN IMMEDIATE")
    try:
        asyncio.run(main())
        assert longest < 0.9  # to wait for the lock would have taken longer by far
        assert cache.stats().counts["replay_log_errors"] >= 5
        assert cache.stats().pending_invalidations == 6
    finally:
        holder.execute("ROLLBACK")
    db = sqlite3.connect(log)
    try:
        _until(lambda: db.execute("SELECT count(*) FROM pending").fetchone() == (6,))
    finally:
        db.close()
        holder.close()
        cache.close()
    assert len(_left(log)) == 6


def test_rows_that_are_none_of_ours_cost_the_namespace_and_nothing_else(
    server: RedisServer, log: str
) -> None:
    _leave(log, ("key", "k"))
    odd = [
        ("key", None),
        ("zzz", "x"),
        ("tag", b"\xff\xfe"),
        (5, 5),
        ("event", "text"),
        ("tag", ""),
    ]
    with sqlite3.connect(log) as db:
        db.executemany("INSERT INTO pending VALUES (?, ?, x'01')", odd)
    db.close()
    with Cache(server.url, timeout=2.0) as before:
        before.set("any", "old")
    with Cache(server.url, invalidation="replay", replay_log=log, timeout=2.0) as cache:
        assert cache.get("any") is None
        assert cache.get_or_set("any", lambda: "new") == "new"
        _until(lambda: cache.stats().pending_invalidations == 0)
        assert cache.stats().counts["replay_log_errors"] >= 1
        assert cache.get("any") == "new"


def test_a_defect_while_replaying_does_not_end_the_replay(server: RedisServer) -> None:
    server.stop()
    brief: dict[str, Any] = {"timeout": 0.3, "breaker_reset": 0.1}
    with Cache(server.url, invalidation="replay", **brief) as cache:
        far, raised = cache.parts.far, threading.Event()
        assert far is not None
        plain = far.void

        async def broken(*given: Any) -> None:
            far.void = plain  # type: ignore[method-assign]  # once
            raised.set()
            raise RuntimeError("a defect")

        cache.invalidate(keys=["k"])
        far.void = broken  # type: ignore[method-assign]  # as above
        assert raised.wait(5)
        server.start()
        _until(lambda: cache.stats().pending_invalidations == 0)


def test_close_tries_again_though_the_breaker_is_open(server: RedisServer) -> None:
    server.stop()
    brief: dict[str, Any] = {"timeout": 0.3, "breaker_failures": 1, "breaker_reset": 0.6}
    cache = Cache(server.url, invalidation="replay", **brief)
    cache.invalidate(keys=["k"])
    assert cache.stats().breaker == "open"
    server.start()
    cache.close()
    assert cache.stats().pending_invalidations == 0
    assert "invalidations_lost" not in cache.stats().counts


def test_close_gives_up_in_time_where_nobody_answers(log: str) -> None:
    cache = Cache("redis://127.0.0.1:1/0", invalidation="replay", replay_log=log, timeout=0.2)
    cache.invalidate(keys=["k"])
    began = time.monotonic()
    cache.close(timeout=0.3)
    assert time.monotonic() - began < 2.0
    assert cache.stats().counts["invalidations_lost"] >= 1
    assert _left(log) == [("key", "k")]


def test_what_was_left_in_a_file_that_is_in_use_is_replayed_all_the_same(
    server: RedisServer, log: str
) -> None:
    with Cache(server.url, timeout=2.0) as before:
        before.set("k", "old")
    _leave(log, ("key", "k"))
    holder = sqlite3.connect(log, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Cache(server.url, invalidation="replay", replay_log=log, timeout=2.0) as cache:
        cache.get("other")
        holder.execute("ROLLBACK")
        holder.close()
        _until(lambda: cache.get("k") is None)
    assert _left(log) == []
