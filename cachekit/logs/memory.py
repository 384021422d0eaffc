"""The log in this process's memory: lossy, so it must be asked for by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..core.ops import Op, OpKind
from ..runtime import AnyWorld
from .queue import Queue, delivered


class MemoryLog(Queue):
    """Level ``memory``: what is not yet written dies with the process (at most ``max_pending``
    operations, or what ``delay`` lets wait). Threads and event loops of one process share it."""

    level = "memory"

    def __init__(self, clock: Callable[[], float], max_pending: int, lane: str = "") -> None:
        """``lane``: a name that no other log has, for sinks that fence."""
        super().__init__(clock, (lane,))
        self._deliveries = 0
        (self._buffer,) = self._buffers.values()
        self._max = max_pending

    def append_now(
        self,
        kind: OpKind,
        key: Any,
        value: Any,
        id: Any = None,
        keeper: object = None,
        *,
        over: bool = False,
    ) -> Op | None:
        """Accept an operation, or None at the bound, if it may not go ``over`` that. ``keeper`` is
        kept as long as any waits. Whoever calls it holds :attr:`lock`."""
        buffer, most = self._buffer, math.inf if over else self._max
        # An operation on a key that waits already takes no new room.
        op = buffer.offer_within(most, kind, key, value, self._clock(), id)
        if op is not None:
            self.keeper = keeper
            if self._idle or self._listeners:
                self._tell_of_one(buffer)
        return op

    def wait_for_room(self, seconds: float) -> None:
        """Block this thread until something leaves, or the time is over."""
        seen = self._changed.now
        if not self.has_room():
            self._changed.wait(seen, seconds)

    def has_room(self) -> bool:
        return self._buffer.depth < self._max

    def knows(self, key: Any) -> bool:
        """Whether a key has an unwritten operation. Takes no lock, as :meth:`pending`."""
        return self._buffer.knows(key)

    def newest(self, ops: Sequence[Op]) -> list[Op]:
        """Those of a batch that is out for whose key nothing newer waits."""
        with self._lock:
            return self._buffer.newest(ops)

    def pending(self, key: Any) -> Op | None:
        """The newest unwritten operation of a key. Takes no lock: who asks may be at work in the
        near tier, where the lock's holder wants to be next."""
        return self._buffer.pending(key)

    async def delivery(self, world: AnyWorld, ops: Sequence[Op]) -> Sequence[Op]:
        self._deliveries += 1
        return delivered(ops, self._deliveries)

    async def park(self, world: AnyWorld, op: Op, error: str, attempts: int) -> None:
        await super().park(world, op, error, attempts)
        with self._lock:
            self._let_go()
