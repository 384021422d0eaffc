"""One process's side of a write-back log: what its worker takes, carries and lets go of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..core.buffer import Buffer
from ..core.deadline import Deadline
from ..core.eventcount import EventCount
from ..core.ops import Dead, Op
from ..runtime import AnyWorld

Marks = tuple[int, ...]  # per partition, the newest version that counts


class Queue:
    """Buffers of one or several lanes, with the waiting around them. Any thread may use it.

    A batch is of one lane, and so is what a verb is given. The verbs that settle are coroutine
    functions: a durable log is asked there. ``durable`` says that what is left at the end is not
    lost."""

    durable = False

    def __init__(self, clock: Callable[[], float], lanes: Sequence[str]) -> None:
        self._clock = clock
        self._buffers = {lane: Buffer(lane) for lane in lanes}
        self._lock = threading.RLock()
        self._changed = EventCount()
        self._listeners: list[Callable[[], None]] = []
        self._hurry: Marks = ()
        self._all = False
        self._full = False  # somebody waits for room
        self._idle: list[int] = []  # the batch sizes that waiting workers wait for
        self.keeper: object | None = None  # kept alive while operations wait here

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """What all verbs take, for a caller who needs several of them as one step. Whoever is at
        work in the near tier must not wait for it: its holder may wait for that. So what only
        looks takes no lock."""
        return self._lock

    # -- the worker's verbs ---------------------------------------------------------------

    async def feed(self, world: AnyWorld) -> float | None:
        """Take in what the log has. Seconds until it is worth asking again; None = when told."""
        return None

    def take(self, limit: int) -> list[Op]:
        """The oldest waiting operations of one lane, one per key, none of a key that is out."""
        with self._lock:
            ready = [b for b in self._buffers.values() if b.ready]
            if not ready:
                return []
            self._full = False  # whoever still finds no room says so again
            return min(ready, key=lambda b: b.oldest() or 0.0).take(limit)

    async def delivery(self, world: AnyWorld, ops: Sequence[Op]) -> Sequence[Op]:
        """The operations as this delivery to the sink has them."""
        return ops

    def recall(self) -> None:
        """What is out waits again: its worker is gone."""
        with self._lock:
            for buffer in self._buffers.values():
                buffer.recall()

    @property
    def busy(self) -> bool:
        """Whether a batch is out."""
        return any(buffer.out for buffer in self._buffers.values())

    def out(self, seconds: float = 0.0) -> None:
        """A batch stays out for so long, though the sink is not at it: between two tries."""

    def back(self) -> None:
        """The sink has answered the last delivery, or the next one begins."""

    async def ack(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """The source has them."""
        self._drop(ops)

    async def nack(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """They wait again."""
        with self._lock:
            self._buffers[ops[0].lane].nack(ops)
            self._tell()

    async def park(self, world: AnyWorld, op: Op, error: str, attempts: int) -> None:
        """A dead letter, after so many attempts of it alone."""
        with self._lock:
            self._buffers[op.lane].park(op, error)
            self._tell()

    async def fenced(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """The source has seen a newer owner of their lane."""
        await self.nack(world, ops)

    @property
    def elsewhere(self) -> bool:
        """Whether other processes write what waits, and this one can not."""
        return False

    async def release(self, world: AnyWorld) -> None:
        """The worker ends."""

    # -- progress -------------------------------------------------------------------------

    async def state(self, world: AnyWorld, seconds: float) -> tuple[Marks, int]:
        """What has been accepted until now, and how many dead letters there are; asked for at
        most ``seconds``."""
        return tuple(b.last_version for b in self._buffers.values()), len(self.dead())

    async def undone(self, world: AnyWorld, marks: Marks, seconds: float) -> int:
        """How many operations accepted up to ``marks`` are not written yet."""
        with self._lock:
            return self._undone_here(marks)

    def dead(self) -> list[Dead]:
        return [letter for b in self._buffers.values() for letter in b.dead]

    def reaches(self, op: Op, marks: Marks) -> bool:
        """Whether an operation stands for one that was accepted up to ``marks``."""
        pairs = zip(list(self._buffers), marks, strict=False)
        return any(lane == op.lane and op.since <= mark for lane, mark in pairs)

    def here(self) -> int:
        """How many keys have an operation in this process's buffers."""
        return sum(b.depth for b in self._buffers.values())

    def oldest(self) -> float | None:
        """When the oldest operation here was accepted (monotonic seconds). Takes no lock: see
        :attr:`lock`."""
        times = [at for b in self._buffers.values() if (at := b.oldest()) is not None]
        return min(times, default=None)

    def _undone_here(self, marks: Marks) -> int:
        pairs = zip(self._buffers.values(), marks, strict=False)
        return sum(b.undone_up_to(mark) for b, mark in pairs)

    def _has_undone(self, marks: Marks) -> bool:
        pairs = zip(self._buffers.values(), marks, strict=False)
        return any(buffer.has_undone(mark) for buffer, mark in pairs)

    # -- waiting --------------------------------------------------------------------------

    def hurry(self, marks: Marks) -> None:
        """Write everything up to ``marks`` without waiting for full batches."""
        with self._lock:
            old = (*self._hurry, *(0 for _ in marks))
            self._hurry = tuple(max(a, b) for a, b in zip(old, marks, strict=False))
            self._tell()

    def make_room(self) -> None:
        """There is no room for another operation: a batch is due, whatever its size and age."""
        with self._lock:
            self._full = True
            self._tell()

    def hurry_all(self) -> None:
        """From now on write everything at once, and let no worker wait."""
        with self._lock:
            self._all = True
            self._tell()

    def due_in(self, size: int, delay: float) -> float | None:
        """Seconds until a batch is due: ``size`` ready, the oldest ``delay`` seconds old, no room
        left (of a shared log half of it), or a hurry; None while nothing waits."""
        with self._lock:
            return self._due_in(size, delay)

    def _due_in(self, size: int, delay: float) -> float | None:
        if self._all:
            return 0.0
        most = max((b.ready for b in self._buffers.values()), default=0)
        if not most:
            return None
        if most >= size or self._full or self._is_half_full() or self._hurries():
            return 0.0
        oldest = self.oldest()
        return None if oldest is None else max(0.0, oldest + delay - self._clock())

    def _is_half_full(self) -> bool:
        """Whether others fill the log, too, and will soon find no room there."""
        return False

    def _hurries(self) -> bool:
        if not self._hurry or not self._buffers:
            return False
        if self._has_undone(self._hurry):
            return True
        pairs = zip(self._buffers.values(), self._hurry, strict=False)
        if all(buffer.last_version >= mark for buffer, mark in pairs):
            self._hurry = ()  # all of it has been here, and is done
        return False

    @property
    def attended(self) -> bool:
        """Whether a worker's thread waits here now."""
        return bool(self._idle)

    def wait_for_work(self, size: int, delay: float, most: float | None) -> None:
        """Block this thread until a batch is due, somebody wakes it, or ``most`` seconds."""
        with self._lock:
            left = self._due_in(size, delay)
            if left is not None and left <= 0:
                return
            times = [seconds for seconds in (left, most) if seconds is not None]
            self._idle.append(size)
            seen = self._changed.now
        try:
            self._changed.wait(seen, min(times, default=None))
        finally:
            with self._lock:
                self._idle.remove(size)

    def wait_for_change(self, seconds: float) -> None:
        self._changed.wait(self._changed.now, seconds)

    def wait_until_done(self, marks: Marks, seconds: float) -> None:
        """Block until nothing up to ``marks`` waits here; where nothing does, until a change. At
        most ``seconds``."""
        until = Deadline(seconds, time.monotonic)
        seen = self._changed.now
        waits = self._is_undone(marks)
        while self._changed.wait(seen, until.left()) and waits:
            seen = self._changed.now
            if not self._is_undone(marks):
                return

    def _is_undone(self, marks: Marks) -> bool:
        with self._lock:
            return self._has_undone(marks)

    def listen(self, heard: Callable[[], None]) -> None:
        """Call ``heard`` (quick, from any thread) after every change, until :meth:`unlisten`."""
        with self._lock:
            self._listeners.append(heard)

    def unlisten(self, heard: Callable[[], None]) -> None:
        with self._lock:
            self._listeners.remove(heard)

    def wake(self) -> None:
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        self._changed.advance()
        for heard in self._listeners:
            heard()

    def _tell_of_one(self, buffer: Buffer) -> None:
        """An operation came: a worker that waits is woken for the first and for a whole batch."""
        ready = buffer.ready
        if self._idle and (ready == 1 or ready >= min(self._idle)):
            self._changed.advance()
        for heard in self._listeners:
            heard()

    def _drop(self, ops: Sequence[Op]) -> None:
        with self._lock:
            self._buffers[ops[0].lane].ack(ops)
            self._let_go()
            self._tell()

    def _let_go(self) -> None:
        if not self.here():
            self.keeper = None


def delivered(ops: Sequence[Op], epoch: int) -> list[Op]:
    """The operations of a batch for one delivery: copies in a list of their own, because a sink
    may use up what it is given, and a later delivery must not change what an earlier one may
    still be looking at."""
    # Not dataclasses.replace: that takes four times as long.
    return [
        Op(o.key, o.kind, o.value, o.id, o.version, epoch, o.lane, o.attempts, o.since, o.at)
        for o in ops
    ]
