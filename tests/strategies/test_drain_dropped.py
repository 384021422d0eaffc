"""What is dropped with a durable log behind it goes with its last user."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from durable_books import LONG, Ledger, Shelf, wait_for

from cachekit import Cache, WriteBack
from cachekit.testing.servers import RedisServer


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with Shelf(tmp_path) as shelf:
        yield shelf


def _made(log: str, name: str, kind: str, closed: bool) -> list[weakref.ref[Any]]:
    source = Ledger()

    async def store_many(values: Mapping[Any, Any]) -> None:
        source.rows.update(values)

    store: Callable[..., Any] = source.rows.update if kind == "plain" else store_many
    cache = Cache()
    book = WriteBack(cache, key="row:{id}", name=name, log=log, delay=0.01, load=source.rows.get,
        store_many=store,
    )  # fmt: skip
    if kind == "plain":
        book.put(1, "a")
        book.get(1)
        assert book.flush(LONG).complete
        if closed:
            book.close(LONG)
            cache.close()
    else:

        async def use() -> None:
            await book.aio.put(1, "a")
            await book.aio.get(1)
            assert (await book.aio.flush(LONG)).complete
            if closed:
                await cache.aio.close()

        asyncio.run(use())
    return [weakref.ref(cache), weakref.ref(book)]


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("log", ["sqlite", "redis"])
def test_a_strategy_with_a_durable_log_goes_with_its_last_user(
    shelf: Shelf, redis_server: RedisServer, log: str, kind: str, closed: bool
) -> None:
    url = shelf.url if log == "sqlite" else redis_server.url
    names = [f"{kind} {closed} {n}" for n in range(3)]
    refs = [ref for name in names for ref in _made(url, name, kind, closed)]

    def gone() -> bool:
        gc.collect()
        return all(ref() is None for ref in refs)

    wait_for(gone, "caches and strategies are kept by what they began")
