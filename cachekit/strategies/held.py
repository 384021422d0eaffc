"""Write-back in this process's memory: accepted operations, and reads that see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..core.deadline import Deadline
from ..core.keys import MAX_KEY, physical
from ..core.ops import Op, OpKind
from ..core.outcome import Outcome
from ..core.place import Place
from ..core.policy import Policy, Span
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


_PUT = OpKind.PUT  # looked up once: an attribute of an Enum class costs a call
TOGETHER = 64  # near copies made in one step, while puts and misses of other threads wait


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

    async def went_past(self, world: AnyWorld, keys: Sequence[str]) -> None:
        """Newer values of these keys went to the source by another way: no letter of them may be
        written over those."""

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
        # Whether the text of a key with a plain int in it is its physical form, if short enough.
        sample = "0".join(owner._around or ("",))
        self._legible = bool(sample) and physical(sample) == sample
        lane = f"{name}/{parts.runtime.token().hex()}"
        self.queue: MemoryLog = MemoryLog(parts.runtime.clock, most, lane)
        # One lock over log and near tier: both see racing puts in one order.
        self.order = self.queue.lock

    async def accept(
        self, world: AnyWorld, kind: OpKind, items: Sequence[Item], deadline: Deadline
    ) -> Outcome:
        taken: list[Item] = []
        for item in items:
            place = item.place
            assert place is not None
            while True:
                if self._parts.near.section.mend():
                    if (error := self._closed()) is not None:
                        return Outcome(error=error)
                    self._parts.near.section.defer(partial(self._late, kind, item, place))
                    break
                with self.order:
                    if (error := self._closed()) is not None:
                        return Outcome(error=error)
                    op = self._append(kind, item, place)
                if op is not None:
                    self._show(op, item.tags, place)
                    break
                self._start(world)
                self.queue.make_room()
                if deadline.passed():
                    return Outcome(error=queue_full(self._most, taken))
                await self._room(world, deadline.left())
            taken.append(item)
        return Outcome(Written())

    def _append(self, kind: OpKind, item: Item, place: Place, *, over: bool = False) -> Op | None:
        """None: there is no room. Whoever calls it holds ``order``."""
        key, value, owner = place.ident, item.value, self._owner
        try:
            return self.queue.append_now(kind, key, value, item.id, owner, over=over)
        except BaseException:  # out of a signal handler, say: it may have been accepted
            self._parts.near.kill([place])
            raise

    def _late(self, kind: OpKind, item: Item, place: Place) -> None:
        """What a finaliser put from inside the near tier, when that is left. Beyond the bound if
        need be: it was accepted."""
        with self.order:
            op = self._append(kind, item, place, over=True)
        if op is not None:
            self._show(op, item.tags, place)

    def accept_now(self, key: str, id: Any, value: Any) -> bool:
        legible = self._legible and type(id) is int and len(key) <= MAX_KEY
        ident = key if legible else physical(key)
        parts, owner = self._parts, self._owner
        near = parts.near
        if near.section.mend():
            return False
        try:
            with self.order:
                if owner._closed:
                    return False
                op = self.queue.append_now(_PUT, ident, value, id, owner)
            if op is None:
                return False
            # Looked at after the append: what boards later finds the operation.
            if parts.runtime.in_flight(ident) or near.may_hold(ident):
                self._show(op, (), owner.place(id))
        except BaseException:  # as in _append
            near.kill_named(ident)
            raise
        return True

    def taken(self, ops: Sequence[Op]) -> None:
        plain = [op for op in ops if short(op.id) and op.kind is OpKind.PUT]
        for start in range(0, len(plain), TOGETHER):
            self._keep(plain[start : start + TOGETHER])

    def _keep(self, ops: Sequence[Op]) -> None:
        """Make near copies of what was only appended, where there is none yet."""
        near, owner = self._parts.near, self._owner
        with self.order:
            newest = self.queue.newest(ops)
            if self._policy.steady:
                rows = [(op.id, op.key, op.value) for op in newest if op.value is not None]
                span = self._span(rows[0][2]) if rows else None
                shelf = owner._table.shelf
                if span is None or near.store_new(shelf, rows, span, near.seq):
                    newest = [op for op in newest if op.value is None]
            for op in newest:
                if not near.may_hold(op.key):
                    self._store(op.value, (), owner.place(op.id))

    async def _room(self, world: AnyWorld, seconds: float) -> None:
        """Wait until something leaves the log, in no thread that the worker could need."""
        if not isinstance(world, AsyncioWorld):
            self.queue.wait_for_room(seconds)
            return
        async with heard(self.queue) as changed:
            if not self.queue.has_room():
                await changed(seconds)

    def _show(self, op: Op, tags: tuple[str, ...], place: Place) -> None:
        """Let reads of this process see an operation that was appended."""
        parts = self._parts
        kept = False
        try:
            for world in parts.runtime.worlds():
                world.flights.detach(place.ident)  # holding no lock: others may hold that table
            with self.order:
                # If it is not the newest any more, whoever accepted that shows it.
                if op.kind is OpKind.PUT and self.queue.pending(op.key) is op:
                    kept = self._store(op.value, tags, place)
        finally:
            if not kept:
                parts.near.kill([place])

    def _store(self, value: Any, tags: tuple[str, ...], place: Place) -> bool:
        """Whether there is a near copy now."""
        near, span = self._parts.near, self._span(value)
        return span is not None and near.store(place, value, span, tags=tags, seq=near.seq)

    def _span(self, value: Any) -> Span | None:
        """How long a near copy is kept; None: there is to be none."""
        parts = self._parts
        span = parts.reader.filler.span(self._policy, value, 0.0, self._name)
        if span is None or parts.off:
            return None
        return parts.coherence.span(span, 0.0, parts.runtime.clock())

    async def went_past(self, world: AnyWorld, keys: Sequence[str]) -> None:
        """Letters of this log are never written again."""

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
