"""Cache-aside: look, else load and keep; write the source, then invalidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.outcome import Outcome
from ..runtime import AnyWorld
from .base import Strategy


class CacheAside(Strategy):
    """Lazy loading, the textbook's default. One load per process; processes do not wait for each
    other. A write goes to the source, then the key is invalidated: the cheapest write there is.
    A process killed between the two leaves the old value until its ttl."""

    waits = False
    description = "load on a miss; a write invalidates after the source"

    async def _put_many(self, world: AnyWorld, values: Mapping[Any, Any]) -> Outcome:
        async def write(world: AnyWorld) -> Outcome:
            return await self.source.stored_many(world, values)

        return await self._parts.writer.then_void(
            world,
            [self.place(id) for id in values],
            write,
            lease=self.policy.write_lease,
            drop=[t for id, v in values.items() for t in self._dropped(id, v)],
        )

    async def _delete_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        async def delete(world: AnyWorld) -> Outcome:
            return await self.source.deleted_many(world, ids)

        return await self._parts.writer.then_void(
            world,
            [self.place(id) for id in ids],
            delete,
            lease=self.policy.write_lease,
            drop=[t for id in ids for t in self._dropped(id)],
        )
