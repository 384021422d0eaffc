"""Where a test of a log runs: its places, what it opens there, short forms of the verbs."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ..core.deadline import Deadline
from ..core.ops import OpKind
from ..protocols import OWNER_BYTES, Bounds, Letter, Log, Look, Record, Standing, World
from .lab import Lab, Suite, in_both_worlds
from .log_model import ROOMY

LONG = 60.0  # seconds: a lease that outlives the test
NOON = 1_700_000_000.0  # Unix seconds: when the tests' first operation is accepted

_owners = itertools.count(1)


class LogSuite(Suite):
    """What a log's test class says about the log. Subclass ``LogContract``."""

    many_settled: int = 25_000
    """More settled keys than a log that ``tells`` remembers (or as many as one may wait for)."""

    largest: int = 1024 * 1024
    """Bytes of the largest value that the suite appends."""

    def make_log(self, place: str, queue: str, bounds: Bounds) -> Log:
        """A new object for a queue of a place (a file, a namespace). A place is new to each test;
        two objects of one place and queue are the same queue."""
        raise NotImplementedError(f"{type(self).__name__} must define make_log")


class Hand:
    """One log in one world, with a fresh deadline for every verb."""

    def __init__(self, log: Log, world: World, deadline: Callable[[], Deadline]) -> None:
        self.log = log
        self._world = world
        self._late = deadline
        self._clock = itertools.count()
        self._part: dict[str, int] = {}

    @property
    def parts(self) -> int:
        return self.log.parts

    def record(self, key: str, data: bytes | None = b"v") -> Record:
        """An operation to append: a put, or with ``data`` None a delete, a second after the last.

        Its version is nonsense on purpose: the log gives another."""
        kind = OpKind.DELETE if data is None else OpKind.PUT
        return Record(key, kind, data or b"", 7, NOON + next(self._clock))

    async def append(self, *records: Record) -> list[int | None]:
        return await self.log.append(self._world, list(records), self._late())

    async def put(self, key: str, data: bytes | None = b"v") -> int:
        """Append one operation (``data`` None: a delete) that must be accepted: its version."""
        (version,) = await self.append(self.record(key, data))
        assert version is not None, f"no room for {key!r}"
        return version

    async def puts(self, *keys: str) -> list[int]:
        versions = await self.append(*(self.record(key) for key in keys))
        assert None not in versions
        return [version for version in versions if version is not None]

    async def look(self, *keys: str, since: int = 0) -> Look:
        return await self.log.look(self._world, list(keys), since, self._late())

    async def pending(self, key: str) -> Record | None:
        return (await self.look(key)).pending[0]

    async def identity(self) -> str:
        return await self.log.identity(self._world, self._late())

    async def claim(
        self, owner: bytes, lease: float = LONG, *, part: int = 0, beyond: int = 0
    ) -> int | None:
        return await self.log.claim(self._world, part, owner, lease, self._late(), beyond=beyond)

    async def own(self, owner: bytes, part: int = 0) -> int:
        """Claim what must be free: the epoch."""
        epoch = await self.claim(owner, part=part)
        assert epoch is not None
        return epoch

    async def renew(self, owner: bytes, epoch: int, lease: float = LONG, part: int = 0) -> bool:
        return await self.log.renew(self._world, part, owner, epoch, lease, self._late())

    async def release(self, owner: bytes, epoch: int, part: int = 0) -> None:
        await self.log.release(self._world, part, owner, epoch, self._late())

    async def read(self, after: int = 0, limit: int = 1000, part: int = 0) -> list[Record]:
        return await self.log.read(self._world, part, after, limit, self._late())

    async def read_all(self) -> list[Record]:
        return [record for part in range(self.parts) for record in await self.read(part=part)]

    async def settle(
        self,
        epoch: int,
        done: Sequence[tuple[str, int]] = (),
        letters: Sequence[Letter] = (),
        part: int = 0,
    ) -> bool:
        return await self.log.settle(self._world, part, epoch, done, letters, self._late())

    async def standing(self) -> Standing:
        return await self.log.standing(self._world, self._late())

    async def left(self, upto: Sequence[int]) -> int:
        return await self.log.left(self._world, upto, self._late())

    async def letters(self, after: int = 0, limit: int = 1000) -> list[Letter]:
        return await self.log.letters(self._world, after, limit, self._late())

    async def revive(self, *versions: int, force: bool = False) -> list[int]:
        return await self.log.revive(self._world, versions, force, self._late())

    async def outdate(self, *keys: str) -> None:
        await self.log.outdate(self._world, list(keys), self._late())

    async def drop(self, *versions: int) -> list[int]:
        return await self.log.drop(self._world, versions, self._late())

    async def queues(self) -> list[str]:
        return await self.log.queues(self._world, self._late())

    async def close(self) -> None:
        await self.log.close(self._world)

    async def part_of(self, key: str) -> int:
        """The partition of a key that has an operation in the log (or had, when asked before)."""
        if self.parts > 1 and key not in self._part:
            for part in range(self.parts):
                self._part.update((r.key, part) for r in await self.read(part=part, limit=10_000))
        return self._part[key] if self.parts > 1 else 0

    async def finish(
        self, done: Sequence[tuple[str, int]] = (), letters: Sequence[Letter] = ()
    ) -> None:
        """Settle, as a passing owner of each partition that is concerned."""
        where = {key: await self.part_of(key) for key, _ in done}
        where.update({each.record.key: await self.part_of(each.record.key) for each in letters})
        for part in sorted(set(where.values())):
            owner = new_owner()
            epoch = await self.own(owner, part)
            mine = [each for each in letters if where[each.record.key] == part]
            assert await self.settle(epoch, [d for d in done if where[d[0]] == part], mine, part)
            await self.release(owner, epoch, part)

    async def park(self, key: str, version: int, error: str = "refused", **more: Any) -> None:
        """Make an operation that waits in the log a dead letter."""
        records = await self.read(version - 1, 1, await self.part_of(key))
        assert (records[0].key, records[0].version) == (key, version)
        await self.finish(letters=[Letter(records[0], error, **more)])

    async def keys_of_parts(self, count: int) -> list[list[str]]:
        """For each partition this many of its keys: found by appending and settling them."""
        names = [f"key-{number}" for number in range(count * self.parts * 5)]
        versions = await self.puts(*names)
        found: list[list[str]] = [[] for _ in range(self.parts)]
        for name in names:
            found[await self.part_of(name)].append(name)
        await self.finish(list(zip(names, versions, strict=True)))
        assert min(map(len, found)) >= count, "keys are spread too unevenly over the partitions"
        return [keys[:count] for keys in found]


