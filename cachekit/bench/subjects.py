"""What is measured: a strategy over a cache, or the source without one, behind two verbs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import ConfigurationError
from .source import AsyncSource, Row, Source

NO_CACHE = "no-cache"
FLUSH_SECONDS = 60.0
IN_MEMORY = "write-back-memory"
LOSSY = "memory (lossy)"


@dataclass(frozen=True, slots=True)
class Kind:
    """A strategy by its name on the command line, its class, and what it does in a line."""

    name: str
    cls: str
    about: str


STRATEGIES = {
    k.name: k
    for k in (
        Kind(
            "cache-aside", "CacheAside",
            "a miss loads and fills; a write goes to the source, then drops the cached value",
        ),
        Kind(
            "read-through", "ReadThrough",
            "as cache-aside, with the cache doing the loading: one load for many callers",
        ),
        Kind(
            "refresh-ahead", "RefreshAhead",
            "values near their end are reloaded in the background, before a reader has to wait",
        ),
        Kind(
            "write-through", "WriteThrough",
            "a write goes to the source, then into the cache: the next read is a hit",
        ),
        Kind(
            "write-around", "WriteAround",
            "a write goes to the source only and drops the cached value: suits rows seldom read",
        ),
        Kind(
            "write-back", "WriteBack",
            "a write is acknowledged from a durable log and reaches the source later, in batches",
        ),
        Kind(
            IN_MEMORY, "WriteBack",
            "as write-back, with the log in memory: a killed process loses what is not written",
        ),
    )
}  # fmt: skip


def strategy_named(text: str) -> str:
    """The strategy meant by ``write-back``, ``write_back``, ``WriteBack``."""
    wanted = text.replace("-", "").replace("_", "").lower()
    for name in (NO_CACHE, *STRATEGIES):
        if name.replace("-", "") == wanted:
            return name
    known = ", ".join((NO_CACHE, *STRATEGIES))
    raise ConfigurationError(f"unknown strategy {text!r}; choose from {known}")


def level_of(name: str, log: str | None) -> str | None:
    """What an acknowledged write of a strategy survives before it is in the source."""
    if STRATEGIES[name].cls != "WriteBack":
        return None
    if name == IN_MEMORY:
        return LOSSY
    return "process (SQLite log)" if log is not None else "process (Redis log)"


class Subject(Protocol):
    """Read and write by key, for threads. ``flush`` is True when nothing is left to write;
    ``troubles`` counts calls to the backend that failed without a caller seeing it."""

    def read(self, key: int) -> Row | None: ...

    def write(self, key: int, row: Row) -> Any: ...

    def flush(self) -> bool: ...

    def troubles(self) -> int: ...

    def close(self) -> None: ...


class AsyncSubject(Protocol):
    """The same for tasks."""

    async def read(self, key: int) -> Row | None: ...

    async def write(self, key: int, row: Row) -> Any: ...

    async def flush(self) -> bool: ...

    def troubles(self) -> int: ...

    async def close(self) -> None: ...


class Recipe(ABC):
    """Makes the subject of one row, inside the thread or event loop that will use it."""

    @abstractmethod
    def build(self, source: Source) -> Subject: ...

    @abstractmethod
    def build_async(self, source: Source, threads: int) -> AsyncSubject: ...


class NoCache(Recipe):
    """Straight to the source: the reference."""

    def build(self, source: Source) -> Subject:
        return _Direct(source)

    def build_async(self, source: Source, threads: int) -> AsyncSubject:
        return _AsyncDirect(AsyncSource(source, threads))


class Idle(Recipe):
    """Answers at once from nowhere: what it reaches is the harness's own speed."""

    def build(self, source: Source) -> Subject:
        return _Nothing()

    def build_async(self, source: Source, threads: int) -> AsyncSubject:
        return _AsyncNothing()


