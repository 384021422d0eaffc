"""Logs broken once each, in the way the name says. Those of a table are models, others verbs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from reference_log import ReferenceLog

from cachekit.core.deadline import Deadline
from cachekit.core.ops import OpKind
from cachekit.errors import BackendRefused
from cachekit.protocols import Letter, Look, Record, Standing, World
from cachekit.testing.log_model import LogModel, size_of

# -- acceptance --------------------------------------------------------------------------


class TheLastIsAcceptedFirst(ReferenceLog):
    async def append(self, world: World, records: Sequence[Record], deadline: Deadline) -> Any:
        return (await super().append(world, records[::-1], deadline))[::-1]


class VersionsBeginAnewWhenAllIsDone(LogModel):
    def accept(self, part: int, record: Record, version: int) -> int:
        version = max([*self.ops[part], *self.dead], default=0) + 1
        self.ops[part][version] = record._replace(version=version)
        self.newest[part] = version
        return version


class DataEndsAtANul(LogModel):
    def accept(self, part: int, record: Record, version: int) -> int:
        return super().accept(part, record._replace(data=record.data.split(b"\0")[0]), version)


class TheTimeIsTheLogs(LogModel):
    def accept(self, part: int, record: Record, version: int) -> int:
        return super().accept(part, record._replace(at=0.0), version)


class NoTimeIsTheFirstOfJanuary1970(LogModel):
    def accept(self, part: int, record: Record, version: int) -> int:
        given = record._replace(at=record.at if record.at < 1.75e9 else 0.0)
        return super().accept(part, given, version)


class KeysIgnoreCase(LogModel):
    def accept(self, part: int, record: Record, version: int) -> int:
        return super().accept(part, record._replace(key=record.key.casefold()), version)

    def pending(self, key: str) -> Record | None:
        return super().pending(key.casefold())


class QueuesAreCutAtAColon(ReferenceLog):
    def __init__(self, place: Any, queue: str, bounds: Any) -> None:
        super().__init__(place, queue.split(":")[0], bounds)


class OnePlaceForAll(ReferenceLog):
    """The class of tests looks for this."""

    one_place = True


class TheBoundCountsKeys(LogModel):
    def has_room(self, part: int, record: Record) -> bool:
        keys = {held.key for held in self.ops[part].values()} | {record.key}
        return len(keys) <= self.bounds.operations


class TheBoundCountsDeadLetters(LogModel):
    def has_room(self, part: int, record: Record) -> bool:
        taken = len(self.ops[part]) + len(self.dead)
        return taken < self.bounds.operations and super().has_room(part, record)


class TheBoundForgetsTheSize(LogModel):
    def has_room(self, part: int, record: Record) -> bool:
        return len(self.ops[part]) < self.bounds.operations


class WhatFitsIsAcceptedPastWhatWasRefused(LogModel):
    def admit(self, records: Sequence[Record], part_of: Any, version: Any) -> list[int | None]:
        return [super(type(self), self).admit([r], part_of, version)[0] for r in records]


class NothingIsNoList(ReferenceLog):
    async def append(self, world: World, records: Sequence[Record], deadline: Deadline) -> Any:
        if not records:
            raise BackendRefused("wrong number of arguments")
        return await super().append(world, records, deadline)


# -- what is seen ------------------------------------------------------------------------


class LookGivesTheOldest(LogModel):
    def pending(self, key: str) -> Record | None:
        found = [r for ops in self.ops for r in ops.values() if r.key == key]
        return found[0] if found else None


class ADeleteIsNothing(LogModel):
    def pending(self, key: str) -> Record | None:
        found = super().pending(key)
        return None if found is None or found.kind is OpKind.DELETE else found


class ReadBeginsWithTheLastOne(LogModel):
    def read(self, part: int, after: int, limit: int) -> list[Record]:
        return super().read(part, after - 1, limit)


class ReadIgnoresTheLimit(LogModel):
    def read(self, part: int, after: int, limit: int) -> list[Record]:
        return super().read(part, after, 10**9)


class DepthCountsKeys(LogModel):
    def standing(self) -> Standing:
        keys = {record.key for ops in self.ops for record in ops.values()}
        return super().standing()._replace(depth=len(keys))


class NewestIsOfWhatWaits(LogModel):
    def standing(self) -> Standing:
        return super().standing()._replace(newest=tuple(max(o, default=0) for o in self.ops))


class LeftCountsAll(LogModel):
    def left(self, upto: Sequence[int]) -> int:
        return sum(map(len, self.ops))


class NothingIsTold(LogModel):
    def look(self, keys: Sequence[str], since: int) -> Look:
        return super().look(keys, since)._replace(settled=())


class AMarkOfNothingTellsNothing(LogModel):
    """The first look gives mark 0, and since 0 is taken for the beginning."""

    def look(self, keys: Sequence[str], since: int) -> Look:
        seen = super().look(keys, since)
        return seen if since else seen._replace(settled=())


class OnlyWhatWasAppliedIsTold(LogModel):
    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        before = self.mark, len(self.settled)
        answer = super().settle(part, epoch, done, letters)
        if letters:
            self.mark = before[0]
            while len(self.settled) > before[1]:
                self.settled.pop()
        return answer


class TheMarkMovesThoughNothingIsTold(ReferenceLog):
    tells = False


class SettledKeysAreToldInPart(LogModel):
    def look(self, keys: Sequence[str], since: int) -> Look:
        self.forgotten = 0
        return super().look(keys, since)


class CloseLosesAll(ReferenceLog):
    async def close(self, world: World) -> None:
        self.place.queues.pop(self.queue, None)


class ClosedForGood(ReferenceLog):
    closed = False

    async def step(self, deadline: Deadline, verb: Callable[..., Any], *given: Any) -> Any:
        if self.closed:
            raise BackendRefused("the log is closed")
        return await super().step(deadline, verb, *given)

    async def close(self, world: World) -> None:
        self.closed = True


class EveryObjectDrawsAnIdentity(ReferenceLog):
    async def identity(self, world: World, deadline: Deadline) -> str:
        return os.urandom(8).hex()


class TheIdentityIsTheNames(ReferenceLog):
    async def identity(self, world: World, deadline: Deadline) -> str:
        return self.queue.encode().hex().zfill(16)


class EveryWorldHasItsOwn(ReferenceLog):
    async def append(self, world: World, records: Sequence[Record], deadline: Deadline) -> Any:
        self.queue = f"{self.queue.partition('@')[0]}@{world.name}"
        return await super().append(world, records, deadline)


class DeadlinesAreIgnored(ReferenceLog):
    async def step(self, deadline: Deadline, verb: Callable[..., Any], *given: Any) -> Any:
        with self.place.lock:
            return verb(*given)


# -- steps that are not one ----------------------------------------------------------------


async def let_rivals_in(world: World) -> None:
    await world.sleep(0.0005)


class VersionsAreDrawnBeforeTheyAreKept(ReferenceLog):
    async def append(self, world: World, records: Sequence[Record], deadline: Deadline) -> Any:
        versions = [self.version() for _ in records]
        await world.sleep(0.0002 if versions[0] % 2 else 0.003)
        with self.place.lock:
            for record, version in zip(records, versions, strict=True):
                ops = self.model.ops[self.part_of(record.key)]
                ops[version] = record._replace(version=version)
                for number in sorted(ops):
                    ops[number] = ops.pop(number)
        return versions


class SomeAppendsAreLost(ReferenceLog):
    """Two that read the same table and write it back: the last one wins."""

    async def append(self, world: World, records: Sequence[Record], deadline: Deadline) -> Any:
        before = [dict(ops) for ops in self.model.ops]
        await let_rivals_in(world)
        with self.place.lock:
            self.model.ops[:] = before
            return await super().append(world, records, deadline)


class RoomIsSeenAndThenTaken(ReferenceLog):
    async def append(self, world: World, records: Sequence[Record], deadline: Deadline) -> Any:
        room = self.bounds.operations - sum(map(len, self.model.ops))
        await let_rivals_in(world)
        with self.place.lock:
            versions: list[int | None] = [
                self.model.accept(self.part_of(record.key), record, self.version())
                for record in records[: max(0, room)]
            ]
        return versions + [None] * (len(records) - len(versions))


class ClaimLooksAndThenTakes(ReferenceLog):
    async def claim(self, world: World, part: int, owner: bytes, *given: Any, **named: Any) -> Any:
        mine = self.model.owners[part]
        if mine.owner not in (b"", owner) and self.place.clock() < mine.until:
            return None
        await let_rivals_in(world)
        with self.place.lock:
            mine.owner = b""
            return await super().claim(world, part, owner, *given, **named)


class LookIsTwoLooks(ReferenceLog):
    async def look(self, world: World, keys: Sequence[str], since: int, deadline: Deadline) -> Look:
        told = await super().look(world, [], since, deadline)
        await let_rivals_in(world)
        pending = (await super().look(world, keys, since, deadline)).pending
        return told._replace(pending=pending)


class EveryOtherLookIsOfAReplica(ReferenceLog):
    async def look(self, world: World, keys: Sequence[str], since: int, deadline: Deadline) -> Look:
        kept: dict[Any, Any] = self.__dict__.setdefault("kept", {})
        asked = (tuple(keys), since)
        if asked in kept:
            return kept.pop(asked)
        return kept.setdefault(asked, await super().look(world, keys, since, deadline))


class SettleLooksAndThenTakes(ReferenceLog):
    async def settle(self, world: World, part: int, epoch: int, *given: Any) -> bool:
        if epoch != self.model.owners[part].epoch:
            return False
        await let_rivals_in(world)
        with self.place.lock:
            return await super().settle(world, part, self.model.owners[part].epoch, *given)


class SizeIsOfTheDataAlone(LogModel):
    def standing(self) -> Standing:
        held = [record for ops in self.ops for record in ops.values()]
        keys = sum(size_of(record) - len(record.data) for record in held)
        standing = super().standing()
        return standing._replace(size=standing.size - keys)
