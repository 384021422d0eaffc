"""The log in this process's memory: lossy, so it must be asked for by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..core.buffer import Buffer
from ..core.deadline import Deadline
from ..core.ops import Dead, Op, OpKind
from ..errors import QueueFull


class MemoryLog:
    """Level ``memory``: what is not yet written dies with the process (at most ``max_pending``
    operations, or what ``delay`` lets wait). Threads and event loops of one process share it.

    A put beyond the bound waits until its deadline, then raises QueueFull."""

    level = "memory"

    def __init__(self, clock: Callable[[], float], max_pending: int) -> None:
        self._clock = clock
        self._max = max_pending
        self._buffer = Buffer()
        self._changed = threading.Condition()

    def append_now(self, kind: OpKind, key: Any, value: Any, id: Any = None) -> Op | None:
        """Accept an operation, or None at the bound."""
        with self._changed:
            # An operation on a key that waits already takes no new room.
            if self._buffer.depth >= self._max and not self._buffer.knows(key):
                return None
            op = self._buffer.offer(kind, key, value, self._clock(), id)
            self._changed.notify_all()
            return op

    def wait_for_room(self, seconds: float) -> None:
        """Block this thread until something leaves, or the time is over."""
        with self._changed:
            if self._buffer.depth >= self._max:
                self._changed.wait(seconds)

    async def append(
        self, kind: OpKind, key: Any, value: Any, deadline: Deadline, id: Any = None
    ) -> Op:
        op = self.append_now(kind, key, value, id)
        if op is None:
            raise self.full()
        return op

    def full(self) -> QueueFull:
        return QueueFull(
            f"{self._max} operations wait for the source already; it may be down or too slow. "
            "Raise max_pending, or catch QueueFull and slow down"
        )

    def knows(self, key: Any) -> bool:
        """Whether a key has an unwritten operation."""
        with self._changed:
            return self._buffer.knows(key)

    def pending(self, key: Any) -> Op | None:
        with self._changed:
            return self._buffer.pending(key)

    async def take(self, limit: int) -> list[Op]:
        with self._changed:
            return self._buffer.take(limit)

    async def ack(self, ops: Sequence[Op]) -> None:
        with self._changed:
            self._buffer.ack(ops)
            self._changed.notify_all()

    async def nack(self, ops: Sequence[Op]) -> None:
        with self._changed:
            self._buffer.nack(ops)
            self._changed.notify_all()

    async def park(self, op: Op, error: str) -> None:
        with self._changed:
            self._buffer.park(op, error)
            self._changed.notify_all()

    def depth(self) -> int:
        return self._buffer.depth

    def oldest(self) -> float | None:
        with self._changed:
            return self._buffer.oldest()

    def dead(self) -> list[Dead]:
        with self._changed:
            return list(self._buffer.dead)

    @property
    def superseded(self) -> int:
        return self._buffer.superseded

    def mark(self) -> int:
        """The version of the newest accepted operation."""
        return self._buffer.last_version

    def undone(self, version: int) -> int:
        """How many operations accepted up to ``version`` are not written yet."""
        with self._changed:
            return self._buffer.undone_up_to(version)

    def wait_for_work(
        self, size: int, delay: float, hurry: Callable[[], bool], most: float | None = None
    ) -> bool:
        """Block until a batch is due (``size`` ready, or the oldest ``delay`` seconds old) or
        ``hurry()``, at ``most`` so many seconds; says whether a batch is due."""
        end = None if most is None else self._clock() + most
        with self._changed:
            while not hurry():
                ready = self._buffer.ready
                if ready >= size:
                    return True
                oldest = self._buffer.oldest() if ready else None
                wait = None if oldest is None else oldest + delay - self._clock()
                if wait is not None and wait <= 0:
                    return True
                if end is not None:
                    left = end - self._clock()
                    if left <= 0:
                        return False
                    wait = left if wait is None else min(wait, left)
                self._changed.wait(wait)
            return self._buffer.ready > 0

    def wait_for_change(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait(seconds)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
