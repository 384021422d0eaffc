"""The end of the interpreter, for a write-back strategy that was not closed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..errors import CacheKitError
from ..observe import log
from ..runtime import drive
from .aio import CLOSE_TIMEOUT

if TYPE_CHECKING:
    from .write_back import WriteBack


def last_flush(strategy: WriteBack) -> None:
    """Write what waits: worker and loop may be gone, and no thread starts any more."""
    flusher, name, durable = strategy._flusher, strategy.name, strategy._log is not None
    flusher.exiting = True
    try:
        if strategy.is_async:  # its loop is gone
            strategy._end(0.0)
            flusher.end(0.0)
        else:
            strategy.close()
        left = _drain_here(strategy)
    except CacheKitError as error:
        log.error("%s: the process ends, and its log can not be asked: %s", name, error)
        return
    if left and not durable:
        log.error("%s: the process ends with %d writes lost", name, left)
    elif left and flusher.works:
        log.warning("%s: %d writes are left in the log for the next start", name, left)


def _drain_here(strategy: WriteBack) -> int:
    """How many are left."""
    flusher, runtime, kept = strategy._flusher, strategy._parts.runtime, strategy._log
    waits = _waiting(strategy)
    if waits and flusher.works and strategy.is_async:

        async def drain() -> None:
            world = runtime.asyncio()
            await flusher.drain(world, CLOSE_TIMEOUT)
            if kept is not None:
                await kept.close(world)

        asyncio.run(drain())
    elif waits and flusher.works and flusher.threadless:
        drive(flusher.drain(runtime.threads, CLOSE_TIMEOUT))
    else:
        return waits
    return _waiting(strategy)


def _waiting(strategy: WriteBack) -> int:
    return strategy.log.here() if strategy._log is None else strategy.depth()
