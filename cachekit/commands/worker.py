"""A process that writes an application's write-back batches, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..cache import Cache
from ..errors import BackendError, BackendRefused
from ..protocols import Standing
from ..runtime import AnyWorld, drive
from ..strategies.write_back import WriteBack
from ..version import __version__
from .app import durable, leave, load, log_of
from .text import safe, say

PATIENCE = 5.0  # seconds for one question to a log
LOOK = 0.05  # seconds between looks at what is left
LAST_LOOK = 0.02  # seconds between looks at the batches under way, at the end
LAST_TASKS = 1.0  # seconds for what the loop still has to do when its workers have ended
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Worker:
    """Drains write-back strategies of a cache until SIGTERM or Ctrl-C; the second one ends the
    process at once (what is not written stays in the log), and so does a batch that outlasts
    ``grace``. For a process that does nothing else.

    Plain sinks have a thread each; async ones share the loop that :meth:`run` is in. ``status``:
    seconds between lines of how it goes; ``grace``: seconds for the batches under way at the
    end."""

    def __init__(
        self,
        cache: Cache,
        strategies: Sequence[WriteBack],
        *,
        status: float | None = None,
        grace: float = 30.0,
    ) -> None:
        self.strategies = strategies
        self._parts = cache.parts
        self._status = status
        self._grace = grace
        self._stop = asyncio.Event()

    async def run(self, *, once: bool = False, timeout: float | None = None) -> int:
        """0: told to stop, and what was under way is finished. With ``once``, 0: all that was
        there at the start is written or parked; 1: some of it is left, after a signal or
        ``timeout`` seconds. Raises BackendError where a log can not be asked at the start of
        ``once``, ConfigurationError where one can not be used at all."""
        loop = asyncio.get_running_loop()
        with _signals(lambda: loop.call_soon_threadsafe(self._stop.set)):
            names = ", ".join(safe(log_of(one).name) for one in self.strategies)
            say(f"cachekit worker {__version__}: {names}")
            await self._ask_logs()
            lines = asyncio.create_task(self._lines(self._status)) if self._status else None
            late: list[WriteBack] = []
            try:
                code = await (self._once(timeout) if once else self._until_told())
            finally:
                if lines is not None:
                    lines.cancel()
                late = await self._end()
        for one in late:
            say(f"{safe(one.name)}: its batch did not end in time and comes again", sys.stderr)
        if late:
            os._exit(1)  # the loop and the interpreter would wait for the thread that it hangs in
        return code

    # -- working --------------------------------------------------------------------------

    async def _until_told(self) -> int:
        self._start()
        await self._stop.wait()
        return 0

    async def _once(self, timeout: float | None) -> int:
        before = [await asyncio.to_thread(one.standing) for one in self.strategies]
        marks = [standing.newest for standing, _ in before]
        left = [standing.depth for standing, _ in before]
        for one, mark in zip(self.strategies, marks, strict=True):
            one.log.hurry(mark)
        self._start()
        end, lost = None if timeout is None else time.monotonic() + timeout, False
        while any(left) and (end is None or time.monotonic() < end):
            if await self._stopped_within(LOOK):
                break
            for i, one in enumerate(self.strategies):
                if left[i]:
                    try:
                        left[i] = await asyncio.to_thread(self._left, one, marks[i])
                    except BackendRefused as error:  # some were lost: no use to wait for them
                        say(f"{safe(one.name)}: {safe(str(error))}", sys.stderr)
                        lost, left[i] = True, 0
                    except BackendError:
                        continue  # away: it may come back
        for i, one in enumerate(self.strategies):
            was = before[i][0]
            now: Standing = (await asyncio.to_thread(one.last_standing))[0]
            parked = max(0, now.dead - was.dead)
            say(f"{safe(one.name)}: {was.depth} waited, {parked} parked, {left[i]} left")
        return 1 if lost or any(left) else 0

    def _start(self) -> None:
        for one in self.strategies:
            one.work(self._world_of(one))

    def _world_of(self, one: WriteBack) -> AnyWorld:
        runtime = self._parts.runtime
        return runtime.asyncio() if one.is_async else runtime.threads

    async def _ask_logs(self) -> None:
        """Fail now where a log can never be used; one that is away may come back."""
        for one in self.strategies:
            try:
                await asyncio.to_thread(self._identity, one)
            except BackendError as error:
                say(f"{safe(one.name)}: {safe(str(error))}; it is tried again", sys.stderr)

    def _identity(self, one: WriteBack) -> str:
        world = self._parts.runtime.threads
        return drive(log_of(one).identity(world, world.deadline(PATIENCE)))

    def _left(self, one: WriteBack, marks: Sequence[int]) -> int:
        world = self._parts.runtime.threads
        return drive(log_of(one).left(world, marks, world.deadline(PATIENCE)))

    async def _stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        return self._stop.is_set()

    # -- ending ---------------------------------------------------------------------------

    async def _end(self) -> list[WriteBack]:
        """Let the batches under way end, and give the logs back; those that did not in time."""
        for one in self.strategies:
            one.rest(0.0)  # all of them know before one is waited for
        plain = [one for one in self.strategies if not one.is_async]
        asynchronous = [one for one in self.strategies if one.is_async]
        await asyncio.gather(*(asyncio.to_thread(one.rest, self._grace) for one in plain))
        if not asynchronous:
            return [one for one in plain if _owns(one)]
        world = self._parts.runtime.asyncio()
        end = time.monotonic() + self._grace
        while any(map(_owns, asynchronous)) and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(LAST_LOOK)
        late = [one for one in self.strategies if _owns(one)]  # a cancelled one gives its log back
        await world.settle(LAST_TASKS)
        for one in asynchronous:
            with suppress(BackendError):
                await one.aio.close(0.0)
        if self._parts.far is not None:
            await self._parts.far.close(world)
        return late

    # -- telling --------------------------------------------------------------------------

    async def _lines(self, every: float) -> None:
        counts, then = self._counts(), time.monotonic()
        while True:
            await asyncio.sleep(every)
            standings = [await asyncio.to_thread(one.last_standing) for one in self.strategies]
            fresh, now = self._counts(), time.monotonic()
            applied, retries, parked = (b - a for a, b in zip(counts, fresh, strict=True))
            queues = "; ".join(
                _line(one, *standing)
                for one, standing in zip(self.strategies, standings, strict=True)
            )
            rate = applied / (now - then)
            counts, then = fresh, now
            try:
                say(f"{queues}; {rate:.1f} writes/s, {retries} retries, {parked} parked")
            except OSError:
                return  # nobody reads them any more: no reason to stop working

    def _counts(self) -> tuple[int, int, int]:
        counts = self._parts.meter.counts
        return counts["writes_applied"], counts["retries"], counts["dead_letters"]


def _owns(one: WriteBack) -> bool:
    return bool(getattr(one.log, "owns", 0))


def _line(one: WriteBack, standing: Standing, age: float | None) -> str:
    oldest = "" if age is None else f", the oldest for {age:.1f} s"
    return f"{safe(one.name)}: {standing.depth} waiting{oldest}, {standing.dead} dead"


@contextmanager
def _signals(stop: Callable[[], Any]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls ``stop``, the second ends the process there and then."""
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught:
            os._exit(128 + number)
        caught.append(number)
        stop()

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(
    app: str,
    queues: Sequence[str],
    *,
    status: float | None,
    grace: float,
    once: bool,
    timeout: float | None,
) -> int:
    """Load an application's cache and work for it, whatever ``worker=`` says there."""
    cache = load(app)
    worker = Worker(cache, durable(cache, app, queues), status=status, grace=grace)
    try:
        return asyncio.run(worker.run(once=once, timeout=timeout))
    finally:
        leave(cache)
