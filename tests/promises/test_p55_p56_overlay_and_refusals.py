"""P55: nobody who shares a log reads the old row while a newer write waits. P56: a log that
refuses acknowledges nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from dirty_logs import MISHAPS, WAYS, Desk, Pair, url_of
from neighbour import open_books
from shared_rows import SharedRows

from cachekit.errors import BackendError, BackendRefused, ConfigurationError
from cachekit.testing.servers import RedisServer

# A log and a cache.
PAIRS = [
    ("sqlite", "embedded"),
    ("sqlite", "redis"),
    ("sqlite", "sqlite"),
    ("redis", "embedded"),
    ("redis", "redis"),
]
if os.environ.get("CACHEKIT_NIGHTLY") == "1":
    PAIRS.append(("redis", "sqlite"))


@pytest.fixture(
    scope="module",
    params=PAIRS,
    ids=lambda pair: f"log={pair[0]},cache={pair[1]}",
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    log, cache = request.param
    folder = tmp_path_factory.mktemp("overlay")
    made = Pair(
        str(url_of(log, "log", folder, request)),
        url_of(cache, "cache", folder, request),
        folder,
        # A log that tells what was settled needs nothing else; near copies over another one
        # are as good as the cache's coherence.
        None if log == "sqlite" else "strict",
    )
    try:
        yield made
    finally:
        made.close()


_ids = itertools.count()


# -- P55 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mishap", MISHAPS)
def test_no_read_of_another_process_is_older_than_what_waits(pair: Pair, mishap: str) -> None:
    name, happen = MISHAPS[mishap]
    book, ids = pair.books[name], (next(_ids), next(_ids))
    changed, deleted = ids
    pair.rows.store_many(dict.fromkeys(ids, "old"))
    for number in [pair.other.ask(f"watch({name!r}, {id})") for id in ids]:
        assert _told(pair, number) == ["old"]
    assert book.get_many(ids) == dict.fromkeys(ids, "old")
    book.put(changed, "new")
    book.delete(deleted)
    watches = [pair.other.ask(f"watch({name!r}, {id})") for id in ids]
    happen(pair, name, changed)
    assert [book.get(id) for id in ids] == ["new", None]
    assert pair.rows.load_many(ids) == dict.fromkeys(ids, "old")  # nobody drained it
    pair.drain(name)
    assert pair.rows.load_many(ids) == {changed: "new"}
    happen(pair, name, changed)
    assert [book.get(id) for id in ids] == ["new", None]
    assert [_told(pair, number) for number in watches] == [["new"], [None]]


def _told(pair: Pair, number: int) -> list[Any]:
    """What a watch saw, the same in each of its ways."""
    seen: dict[str, list[Any]] = pair.other.ask(f"seen({number})")
    assert set(seen) == {"get", "get_many", "aio.get"}
    first = seen["get"]
    assert all(values == first for values in seen.values()), seen
    return first


def test_a_process_that_slept_through_put_and_drain_wakes_to_the_new_row(pair: Pair) -> None:
    id, book = next(_ids), pair.books["row"]
    pair.rows.store_many({id: "old"})
    assert _told(pair, pair.other.ask(f"watch('row', {id})")) == ["old"]
    book.put(id, "new")
    pair.drain("row")
    assert _told(pair, pair.other.ask(f"watch('row', {id})")) == ["new"]


@pytest.mark.parametrize("drained", [True, False], ids=["drained", "waiting"])
@pytest.mark.parametrize("way", ["load", "refresh"])
def test_a_load_under_way_when_the_write_came_brings_the_old_row_to_nobody_after_it(
    pair: Pair, way: str, drained: bool
) -> None:
    """It has read the old row, and comes back with it when that is written over."""
    name = "row" if way == "load" else "brief"
    id, book, ask = next(_ids), pair.books[name], pair.other.ask
    pair.rows.store_many({id: "old"})
    if way == "refresh":
        assert ask(f"books[{name!r}].get({id})") == "old"
        time.sleep(0.2)  # due, and served while it is loaded anew
    ask("rows.held.clear()")
    before = ask("rows.waiting")
    ask(f"begin(lambda: books[{name!r}].get({id}))")
    assert ask(f"until(lambda: rows.waiting > {before})")
    book.put(id, "new")
    if drained:
        pair.drain(name)
        # Its neighbour has heard of the drain before the load comes back.
        ask(f"begin(lambda: books[{name!r}].get('another'))")
        time.sleep(0.05)
    ask("rows.held.set()")
    after = ask(f"watch({name!r}, {id})")
    time.sleep(0.05)
    assert _told(pair, after) == ["new"]
    if not drained:
        pair.drain(name)
        assert ask(f"books[{name!r}].get({id})") == "new"


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_near_copies_over_a_log_that_tells_nothing_follow_within_the_bound(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With the cache's usual coherence: until then they may be older, and never again after."""
    url = url_of(kind, "cache", tmp_path, request)
    pair = Pair(str(url_of("redis", "log", tmp_path, request)), url, tmp_path, None)
    with contextlib.closing(pair):
        id, ask = next(_ids), pair.other.ask
        pair.rows.store_many({id: "old"})
        before = ask(f"watch('row', {id})")
        time.sleep(0.1)
        pair.books["row"].put(id, "new")
        within = time.monotonic() + 1.0 + 1.0  # the poll's second, and what a busy machine needs
        while ask(f"books['row'].get({id})") == "old":
            assert time.monotonic() < within
            time.sleep(0.01)
        after = ask(f"watch('row', {id})")
        pair.drain("row")
        assert _told(pair, before) == ["old", "new"]
        assert _told(pair, after) == ["new"]


