"""The life of a write-back worker: turns, waits, and what ends it."""

from __future__ import annotations

import asyncio
import sys
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from ..observe import log
from ..runtime import AnyWorld, AsyncioWorld
from .waiting import until_due

if TYPE_CHECKING:
    from .flusher import Flusher

END = -1.0  # what a turn gives when the worker's work is over


async def serve(held: weakref.ref[Flusher], world: AnyWorld, token: object) -> None:
    """The worker. While nothing waits in this process it does not keep its strategy alive.

    ``token`` is the flusher's as long as this worker is its only one: a thread can come up late,
    when an exception out of a signal handler interrupted its start and another took its place."""
    flusher = held()
    if flusher is None:
        return
    queue, batching = flusher.queue, flusher.batching
    failed = False
    try:
        while flusher is not None:
            if flusher.token is not token:
                return
            pause = await flusher.turn(world)
            if pause == END:
                break
            flusher = None
            await until_due(queue, world, batching, pause)
            flusher = held()
        await queue.release(world)
    except BaseException as error:
        failed = not isinstance(error, (asyncio.CancelledError, GeneratorExit))
        if failed:
            log.exception("a write-back worker failed; it starts again")
        if isinstance(error, asyncio.CancelledError):
            with suppress(Exception):  # its loop is ending: others need not wait for the lease
                await queue.release(world)
        if isinstance(world, AsyncioWorld) and not isinstance(error, Exception):
            raise
    finally:
        flusher = flusher or held()
        if flusher is not None and flusher.token is token:
            await flusher.stopped(world, failed=failed)
            if isinstance(sys.exception(), (asyncio.CancelledError, GeneratorExit)):
                flusher.hand_over(world)  # its loop ends, or was closed under it
