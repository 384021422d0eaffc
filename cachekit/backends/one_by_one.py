"""Verbs on several keys, for backends without a pipeline: one key after the other."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.deadline import Deadline
from ..protocols import Asking, Filling, Grant


class OneByOne:
    """The ``..._many`` steps of ``Slots`` by way of ``acquire`` and ``fill``."""

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
        raise NotImplementedError

    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        raise NotImplementedError

    async def acquire_many(
        self, asked: Sequence[Asking], lease: float, deadline: Deadline
    ) -> list[Grant]:
        return [
            await self.acquire(ask.key, ask.token, lease, deadline, over=ask.over) for ask in asked
        ]

    async def fill_many(self, fills: Sequence[Filling], deadline: Deadline) -> list[bool]:
        return [
            await self.fill(fill.key, fill.token, fill.data, fill.ttl, deadline) for fill in fills
        ]