# -- P56 ---------------------------------------------------------------------------------


@pytest.fixture(params=WAYS)
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    rows = SharedRows(tmp_path / "rows.db")
    rows.store_many({"refused": "old", "deleted": "old"})
    made: list[Desk] = []

    def open_desk(log: str | None, url: str | None = None, **book: Any) -> Desk:
        cache = {"timeout": 2.0, "namespace": f"refusals-{uuid.uuid4().hex[:10]}"}
        setup = {"log": log, "url": url, "cache": cache, "book": book}
        made.append(Desk(rows, WAYS[request.param], setup))
        return made[-1]

    yield open_desk
    for each in made:
        each.cache.close(timeout=1.0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "small", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("may not mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_means_that_the_put_is_not_acknowledged(
    small_disk: Path, desk: Callable[..., Desk]
) -> None:
    it = desk(f"sqlite:///{small_disk}/log")
    it.put(1, "room")
    for turn in range(3):
        filler = (small_disk / "filler").open("wb", buffering=0)
        with filler, pytest.raises(OSError, match="No space left"):
            while True:
                filler.write(b"x" * 1000)
        it.refuses(BackendRefused)
        assert it.book.get(1) == "room"  # reads go on
        (small_disk / "filler").unlink()
        it.put(f"after {turn}", "room again")
    it.check()


def test_a_file_that_may_not_grow_means_that_the_put_is_not_acknowledged(tmp_path: Path) -> None:
    """Another process, with a limit of the system: it can not be told from an error of the disk."""
    pair = Pair(f"sqlite:///{tmp_path}/log", None, tmp_path, None)
    with contextlib.closing(pair):
        ask, book = pair.other.ask, pair.books["row"]
        pair.rows.store_many({"refused": "old", "deleted": "old"})
        ask("books['row'].put(1, 'room')")
        limit = "__import__('resource').setrlimit(1, ({}, -1))"  # the size of a file
        ask(limit.format(os.path.getsize(tmp_path / "log-wal")))
        for write in (
            "books['row'].put('refused', 'new')",
            "run(books['row'].aio.put('refused', 'new'))",
            "books['row'].put_many({'refused': 'new', 'also refused': 'new'})",
            "books['row'].delete('deleted')",
        ):
            assert ask(f"attempt(lambda: {write})") in ("BackendRefused", "BackendUnavailable")
        book.put(2, "no limit here")
        ask(limit.format(-1))
        ask("books['row'].put(3, 'room again')")
        pair.drain("row")
        assert pair.rows.all() == {
            "refused": "old", "deleted": "old", 1: "room", 2: "no limit here", 3: "room again",
        }  # fmt: skip


def test_a_file_that_may_only_be_read_takes_no_put(tmp_path: Path) -> None:
    """Another process, which is another user where this one is root."""
    pair = Pair(f"sqlite:///{tmp_path}/shared/log", None, tmp_path, None)
    with contextlib.closing(pair):
        ask, book = pair.other.ask, pair.books["row"]
        pair.rows.store_many({"refused": "old"})
        book.put(1, "by its owner")
        files = list((tmp_path / "shared").iterdir())
        if os.geteuid() == 0:
            for folder in tmp_path.parents[:3]:
                folder.chmod(folder.stat().st_mode | 0o011)
            ask("__import__('os').seteuid(65534)")
            for file in files:
                file.chmod(0o644)
        else:
            for file in files:
                file.chmod(0o400)
        (tmp_path / "shared").chmod(0o555)
        try:
            error = ask("attempt(lambda: books['row'].put('refused', 'new'))")
            again = ask("attempt(lambda: run(books['row'].aio.put('refused', 'new')))")
        finally:
            (tmp_path / "shared").chmod(0o755)
            if os.geteuid() == 0:
                ask("__import__('os').seteuid(0)")
        assert error in ("BackendRefused", "BackendUnavailable")
        assert again in ("BackendRefused", "BackendUnavailable")
        assert book.get("refused") == "old"
        pair.drain("row")
        assert pair.rows.all() == {"refused": "old", 1: "by its owner"}


# How a server comes to refuse every write, and back.
REFUSALS: dict[str, tuple[list[list[Any]], list[list[Any]]]] = {
    "out of memory": (
        [["CONFIG", "SET", "maxmemory", "1"]],
        [["CONFIG", "SET", "maxmemory", "0"]],
    ),
    "a replica": (
        [["REPLICAOF", "127.0.0.1", "1"]],
        [["REPLICAOF", "NO", "ONE"]],
    ),
    "too few replicas": (
        [["CONFIG", "SET", "min-replicas-to-write", "3"]],
        [["CONFIG", "SET", "min-replicas-to-write", "0"]],
    ),
    "not permitted": (
        [["ACL", "SETUSER", "default", "-@write", "-@scripting"]],
        [["ACL", "SETUSER", "default", "+@all"]],
    ),
}


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize("cached", [False, True], ids=["log", "log and cache"])
@pytest.mark.parametrize("why", REFUSALS)
def test_a_server_that_refuses_writes_means_that_the_put_is_not_acknowledged(
    why: str, cached: bool, own_redis: RedisServer, desk: Callable[..., Desk]
) -> None:
    it = desk(None if cached else own_redis.url, own_redis.url if cached else None)
    begin, end = REFUSALS[why]
    it.put(1, "before")
    with redis.Redis.from_url(own_redis.url) as server:
        for command in begin:
            server.execute_command(*command)
        try:
            it.refuses()
            if why != "not permitted":  # that user may not even look
                assert it.book.get(1) == "before"
        finally:
            for command in end:
                server.execute_command(*command)
    it.put(2, "after")
    it.check()


@pytest.mark.parametrize("cached", [False, True], ids=["log", "log and cache"])
def test_a_server_that_is_gone_means_that_the_put_is_not_acknowledged(
    cached: bool, desk: Callable[..., Desk]
) -> None:
    with RedisServer(("--appendonly", "yes", "--appendfsync", "always")) as server:
        it = desk(None if cached else server.url, server.url if cached else None, block=0.5)
        it.put(1, "before")
        server.stop()
        it.refuses()
        server.start()
        within = time.monotonic() + 10
        while True:  # a breaker of the cache's may be open for a moment
            try:
                it.put(2, "after")
                break
            except BackendError:
                assert time.monotonic() < within
                time.sleep(0.05)
        it.check()


def test_a_server_that_froze_may_have_kept_the_put_or_not_but_reads_and_source_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome of these is unknown: their callers were told of an error, not of a refusal."""
    patience = 1.0
    monkeypatch.setattr("cachekit.strategies.journal.MOST_APPEND", patience)
    rows = SharedRows(tmp_path / "rows.db")
    rows.store_many({"plain": "old", "aio": "old"})
    setup: dict[str, Any] = {
        "log": None, "url": None, "cache": {"namespace": "frozen", "timeout": 2.0},
        "book": {"worker": False, "block": 0.1},
    }  # fmt: skip
    with RedisServer() as server:
        setup["log"] = server.url
        cache, books = open_books(setup, rows)
        book = books["row"]
        book.put("before", 1)
        asyncio.run(book.aio.put("before", 2))
        server.pause()
        with ThreadPoolExecutor(2) as pool:
            began = time.monotonic()
            errors = {id: pool.submit(put, book, id, "new") for id, put in WAYS.items()}
            for error in errors.values():
                with pytest.raises(BackendError) as told:
                    error.result()
                assert not isinstance(told.value, BackendRefused)
            assert time.monotonic() - began < 0.1 + patience + 2.0
        server.resume()
        shown = book.get_many(errors)
        assert set(shown.values()) <= {"old", "new"}
        book.put("after", 3)
        assert book.get_many(errors) == shown
        drained, others = open_books({**setup, "book": {"delay": 0.01}}, rows)
        with drained:
            assert others["row"].flush(20).complete
        assert rows.all() == {"before": 2, "after": 3, **shown}
        cache.close()


@pytest.mark.parametrize("cached", [False, True], ids=["log", "log and cache"])
@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_server_that_could_evict_the_log_is_refused_at_the_start(
    policy: str, cached: bool, own_redis: RedisServer, desk: Callable[..., Desk]
) -> None:
    it = desk(None if cached else own_redis.url, own_redis.url if cached else None)
    with redis.Redis.from_url(own_redis.url) as server:
        server.config_set("maxmemory", "100mb")
        server.config_set("maxmemory-policy", policy)
        try:
            it.refuses(ConfigurationError)
        finally:
            server.config_set("maxmemory", "0")
            server.config_set("maxmemory-policy", "noeviction")
    it.put(1, "after")
    it.check()
