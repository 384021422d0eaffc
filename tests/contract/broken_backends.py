"""Memory backends broken once each, in the way the name says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cachekit.backends.memory import MemoryBackend, MemorySlots, MemoryStore
from cachekit.core.deadline import Deadline
from cachekit.errors import BackendError
from cachekit.protocols import (
    NOTHING,
    Asking,
    Filling,
    Grant,
    Item,
    Nonces,
    Reading,
    SlotState,
    World,
)
from cachekit.testing import BackendContract


class Patient(MemoryBackend):
    """The memory backend with other slots or another store."""

    def __init__(self, suite: BackendContract, namespace: str) -> None:
        super().__init__(clock=suite.clock)
        self.namespace = namespace
        self.shelves: dict[str, Any] = {}

    slots: type[MemorySlots] = MemorySlots
    store: type[MemoryStore] = MemoryStore

    def open(self, world: World) -> MemoryStore:
        store = self.store(self.name, self._shelf)
        slots = self.slots(self.name, self._shelf, store.sender)
        slots.world = world  # type: ignore[attr-defined]  # for those that let rivals in
        store.slots = slots
        return store


async def let_rivals_in(slots: Any) -> None:
    await slots.world.sleep(0.0005)


# -- the slot's steps --------------------------------------------------------------------


class FillIgnoresTheToken(MemorySlots):
    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        if self._shelf.slot(key).state is SlotState.BLOCK:
            return False
        self._shelf.store(key, token, data, ttl)
        return True


class AcquireManyTakesAll(MemorySlots):
    async def acquire_many(
        self, asked: Sequence[Asking], lease: float, deadline: Deadline
    ) -> list[Grant]:
        return [Grant(True, NOTHING) for _ in asked]


class AcquireManyForgetsTheSlot(MemorySlots):
    async def acquire_many(
        self, asked: Sequence[Asking], lease: float, deadline: Deadline
    ) -> list[Grant]:
        grants = await super().acquire_many(asked, lease, deadline)
        return [grant._replace(slot=NOTHING) for grant in grants]


class FillManyPuts(MemorySlots):
    async def fill_many(self, fills: Sequence[Filling], deadline: Deadline) -> list[bool]:
        for fill in fills:
            await self.put(fill.key, fill.token, fill.data, fill.ttl, deadline)
        return [True for _ in fills]


class ReleaseKeepsTheRefreshToken(MemorySlots):
    async def release(self, key: str, token: bytes, deadline: Deadline) -> None:
        if self._shelf.slot(key).state is not SlotState.REFRESHING:
            await super().release(key, token, deadline)


class VoidLeavesTokens(MemorySlots):
    async def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        for key in keys:
            if self._shelf.slot(key).state is SlotState.BLOCK:
                self._shelf.holds.contest(key)
            self._shelf.entries.drop(key)


class VoidForgetsAllButTheFirst(MemorySlots):
    async def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        await super().void(keys[:1], deadline)


class SeizeOverwritesABlock(MemorySlots):
    async def seize(
        self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        for key in keys:
            self._shelf.holds.drop(key)
        await super().seize(keys, writer, lease, deadline)


class SeizeShortensABlock(MemorySlots):
    async def seize(
        self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        await super().seize(keys, writer, lease, deadline)
        for key in keys:
            self._shelf.holds._holds[key].until = self._shelf.holds._clock() + lease


class ALeavingWriterContestsNothing(MemorySlots):
    def _end(self, key: str, writer: bytes) -> None:
        super()._end(key, writer)
        hold = self._shelf.holds.of(key)
        if hold is not None:
            hold.contested = False


class AcquireForgetsToKeep(MemorySlots):
    async def acquire(self, *given: Any, **named: Any) -> Grant:
        return await super().acquire(*given, **{**named, "keep": False})


class AcquireLooksAndThenTakes(MemorySlots):
    async def acquire(
        self,
        key: str,
        token: bytes,
        lease: float,
        deadline: Deadline,
        *,
        over: bytes = b"",
        keep: bool = False,
    ) -> Grant:
        slot = self._shelf.slot(key)
        granted = self._shelf.holds.may_acquire(slot, over, keep)
        await let_rivals_in(self)
        if granted:
            self._shelf.holds.grant(key, token, lease)
        return Grant(granted, slot)


class FillLooksAndThenStores(MemorySlots):
    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        mine = self._shelf.holds.is_mine(key, token)
        await let_rivals_in(self)
        if mine:
            self._shelf.store(key, token, data, ttl)
        return mine


class CommitLooksAndThenStores(MemorySlots):
    async def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        alone = self._shelf.holds.is_alone(key, writer)
        await let_rivals_in(self)
        if alone:
            self._shelf.store(key, writer, data, ttl)
        return alone


class CommitNeedsOnlyItsOwnId(MemorySlots):
    async def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        hold = self._shelf.holds.of(key)
        if hold is None or writer not in hold.writers:
            return await super().commit(key, writer, data, ttl, deadline)
        self._shelf.store(key, writer, data, ttl)
        return True


class FillKeepsTheLeaseAsTtl(MemorySlots):
    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        return await super().fill(key, token, data, 60.0 if ttl is None else ttl, deadline)


class RenewDoesNothing(MemorySlots):
    async def renew(self, key: str, token: bytes, lease: float, deadline: Deadline) -> bool:
        return self._shelf.holds.is_mine(key, token)


class TtlsAreWholeSecondsRoundedDown(MemorySlots):
    """0.3 s becomes 0, and 0 is for ever."""

    async def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        return await super().put(key, stamp, data, int(ttl or 0) or None, deadline)


class NoTtlIsZero(MemorySlots):
    async def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        return await super().put(key, stamp, data, ttl or 0, deadline)


class LongTtlsArePointsInTime(MemorySlots):
    """As memcached takes more than 30 days for a Unix time, long past."""

    async def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        past = ttl is not None and ttl > 30 * 24 * 3600
        return await super().put(key, stamp, data, 0 if past else ttl, deadline)


class EntriesEndAtANul(MemorySlots):
    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        return await super().fill(key, token, data.split(b"\0")[0], ttl, deadline)


# -- nonces ------------------------------------------------------------------------------


class NoncesAreOverwritten(MemorySlots):
    async def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        self._shelf.space = None
        for tag in tags:
            self._shelf.tags.drop(tag)
        return await super().nonces(keys, tags, fresh, ttl, deadline)


class NoncesLookAndThenStore(MemorySlots):
    async def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        found = [self._shelf.nonce(tag) or fresh() for tag in tags]
        await let_rivals_in(self)
        for tag, nonce in zip(tags, found, strict=True):
            self._shelf.tags.set(tag, b"", nonce, ttl)
        spaces = (await super().nonces(keys, [], fresh, ttl, deadline)).spaces
        return Nonces(spaces, [*found])


class ReadForgetsTheSpace(MemorySlots):
    async def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        reading = await super().read(keys, tags, deadline)
        return reading._replace(spaces=[None] * len(keys))


class ReadCreatesNonces(MemorySlots):
    async def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        await self.nonces(keys, tags, lambda: b"r" * 16, None, deadline)
        return await super().read(keys, tags, deadline)


class ReadSortsTheTags(MemorySlots):
    async def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        return await super().read(keys, sorted(tags), deadline)


class DroppingATagDropsAll(MemorySlots):
    async def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        self._shelf.tags._records.clear()


class DropSpaceOnlyForgetsNothing(MemorySlots):
    async def drop_space(self, deadline: Deadline) -> None:
        return None


class TagsLieAmongTheSlots(MemorySlots):
    async def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        await super().drop_tags(tags, deadline)
        await super().void(tags, deadline)


# -- stores and backends -----------------------------------------------------------------


class GetSortsTheKeys(MemoryStore):
    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        return await super().get_many(sorted(keys), deadline)


class GetRefusesNoKeys(MemoryStore):
    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        if not keys:
            raise BackendError("wrong number of arguments for 'mget' command")
        return await super().get_many(keys, deadline)


class GetStopsAtAHundred(MemoryStore):
    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        found = await super().get_many(keys[:100], deadline)
        return [*found, *[None] * (len(keys) - len(found))]


class KeysIgnoreCase(MemoryStore):
    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        return await super().get_many([key.lower() for key in keys], deadline)

    async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
        await super().set_many([i._replace(key=i.key.lower()) for i in items], deadline)


class SetAddsOnly(MemoryStore):
    async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
        missing = [i for i in items if self._shelf.plain.get(i.key) is None]
        await super().set_many(missing, deadline)


class EmptyReadsAsAbsent(MemoryStore):
    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        return [data or None for data in await super().get_many(keys, deadline)]


class DeadlinesAreIgnored(MemoryStore):
    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        return [None for _ in keys]


class CloseLosesAll(MemoryStore):
    async def close(self) -> None:
        self._shelf.plain._records.clear()


class CloseOnlyOnce(MemoryStore):
    closed = False

    async def close(self) -> None:
        assert not self.closed
        self.closed = True


class EveryOpenHasItsOwn(Patient):
    def open(self, world: World) -> MemoryStore:
        return MemoryBackend().open(world)


class EveryWorldHasItsOwn(Patient):
    def open(self, world: World) -> MemoryStore:
        own = self.shelves.setdefault(world.name, MemoryBackend())
        return own.open(world)  # type: ignore[no-any-return]


class SaysSharedButIsNot(Patient):
    shared = True


class NamespaceIsGlued(Patient):
    """A tenant "a" with key "bk" and a tenant "ab" with key "k" meet."""

    data: dict[str, bytes] = {}

    class store(MemoryStore):
        namespace = ""

        async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
            return [NamespaceIsGlued.data.get(self.namespace + key) for key in keys]

        async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
            NamespaceIsGlued.data.update({self.namespace + i.key: i.data for i in items})

    def open(self, world: World) -> MemoryStore:
        store = super().open(world)
        store.namespace = self.namespace  # type: ignore[attr-defined]
        return store


def one_space_for_all(likes: Callable[[str], str]) -> type[Patient]:
    """Namespaces that ``likes`` maps to one text are one namespace."""

    class Mixed(Patient):
        spaces: dict[str, MemoryBackend] = {}

        def open(self, world: World) -> MemoryStore:
            return self.spaces.setdefault(likes(self.namespace), MemoryBackend()).open(world)

    return Mixed
