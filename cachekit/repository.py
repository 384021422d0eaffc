"""A repository over any object that loads and saves records, under a strategy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .core.keys import bare
from .core.ops import Flushed
from .core.outcome import Outcome
from .errors import ConfigurationError
from .runtime import AnyWorld, drive
from .strategies.base import Strategy
from .strategies.parts import HasParts
from .strategies.source import call, is_async
from .strategies.write_through import WriteThrough

# Method names that are tried in turn where none is given.
_NAMES = {
    "load": ("load", "get", "find", "fetch"),
    "save": ("save", "store", "put", "upsert"),
    "delete": ("delete", "remove"),
    "load_many": ("load_many", "get_many", "find_many"),
    "save_many": ("save_many", "store_many", "put_many"),
    "delete_many": ("delete_many", "remove_many"),
}


def repository(
    cache: HasParts,
    source: Any,
    *,
    strategy: Strategy | type[Strategy] | None = None,
    id: str | Callable[[Any], Any] | None = None,
    key: str | None = None,
    absent: tuple[type[BaseException], ...] = (),
    load: str | None = None,
    save: str | None = None,
    delete: str | None = None,
    load_many: str | None = None,
    save_many: str | None = None,
    delete_many: str | None = None,
    **options: Any,
) -> Repository | AsyncRepository:
    """Wrap ``source`` so that reads and writes of records go through a cache.

    The object's own methods are found by name (``load``/``get``/``find``/``fetch``,
    ``save``/``store``/``put``/``upsert``, ``delete``/``remove``, and ``..._many``), or named here;
    all others pass through. ``id`` is the record's attribute (or mapping key) that identifies it,
    or a function of the record (default: the object's ``__cache_id__``, else "id"); ``key`` a
    template ("order:{id}", default: the class's name, and what the object's ``__cache_key__``
    gives).
    ``absent``: exceptions of ``load`` that mean "there is none", cached as such (``None`` always
    does; ``negative_ttl`` bounds it). ``strategy``: a class, or a description such as
    ``WriteBack(log="memory")``; default WriteThrough. Options are the strategy's (``ttl``,
    ``tags``, ``invalidates``, ``copy``, ...). A source with coroutine methods gives an
    :class:`AsyncRepository`.

    ``load_many`` returns a mapping {id: record} or a sequence of records."""
    named = {
        "load": load,
        "save": save,
        "delete": delete,
        "load_many": load_many,
        "save_many": save_many,
        "delete_many": delete_many,
    }
    methods = {role: _method(source, role, name) for role, name in named.items()}
    if methods["load"] is None and methods["load_many"] is None:
        raise ConfigurationError(
            f"{type(source).__name__} has no method {' or '.join(_NAMES['load'])}; name it: "
            'cache.repository(obj, load="by_id")'
        )
    mapper = _Mapper(source, methods, id or getattr(source, "__cache_id__", None) or "id", absent)
    spec = strategy if strategy is not None else WriteThrough
    if isinstance(spec, type):
        spec = spec()
    bound = spec.bound(
        cache, key=key or f"{_name_of(source)}:{{id}}", **mapper.functions(), **options
    )
    if bound.is_async:
        return AsyncRepository(source, bound, mapper)
    return Repository(source, bound, mapper)


class _Mapper:
    """Turns a source's methods into a strategy's functions."""

    def __init__(
        self,
        source: Any,
        methods: Mapping[str, Callable[..., Any] | None],
        id: str | Callable[[Any], Any],
        absent: tuple[type[BaseException], ...],
    ) -> None:
        self.source = source
        self.methods = methods
        self._id = id
        self._absent = absent

    def id_of(self, record: Any) -> Any:
        if callable(self._id):
            return self._id(record)
        if isinstance(record, Mapping):
            return record.get(self._id)
        return getattr(record, self._id, None)

    def functions(self) -> dict[str, Callable[..., Any]]:
        """load, store, ... of the roles that the source has."""
        made: dict[str, Callable[..., Any]] = {}
        methods = self.methods
        if methods["load"] is not None:
            made["load"] = self._loading(methods["load"])
        if methods["load_many"] is not None:
            made["load_many"] = self._loading_many(methods["load_many"])
        if methods["save"] is not None:
            made["store"] = _second(methods["save"])
        if methods["save_many"] is not None:
            made["store_many"] = _values(methods["save_many"])
        for role in ("delete", "delete_many"):
            method = methods[role]
            if method is not None:
                made[role] = method
        return made

    def _loading(self, method: Callable[..., Any]) -> Callable[..., Any]:
        absent = self._absent
        if not absent:
            return method
        if is_async(method):

            @functools.wraps(method)
            async def load_async(id: Any) -> Any:
                try:
                    return await method(id)
                except absent:
                    return None

            return load_async

        @functools.wraps(method)
        def load(id: Any) -> Any:
            try:
                return method(id)
            except absent:
                return None

        return load

    def _loading_many(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if is_async(method):

            @functools.wraps(method)
            async def load_many_async(ids: Sequence[Any]) -> Mapping[Any, Any]:
                return self._by_id(await method(ids))

            return load_many_async

        @functools.wraps(method)
        def load_many(ids: Sequence[Any]) -> Mapping[Any, Any]:
            return self._by_id(method(ids))

        return load_many

    def _by_id(self, found: Any) -> Mapping[Any, Any]:
        if isinstance(found, Mapping):
            return found
        return {self.id_of(record): record for record in found if record is not None}


def _name_of(source: Any) -> str:
    """The class's name, and the object's own where it has one, so that two do not share records."""
    own = getattr(source, "__cache_key__", None)
    name = type(source).__name__ if own is None else f"{type(source).__name__}:{bare(own())}"
    return name.replace("{", "{{").replace("}", "}}")


def _second(method: Callable[..., Any]) -> Callable[..., Any]:
    if is_async(method):

        async def store_async(id: Any, record: Any) -> Any:
            return await method(record)

        return store_async
    return lambda id, record: method(record)


def _values(method: Callable[..., Any]) -> Callable[..., Any]:
    if is_async(method):

        async def store_many_async(records: Mapping[Any, Any]) -> Any:
            return await method(list(records.values()))

        return store_many_async
    return lambda records: method(list(records.values()))


def _method(source: Any, role: str, name: str | None) -> Callable[..., Any] | None:
    if name is not None:
        method = getattr(source, name, None)
        if not callable(method):
            raise ConfigurationError(f"{type(source).__name__} has no method {name!r}")
        return method  # type: ignore[no-any-return]  # callable, as checked
    for candidate in _NAMES[role]:
        method = getattr(source, candidate, None)
        if callable(method):
            return method  # type: ignore[no-any-return]  # callable, as checked
    return None


class _Base:
    """What both faces share; unknown attributes are the source's own."""

    def __init__(self, source: Any, strategy: Strategy, mapper: _Mapper) -> None:
        self.source = source
        self.strategy = strategy
        self._mapper = mapper

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("source", "strategy", "_mapper"):
            raise AttributeError(name)
        return getattr(self.source, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.source).__name__}, {self.strategy!r})"

    async def _save_new(self, world: AnyWorld, record: Any) -> Outcome:
        """A record whose id the source gives: known, and invalidated, only afterwards."""
        save = self._mapper.methods["save"]
        if save is None:
            raise ConfigurationError(f"{type(self.source).__name__} has no method to save with")
        strategy = self.strategy
        writer, lease = strategy._parts.writer, strategy.policy.write_lease
        try:
            outcome = await call(world, save, record)
        except BaseException:
            await writer.block(world, (), strategy._dropped(None, record), lease)
            raise
        id = self._mapper.id_of(record)
        if id is None and outcome.error is None:
            returned = outcome.value
            id = self._mapper.id_of(returned) if returned is not None else None
            id = returned if id is None and isinstance(returned, (int, str)) else id

        async def saved(world: AnyWorld) -> Outcome:
            return outcome

        places = [] if id is None else [strategy.place(id)]
        tags = strategy._dropped(id, record)
        done = await writer.then_void(world, places, saved, lease=lease, drop=tags)
        return Outcome(done.value.result) if done.error is None else done


