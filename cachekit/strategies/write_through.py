"""Write-through: the source, then the cache, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.outcome import Outcome
from ..runtime import AnyWorld
from .read_through import ReadThrough


class WriteThrough(ReadThrough):
    """Reads after a write are hits: a write blocks the key, writes the source, and fills the
    cache if it was alone. Source first: a failed write leaves no new value anywhere, and of two
    racing writers the loser's value never stays."""

    description = "a write goes to the source, then fills the cache"

    async def _put_many(self, world: AnyWorld, values: Mapping[Any, Any]) -> Outcome:
        return await self._write_around(world, values, fill=True)
