"""The async face of a cache: the same verbs as coroutines, over the same state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .core.entry import MISSING, Missing
from .core.ops import Flushed
from .core.policy import Duration, Ttl, seconds
from .direct import Direct
from .intents import AsyncWriteIntent
from .runtime import AsyncioWorld
from .statistics import Stats
from .strategies.closing import close_all_async, flush_all_async
from .strategies.endings import LEAST

if TYPE_CHECKING:
    from .cache import Cache


class AsyncCache:
    """``cache.aio``. May be used from any number of event loops; each has its own connections,
    closed by :meth:`close` in that loop."""

    def __init__(self, cache: Cache, direct: Direct) -> None:
        self.cache = cache
        self._direct = direct

    @property
    def _world(self) -> AsyncioWorld:
        return self.cache.parts.runtime.asyncio()

    async def get(self, key: str, default: Any = None) -> Any:
        return (await self.get_many([key])).get(key, default)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        return await self._direct.get_many(self._world, keys)

    async def set(
        self, key: str, value: Any, *, ttl: Ttl | Missing = MISSING, tags: Iterable[str] = ()
    ) -> bool:
        return await self._direct.set(self._world, key, value, ttl, tags)

    async def set_many(
        self, values: Mapping[str, Any], *, ttl: Ttl | Missing = MISSING, tags: Iterable[str] = ()
    ) -> int:
        kept = list(tags)
        done = [await self.set(key, value, ttl=ttl, tags=kept) for key, value in values.items()]
        return sum(done)

    async def get_or_set(
        self,
        key: str,
        load: Callable[[], Any],
        *,
        ttl: Ttl | Missing = MISSING,
        tags: Iterable[str] = (),
        **policy: Any,
    ) -> Any:
        """``load`` may be a coroutine function or a plain one."""
        made = self.cache._policy({"ttl": ttl, **policy})
        return (await self._direct.get_or_set(self._world, key, load, made, tags)).settle()

    async def get_or_set_many(
        self,
        keys: Iterable[str],
        load: Callable[[list[str]], Any],
        *,
        ttl: Ttl | Missing = MISSING,
        tags: Iterable[str] = (),
        **policy: Any,
    ) -> dict[str, Any]:
        made = self.cache._policy({"ttl": ttl, **policy})
        outcome = await self._direct.get_or_set_many(self._world, keys, load, made, tags)
        return outcome.settle()  # type: ignore[no-any-return]  # Outcome carries Any

    async def touch(self, key: str, ttl: Ttl | Missing = MISSING) -> bool:
        return await self._direct.touch(self._world, key, ttl)

    async def delete(self, key: str) -> None:
        await self.invalidate(keys=[key])

    async def invalidate(self, *, keys: Iterable[str] = (), tags: Iterable[str] = ()) -> None:
        await self._direct.invalidate(self._world, keys, tags)

    async def clear(self) -> None:
        await self.cache.parts.invalidator.clear(self._world)

    async def emit(self, event: Any) -> list[str]:
        return await self._direct.emit(self._world, event)

    def write_intent(
        self, *, keys: Iterable[str] = (), tags: Iterable[str] = (), ttl: Duration = 30.0
    ) -> AsyncWriteIntent:
        return AsyncWriteIntent(self.cache.parts, self._direct, keys, tags, seconds(ttl, "ttl"))

    def stats(self) -> Stats:
        return self.cache.stats()

    async def flush(self, timeout: float | None = None) -> list[Flushed]:
        """Flush every write-back strategy of the cache, side by side: at most ``timeout`` seconds
        for all together."""
        return await flush_all_async(list(self.cache.parts.closers), timeout)

    async def close(self, timeout: float = 10.0) -> None:
        """Drain this loop's write-back and background loads (at most ``timeout`` seconds for all
        together) and close its connections.

        The plain face and other loops go on; ``cache.close()`` ends those."""
        parts, world = self.cache.parts, self._world
        until = world.deadline(timeout)
        try:
            await close_all_async([s for s in parts.closers if s.is_async], timeout)
            await world.settle(max(LEAST, until.left()))
        finally:
            if parts.far is not None:
                await parts.far.close(world)

    async def __aenter__(self) -> AsyncCache:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
