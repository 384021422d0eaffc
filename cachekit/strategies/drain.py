"""The worker's side of a durable log: owns partitions, reads them in order, settles what is done.

One owner per partition at a time, by a lease that only saves double work: what keeps an old batch
from undoing a newer one is the epoch that the sink compares (protocols, section 6). A new owner
begins at the oldest operation in the log, so that what the last one had under way comes first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from ..core.buffer import Buffer
from ..core.ops import Dead, Op, OpKind
from ..errors import BackendError, CacheKitError, CodecError, ConfigurationError
from ..logs.queue import Marks, Queue, delivered
from ..observe import Meter, log
from ..protocols import Letter, Log, Record, Standing
from ..runtime import AnyWorld, Runtime, drive
from .lane_leases import Lane, LaneLeases

LEASE = 10.0
PATIENCE = 5.0  # seconds for one step of the log, in the worker
DELIVERIES = 32  # bits of an epoch that count deliveries within one ownership
READS = 20  # of one feed: a hot key's backlog is read through in few turns
AWAY = 0.5  # seconds until a log that can not be reached is asked again

Decode = Callable[[Record], tuple[Any, Any]]
LastEpoch = Callable[[AnyWorld, str], Awaitable[int]]
Gone = Callable[[AnyWorld, Sequence[Record]], Awaitable[None]]


class Lost(CacheKitError):
    """Another worker owns the lane now: what was taken from it here is its business."""


class Drain(Queue):
    """A queue fed from a log. ``decode`` gives (id, value) of a record, or raises CodecError for
    one that this process can not read: it is parked. ``last_epoch`` asks the sink, where it
    fences."""

    durable = True

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
    ) -> None:
        super().__init__(runtime.clock, ())
        self._lanes: list[Lane] = []  # known once the log was asked
        self._identity = ""
        self.log = source
        self._runtime = runtime
        self._meter = meter
        self._name = name
        self._batch = batch
        self._poll = min(max(delay / 2, 0.01), 0.25)
        self._lease = lease
        self._decode = decode
        self._last_epoch = last_epoch
        self._unreadable = unreadable
        self._owner = runtime.token()
        self._leases = LaneLeases(runtime.clock, lease)
        self._fresh: list[Dead] = []  # parked by this process
        self._seen = Standing()
        self._seen_at = -1.0

    @property
    def owns(self) -> int:
        """How many partitions this process drains."""
        return sum(1 for lane in self._lanes if lane.epoch is not None)

    @property
    def elsewhere(self) -> bool:
        return bool(self._lanes) and all(
            lane.epoch is None and lane.next_try > 0 for lane in self._lanes
        )

    def told(self) -> None:
        """This process appended something."""
        if self.owns:
            self.wake()

    # -- owning and reading ---------------------------------------------------------------

    async def feed(self, world: AnyWorld) -> float | None:
        try:
            await self._name_lanes(world)
            pause = self._poll
            for lane in self._lanes:
                if await self._own(world, lane):
                    await self._read(world, lane)
                else:
                    pause = max(pause, min(lane.next_try - self._clock(), self._lease))
            return pause if not self.owns else self._poll
        except BackendError as error:
            self._complain("read", error)
            return AWAY
        except ConfigurationError as error:  # a server that could lose the log
            self._complain("own", error)
            return self._lease

    async def _name_lanes(self, world: AnyWorld) -> None:
        """A lane's name says which log it is of: two logs over one source have lanes of their
        own, and do not fence each other out."""
        if self.owns:
            return
        identity = await self.log.identity(world, world.deadline(PATIENCE))
        if identity == self._identity:
            return
        with self._lock:
            self._identity = identity  # another one than before: the log was lost, and begun anew
            self._lanes = [
                Lane(f"{self._name}/{identity}/{part}", part) for part in range(self.log.parts)
            ]
            self._buffers = {lane.name: Buffer(lane.name) for lane in self._lanes}

    async def _own(self, world: AnyWorld, lane: Lane) -> bool:
        now = self._clock()
        if lane.epoch is None:
            if now < lane.next_try:
                return False
            await self._claim(world, lane)
        elif now >= lane.renew_at:
            await self._renew(world, lane)
        return lane.epoch is not None

    async def _claim(self, world: AnyWorld, lane: Lane) -> None:
        beyond = 0
        if self._last_epoch is not None:
            try:
                beyond = await self._last_epoch(world, lane.name) >> DELIVERIES
            except Exception as error:  # whatever its driver raises: the source is away
                self._complain("ask the sink for", error)
                lane.next_try = self._clock() + AWAY
                return
        now = self._clock()  # from before the question: no longer than the log has it
        epoch = await self.log.claim(
            world, lane.part, self._owner, self._lease, world.deadline(PATIENCE), beyond=beyond
        )
        if epoch is None:
            # A dead owner's lease is found to have ended soon after it did.
            lane.next_try = now + self._lease * (0.1 + 0.1 * self._runtime.uniform())
            return
        with self._lock:
            self._buffers[lane.name] = Buffer(lane.name)
            lane.buffer = Buffer(lane.name)
            lane.epoch, lane.cursor, lane.deliveries = epoch, 0, 0
            lane.renew_at, lane.over_at = now + self._lease / 3, now + self._lease
            lane.until = -1
        self._meter.event("log_claimed", lane=lane.name, epoch=epoch)

    async def _renew(self, world: AnyWorld, lane: Lane) -> None:
        now, epoch = self._clock(), lane.epoch
        if epoch is None:
            return
        if await self.log.renew(
            world, lane.part, self._owner, epoch, self._lease, world.deadline(PATIENCE)
        ):
            lane.renew_at, lane.over_at = now + self._lease / 3, now + self._lease
        else:
            self._lose(lane)

    async def keep(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """Prolong the lease of a lane whose batch is out, if it is time. Raises Lost."""
        lane = self._lane_of(ops)
        if lane.epoch is not None and self._clock() >= lane.renew_at:
            try:
                await self._renew(world, lane)
            except BackendError as error:
                self._complain("renew", error)
                if self._clock() >= lane.over_at:
                    self._lose(lane, self._poll)  # another may have it, and be further
        if lane.epoch is None:
            raise Lost(lane.name)

    def _lose(self, lane: Lane, wait: float = 0.0) -> None:
        with self._lock:
            lane.epoch = None
            lane.next_try = self._clock() + wait
            lane.buffer = self._buffers[lane.name] = Buffer(lane.name)
            self._let_go()
            self._tell()
        self._meter.event("log_lost", lane=lane.name)

    async def _read(self, world: AnyWorld, lane: Lane) -> None:
        """Read on, as far as two batches reach. A new owner first reads all that its predecessor
        can have seen: one may have been applied already while an older one of its key was not."""
        if lane.until < 0:
            standing = await self.log.standing(world, world.deadline(PATIENCE))
            lane.until = standing.newest[lane.part]
        want, epoch, reads = 2 * self._batch, lane.epoch, 0
        while lane.epoch == epoch:
            behind = lane.cursor < lane.until
            if not behind and (lane.buffer.depth >= want or reads >= READS):
                break
            records = await self.log.read(
                world, lane.part, lane.cursor, want, world.deadline(PATIENCE)
            )
            reads += 1
            bad = self._take_in(lane, records)
            if bad:
                await self._park_unreadable(world, lane, bad)
            if len(records) < want:
                break
        with self._lock:
            if lane.epoch == epoch:
                self._buffers[lane.name] = lane.buffer

    def _take_in(self, lane: Lane, records: Sequence[Record]) -> list[tuple[Record, str]]:
        bad: list[tuple[Record, str]] = []
        now, wall = self._clock(), self._runtime.wall()
        behind = wall - now
        decode = self._decode
        rows: list[tuple[OpKind, Hashable, Any, float, Any, int]] = []
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
                lane.cursor = records[-1].version
        return bad

    async def _park_unreadable(
        self, world: AnyWorld, lane: Lane, bad: Sequence[tuple[Record, str]]
    ) -> None:
        await self._unreadable(world, [record for record, _ in bad])
        letters = [Letter(r, e, 0, self._runtime.wall()) for r, e in bad]
        await self._settle(world, lane, (), letters)
        self._meter.count("dead_letters", len(bad))
        log.error("%s: %d operations can not be read, and were parked", lane.name, len(bad))

    # -- delivering and settling ----------------------------------------------------------

    async def delivery(self, world: AnyWorld, ops: Sequence[Op]) -> Sequence[Op]:
        """With the epoch of this delivery. Raises Lost."""
        await self.keep(world, ops)
        lane = self._lane_of(ops)
        if lane.epoch is None:
            raise Lost(lane.name)
        lane.deliveries += 1
        epoch = lane.epoch << DELIVERIES | lane.deliveries
        self._leases.out(self)
        return delivered(ops, epoch)

    def back(self) -> None:
        self._leases.back()

    def recall(self) -> None:
        """The lanes are claimed anew, above what may still be under way."""
        self._leases.back()
        for lane in self._lanes:
            if lane.epoch is not None:
                self._lose(lane)

    def prolong(self) -> bool:
        """Renew the lanes while a batch is out; False where this process owns none any more."""
        for lane in self._lanes:
            if self._leases.due and lane.epoch is not None and self._clock() >= lane.renew_at:
                try:
                    drive(self._renew(self._runtime.threads, lane))
                except BackendError as error:
                    self._complain("renew", error)
        return self._leases.due or self.owns > 0

    async def ack(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """The source has them: out of the log. Raises Lost, or BackendError while the log can
        not be told (they stay out)."""
        lane = self._lane_of(ops)
        await self._settle(world, lane, [(op.key, op.version) for op in ops], ())
        self._drop(ops)

    async def park(self, world: AnyWorld, op: Op, error: str, attempts: int) -> None:
        lane = self._lane_of([op])
        records = [
            r
            for r in await self.log.read(
                world, lane.part, op.version - 1, 1, world.deadline(PATIENCE)
            )
            if r.version == op.version
        ]
        letters = [Letter(r, error, attempts, self._runtime.wall()) for r in records]
        await self._settle(world, lane, (), letters)
        with self._lock:
            self._buffers[lane.name].ack([op])
            self._fresh.append(Dead(op, error))
            del self._fresh[:-100]
            self._let_go()
            self._tell()

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
        deadline = world.deadline(PATIENCE)
        if not await self.log.settle(world, lane.part, lane.epoch, done, letters, deadline):
            self._lose(lane)
            raise Lost(lane.name)

    async def fenced(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """Ours is the older epoch: whoever is right, this lane is claimed anew, above it."""
        self._lose(self._lane_of(ops), self._poll)

    async def nack(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        with self._lock:
            buffer = self._buffers.get(ops[0].lane)  # None: its log was lost meanwhile
            if buffer is not None:
                buffer.nack(ops)
            self._tell()

    def _lane_of(self, ops: Sequence[Op]) -> Lane:
        """Raises Lost where it is not the one any more that they were taken from."""
        name = ops[0].lane
        for lane in self._lanes:
            if lane.name == name:
                return lane
        raise Lost(name)

    async def release(self, world: AnyWorld) -> None:
        """Let another worker have the lanes at once. What is left stays in the log."""
        self._leases.stop()
        for lane in self._lanes:
            epoch = lane.epoch
            if epoch is not None:
                self._lose(lane)
                try:
                    await self.log.release(
                        world, lane.part, self._owner, epoch, world.deadline(1.0)
                    )
                except BackendError as error:
                    self._complain("release", error)

    # -- progress -------------------------------------------------------------------------

    async def state(self, world: AnyWorld, seconds: float) -> tuple[Marks, int]:
        standing = await self.log.standing(world, world.deadline(seconds))
        return standing.newest, standing.dead

    async def undone(self, world: AnyWorld, marks: Marks, seconds: float) -> int:
        return await self.log.left(world, marks, world.deadline(seconds))

    def dead(self) -> list[Dead]:
        """What this process parked lately."""
        return list(self._fresh)

    def _complain(self, what: str, error: Exception) -> None:
        self._meter.event("log_errors", lane=self._name, error=type(error).__name__)
        self._meter.warn_once(
            f"log {self._name} {what}",
            "%s: could not %s the write-back log (%s); it is tried again",
            self._name,
            what,
            error if isinstance(error, CacheKitError) else type(error).__name__,
        )
