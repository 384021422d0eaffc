"""Write-back over durable logs in one folder; each book stands for a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cachekit import Cache, Retrying, WriteBack
from cachekit.errors import BackendUnavailable, FencedOut
from cachekit.logs.sqlite import SQLiteLog
from cachekit.protocols import Letter, Log, Op, OpKind
from cachekit.runtime import Runtime, drive

QUEUE = "books"
LONG = 15.0  # seconds within which a healthy machine, however busy, has done what is waited for


class Ledger:
    """A source: what it was given, in order, and what it has."""

    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {}
        self.taken: list[tuple[Any, Any]] = []

    def write_many(self, ops: Sequence[Op]) -> Any:
        for op in ops:
            self.taken.append((op.id, op.value))
            if op.kind is OpKind.PUT:
                self.rows[op.id] = op.value
            else:
                self.rows.pop(op.id, None)
        return None


class Fence(Ledger):
    """Refuses what is not newer than all it has seen of a lane."""

    fences = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}
        self.refused = 0
        self.errors: list[Exception] = []

    def last_epoch(self, lane: str) -> int:
        return self.seen.get(lane, 0)

    def write_many(self, ops: Sequence[Op]) -> Any:
        (lane,), (epoch,) = {op.lane for op in ops}, {op.epoch for op in ops}
        assert lane
        if epoch <= self.seen.get(lane, 0):
            self.refused += 1
            raise FencedOut(f"{epoch} of {lane}")
        self.seen[lane] = epoch
        if self.errors:
            raise self.errors.pop()
        return super().write_many(ops)


class Shelf:
    """Opens books over one SQLite file; they are closed at the end, whatever is left in them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "books.log"
        self.url = f"sqlite:///{self.path}"
        self.caches: list[Cache] = []

    def cache(self, url: str | None = None, **options: Any) -> Cache:
        cache = Cache(url, **options)
        self.caches.append(cache)
        return cache

    def book(self, sink: Any = None, cache: Cache | None = None, **options: Any) -> WriteBack:
        """A strategy that writes when it is told to, and tries a row twice."""
        given: dict[str, Any] = {
            "key": "row:{id}", "name": QUEUE, "log": self.url, "delay": 3600,
            "load": lambda id: None, "retry": Retrying(attempts=2, base=0.01, cap=0.02), **options,
        }  # fmt: skip
        if sink is not None:
            given["sink"] = sink
        return WriteBack(cache if cache is not None else self.cache(), **given)

    def letters(self) -> list[Letter]:
        """The dead letters in the file, as any other process finds them."""
        log, world = SQLiteLog(self.path, QUEUE), Runtime().threads
        found: list[Letter] = drive(log.letters(world, 0, 1000, world.deadline(LONG)))
        drive(log.close(world))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for cache in self.caches:
            cache.close(timeout=0.05)


class Cut:
    """A log that this process, and no other, may be cut off from."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.name, self.level, self.parts, self.tells = log.name, log.level, log.parts, log.tells
        self.off = False

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        step = getattr(self._log, verb)

        async def asked(*args: Any, **kwargs: Any) -> Any:
            if self.off and verb != "close":
                raise BackendUnavailable("no route to the log")
            return await step(*args, **kwargs)

        return asked


def wait_for(holds: Callable[[], bool], what: str = "it never came true") -> None:
    end = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.005)


async def shows(holds: Callable[[], bool]) -> None:
    """The same for an event loop."""
    for _ in range(int(LONG / 0.005)):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def count(cache: Cache, name: str) -> int:
    return cache.stats().counts.get(name, 0)


# The pools of concurrent.futures end before a program's exit handlers run.
POOLED = """
import sys
from concurrent.futures import ThreadPoolExecutor
import cachekit

pool, rows = ThreadPoolExecutor(2), {}

def store_many(values):
    pool.submit(rows.update, values).result()

book = cachekit.WriteBack(
    cachekit.Cache(), key="row:{id}", name=sys.argv[2], log=sys.argv[1], delay=3600,
    store_many=store_many,
)
book.put_many({n: n for n in range(10)})
"""
