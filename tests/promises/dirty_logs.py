"""Write-back over a log that nobody drains unless asked: two processes that share it, and a desk
that keeps the books of what was acknowledged."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from neighbour import Neighbour, open_books
from shared_rows import SharedRows

from cachekit import WriteBack
from cachekit.errors import BackendError


def url_of(kind: str, what: str, folder: Path, request: pytest.FixtureRequest) -> str | None:
    if kind == "embedded":
        return None
    if kind == "redis":
        url: str = request.getfixturevalue("redis_server").url
        return url
    return f"sqlite:///{folder}/{what}.db"


class Pair:
    """Two processes over one log: this one writes, the neighbour reads. Nobody drains unless
    asked: the worker is a third one, with a cache of its own."""

    def __init__(self, log: str, url: str | None, folder: Path, coherence: Any) -> None:
        self.rows = SharedRows(folder / "rows.db")
        cache: dict[str, Any] = {"timeout": 10.0, "max_entries": 100}
        if url is not None:
            cache["coherence"] = coherence
        cache["namespace"] = f"overlay-{uuid.uuid4().hex[:10]}"
        self.setup: dict[str, Any] = {
            "log": log, "url": url, "rows": self.rows.path, "cache": cache,
            "book": {"worker": False, "wait": 20.0},
        }  # fmt: skip
        self.cache, self.books = open_books(self.setup, self.rows)
        self.other = Neighbour(self.setup)

    def drain(self, book: str) -> None:
        setup = {**self.setup, "book": {"delay": 0.01, "lease": 5.0}}
        cache, books = open_books(setup, self.rows)
        with cache:
            flushed = books[book].flush(20)
            assert flushed.complete, flushed
            assert not flushed.parked, flushed

    def close(self) -> None:
        self.other.close()
        self.cache.close()


def _nothing(pair: Pair, book: str, id: int) -> None:
    pass


def _evict(pair: Pair, book: str, id: int) -> None:
    pair.other.ask(f"[cache.set(f'{id}-{{n}}', n, ttl=60) for n in range(300)] and None")


def _expire(pair: Pair, book: str, id: int) -> None:
    time.sleep(0.25)


def _invalidate(pair: Pair, book: str, id: int) -> None:
    pair.other.ask(f"books[{book!r}].invalidate({id})")
    pair.other.ask(f"run(books[{book!r}].aio.invalidate({id}))")


def _clear(pair: Pair, book: str, id: int) -> None:
    pair.other.ask("cache.clear()")
    pair.other.ask("run(cache.aio.clear())")
    pair.cache.clear()


def _drop_tag(pair: Pair, book: str, id: int) -> None:
    pair.other.ask("cache.invalidate(tags=['all'])")
    pair.cache.invalidate(tags=["all"])


MISHAPS: dict[str, tuple[str, Callable[[Pair, str, int], None]]] = {
    "kept": ("row", _nothing),
    "evicted": ("row", _evict),
    "expired": ("brief", _expire),
    "invalidated": ("row", _invalidate),
    "cleared": ("row", _clear),
    "tag dropped": ("row", _drop_tag),
}


def _plain(book: WriteBack, id: Any, value: Any) -> None:
    book.put(id, value)


def _async(book: WriteBack, id: Any, value: Any) -> None:
    asyncio.run(book.aio.put(id, value))


WAYS = {"plain": _plain, "aio": _async}


class Desk:
    """A strategy over a log, nobody who drains it, and what was acknowledged."""

    def __init__(
        self, rows: SharedRows, put: Callable[[WriteBack, Any, Any], None], setup: dict[str, Any]
    ) -> None:
        self.rows, self._put, self._setup = rows, put, setup
        self.cache, books = open_books(
            {**setup, "book": {"worker": False, **setup.get("book", {})}}, rows
        )
        self.book = books["row"]
        self.accepted: dict[Any, Any] = {}

    def put(self, id: Any, value: Any) -> None:
        self._put(self.book, id, value)
        self.accepted[id] = value

    def check(self) -> None:
        """The log works again: it has what was acknowledged, and nothing else."""
        shown = self.book.get_many([*self.accepted, "refused", "deleted"])
        assert shown == {**self.rows.all(), **self.accepted}
        assert self.book.depth() == len(self.accepted)
        cache, books = open_books({**self._setup, "book": {"delay": 0.01}}, self.rows)
        with cache:
            assert books["row"].flush(20).complete
        assert self.rows.all() == {"deleted": "old", "refused": "old", **self.accepted}
        assert self.book.get("refused") == "old"
        assert self.book.get("deleted") == "old"

    def refuses(self, error: type[Exception] = BackendError) -> None:
        """Every verb of a writer says so."""
        for write in (
            lambda: self._put(self.book, "refused", "new"),
            lambda: self.book.put_many({"refused": "new", "also refused": "new"}),
            lambda: self.book.delete("deleted"),
        ):
            with pytest.raises(error):
                write()
