"""Logs that do it wrong, each in the one way in which a durable write-back must not be naive: the
checker has to catch them all."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from cachekit.core.deadline import Deadline
from cachekit.protocols import Log, Record
from cachekit.runtime import AnyWorld, drive


class Wrapped:
    """All else is the log's own."""

    def __init__(self, log: Log, runtime: Any) -> None:
        self._log = log
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class AcknowledgesEarly(Wrapped):
    """Says yes at once, and writes it down a moment later."""

    _next = 0

    async def append(
        self, world: AnyWorld, records: Sequence[Record], deadline: Deadline
    ) -> list[int | None]:
        def later() -> None:
            time.sleep(0.03)
            threads = self._runtime.threads
            drive(self._log.append(threads, records, threads.deadline(5.0)))

        threading.Thread(target=later, daemon=True).start()
        self._next += len(records)
        return list(range(self._next - len(records) + 1, self._next + 1))


class SettlesFirst(Wrapped):
    """Takes operations out of the log when it reads them, before the sink has them."""

    _epoch = 0

    async def claim(self, world: AnyWorld, part: int, *args: Any, **options: Any) -> int | None:
        epoch = await self._log.claim(world, part, *args, **options)
        self._epoch = epoch or self._epoch
        return epoch

    async def read(self, world: AnyWorld, part: int, *args: Any) -> list[Record]:
        records = await self._log.read(world, part, *args)
        done = [(record.key, record.version) for record in records]
        await self._log.settle(world, part, self._epoch, done, (), world.deadline(5.0))
        return records


class StartsAtTheNewest(Wrapped):
    """Takes a partition over at its end, where the last owner is thought to have been."""

    _from = 0

    async def claim(self, world: AnyWorld, part: int, *args: Any, **options: Any) -> int | None:
        epoch = await self._log.claim(world, part, *args, **options)
        if epoch is not None:
            standing = await self._log.standing(world, world.deadline(5.0))
            self._from = standing.newest[part]
        return epoch

    async def read(self, world: AnyWorld, part: int, after: int, *args: Any) -> list[Record]:
        return await self._log.read(world, part, max(after, self._from), *args)


class SettlesRarely(Wrapped):
    """Tells the log of several batches at once: a take-over delivers them all again."""

    _unsaid: list[tuple[str, int]] = []

    async def settle(
        self, world: AnyWorld, part: int, epoch: int, done: Any, letters: Any, deadline: Deadline
    ) -> bool:
        self._unsaid = [*self._unsaid, *done]
        if len(self._unsaid) < 200 and not letters:
            return True
        said, self._unsaid = self._unsaid, []
        return await self._log.settle(world, part, epoch, said, letters, deadline)


NAIVE = {
    "acknowledges early": AcknowledgesEarly,
    "settles first": SettlesFirst,
    "starts at the newest": StartsAtTheNewest,
    "settles rarely": SettlesRarely,
}
