"""Write-back in this process's memory: accepted operations, and reads that see them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..core.deadline import Deadline
from ..core.keys import physical
from ..core.ops import Op, OpKind
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

if TYPE_CHECKING:
    from .write_back import WriteBack


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

    def accept_now(self, key: str, id: Any, value: Any) -> bool:
        """Take one put of a :func:`short` id, without tags or copies, from a plain call, if that
        needs no more than its append. False: it was not taken, and :meth:`accept` may do it."""

    def taken(self, ops: Sequence[Op]) -> None:
        """The worker has them; they came by :meth:`accept_now`."""

    async def pending(self, world: AnyWorld, keys: Sequence[str]) -> Outcome:
        """Per text key: Waiting, or None. No list: nobody knows."""

    async def standing(self, world: AnyWorld) -> tuple[Standing, float | None]:
        """The queue as a whole, and how old its oldest operation is (seconds)."""


class Held:
    """The backlog of level ``memory``. ``start`` wakes the worker when room is needed; ``owner``
    lives as long as anything waits.

    Reads look here before they load, and near copies are what was accepted last. A plain put is
    only appended, unless something of its key is in the near tier or on its way there; its near
    copy is made when the worker takes it: what is stored then is as new as it was before."""

    hits = True
    places = True

    def __init__(
        self,
        owner: WriteBack,
        parts: Parts,
        policy: Policy,
        name: str,
        most: int,
        start: Callable[[AnyWorld], None],
        closed: Callable[[], Exception | None],
    ) -> None:
        self._owner = owner
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
                self._parts.near.mend()
                with self.order:
                    if (error := self._closed()) is not None:
                        return Outcome(error=error)
                    op = self.queue.append_now(kind, place.ident, item.value, item.id, self._owner)
                    if op is not None:
                        self._show(kind, item.value, item.tags, place)
                        break
                self._start(world)
                if deadline.passed():
                    return Outcome(error=queue_full(self._most, taken))
                await self._room(world, deadline.left())
            taken.append(item)
        return Outcome(Written())

    def accept_now(self, key: str, id: Any, value: Any) -> bool:
        ident = physical(key)
        near = self._parts.near
        near.mend()
        with self.order:
            if self._owner._closed:
                return False
            try:
                if self.queue.append_now(OpKind.PUT, ident, value, id, self._owner) is None:
                    return False
                # Looked at after the append: what boards later finds the operation.
                if self._parts.runtime.in_flight(ident) or near.may_hold(ident):
                    self._show(OpKind.PUT, value, (), self._owner.place(id))
            except BaseException:  # out of a signal handler, say: it may have been accepted
                near.kill_named(ident)
                raise
        return True

    def taken(self, ops: Sequence[Op]) -> None:
        near = self._parts.near
        for op in ops:
            if not short(op.id) or op.kind is not OpKind.PUT:
                continue
            with self.order:
                if self.queue.pending(op.key) is op and not near.may_hold(op.key):
                    self._store(op.value, (), self._owner.place(op.id))

    async def _room(self, world: AnyWorld, seconds: float) -> None:
        """Wait until something leaves the log, in no thread that the worker could need."""
        if not isinstance(world, AsyncioWorld):
            self.queue.wait_for_room(seconds)
            return
        async with heard(self.queue) as changed:
            if not self.queue.has_room():
                await changed(seconds)

    def _show(self, kind: OpKind, value: Any, tags: tuple[str, ...], place: Place) -> None:
        """Let reads of this process see the operation."""
        parts = self._parts
        for world in parts.runtime.worlds():
            world.flights.detach(place.ident)
        if kind is OpKind.DELETE or not self._store(value, tags, place):
            parts.near.kill([place])

    def _store(self, value: Any, tags: tuple[str, ...], place: Place) -> bool:
        """Whether there is a near copy now."""
        parts = self._parts
        span = parts.reader.filler.span(self._policy, value, 0.0, self._name)
        if span is None or parts.off:
            return False
        near_span = parts.coherence.span(span, 0.0, parts.runtime.clock())
        if near_span is None:
            return False
        return parts.near.store(place, value, near_span, tags=tags, seq=parts.near.seq)

    async def pending(self, world: AnyWorld, keys: Sequence[str]) -> Outcome:
        ops = [self.queue.pending(physical(key)) for key in keys]
        return Outcome([None if op is None else Waiting(op.value) for op in ops])

    async def standing(self, world: AnyWorld) -> tuple[Standing, float | None]:
        queue = self.queue
        oldest = queue.oldest()
        age = None if oldest is None else self._parts.runtime.clock() - oldest
        return Standing(depth=queue.here(), dead=len(queue.dead())), age


def short(id: Any) -> bool:
    """Whether the short road takes it: a key that needs no code but ours."""
    return type(id) is int or type(id) is str


def queue_full(most: int, taken: Sequence[Item]) -> QueueFull:
    return QueueFull(
        f"{most} operations wait for the source already; it may be down or too slow. "
        "Raise max_pending, or catch QueueFull and slow down",
        accepted=[item.id for item in taken],
        keys=[item.key for item in taken],
    )
