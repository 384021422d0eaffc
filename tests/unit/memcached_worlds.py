"""Run one test body in the thread world or in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cachekit.runtime import AnyWorld, Runtime, drive

WORLDS = ["threads", "asyncio"]


def in_world(world: str, body: Callable[[AnyWorld], Awaitable[None]]) -> None:
    runtime = Runtime()
    try:
        if world == "threads":
            drive(body(runtime.threads))  # type: ignore[arg-type]  # every body is a coroutine
        else:

            async def run() -> None:
                await body(runtime.asyncio())

            asyncio.run(run())
    finally:
        runtime.close()
