"""What all strategies share: verbs, keys, tags; each subclass says how it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Self

from ..core import keys as keytext
from ..core.entry import MISSING, Entry
from ..core.ops import Flushed
from ..core.outcome import Outcome
from ..core.place import Place
from ..core.policy import Policy
from ..core.templates import Template, compile_template
from ..errors import ConfigurationError
from ..protocols import Codec
from ..runtime import AnyWorld, drive
from .aio import CLOSE_TIMEOUT, AsyncStrategy
from .discovery import Discovery
from .job import Job, Recipe
from .many import read_many
from .naming import RESULT, reader_of, split_tags
from .parts import HasParts, Parts, codec_for
from .source import Source
from .writer import Target, Written

_SHORT = 1 << 62  # ints below need no look at their length
_SOURCE = tuple(Source.__dataclass_fields__)


class Strategy:
    """A read side and a write side over one kind of record.

    ``key`` is a template with the id as its one name ("user:{id}") or a function of the id;
    ``tags`` are templates over the same name and ``value`` ("team:{value.team_id}"), or a
    function of the value; ``invalidates`` are tags dropped after each write; ``copy=True`` hands
    out and keeps deep copies. Policy options as in :class:`cachekit.Policy`.

    Without a cache this is a description that ``cache.repository`` or :meth:`bound` completes.
    Verbs are plain; ``.aio`` has the same ones as coroutines. Source functions may be plain or
    async (async ones need ``.aio``).
    """

    waits: ClassVar[bool] = True  # for another process's load of the same key
    description: ClassVar[str] = ""

    def __init__(
        self,
        cache: HasParts | None = None,
        *,
        key: str | Callable[[Any], str] | None = None,
        tags: Sequence[str] | Callable[[Any], Sequence[str]] = (),
        invalidates: Sequence[str] = (),
        name: str | None = None,
        codec: str | Codec | None = None,
        **options: Any,
    ) -> None:
        self._options = {
            "key": key,
            "tags": tags,
            "invalidates": invalidates,
            "name": name,
            "codec": codec,
            **options,
        }
        self._cache = cache
        self._aio: AsyncStrategy | None = None
        self._hot: dict[Any, Entry] = {}
        self._around: tuple[str, ...] | None = None  # what stands around the id in a key
        self._copies = bool(options.pop("copy", False))
        source = {k: options.pop(k) for k in _SOURCE if k in options}
        self.source = Source(**source)
        self.is_async = self.source.is_async
        self._policy_options = self._own_options(options)
        Policy.make(**self._policy_options)  # refuse a wrong option where it is written
        if cache is not None:
            self._bind(cache.parts)

    def _own_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Take what is this class's out of the options; the rest is policy."""
        return options

    def bound(self, cache: HasParts, **more: Any) -> Self:
        """This description over a cache, with options filled in that it does not have."""
        named = ("key", "tags", "invalidates", "name", "codec")
        have = {k: v for k, v in self._options.items() if k not in named or v not in (None, ())}
        return type(self)(cache, **{**more, **have})

    # -- binding --------------------------------------------------------------------------

    def _bind(self, parts: Parts) -> None:
        options = self._options
        self._parts = parts
        self.policy = parts.policy.changed(**self._policy_options)
        if not self.waits:
            self.policy = self.policy.but(wait=0.0)
        key = options["key"]
        name = options["name"] or (key if isinstance(key, str) else type(self).__name__)
        self.name = str(name)
        if isinstance(key, str):
            self._key: Template | None = compile_template(key, None, f"{self.name}: key")
            names = set(self._key.names)
            if len(names) != 1:
                raise ConfigurationError(
                    f'{self.name}: key {key!r} must use one name, the id, as in "user:{{id}}"'
                )
            (self._id_name,) = names
            self._fields = reader_of(self._id_name, self._key)
            fields = self._key.fields
        elif callable(key):
            self._key, self._id_name, self._key_fn, fields = None, "id", key, ("key",)
        else:
            raise ConfigurationError(
                f'{self.name}: give key="...{{id}}" (a template or a function of the id)'
            )
        self._known_tags, self._result_tags, discover = split_tags(
            options["tags"], self._id_name, self.name
        )
        self._drops = [
            compile_template(t, (self._id_name, *RESULT), f"{self.name}: invalidates")
            for t in options["invalidates"]
        ]
        tagged = self._tagged = bool(self._known_tags or self._result_tags or discover)
        templates = [*self._known_tags, *self._result_tags]
        table = parts.table(
            parts.claim(self.name, shared_ok=True),
            fields,
            self._text,
            explicit=True,
            carries=(lambda tag: discover is not None or any(t.may_give(tag) for t in templates))
            if tagged
            else None,
        )
        self._table = table
        # An id that is the whole key finds its entry by itself; others build their key first.
        plain = self._key is None or self._key.fields != (self._id_name,)
        self._hot = {} if plain else table.shelf.hot
        self._around = None
        if self._key is not None and self._key.plain and not plain:
            self._around = self._key.literals
        codec = parts.codec_of(options["codec"]) or parts.codec
        for loader in (self.source.load, self.source.load_many):
            if loader is not None:
                codec = codec_for(codec, loader)
        self._discover = discover
        self.recipe = Recipe(
            self.name,
            self.policy,
            codec,
            table.tally,
            discovery=Discovery(self._tags_of_value) if self._result_tags or discover else None,
        )

    def _text(self, values: tuple[Any, ...]) -> str:
        if self._key is not None:
            return self._key.key(values, self.name)
        return keytext.check_text(values[0], f"{self.name}: key")

    def place(self, id: Any) -> Place:
        """Where an id lives. Raises KeyEncodingError for an id without a stable text."""
        if self._key is None:
            return self._table.place((self._key_fn(id),))
        return self._table.place(self._fields(id))

    def key(self, id: Any) -> str:
        """The text key of an id."""
        if type(id) is int and (around := self._around) is not None and -_SHORT < id < _SHORT:
            return f"{around[0]}{id}{around[1]}"  # what the template makes of it
        return self._text((self._key_fn(id),) if self._key is None else self._fields(id))

    def _tags(self, id: Any, value: Any = MISSING) -> tuple[str, ...]:
        if not self._tagged:
            return ()
        known = {self._id_name: id}
        tags = [t.tag(known) for t in self._known_tags]
        if value is not MISSING:
            tags += self._tags_of_value(value, known)
        return tuple(dict.fromkeys(tags))

    def _tags_of_value(self, value: Any, known: Mapping[str, Any] | None = None) -> list[str]:
        if value is None:
            return []
        if self._discover is not None:
            return [keytext.tag_name(t) for t in self._discover(value)]
        scope = {**(known or {}), "value": value, "result": value}
        return [t.tag(scope) for t in self._result_tags if set(t.names) <= set(scope)]

    def _dropped(self, id: Any, value: Any = None) -> list[str]:
        if not self._drops:
            return []
        scope = {self._id_name: id, "value": value, "result": value}
        usable = [t for t in self._drops if value is not None or not set(t.names) & set(RESULT)]
        return [t.tag(scope) for t in usable]

    def _job(self, id: Any) -> Job:
        return Job(self.recipe, self.place(id), lambda world: self._load(world, id), self._tags(id))

    async def _load(self, world: AnyWorld, id: Any) -> Outcome:
        """One value from the system of record."""
        return await self.source.loaded(world, id)

    async def _load_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        """{id: value} of those the system of record has."""
        return await self.source.loaded_many(world, ids)

    # -- the verbs, once for both worlds --------------------------------------------------

    async def _get(self, world: AnyWorld, id: Any) -> Outcome:
        if self._parts.off:
            return await self._load(world, id)
        return await self._parts.reader.read(world, self._job(id))

    async def _get_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        if self._parts.off:
            outcome = await self._load_many(world, ids)
            if outcome.error is not None:
                return outcome
            return Outcome({id: v for id, v in outcome.value.items() if v is not None})

        async def load(world: AnyWorld, positions: Sequence[int]) -> Outcome:
            outcome = await self._load_many(world, [ids[i] for i in positions])
            if outcome.error is not None:
                return outcome
            # What the source has not is None: known to be absent, and cached as such.
            return Outcome({i: outcome.value.get(ids[i]) for i in positions})

        outcomes = await read_many(
            self._parts.reader,
            world,
            self.recipe,
            [self.place(id) for id in ids],
            [self._tags(id) for id in ids],
            load,
        )
        found = {}
        for id, outcome in zip(ids, outcomes, strict=True):
            if outcome.error is not None:
                return outcome
            if outcome.value is not None and outcome.value is not MISSING:
                found[id] = outcome.value
        return Outcome(found)

    async def _put_many(self, world: AnyWorld, values: Mapping[Any, Any]) -> Outcome:
        raise NotImplementedError

    async def _delete_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        raise NotImplementedError

    def _own(self, value: Any) -> Any:
        """With ``copy=True`` what callers hold and what the cache holds are different objects."""
        return deepcopy(value) if self._copies else value

    async def _invalidate(self, world: AnyWorld, ids: Iterable[Any]) -> Outcome:
        await self._parts.invalidator.invalidate(world, [self.place(id) for id in ids])
        return Outcome()

    async def _write_around(
        self, world: AnyWorld, values: Mapping[Any, Any], *, fill: bool
    ) -> Outcome:
        async def write(world: AnyWorld) -> Outcome:
            if len(values) == 1:
                ((id, value),) = values.items()
                return await self.source.stored(world, id, value)
            return await self.source.stored_many(world, values)

        return await self._parts.writer.around(
            world,
            self.recipe,
            [Target(self.place(id), v, self._tags(id, v)) for id, v in values.items()],
            write,
            fill=fill and not self._parts.off,
            drop=[t for id, v in values.items() for t in self._dropped(id, v)],
        )

    async def _delete_around(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        async def delete(world: AnyWorld) -> Outcome:
            if len(ids) == 1:
                return await self.source.deleted(world, ids[0])
            return await self.source.deleted_many(world, ids)

        return await self._parts.writer.around(
            world,
            self.recipe,
            [Target(self.place(id)) for id in ids],
            delete,
            fill=False,
            drop=[t for id in ids for t in self._dropped(id)],
        )

    def _hit(self, id: Any) -> Any:
        """The near tier's value of an id without key, flight or lock; MISSING if that is not
        enough to answer."""
        try:
            entry = self._hot[id]
            if (
                entry.types is type(id)
                and entry.epoch is self._table.epoch
                and self._parts.runtime.clock() < entry.deadline
                and not self._parts.off
            ):
                entry.uses += 1.0
                return entry.value
        except Exception:  # whatever an id's __hash__ raises comes again on the slow road
            return MISSING
        return MISSING

    # -- the plain face -------------------------------------------------------------------

    def get(self, id: Any, default: Any = None) -> Any:
        """The value, from the cache or the source; ``default`` where the source has nothing."""
        value = self._hit(id)
        if value is MISSING:
            value = self._run(self._get(self._parts_().runtime.threads, id))
        return default if value is None else self._own(value)

    def get_many(self, ids: Iterable[Any]) -> dict[Any, Any]:
        """{id: value} of those there are; one call of ``load_many`` for all that miss."""
        found = self._run(self._get_many(self._parts_().runtime.threads, list(ids)))
        return self._own(found)  # type: ignore[no-any-return]  # Outcome carries Any

    def put(self, id: Any, value: Any) -> Written:
        """Write to the source and the cache, as this strategy does it."""
        return self._run(self._put_many(self._parts_().runtime.threads, {id: self._own(value)}))  # type: ignore[no-any-return]  # Outcome carries Any

    def put_many(self, values: Mapping[Any, Any]) -> Written:
        return self._run(self._put_many(self._parts_().runtime.threads, self._own(dict(values))))  # type: ignore[no-any-return]  # Outcome carries Any

    def delete(self, id: Any) -> Written:
        return self._run(self._delete_many(self._parts_().runtime.threads, [id]))  # type: ignore[no-any-return]  # Outcome carries Any

    def delete_many(self, ids: Iterable[Any]) -> Written:
        return self._run(self._delete_many(self._parts_().runtime.threads, list(ids)))  # type: ignore[no-any-return]  # Outcome carries Any

    def invalidate(self, *ids: Any) -> None:
        """Forget the cached values. Once this returned, no read gives an older one."""
        self._run(self._invalidate(self._parts_().runtime.threads, ids))

    def flush(self, timeout: float | None = None) -> Flushed:
        """Wait until what was accepted before is applied or parked (write-back; the others have
        nothing to wait for); ``timeout`` in seconds. The answer tells the truth."""
        return Flushed()

    def close(self, timeout: float = CLOSE_TIMEOUT) -> Flushed:
        """Drain for at most ``timeout`` seconds and tell what is left. Twice is fine."""
        return Flushed()

    async def _flush_async(self, timeout: float | None) -> Flushed:
        return Flushed()

    async def _close_async(self, timeout: float) -> Flushed:
        return Flushed()

    @property
    def aio(self) -> AsyncStrategy:
        """The same verbs as coroutines."""
        if self._aio is None:
            self._parts_()
            self._aio = AsyncStrategy(self)
        return self._aio

    def _parts_(self) -> Parts:
        if self._cache is None:
            raise ConfigurationError(
                f"{type(self).__name__} has no cache yet: pass one, or use cache.repository()"
            )
        return self._parts

    def _run(self, coro: Any) -> Any:
        if self.is_async:
            coro.close()
            raise ConfigurationError(f"{self.name}: the source is async; use .aio")
        outcome: Outcome = drive(coro)
        return outcome.settle()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, 'name', 'unbound')})"