class Desk:
    """One test's surroundings in one world. Its logs are closed when the test ends."""

    def __init__(self, suite: LogSuite, lab: Lab) -> None:
        self.suite = suite
        self.lab = lab
        self.place = lab.namespace
        self._hands: list[Hand] = []

    def open(self, queue: str = "q", bounds: Bounds = ROOMY, place: str = "") -> Hand:
        """A new object for a queue; by default of the test's own place."""
        log = self.suite.make_log(place or self.place, queue, bounds)
        hand = Hand(log, self.lab.world, self.lab.deadline)
        self._hands.append(hand)
        return hand

    async def advance(self, seconds: float) -> None:
        await self.lab.advance(seconds)

    @property
    def brief(self) -> float:
        """Seconds of a lease that ends within the test."""
        return max(0.15, self.suite.ttl_granularity)

    async def outlast(self) -> None:
        """Let a brief lease run out."""
        await self.advance(self.brief + self.suite.ttl_granularity * 1.2 + 0.1)

    async def close(self) -> None:
        while self._hands:
            await self._hands.pop().close()


def new_owner() -> bytes:
    """An owner that never was."""
    return (next(_owners) * 2**64 + os.getpid()).to_bytes(OWNER_BYTES, "big")


Body = Callable[..., Awaitable[None]]


def with_a_desk(body: Body) -> Callable[..., None]:
    """Make of an ``async def test(self, desk, ...)`` one test for each world."""

    @functools.wraps(body)
    async def test(self: LogSuite, lab: Lab, **given: Any) -> None:
        desk = Desk(self, lab)
        try:
            await body(self, desk, **given)
        finally:
            await desk.close()

    return in_both_worlds(test)
