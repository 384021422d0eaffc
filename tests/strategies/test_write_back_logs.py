"""Durable logs behind write-back: what reads see over them, whose queue is whose, what a full one
has taken. Two books over one log stand for two processes."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from durable_books import LONG, QUEUE, Cut, Ledger, Shelf, count, wait_for
from stage import Gate, Rows

from cachekit import QueueFull, WriteBack
from cachekit.backends.redis import RedisBackend
from cachekit.errors import ConfigurationError
from cachekit.protocols import Bounds, Op
from cachekit.testing.servers import RedisServer


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with Shelf(tmp_path) as shelf:
        yield shelf


@pytest.fixture
def space() -> str:
    return f"logs-{uuid.uuid4().hex[:10]}"


def nothing(ops: Sequence[Op]) -> None:
    return None


# -- reads over a log that tells nothing


@pytest.mark.parametrize("world", ["plain", "async"])
@pytest.mark.parametrize("verb", ["get", "get_many"])
def test_a_read_after_anothers_put_joins_no_load_of_before(
    shelf: Shelf, redis_server: RedisServer, space: str, world: str, verb: str
) -> None:
    """An embedded cache over a Redis log hears of nothing that other processes put."""
    rows = Rows({1: "old"})
    gate = rows.gates["load"] = Gate()

    async def load_async(id: Any) -> Any:
        return await asyncio.to_thread(rows.load, id)

    load = rows.load if world == "plain" else load_async
    url, no_work = redis_server.url, {"worker": False, "wait": LONG}
    reader = shelf.book(nothing, shelf.cache(namespace=space), log=url, load=load, **no_work)
    writer = shelf.book(nothing, shelf.cache(namespace=space), log=url, **no_work)

    def read() -> Any:
        answer = getattr(reader, verb)(1 if verb == "get" else [1])
        return answer if verb == "get" else answer[1]

    async def read_async() -> Any:
        answer = await getattr(reader.aio, verb)(1 if verb == "get" else [1])
        return answer if verb == "get" else answer[1]

    async def main() -> list[Any]:
        def start() -> asyncio.Task[Any]:
            call = asyncio.to_thread(read) if world == "plain" else read_async()
            return asyncio.ensure_future(call)

        before = start()
        assert await asyncio.to_thread(gate.reached.wait, LONG)
        await asyncio.to_thread(writer.put, 1, "new")
        after = start()
        done, _ = await asyncio.wait([after], timeout=0.3)  # one that joins waits at the gate
        gate.open()
        return [bool(done), await before, await after]

    assert asyncio.run(main()) == [True, "old", "new"]


@pytest.mark.parametrize("verb", ["get", "get_many"])
@pytest.mark.parametrize("face", ["plain", "async"])
def test_what_was_read_while_the_log_was_away_is_kept_by_no_tier(
    shelf: Shelf, redis_server: RedisServer, space: str, verb: str, face: str
) -> None:
    rows = Rows({1: "old", 2: "other"})
    logs = RedisBackend(redis_server.url, namespace=f"{space}-log")
    cut = Cut(logs.log(QUEUE))
    options = {"worker": False, "log_away": "source", "load": rows.load}
    caches = [shelf.cache(redis_server.url, namespace=space, timeout=3.0) for _ in range(2)]
    book = shelf.book(nothing, caches[0], log=cut, ttl=3600, **options)
    other = shelf.book(nothing, caches[1], log=logs.log(QUEUE), ttl=3600, **options)

    def read() -> Any:
        if verb == "get":
            return book.get(1) if face == "plain" else asyncio.run(book.aio.get(1))
        many = book.get_many([1, 2]) if face == "plain" else asyncio.run(book.aio.get_many([1, 2]))
        assert many[2] == "other"
        return many[1]

    book.put(1, "new")
    assert read() == "new"
    book.invalidate(1)
    cut.off = True
    assert read() == "old"
    assert read() == "old"
    cut.off = False
    assert book.depth() == 1
    assert [read(), other.get(1), other.get_many([1])] == ["new", "new", {1: "new"}]


def test_reads_while_the_server_of_the_log_does_not_answer_leave_nothing_old_behind(
    shelf: Shelf, redis_server: RedisServer, space: str
) -> None:
    rows = Rows({1: "old"})
    cache = shelf.cache(redis_server.url, namespace=space, timeout=0.25)
    with RedisServer() as server:
        options = {"worker": False, "log_away": "source", "load": rows.load}
        book = shelf.book(nothing, cache, log=server.url, ttl=3600, **options)
        book.put(1, "new")
        assert book.depth() == 1
        server.pause()
        shown = book.get(1)
        server.resume()
        wait_for(lambda: _depth(book) == 1)
        assert [shown, book.get(1), book.get_many([1])] == ["old", "new", {1: "new"}]
        cache.close(timeout=0.05)


def _depth(book: WriteBack) -> int:
    try:
        return book.depth()
    except Exception:
        return -1


def test_a_put_to_a_log_on_a_server_says_that_it_was_done(
    shelf: Shelf, redis_server: RedisServer, space: str
) -> None:
    cache = shelf.cache(namespace=space)
    book = shelf.book(nothing, cache, log=redis_server.url, worker=False)
    written = book.put(1, "a")
    assert (written.result, written.pending) == (None, False)


# -- whose queue is whose


@pytest.mark.parametrize("log", ["sqlite", "redis"])
@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("shop", "eu/items"), ("shop/eu", "items")),
        (("", "shop/items"), ("shop", "items")),
        (("shop", "items"), ("market", "items")),
        (("shop%2Feu", "items"), ("shop/eu", "items")),
    ],
    ids=["slash", "none", "same name", "quoted"],
)
def test_queues_of_two_namespaces_are_two_queues(
    shelf: Shelf,
    redis_server: RedisServer,
    space: str,
    log: str,
    one: tuple[str, str],
    two: tuple[str, str],
) -> None:
    ledgers = [Ledger(), Ledger()]
    url = shelf.url if log == "sqlite" else redis_server.url

    def opened(which: tuple[str, str], ledger: Ledger, works: bool) -> WriteBack:
        namespace, name = which
        cache = shelf.cache(namespace=namespace) if namespace else shelf.cache()
        name = f"{name}-{space}"
        return shelf.book(ledger.write_many, cache, name=name, log=url, worker=works)

    mine, theirs = opened(one, ledgers[0], False), opened(two, ledgers[1], True)
    mine.put(1, "a secret")
    theirs.put(2, "theirs")
    assert theirs.get(1) is None
    assert theirs.flush(LONG).complete
    assert ledgers[1].rows == {2: "theirs"}
    assert (mine.depth(), mine.get(1)) == (1, "a secret")
    heir = opened(one, ledgers[0], True)
    assert heir.flush(LONG).complete
    assert ledgers[0].rows == {1: "a secret"}


def test_a_queue_in_parts_is_drained_by_who_learns_of_them_from_the_server(
    shelf: Shelf, redis_server: RedisServer, space: str
) -> None:
    source = Ledger()
    made = RedisBackend(redis_server.url, namespace=space).log(QUEUE, parts=3)
    putter = shelf.book(nothing, shelf.cache(namespace=space), log=made, worker=False)
    putter.put_many({n: n for n in range(30)})
    worker = shelf.book(source.write_many, shelf.cache(namespace=space), log=redis_server.url)
    assert worker.flush(LONG).complete
    assert source.rows == {n: n for n in range(30)}


@pytest.mark.parametrize("log", ["sqlite", "redis", "of the cache"])
def test_a_durable_log_needs_a_name_where_its_keys_come_from_a_function(
    shelf: Shelf, log: str
) -> None:
    away = "redis://localhost:1/0"
    url = {"sqlite": shelf.url, "redis": away, "of the cache": None}[log]

    def key(id: Any) -> str:
        return f"row:{id}"

    cache = shelf.cache(away)
    with pytest.raises(ConfigurationError, match="name="):
        shelf.book(nothing, cache, key=key, name=None, log=url)
    shelf.book(nothing, cache, key=key, name="books", log=url)
    shelf.book(nothing, cache, key=key, name=None, log="memory")
    shelf.book(nothing, cache, key="row:{id}", name=None, log=url)


# -- a row that another version of the program put


@pytest.mark.parametrize("fails", ["tags", "key"])
def test_a_row_whose_key_or_tags_fail_in_the_worker_stops_nobody(shelf: Shelf, fails: str) -> None:
    source = Ledger()
    shelf.book(nothing, worker=False).put_many({1: 5, "b": "no number"})
    options: dict[str, Any] = {"delay": 0.01}
    if fails == "tags":
        options["invalidates"] = ["sum:{value.real}"]
    else:
        options["key"] = lambda id: f"row:{id.lower()}"
    cache = shelf.cache()
    worker = shelf.book(source.write_many, cache, **options)
    assert worker.flush(LONG).complete
    assert [id for id, _ in source.taken] == [1, "b"]
    assert (count(cache, "worker_errors"), shelf.letters()) == (0, [])
    # An embedded cache over a log that tells looks for no key of what was written.
    assert count(cache, "tag_errors") == (1 if fails == "tags" else 0)


def test_a_row_whose_key_fails_in_the_worker_stops_nobody_with_a_shared_cache(
    shelf: Shelf, redis_server: RedisServer, space: str
) -> None:
    source = Ledger()
    caches = [shelf.cache(redis_server.url, namespace=space, timeout=3.0) for _ in range(2)]
    shelf.book(nothing, caches[0], worker=False).put_many({1: "a", "b": "c"})
    worker = shelf.book(source.write_many, caches[1], key=lambda id: f"row:{id.lower()}")
    assert worker.flush(LONG).complete
    assert [id for id, _ in source.taken] == [1, "b"]
    assert count(caches[1], "tag_errors") >= 1
    assert count(caches[1], "worker_errors") == 0


# -- queues that are full


def _log(kind: str, shelf: Shelf, url: str, space: str) -> dict[str, Any]:
    if kind == "redis":
        made = RedisBackend(url, namespace=space).log(QUEUE, parts=4, bounds=Bounds(3))
        return {"log": made}
    return {"log": "memory" if kind == "memory" else shelf.url, "max_pending": 5}


@pytest.mark.parametrize("face", ["plain", "async"])
@pytest.mark.parametrize("kind", ["sqlite", "memory", "redis"])
def test_a_full_queue_says_which_writes_of_many_it_has_taken(
    shelf: Shelf, redis_server: RedisServer, space: str, kind: str, face: str
) -> None:
    """Parts of a queue are not full at the same time: what was taken need not be the first."""
    source, away = Ledger(), threading.Event()
    away.set()

    def write_many(ops: Sequence[Op]) -> None:
        if away.is_set():
            raise ConnectionError("away")
        source.write_many(ops)

    cache = shelf.cache(namespace=space)
    book = shelf.book(write_many, cache, block=0.05, **_log(kind, shelf, redis_server.url, space))
    values = {n**3: n for n in range(40)}
    with pytest.raises(QueueFull) as raised:
        if face == "plain":
            book.put_many(values)
        else:
            asyncio.run(book.aio.put_many(values))
    taken = list(raised.value.accepted)
    assert (taken == list(values)[: len(taken)]) is (kind != "redis")
    assert len(taken) == (12 if kind == "redis" else 5)
    assert [n for n in values if book.get(n) is not None] == taken
    away.clear()
    flushed = book.flush(LONG)
    assert flushed.complete
    assert source.rows == {id: values[id] for id in taken}


@pytest.mark.parametrize("verb", ["put", "delete"])
def test_writing_past_a_full_queue_needs_a_function_that_writes(shelf: Shelf, verb: str) -> None:
    with pytest.raises(ConfigurationError, match="store="):
        shelf.book(nothing, log="memory", full="write_through")
    rows = Rows({2: "there"})
    may = threading.Event()
    given: dict[str, Any] = {"store": rows.store, "delete": rows.delete}

    def sink(ops: Sequence[Op]) -> None:
        may.wait(LONG)  # it stays full

    book = shelf.book(sink, log="memory", max_pending=1, block=0.05, full="write_through", **given)
    book.put(1, "waits")
    if verb == "put":
        book.put(2, "past it")
    else:
        book.delete(2)
    assert rows.rows == ({2: "past it"} if verb == "put" else {})
    may.set()


def test_equal_ids_of_two_keys_are_two_writes_at_a_full_queue(
    shelf: Shelf, redis_server: RedisServer, space: str
) -> None:
    """1 and True are two keys, and the first of them being taken says nothing about the other."""
    gone: list[Any] = []

    def delete_many(ids: Sequence[Any]) -> None:
        gone.extend(ids)

    book = shelf.book(
        None, shelf.cache(redis_server.url, namespace=space, timeout=3.0), worker=False,
        max_pending=1, full="write_through", delete_many=delete_many, store_many=gone.append,
    )  # fmt: skip
    book.delete_many([1, True])
    assert (gone, book.depth()) == ([True], 1)
    assert [type(id) for id in gone] == [bool]


def test_a_put_waits_for_room_that_another_process_makes(shelf: Shelf) -> None:
    source = Ledger()
    putter = shelf.book(nothing, worker=False, max_pending=1, block=LONG)
    putter.put(1, "a")
    waiting = threading.Thread(target=putter.put, args=(2, "b"), daemon=True)
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive()
    worker = shelf.book(source.write_many)
    assert worker.flush(LONG).complete
    waiting.join(LONG)
    assert not waiting.is_alive()
    assert worker.flush(LONG).complete
    assert source.rows == {1: "a", 2: "b"}
