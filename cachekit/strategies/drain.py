"""The worker's side of a durable log: owns partitions, reads them in order, settles what is done.

Partitions are independent: one whose server is away is asked again by itself, and nothing of it is
delivered until the log has been told what it is owed. A new owner begins at the oldest operation
in the log, so that what the last one had under way comes first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from ..core.buffer import Buffer
from ..core.ops import Dead, Op, OpKind
from ..errors import BackendError, BackendTimeout, CodecError, ConfigurationError
from ..logs.queue import Marks
from ..observe import Meter, log
from ..protocols import Bounds, Letter, Log, Record
from ..runtime import AnyWorld, Runtime
from .lane_leases import Lane, Owed, answering_first
from .lane_owner import AWAY, BRIEF, PATIENCE, LaneOwner, LastEpoch, Lost

__all__ = ["LEASE", "PATIENCE", "Drain", "LastEpoch", "Lost"]

LEASE = 10.0
READS = 20  # of one feed: a hot key's backlog is read through in few turns

Decode = Callable[[Record], tuple[Any, Any]]
Gone = Callable[[AnyWorld, Sequence[Record]], Awaitable[None]]


class Drain(LaneOwner):
    """A queue fed from a log. ``decode`` gives (id, value) of a record, or raises CodecError for
    one that this process can not read: it is parked."""

    def __init__(
        self,
        runtime: Runtime,
        meter: Meter,
        source: Log,
        *,
        name: str,
        batch: int,
        delay: float,
        lease: float,
        decode: Decode,
        last_epoch: LastEpoch | None,
        unreadable: Gone,
        left_late: Gone,
        most: Bounds | None = None,
    ) -> None:
        self._want = 2 * batch
        super().__init__(
            runtime, meter, source, name=name, limit=self._want, lease=lease,
            poll=min(max(delay / 2, 0.01), 0.25), last_epoch=last_epoch,
        )  # fmt: skip
        self._most = most
        self._decode = decode
        self._unreadable = unreadable
        self._left_late = left_late
        self._fresh: list[Dead] = []  # parked by this process
        self._again = 0.0  # when servers that are away may be waited for again, beside others

    def told(self) -> None:
        """This process appended something."""
        if self.owns:
            self.wake()

    # -- reading --------------------------------------------------------------------------

    async def feed(self, world: AnyWorld) -> float | None:
        try:
            await self._name_lanes(world)
        except BackendError as error:
            self._complain("read", error)
            return AWAY
        except ConfigurationError as error:  # a server that could lose the log
            self._complain("own", error)
            return self._lease
        if self.owns:
            self._leases.out(self)  # also while one server is waited for
        try:
            await self._attend_all(world)
        finally:
            self._patience = PATIENCE
            self._leases.back()
        if self.owns:
            return self._poll
        soonest = min(max(lane.next_try, lane.away_until) for lane in self._lanes)
        return max(self._poll, min(soonest - self._clock(), self._lease))

    async def _attend_all(self, world: AnyWorld) -> None:
        """Each lane on its own. Of the servers that let one wait for nothing, the worker's time
        goes to one at a time, and half of it remains for the others."""
        lanes = answering_first(self._lanes)
        others, waited = not lanes[0].away_until, 0.0
        for lane in lanes:
            began = self._clock()
            if began < lane.away_until:
                continue
            if lane.away_until and others and (waited or began < self._again):
                continue
            self._patience = BRIEF if waited else PATIENCE
            written = bool(lane.owed.ops)
            try:
                await self._attend(world, lane)
                lane.away_until = 0.0
            except Lost:
                self._meter.count("batches_lost", int(written))
            except BackendError as error:
                self._complain("read", error)
                self._set_aside(lane, AWAY)
                took = self._clock() - began
                waited += took if took >= BRIEF else 0.0
            except ConfigurationError as error:  # a server that could lose the log
                self._complain("own", error)
                self._set_aside(lane, self._lease)
        if waited:
            self._again = self._clock() + waited

    async def _attend(self, world: AnyWorld, lane: Lane) -> None:
        if await self._own(world, lane):
            await self._pay(world, lane)
            await self._read(world, lane)

    def _set_aside(self, lane: Lane, seconds: float) -> None:
        """Nothing of it is delivered until its log has answered."""
        with self._lock:
            lane.away_until = self._clock() + seconds
            self._buffers[lane.name] = Buffer(lane.name)

    async def _read(self, world: AnyWorld, lane: Lane) -> None:
        """Read on, as far as two batches reach. A new owner first reads all that its predecessor
        can have seen: one may have been applied already while an older one of its key was not."""
        epoch, reads, ended = lane.epoch, 0, False
        while lane.epoch == epoch:
            if not lane.behind and (lane.buffer.depth >= self._want or reads >= READS):
                break
            limit = lane.limit
            records = await self._some(world, lane)
            if lane.epoch != epoch:
                break  # lost meanwhile: they are another's
            reads += 1
            self._leases.out(self)  # it goes on, however long the backlog is
            self._take_in(lane, records)
            await self._pay(world, lane)
            if ended or not records:
                lane.behind = False  # the answer before was the end, and nothing refused to be read
            ended = len(records) < limit
            if ended and not lane.behind:
                break
        with self._lock:
            if lane.epoch == epoch:
                self._buffers[lane.name] = lane.buffer

    async def _some(self, world: AnyWorld, lane: Lane) -> Sequence[Record]:
        """As many as the way to the log can carry."""
        began = self._clock()
        try:
            records = await self.log.read(
                world, lane.part, lane.cursor, lane.limit, self._late(world)
            )
        except BackendTimeout:
            lane.limit = max(1, lane.limit // 2)
            raise
        if self._clock() - began < PATIENCE / 8:
            lane.limit = min(self._want, 2 * lane.limit)
        return records

    def _take_in(self, lane: Lane, records: Sequence[Record]) -> None:
        now, wall = self._clock(), self._runtime.wall()
        behind = wall - now
        decode = self._decode
        rows: list[tuple[OpKind, Hashable, Any, float, Any, int]] = []
        bad: list[tuple[Record, str]] = []
        for record in records:
            try:
                id, value = decode(record)
            except CodecError as error:
                bad.append((record, f"CodecError: {error}"))
                continue
            key, kind, _, version, at = record
            since = at - behind if at < wall else now
            rows.append((kind, key, value, since if since > 0.0 else 0.0, id, version))
        with self._lock:
            lane.buffer.take_in(rows)
            if records:
                lane.mean = sum([len(record.data) for record in records]) / len(records)
            lane.owed.unreadable += bad
            if records:
                lane.cursor = records[-1].version

    def _is_half_full(self) -> bool:
        """The bounds can be reached with few keys, and whoever finds no room in another process
        can not say so here. Of bytes by the size of those that were read last."""
        if self._most is None:
            return False
        operations, size = self._most
        return any(
            2 * accepted >= operations or 2 * accepted * lane.mean >= size
            for lane in self._lanes
            if (accepted := self._buffers[lane.name].accepted)
        )

    # -- settling -------------------------------------------------------------------------

    async def ack(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """The source has them: out of the log, as soon as it can be told. Raises Lost."""
        lane = self._owned(ops)
        lane.owed.done += ops
        await self._pay_now(world, lane)

    async def park(self, world: AnyWorld, op: Op, error: str, attempts: int) -> None:
        """Into the dead letters, as soon as the log can be told. Raises Lost."""
        lane = self._owned([op])
        lane.owed.parked.append((op, error, attempts))
        await self._pay_now(world, lane)

    async def _pay_now(self, world: AnyWorld, lane: Lane) -> None:
        if self._clock() < lane.away_until:
            return  # with the next feed
        try:
            await self._pay(world, lane, late=False)
        except BackendError as error:
            self._complain("settle", error)
            self._set_aside(lane, AWAY)

    async def _pay(self, world: AnyWorld, lane: Lane, *, late: bool = True) -> None:
        """Tell the log what it is owed, in one step. ``late``: whoever parked something has gone
        on meanwhile, and the caches with it."""
        owed = lane.owed
        if not owed:
            return
        wall = self._runtime.wall()
        if owed.unreadable:
            await self._unreadable(world, [record for record, _ in owed.unreadable])
        letters = [Letter(record, error, 0, wall) for record, error in owed.unreadable]
        unreadable = len(letters)
        for op, error, attempts in owed.parked:
            for record in await self.log.read(
                world, lane.part, op.version - 1, 1, self._late(world)
            ):
                if record.version == op.version:
                    letters.append(Letter(record, error, attempts, wall))
        await self._settle(world, lane, [(op.key, op.version) for op in owed.done], letters)
        with self._lock:
            if lane.owed is owed:
                lane.owed = Owed()
                lane.buffer.ack(owed.ops)
            self._fresh += [Dead(op, error) for op, error, _ in owed.parked]
            del self._fresh[:-100]
            self._let_go()
            self._tell()
        if late and len(letters) > unreadable:
            await self._left_late(world, [letter.record for letter in letters[unreadable:]])
        if unreadable:
            self._meter.count("dead_letters", unreadable)
            log.error("%s: %d operations can not be read, and were parked", lane.name, unreadable)

    async def _settle(
        self,
        world: AnyWorld,
        lane: Lane,
        done: Sequence[tuple[str, int]],
        letters: Sequence[Letter],
    ) -> None:
        if lane.epoch is None:
            raise Lost(lane.name)
        if not done and not letters:
            return
        late = self._late(world)
        if not await self.log.settle(world, lane.part, lane.epoch, done, letters, late):
            self._lose(lane)
            raise Lost(lane.name)

    async def nack(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        with self._lock:
            for lane in self._lanes:  # none: its log was lost meanwhile
                if lane.name == ops[0].lane:
                    gone = {op.key for op in lane.owed.ops}
                    lane.buffer.nack([op for op in ops if op.key not in gone])
            self._tell()

    async def release(self, world: AnyWorld) -> None:
        """Let another worker have the lanes at once. What is left stays in the log."""
        self._leases.stop()
        late = world.deadline(1.0)
        for lane in answering_first(self._lanes):
            epoch = lane.epoch
            if epoch is None:
                continue
            try:
                try:
                    self._patience = late.left()
                    await self._pay(world, lane)
                finally:
                    self._patience = PATIENCE
                    if lane.epoch == epoch:
                        self._lose(lane)
                        await self.log.release(world, lane.part, self._owner, epoch, late)
            except Lost:
                self._meter.count("batches_lost")
            except BackendError as error:
                self._complain("release", error)

    # -- progress -------------------------------------------------------------------------

    async def state(self, world: AnyWorld, seconds: float) -> tuple[Marks, int]:
        standing = await self.log.standing(world, world.deadline(seconds))
        return standing.newest, standing.dead

    async def undone(self, world: AnyWorld, marks: Marks, seconds: float) -> int:
        left = await self.log.left(world, marks, world.deadline(seconds))
        # Out of the log, but not taken note of here: whoever has flushed looks at that next.
        return left or self._owed(marks)

    def _owed(self, marks: Marks) -> int:
        with self._lock:
            owed = [op for lane in self._lanes for op in lane.owed.ops]
        return sum(self.reaches(op, marks) for op in owed)

    def dead(self) -> list[Dead]:
        """What this process parked lately."""
        return list(self._fresh)
