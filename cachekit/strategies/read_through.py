"""Read-through: the cache owns the loading; one load per key in the whole fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.outcome import Outcome
from ..runtime import AnyWorld
from .base import Strategy


class ReadThrough(Strategy):
    """Readers ask the cache, the cache asks the source: one load per key across processes, the
    others wait for it (``wait``). A write blocks the key, writes the source and leaves the key
    empty."""

    description = "one load per key in the fleet; a write leaves the key empty"

    async def _put_many(self, world: AnyWorld, values: Mapping[Any, Any]) -> Outcome:
        return await self._write_around(world, values, fill=False)

    async def _delete_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        return await self._delete_around(world, ids)
