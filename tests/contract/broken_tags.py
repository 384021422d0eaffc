"""Memory backends whose tag blocks are broken once each, in the way the name says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broken_backends import let_rivals_in

from cachekit.backends.holds import Hold
from cachekit.backends.memory import MemorySlots
from cachekit.core.deadline import Deadline
from cachekit.protocols import Nonces


class NoncesAreMadeUnderABlock(MemorySlots):
    async def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        spaces = (await super().nonces(keys, [], fresh, ttl, deadline)).spaces
        found = []
        for tag in tags:
            record = self._shelf.tags.get(tag)
            nonce = fresh() if record is None else record.data
            self._shelf.tags.set(tag, b"", nonce, ttl)
            found.append(nonce)
        return Nonces(spaces, [*found])


class SeizeTagsOnlyDrops(MemorySlots):
    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        await self.drop_tags(tags, deadline)


class SeizeTagsCountsWriters(MemorySlots):
    """Who seizes twice has to end twice."""

    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        for tag in tags:
            hold = self._shelf.tag_blocks.of(tag)
            mine = writer if hold is None or writer not in hold.writers else writer[::-1]
            await super().seize_tags([tag], mine, lease, deadline)


class SeizeTagsTakesABlockOver(MemorySlots):
    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        for tag in tags:
            self._shelf.tag_blocks.drop(tag)
        await super().seize_tags(tags, writer, lease, deadline)


class SeizeTagsTakesTheLastLease(MemorySlots):
    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        await super().seize_tags(tags, writer, lease, deadline)
        for tag in tags:
            blocks = self._shelf.tag_blocks
            blocks._holds[tag].until = blocks._clock() + lease


class SeizeTagsLooksAndThenStores(MemorySlots):
    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        blocks = self._shelf.tag_blocks
        for tag in tags:
            found = blocks.of(tag)
            others = set() if found is None else set(found.writers)
            await let_rivals_in(self)
            self._shelf.tags.drop(tag)
            blocks._holds[tag] = Hold(b"", {*others, writer}, blocks._clock() + lease)


class TagBlocksNeverEnd(MemorySlots):
    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        await super().seize_tags(tags, writer, 1e9, deadline)


class TagBlocksAreKeyBlocks(MemorySlots):
    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        await super().seize_tags(tags, writer, lease, deadline)
        await self.seize(tags, writer, lease, deadline)


class NoncesComeBackAfterABlock(MemorySlots):
    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        for tag in tags:
            self._shelf.tag_blocks.seize(tag, writer, lease)

    async def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        for tag in tags:
            self._shelf.tag_blocks.end(tag, writer)


class AnyEndEndsABlock(MemorySlots):
    async def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        for tag in tags:
            self._shelf.tag_blocks.drop(tag)
        await self.drop_tags(tags, deadline)


class EndTagsLeavesNonces(MemorySlots):
    async def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        blocked = [tag for tag in tags if self._shelf.tag_blocks.of(tag)]
        await super().end_tags(blocked, writer, deadline)


class DropTagsEndsBlocks(MemorySlots):
    async def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        for tag in tags:
            self._shelf.tag_blocks.drop(tag)
        await super().drop_tags(tags, deadline)


class NoncesLookAndThenEndTheBlock(MemorySlots):
    """Where blocks and nonces are one record: a nonce stored over a block that came meanwhile."""

    async def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        free = [tag for tag in tags if not self._shelf.tag_blocks.of(tag)]
        await let_rivals_in(self)
        for tag in free:
            self._shelf.tag_blocks.drop(tag)
        return await super().nonces(keys, tags, fresh, ttl, deadline)
