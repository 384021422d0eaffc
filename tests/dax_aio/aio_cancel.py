"""Cancelling a task at a chosen one of its suspensions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any


class CancelledAt:
    """Awaits a coroutine, and cancels its task at its ``at``-th suspension, from 0."""

    def __init__(self, coro: Any, at: int) -> None:
        self.coro = coro
        self.at = at
        self.met = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        stepped = self.coro.__await__()
        go_on: Callable[[Any], Any] = stepped.send
        given = None
        try:
            while True:
                try:
                    waited = go_on(given)
                except StopIteration as done:
                    return done.value
                if self.met == self.at:
                    task.cancel()
                self.met += 1
                try:
                    go_on, given = stepped.send, (yield waited)
                except BaseException as error:
                    go_on, given = stepped.throw, error
        finally:
            if self.met > self.at:
                task.uncancel()


async def was_cancelled(awaitable: CancelledAt) -> bool:
    """Whether it was; else it came to its end before."""
    try:
        await awaitable
    except asyncio.CancelledError:
        return True
    assert 0 < awaitable.met <= awaitable.at
    return False
