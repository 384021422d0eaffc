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
        self._listeners: list[Callable[[], None]] = []

    def append_now(self, kind: OpKind, key: Any, value: Any, id: Any = None) -> Op | None:
        """Accept an operation, or None at the bound."""
        with self._changed:
            # An operation on a key that waits already takes no new room.
            if self._buffer.depth >= self._max and not self._buffer.knows(key):
                return None
            op = self._buffer.offer(kind, key, value, self._clock(), id)
            self._tell()
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
            self._tell()

    async def nack(self, ops: Sequence[Op]) -> None:
        with self._changed:
            self._buffer.nack(ops)
            self._tell()

    async def park(self, op: Op, error: str) -> None:
        with self._changed:
            self._buffer.park(op, error)
            self._tell()

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

    def due_in(self, size: int, delay: float, hurry: Callable[[], bool]) -> float | None:
        """Seconds until a batch is due: ``size`` ready, the oldest ``delay`` seconds old, or
        ``hurry()``; None while nothing waits."""
        with self._changed:
            ready = self._buffer.ready
            if ready >= size or hurry():
                return 0.0
            oldest = self._buffer.oldest() if ready else None
            return None if oldest is None else max(0.0, oldest + delay - self._clock())

    def wait_for_work(self, size: int, delay: float, hurry: Callable[[], bool]) -> None:
        """Block this thread until a batch is due."""
        with self._changed:
            while (left := self.due_in(size, delay, hurry)) is None or left > 0:
                self._changed.wait(left)

    def has_room(self) -> bool:
        return self._buffer.depth < self._max

    def listen(self, heard: Callable[[], None]) -> None:
        """Call ``heard`` (quick, from any thread) after every change, until :meth:`unlisten`."""
        with self._changed:
            self._listeners.append(heard)

    def unlisten(self, heard: Callable[[], None]) -> None:
        with self._changed:
            self._listeners.remove(heard)

    def _tell(self) -> None:
        self._changed.notify_all()
        for heard in self._listeners:
            heard()

    def wait_for_change(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait(seconds)

    def wake(self) -> None:
        with self._changed:
            self._tell()
