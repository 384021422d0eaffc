"""Strategies whose source hangs, fails, refuses and dawdles as told, for tests of flushes and of
write-through."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from neighbour import Neighbour
from shared_rows import SharedRows

from cachekit import Cache, Flushed, WriteBack, WriteThrough
from cachekit.testing.servers import RedisServer


class Source:
    """Takes batches; hangs, fails, refuses and dawdles as told."""

    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {}
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.error: BaseException | None = None
        self.bad: set[Any] = set()
        self.pause = 0.0

    def store_many(self, values: Mapping[Any, Any]) -> None:
        self.entered.set()
        self.open.wait(20)
        time.sleep(self.pause)
        if self.error is not None:
            raise self.error
        if self.bad.intersection(values):
            raise ValueError("refused")
        self.rows.update(values)

    async def store_many_async(self, values: Mapping[Any, Any]) -> None:
        await asyncio.to_thread(self.store_many, values)


class Desk:
    """A strategy of one kind of log, used from one world."""

    def __init__(self, kind: str, world: str, url: str) -> None:
        self.kind, self.plain = kind, world == "plain"
        self.source = Source()
        self.url = url
        self.namespace = f"flush-{uuid.uuid4().hex[:10]}"
        self.cache = Cache(namespace=self.namespace)
        self._runner = None if self.plain else asyncio.Runner()

    def book(self, **options: Any) -> WriteBack:
        source = self.source
        return WriteBack(
            self.cache,
            key="row:{id}",
            log=self.url,
            store_many=source.store_many if self.plain else source.store_many_async,
            **{"delay": 3600, "batch": 10, **options},
        )

    def run(self, plain: Callable[[], Any], aio: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return plain() if self._runner is None else self._runner.run(aio())

    def put_many(self, book: WriteBack, values: Mapping[Any, Any]) -> None:
        self.run(lambda: book.put_many(values), lambda: book.aio.put_many(values))

    def flush(self, book: WriteBack, timeout: float | None) -> tuple[Flushed, float]:
        """The answer, and how many seconds it took."""
        began = time.monotonic()
        told = self.run(lambda: book.flush(timeout), lambda: book.aio.flush(timeout))
        return told, time.monotonic() - began

    def close(self) -> None:
        self.source.open.set()
        self.source.error = None
        self.cache.close(timeout=0.05)
        if self._runner is not None:
            self._runner.run(self.cache.aio.close(timeout=0.05))
            self._runner.close()


class Through:
    """Write-through here and in a process elsewhere, over one Redis and one source."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.rows = SharedRows(folder / "rows.db")
        self.error: BaseException | None = None
        cache = {"timeout": 0.25, "namespace": "through", "coherence": "strict"}
        self.cache = Cache(server.url, **{**cache, "coherence": 1.0})
        self.book = WriteThrough(
            self.cache, key="row:{id}", ttl=600, load=self.rows.load,
            load_many=self.rows.load_many, store_many=self._store, delete_many=self._delete,
        )  # fmt: skip
        self.other = Neighbour(
            {"log": "memory", "url": server.url, "rows": self.rows.path, "cache": cache, "book": {}}
        )
        self.other.ask(
            "books.update(through=__import__('cachekit').WriteThrough(cache, key='row:{id}', "
            "name='through', ttl=600, load=rows.load, store_many=rows.store_many))"
        )

    def _store(self, values: Mapping[Any, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.rows.store_many(values)

    def _delete(self, ids: Any) -> None:
        if self.error is not None:
            raise self.error
        self.rows.delete_many(ids)

    def elsewhere(self, id: Any) -> Any:
        return self.other.ask(f"books['through'].get({id!r})")

    def close(self) -> None:
        self.other.close()
        self.cache.close()


# What it acknowledged and what its source has, each as it happens, in a line of a pipe.
LOSER = """
import os, sys, time
from cachekit import Cache, WriteBack

acknowledged, written, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
slow, options = float(sys.argv[4]), eval(sys.argv[5])

def store_many(rows):
    time.sleep(slow)
    os.write(written, "".join(f"{id}\\n" for id in rows).encode())

book = WriteBack(Cache(), key="row:{id}", log="memory", store_many=store_many, **options)
n = 0
while True:
    book.put(n, n)
    os.write(acknowledged, f"{n}\\n".encode())
    n += 1
    if pause:
        time.sleep(pause)
"""