class Repository(_Base):
    """Records of a plain source."""

    def get(self, id: Any, default: Any = None) -> Any:
        """The record, or ``default`` where there is none."""
        return self.strategy.get(id, default)

    def get_many(self, ids: Iterable[Any]) -> dict[Any, Any]:
        """{id: record} of those there are."""
        return self.strategy.get_many(ids)

    def save(self, record: Any) -> Any:
        """Write the record as the strategy does it; gives what the source's method returned.

        A record without an id yet is saved at once and not cached."""
        id = self._mapper.id_of(record)
        if id is None:
            threads = self.strategy._parts_().runtime.threads
            return drive(self._save_new(threads, record)).settle()
        return self.strategy.put(id, record).result

    def save_many(self, records: Iterable[Any]) -> Any:
        """Write several records, with the source's ``save_many`` if it has one."""
        pairs = [(self._mapper.id_of(record), record) for record in records]
        known = {id: record for id, record in pairs if id is not None}
        for id, record in pairs:
            if id is None:
                self.save(record)
        return self.strategy.put_many(known).result if known else None

    def delete(self, id: Any) -> Any:
        return self.strategy.delete(id).result

    def invalidate(self, *ids: Any) -> None:
        self.strategy.invalidate(*ids)

    def flush(self, timeout: float | None = None) -> Flushed:
        return self.strategy.flush(timeout)

    def close(self, timeout: float = 10.0) -> Flushed:
        return self.strategy.close(timeout)


class AsyncRepository(_Base):
    """Records of a source with coroutine methods: the same verbs, awaitable."""

    async def get(self, id: Any, default: Any = None) -> Any:
        return await self.strategy.aio.get(id, default)

    async def get_many(self, ids: Iterable[Any]) -> dict[Any, Any]:
        return await self.strategy.aio.get_many(ids)

    async def save(self, record: Any) -> Any:
        id = self._mapper.id_of(record)
        if id is None:
            world = self.strategy._parts_().runtime.asyncio()
            return (await self._save_new(world, record)).settle()
        return (await self.strategy.aio.put(id, record)).result

    async def save_many(self, records: Iterable[Any]) -> Any:
        pairs = [(self._mapper.id_of(record), record) for record in records]
        known = {id: record for id, record in pairs if id is not None}
        for id, record in pairs:
            if id is None:
                await self.save(record)
        return (await self.strategy.aio.put_many(known)).result if known else None

    async def delete(self, id: Any) -> Any:
        return (await self.strategy.aio.delete(id)).result

    async def invalidate(self, *ids: Any) -> None:
        await self.strategy.aio.invalidate(*ids)

    async def flush(self, timeout: float | None = None) -> Flushed:
        return await self.strategy.aio.flush(timeout)

    async def close(self, timeout: float = 10.0) -> Flushed:
        return await self.strategy.aio.close(timeout)
