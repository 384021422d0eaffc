"""A source that refuses a row, the dead letters of a log, and what a strategy goes through while
its source is down."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from cachekit import QueueFull, WriteBack
from cachekit.protocols import Letter, Log
from cachekit.runtime import Runtime, drive


class Source:
    """Applies a whole batch or nothing of it; ``poison`` is what it refuses."""

    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {}
        self.poison: Any = None
        self.landed: dict[Any, float] = {}

    def store_many(self, values: Mapping[Any, Any]) -> None:
        if self.poison in values:
            raise ValueError("the row breaks a constraint")
        self.rows.update(values)
        self.landed.update(dict.fromkeys(values, time.monotonic()))

    async def store_many_async(self, values: Mapping[Any, Any]) -> None:
        self.store_many(values)


class Letters:
    """The dead letters of a log, as the tools that list them see them."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.world = Runtime().threads

    def _ask(self, verb: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return drive(verb(self.world, *args, self.world.deadline(10.0)))  # type: ignore[arg-type]  # a coroutine

    def all(self) -> list[Letter]:
        found: list[Letter] = self._ask(self.log.letters, 0, 1000)
        return found

    def revive(self, versions: Sequence[int], *, force: bool = False) -> list[int]:
        found: list[int] = self._ask(self.log.revive, versions, force)
        return found

    def drop(self, versions: Sequence[int]) -> list[int]:
        found: list[int] = self._ask(self.log.drop, versions)
        return found

    def close(self) -> None:
        drive(self.log.close(self.world))


class Report:
    """What one strategy went through in the outage."""

    def __init__(self) -> None:
        self.accepted: dict[str, list[int]] = {}  # per key, in order
        self.refused: list[float] = []  # how long each put that found no room took
        self.errors: list[str] = []
        self.deepest = 0
        self.delivered: list[tuple[str, int]] = []
        self.down = True
        self.tried_while_down = 0
        self.caught_up = -1.0
        self.left = -1
        self.letters = -1

    def store_many(self, values: Mapping[str, int]) -> None:
        if self.down:
            self.tried_while_down += 1
            raise ConnectionError("the source is down")
        self.delivered += values.items()

    async def store_many_async(self, values: Mapping[str, int]) -> None:
        self.store_many(values)


def _produce(book: WriteBack, report: Report, me: int, over: threading.Event) -> None:
    """Hot keys and unique ones; each value once, growing per key."""
    n = 0
    while not over.is_set():
        n += 1
        key = f"hot {me}" if n % 4 == 0 else f"{me} {n}"
        began = time.monotonic()
        try:
            book.put(key, n)
        except QueueFull as full:
            report.refused.append(time.monotonic() - began)
            if full.accepted:
                report.errors.append("a put of one was refused and accepted")
        except Exception as error:
            report.errors.append(repr(error))
        else:
            report.accepted.setdefault(key, []).append(n)
        time.sleep(0.0005)


async def _produce_async(book: WriteBack, report: Report, me: int, over: threading.Event) -> None:
    n = 0
    while not over.is_set():
        n += 1
        key = f"hot {me}" if n % 4 == 0 else f"{me} {n}"
        began = time.monotonic()
        try:
            await book.aio.put(key, n)
        except QueueFull:
            report.refused.append(time.monotonic() - began)
        except Exception as error:
            report.errors.append(repr(error))
        else:
            report.accepted.setdefault(key, []).append(n)
        await asyncio.sleep(0.0005)


def _watch(book: WriteBack, report: Report, over: threading.Event) -> None:
    while not over.is_set():
        report.deepest = max(report.deepest, book.depth())
        time.sleep(0.02)


def go_through(book: WriteBack, report: Report, seconds: float) -> None:
    over = threading.Event()
    threads = [threading.Thread(target=_produce, args=(book, report, n, over)) for n in range(2)]
    threads.append(threading.Thread(target=_watch, args=(book, report, over)))
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    report.down, healed = False, time.monotonic()
    time.sleep(0.2)  # the load goes on
    over.set()
    for thread in threads:
        thread.join()
    flushed = book.flush(60.0)
    report.caught_up, report.left = time.monotonic() - healed, flushed.left
    report.letters = book.standing()[0].dead


async def go_through_async(book: WriteBack, report: Report, seconds: float) -> None:
    over = threading.Event()
    watching = threading.Thread(target=_watch, args=(book, report, over))
    watching.start()
    tasks = [asyncio.create_task(_produce_async(book, report, n, over)) for n in range(2)]
    await asyncio.sleep(seconds)
    report.down, healed = False, time.monotonic()
    await asyncio.sleep(0.2)
    over.set()
    await asyncio.gather(*tasks)
    flushed = await book.aio.flush(60.0)
    report.caught_up, report.left = time.monotonic() - healed, flushed.left
    report.letters = book.standing()[0].dead
    watching.join()
    await book.aio.close()
