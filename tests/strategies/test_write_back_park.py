"""What the source refuses: no cache keeps it, and it undoes nothing newer."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cachekit import Cache, Retrying, WriteBack
from cachekit.protocols import Op, OpKind
from cachekit.testing.servers import RedisServer

LONG = 15.0


@pytest.mark.server
@pytest.mark.parametrize("kind", [OpKind.PUT, OpKind.DELETE], ids=lambda kind: kind.value)
def test_a_read_beside_the_parking_leaves_the_refused_value_in_no_cache(
    redis_server: RedisServer, kind: OpKind
) -> None:
    space = f"park-{time.monotonic_ns()}"
    may = threading.Event()

    def sink(ops: Sequence[Op]) -> dict[Any, Exception]:
        time.sleep(0.002)
        return {op.id: PermissionError("no") for op in ops}

    def opened() -> WriteBack:
        cache = Cache(redis_server.url, namespace=space)
        return WriteBack(
            cache, key="i:{id}", name="i", ttl=60, load=lambda id: "source", sink=sink,
            log=redis_server.url, delay=0.0, retry=Retrying(attempts=1),
        )  # fmt: skip

    books, now = (opened(), opened()), [0]

    def read(book: WriteBack) -> None:
        while not may.is_set():
            book.get(now[0])

    readers = [threading.Thread(target=read, args=(book,), daemon=True) for book in books]
    for reader in readers:
        reader.start()
    wrong = []
    try:
        for id in range(1, 25):
            now[0] = id
            books[0].put(id, "refused") if kind is OpKind.PUT else books[0].delete(id)
            assert books[0].flush(LONG).complete
            now[0] = 0
            end = time.monotonic() + 3  # for notes to near tiers; the entry would live for 60
            while any(book.get(id) != "source" for book in books) and time.monotonic() < end:
                time.sleep(0.01)
            wrong += [id for book in books if book.get(id) != "source"]
    finally:
        may.set()
        for reader in readers:
            reader.join(LONG)
    assert not wrong
    for book in books:
        book.close()


@pytest.mark.server
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_letter_is_outdated_by_what_went_past_its_log(
    kind: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    rows: dict[int, Any] = {}
    may, refuses = threading.Event(), [7]
    may.set()

    def sink(ops: Sequence[Op]) -> dict[Any, Exception]:
        assert may.wait(LONG)
        rows.update({op.id: op.value for op in ops if op.id not in refuses})
        return {op.id: ValueError("no") for op in ops if op.id in refuses}

    shared = f"sqlite:///{tmp_path}/cache.db" if kind == "sqlite" else redis_server.url
    log = f"sqlite:///{tmp_path}/log" if kind == "sqlite" else redis_server.url
    space = f"past-{time.monotonic_ns()}"
    book = WriteBack(
        Cache(shared, namespace=space), key="i:{id}", name="i", sink=sink,
        store=rows.__setitem__, log=log, delay=0.01, max_pending=2, block=0.1, batch=2,
        full="write_through", retry=Retrying(attempts=1),
    )  # fmt: skip
    book.put(7, "refused")
    assert book.flush(LONG).parked == 1
    refuses.clear()
    may.clear()
    book.put_many({1: 1, 2: 2})
    book.put(7, "newer")  # there is no room
    assert rows[7] == "newer"
    may.set()
    assert book.flush(LONG).complete
    command = ["dlq", "replay", "--log", log, "--queue", "i", "--namespace", space, "--all"]
    done = subprocess.run(
        [sys.executable, "-m", "cachekit", *command], capture_output=True, text=True, timeout=60
    )
    assert "--force" in done.stdout + done.stderr, done
    assert book.flush(LONG).complete
    assert rows == {1: 1, 2: 2, 7: "newer"}
    book.close()


@pytest.mark.server
@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_what_a_flush_tells_as_parked_is_listed_when_it_returns(
    kind: str, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the log's answer is on its way."""
    log = {"memory": "memory", "redis": redis_server.url, "sqlite": f"sqlite:///{tmp_path}/q.log"}
    cache = Cache(redis_server.url, namespace=f"listed-{time.monotonic_ns()}")
    book = WriteBack(
        cache, key="i:{id}", name="i", log=log[kind], delay=0.0, retry=Retrying(attempts=1),
        sink=lambda ops: {op.id: PermissionError("no") for op in ops},
    )  # fmt: skip
    book.put(0, "refused")
    assert book.flush(LONG).parked == 1
    if kind != "memory":
        settle = book.log.log.settle

        async def late(*given: Any) -> bool:
            answer: bool = await settle(*given)
            await given[0].sleep(0.3)
            return answer

        monkeypatch.setattr(book.log.log, "settle", late)
    for n in range(1, 4):
        book.put(n, "refused")
        assert book.flush(LONG).parked == 1
        assert [letter.op.id for letter in book.dead()] == list(range(n + 1))
    book.close()
