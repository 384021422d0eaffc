"""Waiting for a write-back queue, in a thread or on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ..core.policy import Batching
from ..logs.queue import Queue
from ..runtime import AnyWorld, AsyncioWorld


@asynccontextmanager
async def heard(queue: Queue) -> AsyncIterator[Callable[[float | None], Awaitable[None]]]:
    """A wait (seconds at most, or None) for the queue's next change, for an event loop: look at
    the queue inside, then wait, and no change is missed."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(event.set)
        except RuntimeError:  # the loop closed
            return

    async def changed(seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return

    queue.listen(wake)
    try:
        yield changed
    finally:
        queue.unlisten(wake)


async def until_due(queue: Queue, world: AnyWorld, batching: Batching, most: float | None) -> None:
    """Wait until a batch is due, somebody wakes the queue, or ``most`` seconds."""
    if most == 0.0:
        return
    if not isinstance(world, AsyncioWorld):
        queue.wait_for_work(batching.size, batching.delay, most)
        return
    async with heard(queue) as changed:
        left = queue.due_in(batching.size, batching.delay)
        if left is None or left > 0:
            times = [seconds for seconds in (left, most) if seconds is not None]
            await changed(min(times) if times else None)
