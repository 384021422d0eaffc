"""Write-back in this process's memory: accepted operations, and reads that see them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ..core.deadline import Deadline
from ..core.keys import physical
from ..core.ops import OpKind
from ..core.outcome import Outcome
from ..core.place import Place
from ..core.policy import Policy
from ..errors import QueueFull
from ..logs.memory import MemoryLog
from ..logs.queue import Queue
from ..protocols import Standing
from ..runtime import AnyWorld, AsyncioWorld
from .parts import Parts
from .waiting import heard
from .writer import Written


class Item(NamedTuple):
    """One write that was asked for. ``place``: where near copies may have to go."""

    key: str
    place: Place | None
    id: Any
    value: Any
    tags: tuple[str, ...]


class Waiting(NamedTuple):
    """An unwritten value; None where the record was deleted."""

    value: Any


class Backlog(Protocol):
    """Where a strategy's accepted operations are until the source has them.

    ``hits``: near copies may answer without a look here. ``places``: puts need to know where
    they are."""

    hits: bool
    places: bool

    @property
    def queue(self) -> Queue: ...

    async def accept(
        self, world: AnyWorld, kind: OpKind, items: Sequence[Item], deadline: Deadline
    ) -> Outcome:
        """Take them all, or say with QueueFull which were taken. The value is a Written."""

    async def pending(self, world: AnyWorld, keys: Sequence[str]) -> Outcome:
        """Per text key: Waiting, or None. No list: nobody knows."""

    async def standing(self, world: AnyWorld) -> tuple[Standing, float | None]:
        """The queue as a whole, and how old its oldest operation is (seconds)."""


class Held:
    """The backlog of level ``memory``. ``start`` wakes the worker when room is needed."""

    hits = True
    places = True

    def __init__(
        self,
        parts: Parts,
        policy: Policy,
        name: str,
        most: int,
        start: Callable[[AnyWorld], None],
        closed: Callable[[], Exception | None],
    ) -> None:
        self._parts = parts
        self._policy = policy
        self._name = name
        self._start = start
        self._closed = closed
        self._most = most
        self.order = threading.RLock()
        lane = f"{name}/{parts.runtime.token().hex()}"
        self.queue: MemoryLog = MemoryLog(parts.runtime.clock, most, lane)

    async def accept(
        self, world: AnyWorld, kind: OpKind, items: Sequence[Item], deadline: Deadline
    ) -> Outcome:
        taken: list[Item] = []
        for item in items:
            place = item.place
            assert place is not None
            while True:
                # One lock over log and near tier: both see racing puts in one order.
                with self.order:
                    if (error := self._closed()) is not None:
                        return Outcome(error=error)
                    op = self.queue.append_now(kind, place.ident, item.value, item.id)
                    if op is not None:
                        self._show(kind, item, place)
                        break
                self._start(world)
                if deadline.passed():
                    return Outcome(error=queue_full(self._most, taken))
                await self._room(world, deadline.left())
            taken.append(item)
        return Outcome(Written())

    async def _room(self, world: AnyWorld, seconds: float) -> None:
        """Wait until something leaves the log, in no thread that the worker could need."""
        if not isinstance(world, AsyncioWorld):
            self.queue.wait_for_room(seconds)
            return
        async with heard(self.queue) as changed:
            if not self.queue.has_room():
                await changed(seconds)

    def _show(self, kind: OpKind, item: Item, place: Place) -> None:
        """Let reads of this process see the operation."""
        parts = self._parts
        for world in parts.runtime.worlds():
            world.flights.detach(place.ident)
        filler = parts.reader.filler
        span = None
        if kind is OpKind.PUT:
            span = filler.span(self._policy, item.value, 0.0, self._name)
        near_span = None
        if span is not None and not parts.off:
            near_span = parts.coherence.span(span, 0.0, parts.runtime.clock())
        if near_span is None or not parts.near.store(
            place, item.value, near_span, tags=item.tags, seq=parts.near.seq
        ):
            parts.near.kill([place])

    async def pending(self, world: AnyWorld, keys: Sequence[str]) -> Outcome:
        ops = [self.queue.pending(physical(key)) for key in keys]
        return Outcome([None if op is None else Waiting(op.value) for op in ops])

    async def standing(self, world: AnyWorld) -> tuple[Standing, float | None]:
        queue = self.queue
        oldest = queue.oldest()
        age = None if oldest is None else self._parts.runtime.clock() - oldest
        return Standing(depth=queue.here(), dead=len(queue.dead())), age


def queue_full(most: int, taken: Sequence[Item]) -> QueueFull:
    return QueueFull(
        f"{most} operations wait for the source already; it may be down or too slow. "
        "Raise max_pending, or catch QueueFull and slow down",
        accepted=[item.id for item in taken],
        keys=[item.key for item in taken],
    )