class Strategy(Recipe):
    """A cachekit strategy in a cache of its own, opened here and closed by the subject."""

    def __init__(
        self,
        name: str,
        url: Callable[[], str | None],
        *,
        ttl: float | None,
        options: Any,
        log: Callable[[], str | None] = lambda: None,
        worker: bool = True,
    ) -> None:
        """``options`` go to the cache: max_entries, namespace. ``log``: where write-back keeps
        its operations, None = with the cache's own backend; without ``worker`` another process
        writes them."""
        self._kind = STRATEGIES[name]
        self._url = url
        self._ttl = ttl
        self._options = options
        self._log = log
        self._worker = worker

    def build(self, source: Source) -> Subject:
        cache, strategy = self._make(source)
        return _Cached(cache, strategy)

    def build_async(self, source: Source, threads: int) -> AsyncSubject:
        behind = AsyncSource(source, threads)
        cache, strategy = self._make(behind)
        return _AsyncCached(cache, strategy, behind)

    def _make(self, source: Source | AsyncSource) -> tuple[Any, Any]:
        import cachekit

        more: dict[str, Any] = {}
        if self._kind.cls == "WriteBack":
            kept = self._kind.name != IN_MEMORY
            more = {"log": self._log() if kept else "memory", "batch": 100, "delay": "50ms"}
            more |= {"store_many": source.write_many, "worker": self._worker or not kept}
        cache = cachekit.Cache(self._url(), **self._options)
        try:
            strategy = getattr(cachekit, self._kind.cls)(
                cache,
                load=source.read,
                load_many=source.read_many,
                store=source.write,
                delete=source.delete,
                key="row:{id}",
                ttl=self._ttl,
                **more,
            )
        except BaseException:
            cache.close()
            raise
        return cache, strategy


class _Direct:
    def __init__(self, source: Source) -> None:
        self.read = source.read
        self.write = source.write

    def flush(self) -> bool:
        return True

    def troubles(self) -> int:
        return 0

    def close(self) -> None:
        return None


class _AsyncDirect:
    def __init__(self, source: AsyncSource) -> None:
        self._source = source
        self.read = source.read
        self.write = source.write

    async def flush(self) -> bool:
        return True

    def troubles(self) -> int:
        return 0

    async def close(self) -> None:
        self._source.close()


class _Nothing:
    def read(self, key: int) -> Row | None:
        return {"id": key, "version": 0, "payload": ""}

    def write(self, key: int, row: Row) -> None:
        return None

    def flush(self) -> bool:
        return True

    def troubles(self) -> int:
        return 0

    def close(self) -> None:
        return None


class _AsyncNothing:
    async def read(self, key: int) -> Row | None:
        return {"id": key, "version": 0, "payload": ""}

    async def write(self, key: int, row: Row) -> None:
        return None

    async def flush(self) -> bool:
        return True

    def troubles(self) -> int:
        return 0

    async def close(self) -> None:
        return None


class _Cached:
    def __init__(self, cache: Any, strategy: Any) -> None:
        self._cache = cache
        self._strategy = strategy
        self.read = strategy.get
        self.write = strategy.put

    def flush(self) -> bool:
        return bool(self._strategy.flush(FLUSH_SECONDS).complete)

    def troubles(self) -> int:
        return _troubles(self._cache)

    def close(self) -> None:
        try:
            self._strategy.close()
        finally:
            self._cache.close()


class _AsyncCached:
    def __init__(self, cache: Any, strategy: Any, source: AsyncSource) -> None:
        self._cache = cache
        self._strategy = strategy
        self._source = source
        self.read = strategy.aio.get
        self.write = strategy.aio.put

    async def flush(self) -> bool:
        return bool((await self._strategy.aio.flush(FLUSH_SECONDS)).complete)

    def troubles(self) -> int:
        return _troubles(self._cache)

    async def close(self) -> None:
        try:
            await self._strategy.aio.close()
        finally:
            try:
                await self._cache.aio.close()
            finally:
                self._source.close()


def _troubles(cache: Any) -> int:
    return int(cache.stats().counts.get("backend_errors", 0))
