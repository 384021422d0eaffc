"""A log in the memory of one process that does what the contract says, for the suite to prove."""

from __future__ import annotations

import itertools
import os
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from cachekit.core.deadline import Deadline
from cachekit.errors import BackendTimeout
from cachekit.protocols import Bounds, Letter, Look, Record, Standing, World
from cachekit.testing.log_model import LogModel


class Place:
    """Where the queues of one test lie."""

    def __init__(self, clock: Callable[[], float], parts: int = 1, told: int = 1000) -> None:
        self.clock = clock
        self.parts = parts
        self.told = told
        self.queues: dict[str, LogModel] = {}
        self.lock = threading.RLock()
        self.versions = itertools.count(1)  # of all partitions: letters are named by them


class ReferenceLog:
    """One queue of a place. Every verb is one step under the place's lock."""

    level = "process"
    tells = True
    kind: type[LogModel] = LogModel

    def __init__(self, place: Place, queue: str, bounds: Bounds) -> None:
        self.place = place
        self.queue = queue
        self.bounds = bounds
        self.parts = place.parts
        self.name = f"{queue} (reference)"

    @property
    def model(self) -> LogModel:
        with self.place.lock:
            model = self.place.queues.get(self.queue)
            if model is None:
                model = self.kind(self.parts, told=self.place.told)
                model.identity = os.urandom(8).hex()
                self.place.queues[self.queue] = model
            model.bounds = self.bounds
            return model

    def part_of(self, key: str) -> int:
        return zlib.crc32(key.encode()) % self.parts

    def version(self) -> int:
        return next(self.place.versions)

    async def step(self, deadline: Deadline, verb: Callable[..., Any], *given: Any) -> Any:
        """One verb at one instant."""
        if deadline.passed():
            raise BackendTimeout("the deadline has passed", backend=self.name)
        with self.place.lock:
            return verb(*given)

    async def append(
        self, world: World, records: Sequence[Record], deadline: Deadline
    ) -> list[int | None]:
        timed = [r if r.at else r._replace(at=time.time()) for r in records]
        return await self.step(deadline, self.model.admit, timed, self.part_of, self.version)

    async def look(self, world: World, keys: Sequence[str], since: int, deadline: Deadline) -> Look:
        return await self.step(deadline, self.model.look, keys, since)

    async def identity(self, world: World, deadline: Deadline) -> str:
        return await self.step(deadline, lambda: self.model.identity)

    async def claim(
        self,
        world: World,
        part: int,
        owner: bytes,
        lease: float,
        deadline: Deadline,
        *,
        beyond: int = 0,
    ) -> int | None:
        claim = self.model.owners[part].claim
        return await self.step(deadline, claim, owner, lease, beyond, self.place.clock())

    async def renew(
        self, world: World, part: int, owner: bytes, epoch: int, lease: float, deadline: Deadline
    ) -> bool:
        renew = self.model.owners[part].renew
        return await self.step(deadline, renew, owner, epoch, lease, self.place.clock())

    async def release(
        self, world: World, part: int, owner: bytes, epoch: int, deadline: Deadline
    ) -> None:
        await self.step(deadline, self.model.owners[part].release, owner, epoch)

    async def read(
        self, world: World, part: int, after: int, limit: int, deadline: Deadline
    ) -> list[Record]:
        return await self.step(deadline, self.model.read, part, after, limit)

    async def settle(
        self,
        world: World,
        part: int,
        epoch: int,
        done: Sequence[tuple[str, int]],
        letters: Sequence[Letter],
        deadline: Deadline,
    ) -> bool:
        return await self.step(deadline, self.model.settle, part, epoch, done, letters)

    async def standing(self, world: World, deadline: Deadline) -> Standing:
        return await self.step(deadline, self.model.standing)

    async def left(self, world: World, upto: Sequence[int], deadline: Deadline) -> int:
        return await self.step(deadline, self.model.left, upto)

    async def letters(
        self, world: World, after: int, limit: int, deadline: Deadline
    ) -> list[Letter]:
        return await self.step(deadline, self.model.letters, after, limit)

    async def revive(
        self, world: World, versions: Sequence[int], force: bool, deadline: Deadline
    ) -> list[int]:
        return await self.step(
            deadline, self.model.revive, versions, force, self.part_of, self.version
        )

    async def outdate(self, world: World, keys: Sequence[str], deadline: Deadline) -> None:
        await self.step(deadline, self.model.outdate, keys)

    async def drop(self, world: World, versions: Sequence[int], deadline: Deadline) -> list[int]:
        return await self.step(deadline, self.model.drop, versions)

    async def queues(self, world: World, deadline: Deadline) -> list[str]:
        return await self.step(deadline, self.used_queues)

    def used_queues(self) -> list[str]:
        return [name for name, model in self.place.queues.items() if any(model.newest)]

    async def close(self, world: World) -> None:
        """Nothing was opened."""
