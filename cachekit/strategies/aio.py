"""The async face of every strategy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..core.entry import MISSING
from ..core.ops import Flushed
from .writer import Written

if TYPE_CHECKING:
    from .base import Strategy

CLOSE_TIMEOUT = 10.0


class AsyncStrategy:
    """The async face of a strategy: same verbs, same cache, same counters."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self._runtime = strategy._parts_().runtime

    async def get(self, id: Any, default: Any = None) -> Any:
        value = self.strategy._hit(id)
        if value is MISSING:
            value = (await self.strategy._get(self._runtime.asyncio(), id)).settle()
        return default if value is None else self.strategy._own(value)

    async def get_many(self, ids: Iterable[Any]) -> dict[Any, Any]:
        outcome = await self.strategy._get_many(self._runtime.asyncio(), list(ids))
        return self.strategy._own(outcome.settle())  # type: ignore[no-any-return]  # Outcome carries Any

    async def put(self, id: Any, value: Any) -> Written:
        return await self.put_many({id: value})

    async def put_many(self, values: Mapping[Any, Any]) -> Written:
        own = self.strategy._own(dict(values))
        outcome = await self.strategy._put_many(self._runtime.asyncio(), own)
        return outcome.settle()  # type: ignore[no-any-return]  # Outcome carries Any

    async def delete(self, id: Any) -> Written:
        return await self.delete_many([id])

    async def delete_many(self, ids: Iterable[Any]) -> Written:
        outcome = await self.strategy._delete_many(self._runtime.asyncio(), list(ids))
        return outcome.settle()  # type: ignore[no-any-return]  # Outcome carries Any

    async def invalidate(self, *ids: Any) -> None:
        await self.strategy._invalidate(self._runtime.asyncio(), ids)

    async def flush(self, timeout: float | None = None) -> Flushed:
        return await self.strategy._flush_async(timeout)

    async def close(self, timeout: float = CLOSE_TIMEOUT) -> Flushed:
        return await self.strategy._close_async(timeout)
