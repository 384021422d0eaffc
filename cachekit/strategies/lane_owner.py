"""Owning the partitions of a durable log: claims, leases, epochs, and giving them back.

One owner per partition at a time, by a lease that only saves double work: what keeps an old batch
from undoing a newer one is the epoch that the sink compares (protocols, section 6).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from ..core.buffer import Buffer
from ..core.deadline import Deadline
from ..core.ops import Op
from ..errors import BackendError, BackendTimeout, CacheKitError
from ..logs.queue import Queue, delivered
from ..observe import Meter
from ..protocols import Log
from ..runtime import AnyWorld, Runtime, drive
from .lane_leases import Lane, LaneLeases, answering_first

PATIENCE = 5.0  # seconds for one step of the log, in the worker
BRIEF = 0.5  # the same where another partition's server was waited for already
AWAY = 0.5  # seconds until a log that can not be reached is asked again
DELIVERIES = 32  # bits of an epoch that count deliveries within one ownership

LastEpoch = Callable[[AnyWorld, str], Awaitable[int]]


class Lost(CacheKitError):
    """Another worker owns the lane now: what was taken from it here is its business."""


class LaneOwner(Queue):
    """The lanes of a log, and which of them this process owns. ``last_epoch`` asks the sink, where
    it fences."""

    durable = True

    def __init__(
        self,
        runtime: Runtime,
        meter: Meter,
        source: Log,
        *,
        name: str,
        limit: int,
        lease: float,
        poll: float,
        last_epoch: LastEpoch | None,
    ) -> None:
        super().__init__(runtime.clock, ())
        self._lanes: list[Lane] = []  # known once the log was asked
        self._identity = ""
        self.log = source
        self._runtime = runtime
        self._meter = meter
        self._name = name
        self._limit = limit
        self._lease = lease
        self._poll = poll
        self._last_epoch = last_epoch
        self._owner = runtime.token()
        self._leases = LaneLeases(runtime.clock, lease)
        self._patience = PATIENCE

    @property
    def owns(self) -> int:
        """How many partitions this process drains."""
        return sum(1 for lane in self._lanes if lane.epoch is not None)

    @property
    def elsewhere(self) -> bool:
        return bool(self._lanes) and all(
            lane.epoch is None and lane.next_try > 0 for lane in self._lanes
        )

    @property
    def busy(self) -> bool:
        """Whether a batch is out, of a partition that is still ours."""
        now = self._clock()
        return any(
            lane.buffer.out and lane.epoch is not None and now < lane.over_at
            for lane in self._lanes
        )

    def here(self) -> int:
        return sum(lane.buffer.depth for lane in self._lanes)

    def _late(self, world: AnyWorld) -> Deadline:
        return world.deadline(self._patience)

    def _lane_of(self, ops: Sequence[Op]) -> Lane:
        """Raises Lost where it is not the one any more that they were taken from."""
        name = ops[0].lane
        for lane in self._lanes:
            if lane.name == name:
                return lane
        raise Lost(name)

    def _owned(self, ops: Sequence[Op]) -> Lane:
        lane = self._lane_of(ops)
        if lane.epoch is None:
            raise Lost(lane.name)
        return lane

    # -- claiming and renewing ------------------------------------------------------------

    async def _name_lanes(self, world: AnyWorld) -> None:
        """A lane's name says which log it is of: two logs over one source have lanes of their
        own, and do not fence each other out."""
        if self.owns:
            return
        identity = await self.log.identity(world, self._late(world))
        if identity == self._identity:
            return
        with self._lock:
            self._identity = identity  # another one than before: the log was lost, and begun anew
            self._lanes = [
                Lane(f"{self._name}/{identity}/{part}", part, self._limit)
                for part in range(self.log.parts)
            ]
            self._buffers = {lane.name: Buffer(lane.name) for lane in self._lanes}

    async def _own(self, world: AnyWorld, lane: Lane) -> bool:
        now = self._clock()
        if lane.epoch is None:
            if now < lane.next_try:
                return False
            await self._claim(world, lane)
        elif now >= lane.renew_at:
            await self._renew(world, lane, self._late(world))
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
        now = self._clock()
        epoch = await self.log.claim(
            world, lane.part, self._owner, self._lease, self._late(world), beyond=beyond
        )
        if epoch is None:
            # A dead owner's lease is found to have ended soon after it did.
            lane.next_try = now + self._lease * (0.1 + 0.1 * self._runtime.uniform())
            return
        with self._lock:
            self._buffers[lane.name] = Buffer(lane.name)
            lane.claimed(epoch)
            lane.leased(now, self._lease)
        self._leases.out(self)
        self._meter.event("log_claimed", lane=lane.name, epoch=epoch)

    async def _renew(self, world: AnyWorld, lane: Lane, deadline: Deadline) -> None:
        now, epoch = self._clock(), lane.epoch
        if epoch is None:
            return
        if await self.log.renew(world, lane.part, self._owner, epoch, self._lease, deadline):
            lane.leased(now, self._lease)
        else:
            self._lose(lane)

    async def keep(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """Prolong the lease of a lane whose batch is out, if it is time. Raises Lost."""
        lane = self._lane_of(ops)
        if lane.epoch is not None and self._clock() >= lane.renew_at:
            try:
                await self._renew(world, lane, self._late(world))
            except BackendError as error:
                self._complain("renew", error)
                if self._clock() >= lane.over_at:
                    self._lose(lane, self._poll)  # another may have it, and be further
        if lane.epoch is None:
            raise Lost(lane.name)

    def _lose(self, lane: Lane, wait: float = 0.0) -> None:
        with self._lock:
            lane.next_try = self._clock() + wait
            lane.lost()
            self._buffers[lane.name] = lane.buffer
            self._let_go()
            self._tell()
        self._meter.event("log_lost", lane=lane.name)

    # -- while a batch is out -------------------------------------------------------------

    async def delivery(self, world: AnyWorld, ops: Sequence[Op]) -> Sequence[Op]:
        """With the epoch of this delivery. Raises Lost."""
        await self.keep(world, ops)
        lane = self._owned(ops)
        lane.deliveries += 1
        epoch = (lane.epoch or 0) << DELIVERIES | lane.deliveries
        self._leases.out(self)
        return delivered(ops, epoch)

    def out(self, seconds: float = 0.0) -> None:
        """The batch waits so long for its next try."""
        self._leases.out(self, seconds)

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
        world = self._runtime.threads
        slow: list[Lane] = []
        brief = min(BRIEF if len(self._lanes) > 1 else PATIENCE, self._lease / 3)
        for lane in answering_first(self._lanes):
            if self._is_due(lane):
                try:
                    drive(self._renew(world, lane, world.deadline(brief)))
                except BackendError as error:
                    self._complain("renew", error)
                    if isinstance(error, BackendTimeout):
                        slow.append(lane)
        # One that answers slowly gets its time, and the others do not lose theirs by it.
        for lane in sorted(slow, key=lambda lane: lane.over_at)[:1]:
            if self._is_due(lane) and brief == BRIEF:
                try:
                    drive(self._renew(world, lane, world.deadline(self._lease / 3)))
                except BackendError as error:
                    self._complain("renew", error)
        return self._leases.due or self.owns > 0

    def _is_due(self, lane: Lane) -> bool:
        return self._leases.due and lane.epoch is not None and self._clock() >= lane.renew_at

    async def fenced(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """Ours is the older epoch: whoever is right, this lane is claimed anew, above it."""
        self._lose(self._lane_of(ops), self._poll)

    def _complain(self, what: str, error: Exception) -> None:
        self._meter.event("log_errors", lane=self._name, error=type(error).__name__)
        self._meter.warn_once(
            f"log {self._name} {what}",
            "%s: could not %s the write-back log (%s); it is tried again",
            self._name,
            what,
            error if isinstance(error, CacheKitError) else type(error).__name__,
        )
