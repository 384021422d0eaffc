"""The plain face of a cache. ``cache.aio`` is the async one over the same state."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import time, tzinfo
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from . import decorators
from .aio import AsyncCache
from .core.entry import MISSING, Missing
from .core.ops import Flushed
from .core.policy import Duration, Policy, Ttl, seconds
from .direct import Direct
from .intents import WriteIntent
from .protocols import Codec
from .repository import AsyncRepository, Repository, repository
from .runtime import Runtime, drive
from .settings import Settings
from .statistics import Stats, stats_of
from .strategies.base import Strategy
from .strategies.closing import Closing, flush_all
from .strategies.parts import Parts
from .typing_shapes import (
    AsyncCached,
    Cached,
    Decorator,
    ManyDecorator,
    SameSignature,
    WriteBackDecorator,
)
from .wiring import build

if TYPE_CHECKING:
    from .feeds import Feed
    from .schedules import Schedule, Scheduler
    from .schedules.scheduler import Names

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
CLOSE_TIMEOUT = 10.0


class Cache:
    """A cache in front of a system of record. Opening one does no I/O and starts no thread.

    ``url``: None = embedded (this process); ``redis://``, ``rediss://``, ``unix://``,
    ``redis+cluster://``, ``redis+sentinel://``, ``memcached://host:port,host:port`` or
    ``sqlite:///file`` = a near tier of live objects in front of that. Options are
    :class:`cachekit.Settings`. Safe for threads, and for any number of event loops through
    :attr:`aio`.
    """

    def __init__(
        self, url: str | None = None, *, runtime: Runtime | None = None, **options: Any
    ) -> None:
        self.settings = Settings.make(url, options)
        self._parts = build(self.settings, runtime)
        self._direct = Direct(self._parts)
        self._aio: AsyncCache | None = None
        self._closing = Closing(self._parts)
        self._scheduler: Scheduler | None = None

    @classmethod
    def from_env(cls, prefix: str = "CACHEKIT_") -> Cache:
        """A cache from environment variables (:meth:`Settings.from_env`)."""
        settings = Settings.from_env(prefix)
        options = {
            name: getattr(settings, name)
            for name in Settings.__dataclass_fields__
            if name not in ("url", "backend")
        }
        return cls(settings.url, **options)

    @property
    def parts(self) -> Parts:
        """The wired parts; for strategies and tools, not for applications."""
        return self._parts

    @property
    def aio(self) -> AsyncCache:
        """The async face: same near tier, same counters, same settings."""
        if self._aio is None:
            self._aio = AsyncCache(self, self._direct)
        return self._aio

    # -- decorators -----------------------------------------------------------------------

    @overload
    def cached(self, fn: classmethod[S, P, R], /) -> classmethod[S, P, R]: ...
    @overload
    def cached(  # type: ignore[overload-overlap]  # a staticmethod is also a function
        self, fn: staticmethod[P, R], /
    ) -> staticmethod[P, R]: ...
    @overload
    def cached(  # type: ignore[overload-overlap]  # a coroutine function is also a function
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCached[P, R]: ...
    @overload
    def cached(self, fn: Callable[P, R], /) -> Cached[P, R]: ...
    @overload
    def cached(
        self,
        fn: None = None,
        /,
        *,
        ttl: Ttl | Missing = MISSING,
        tags: Sequence[str] | Callable[[Any], Sequence[str]] = (),
        key: str | Callable[..., str] | None = None,
        name: str | None = None,
        version: str | int | None = None,
        ignore: Sequence[str] = (),
        condition: Callable[..., bool] | None = None,
        copy: bool = False,
        codec: str | Codec | None = None,
        stats: str | None = None,
        **policy: Any,
    ) -> Decorator: ...

    def cached(self, fn: Any = None, /, **options: Any) -> Any:
        """Keep a function's results; over ``def``, ``async def``, methods, classmethods and
        staticmethods, with or without parentheses.

        ``ttl``: seconds, timedelta, "10m", None (no expiry), 0 (do not store) or a function of
        the result. ``tags``: templates over the parameters and ``result``, or a function of the
        result. ``key``: a template ("user:{user.id}") or a function of the arguments in place of
        the generated key. ``name``: in place of module and qualname; ``version``: a new one
        starts with an empty cache. ``ignore``: parameters that are no part of the key.
        ``condition(*args, **kwargs)``: whether this call is cached at all. ``copy``: hand out
        deep copies (hits share the object otherwise). ``codec``: for the far tier. ``stats``:
        "exact" or "sampled". Further options are :class:`cachekit.Policy`'s.

        A hit runs no code but the clock's and takes no lock. Raises ConfigurationError at
        decoration, KeyEncodingError at a call whose arguments have no key, ReentryError when a
        load asks for its own key."""
        if fn is not None:
            return decorators.cached(
                self._parts, fn, self._policy({}), decorators.options(self._parts, {})
            )
        made = decorators.options(self._parts, options)
        policy = self._policy(options)
        return lambda fn: decorators.cached(self._parts, fn, policy, made)

    def cached_many(
        self,
        *,
        key: str,
        over: str | None = None,
        tags: Sequence[str] = (),
        codec: str | Codec | None = None,
        ttl: Ttl | Missing = MISSING,
        **policy: Any,
    ) -> ManyDecorator:
        """Keep the items of a function ``fn(items, ...) -> {item: value}``: one call of it for
        all that miss. ``key`` is a template with the item as its one free name
        ("price:{sku}"); ``over`` names the list parameter (default: the first). Items the
        function leaves out are absent from the answer and not kept."""
        made = self._policy({"ttl": ttl, **policy})
        resolved = self._parts.codec_of(codec)
        return lambda fn: decorators.cached_many(
            self._parts, fn, made, key=key, over=over, tags=tags, codec=resolved
        )

    def invalidates(self, *, tags: Sequence[str] = (), keys: Sequence[str] = ()) -> SameSignature:
        """After the decorated function, also when it raised, invalidate tags and keys (templates
        over its parameters and ``result``)."""
        return lambda fn: decorators.invalidates(
            self._parts, fn, tags=tags, keys=keys, place_of=self._direct.place
        )

    def write_back(self, *, key: str, **options: Any) -> WriteBackDecorator:
        """Decorate a batch writer ``fn({id: value})``: calling it with ``(id, value)`` logs one
        write and returns. Options as :class:`cachekit.WriteBack`'s."""
        return lambda fn: decorators.write_back(self, fn, {"key": key, **options})

    def repository(
        self, source: Any, *, strategy: Strategy | type[Strategy] | None = None, **options: Any
    ) -> Repository | AsyncRepository:
        """Wrap an object that loads and saves records (:func:`cachekit.repository.repository`)."""
        return repository(self, source, strategy=strategy, **options)

    # -- keys, directly -------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or ``default``. Loads nothing."""
        return self.get_many([key]).get(key, default)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """{key: value} of those that are cached; one round trip."""
        return drive(self._direct.get_many(self._threads, keys))

    def set(
        self, key: str, value: Any, *, ttl: Ttl | Missing = MISSING, tags: Iterable[str] = ()
    ) -> bool:
        """Keep a value; False if it was not kept (a writer is at work, ttl 0, disabled).

        Raises CodecError for a value the far tier's codec can not give back."""
        return drive(self._direct.set(self._threads, key, value, ttl, tags))

    def set_many(
        self, values: Mapping[str, Any], *, ttl: Ttl | Missing = MISSING, tags: Iterable[str] = ()
    ) -> int:
        """Keep several values; says how many were kept."""
        kept = list(tags)
        return sum(self.set(key, value, ttl=ttl, tags=kept) for key, value in values.items())

    def get_or_set(
        self,
        key: str,
        load: Callable[[], T],
        *,
        ttl: Ttl | Missing = MISSING,
        tags: Iterable[str] = (),
        **policy: Any,
    ) -> T:
        """The value of a key; ``load()`` gives it on a miss, once for all concurrent callers."""
        made = self._policy({"ttl": ttl, **policy})
        outcome = drive(self._direct.get_or_set(self._threads, key, load, made, tags))
        return outcome.settle()  # type: ignore[no-any-return]  # Outcome carries Any

    def get_or_set_many(
        self,
        keys: Iterable[str],
        load: Callable[[list[str]], Mapping[str, T]],
        *,
        ttl: Ttl | Missing = MISSING,
        tags: Iterable[str] = (),
        **policy: Any,
    ) -> dict[str, T]:
        """{key: value}; one ``load(missing)`` for all that miss."""
        made = self._policy({"ttl": ttl, **policy})
        outcome = drive(self._direct.get_or_set_many(self._threads, keys, load, made, tags))
        return outcome.settle()  # type: ignore[no-any-return]  # Outcome carries Any

    def touch(self, key: str, ttl: Ttl | Missing = MISSING) -> bool:
        """Give a cached value a new ttl from now; False if it is not cached. Near copies of other
        processes keep the old one: no invalidation, so nobody is told."""
        return drive(self._direct.touch(self._threads, key, ttl))

    def delete(self, key: str) -> None:
        """Invalidate one key."""
        self.invalidate(keys=[key])

    # -- invalidation ---------------------------------------------------------------------

    def invalidate(self, *, keys: Iterable[str] = (), tags: Iterable[str] = ()) -> None:
        """Once this returned, no read gives a value whose load began before.

        Raises InvalidationFailed when the far tier could not be told."""
        drive(self._direct.invalidate(self._threads, keys, tags))

    def clear(self) -> None:
        """Invalidate everything in this namespace, in O(1) on the far tier; unwritten write-back
        values stay."""
        drive(self._parts.invalidator.clear(self._threads))

    def on(self, event: type, tags_of: Callable[[Any], Iterable[str]]) -> None:
        """Map a domain event (its class, subclasses included) to the tags it makes outdated.

        Where the backend can carry events (Redis), those that other processes emit are mapped
        too, from a thread that the first ``on`` starts. An event then needs an exact form as
        bytes: a dataclass, named tuple, pydantic or attrs model of plain values."""
        self._parts.events.on(event, tags_of)

    def emit(self, event: Any) -> list[str]:
        """Invalidate the tags of an event, and tell the other processes; gives the tags.

        Raises InvalidationFailed when the far tier could not be told."""
        return drive(self._direct.emit(self._threads, event))

    def write_intent(
        self, *, keys: Iterable[str] = (), tags: Iterable[str] = (), ttl: Duration = 30.0
    ) -> WriteIntent:
        """Around a transaction of your own: ``with cache.write_intent(tags=["user:7"]): ...``.

        From its beginning to its end the keys, and everything with one of the tags, are cached by
        nobody; what was cached is gone. Whoever dies inside costs misses for ``ttl`` seconds,
        never an old value; ``ttl`` must be longer than the transaction can take. An exception
        that says nothing about the commit (a timeout, a lost connection, cancellation) leaves
        the keys blocked for ``ttl``; any other means that nothing was written. Where the far
        tier is away: the transaction runs, its end is told later (``pending`` is true
        afterwards); ``strict=True`` raises before it."""
        return WriteIntent(self._parts, self._direct, keys, tags, seconds(ttl, "ttl"))

    def schedule(
        self,
        *,
        keys: Names = (),
        tags: Names = (),
        everything: bool = False,
        every: Duration | None = None,
        at: str | time | None = None,
        cron: str | None = None,
        tz: str | tzinfo | None = None,
        name: str | None = None,
    ) -> Schedule:
        """Invalidate keys, tags or the whole namespace at planned times, once for all processes
        that share the far tier: by exactly one of ``every`` ("10m", counted from 1970 UTC),
        ``at`` ("03:00", daily) and ``cron`` ("0 3 * * MON"; needs the extra ``schedule``), the
        last two in ``tz`` (default UTC). More: :meth:`cachekit.schedules.Scheduler.add`."""
        from .schedules import Scheduler  # few caches plan anything

        with self._parts.runtime.once:
            if self._scheduler is None:
                self._scheduler = Scheduler(self._parts, self._carry_out)
        return self._scheduler.add(
            keys=keys,
            tags=tags,
            everything=everything,
            every=every,
            at=at,
            cron=cron,
            tz=tz,
            name=name,
        )

    def _carry_out(self, keys: list[str], tags: list[str], everything: bool) -> None:
        if everything:
            self.clear()
        else:
            self.invalidate(keys=keys, tags=tags)

    def follow(self, feed: Feed) -> Callable[[], None]:
        """Let an event source invalidate, such as
        :func:`cachekit.feeds.sqlalchemy.session_feed`; gives the function that ends it."""
        return feed.attach(self)

    # -- life -----------------------------------------------------------------------------

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch reading and filling off, for all threads, while inside: every call runs its
        function. Invalidations and write-back go on."""
        self.enable(False)
        try:
            yield
        finally:
            self.enable(True)

    def enable(self, on: bool = True) -> None:
        """The switch behind :meth:`disabled`, for configuration. Nested uses do not add up."""
        self._parts.off = not on
        for switch in self._parts.switches:
            switch(on)

    def stats(self) -> Stats:
        """What this cache did so far, in this process."""
        return stats_of(self._parts)

    def flush(self, timeout: float | None = None) -> list[Flushed]:
        """Flush every write-back strategy of this cache, side by side: at most ``timeout`` seconds
        for all together."""
        return flush_all(self._parts, timeout)

    @property
    def _closed(self) -> bool:
        return self._closing.begun

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Drain write-back (at most ``timeout`` seconds for all strategies together), end
        background work, close connections of the plain face. Twice is fine: a second caller
        waits for the first. What is left of write-back is told in the log."""
        self._closing.close(timeout, self._scheduler)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Cache({self.settings!r})"

    @property
    def _threads(self) -> Any:
        return self._parts.runtime.threads

    def _policy(self, options: dict[str, Any]) -> Policy:
        """The cache's default policy with these options."""
        given = {k: v for k, v in options.items() if v is not MISSING}
        made = Policy.make(**given)
        return self._parts.policy.but(**{name: getattr(made, name) for name in given})


__all__ = ["MISSING", "AsyncCached", "Cache", "Cached"]
