"""Settings -> parts. The only room that knows every concrete class."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .codecs import resolve
from .coherence import Coherence
from .core.breaker import Breaker
from .core.near import Near
from .core.policy import Policy
from .errors import ConfigurationError
from .events import Events
from .invalidation import Invalidator
from .observe import Meter
from .protocols import Backend, Bus
from .runtime import Runtime
from .settings import Settings, safe_url
from .strategies.parts import Parts, check_codec
from .strategies.reader import Reader
from .strategies.writer import Writer
from .ticker import Ticker
from .tiers import Far

# URL scheme -> factory, imported on first use.
_BACKENDS = {
    "redis": "cachekit.backends.redis:RedisBackend",
    "rediss": "cachekit.backends.redis:RedisBackend",
    "unix": "cachekit.backends.redis:RedisBackend",
    "redis+cluster": "cachekit.backends.redis:RedisBackend",
    "redis+sentinel": "cachekit.backends.redis:RedisBackend",
    "redis+clusters": "cachekit.backends.redis:RedisBackend",
    "redis+sentinels": "cachekit.backends.redis:RedisBackend",
    "dynamodb": "cachekit.backends.dynamodb:DynamoDBBackend",
    "memcached": "cachekit.backends.memcached:MemcachedBackend",
    "memcacheds": "cachekit.backends.memcached:MemcachedBackend",
    "sqlite": "cachekit.backends.sqlite:SQLiteBackend",
}
_GROUP = "cachekit.backends"


def backend_for(settings: Settings) -> Backend | None:
    """The far tier's backend, or None for an embedded cache. Does no I/O."""
    if settings.backend is not None:
        return settings.backend
    url = settings.url
    if url is None or url == "memory://":
        return None
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ConfigurationError(
            "this is not a URL (no ://); write e.g. redis://localhost:6379/0, "
            "memcached://localhost:11211 or sqlite:///cache.db"
        )
    path = _BACKENDS.get(scheme)
    factory: Any
    if path is not None:
        module, _, name = path.partition(":")
        factory = getattr(import_module(module), name)
    else:
        from importlib.metadata import entry_points

        points = {point.name: point for point in entry_points(group=_GROUP)}
        if scheme not in points:
            known = ", ".join(sorted({"memory", *_BACKENDS, *points}))
            raise ConfigurationError(f"{safe_url(url)}: no backend {scheme!r}; known: {known}")
        factory = points[scheme].load()
    backend: Backend = factory(url, namespace=settings.namespace, timeout=settings.timeout)
    return backend


def _bus_for(settings: Settings, backend: Backend | None) -> Bus | None:
    """The bus that the near tier follows; None where a bound in seconds was asked for, or where
    the backend can only say that something changed, and nobody asked for that."""
    bus = backend.bus if backend is not None else None
    if settings.coherence == "push":
        if backend is not None and bus is None:
            raise ConfigurationError(
                f'{backend.name}: coherence="push" needs a backend with a bus; give the seconds '
                'for which a near copy may be trusted, or "strict"'
            )
        return bus
    return bus if settings.coherence is None and not getattr(bus, "coarse", False) else None


def build(settings: Settings, runtime: Runtime | None = None) -> Parts:
    """Put a cache together. Opens nothing, starts nothing.

    Raises ConfigurationError naming what does not fit together."""
    runtime = runtime or Runtime()
    runtime.take()
    meter = Meter(settings.observers)
    near = Near(
        runtime.clock,
        max_entries=settings.max_entries,
        max_weight=settings.max_weight,
        weigh=settings.weigh,
        mapping=settings.near,
    )
    codec = resolve(settings.codec)
    backend = backend_for(settings)
    far = None
    if backend is not None:
        check_codec(codec.safe, backend)
        far = Far(
            backend,
            runtime,
            meter,
            timeout=settings.timeout,
            breaker=Breaker(runtime.clock, settings.breaker_failures, settings.breaker_reset),
            max_value=settings.max_value,
            namespace=settings.namespace,
        )
    invalidator = Invalidator(
        runtime,
        near,
        far,
        meter,
        replay=settings.invalidation == "replay",
        replay_log=settings.replay_log,
        stream=getattr(backend, "stream", None),
    )
    coherence = Coherence(
        runtime,
        far,
        invalidator,
        meter,
        bound=settings.bound(),
        bus=_bus_for(settings, backend),
    )
    reader = Reader(
        runtime,
        near,
        far,
        invalidator,
        meter,
        coherence=coherence,
        strict=settings.strict,
    )
    writer = Writer(runtime, near, far, invalidator, reader.filler, meter, strict=settings.strict)
    runtime.on_fork(near.reset_after_fork)
    runtime.on_fork(meter.reset_after_fork)
    runtime.on_fork(invalidator.reset_after_fork)
    events = Events(runtime, invalidator, meter)
    runtime.on_fork(coherence.reset_after_fork)
    runtime.on_fork(events.reset_after_fork)
    if far is not None:
        runtime.on_fork(far.breaker.reset_after_fork)
    if reader.keeper is not None:
        runtime.on_fork(reader.keeper.reset_after_fork)
    coarse = settings.clock == "coarse"
    return Parts(
        runtime=runtime,
        meter=meter,
        near=near,
        far=far,
        invalidator=invalidator,
        coherence=coherence,
        events=events,
        reader=reader,
        writer=writer,
        policy=Policy.make(ttl=settings.ttl, **dict(settings.policy or {})),
        codec=codec,
        clock=Ticker(runtime) if coarse else runtime.clock,
        coarse=coarse,
        count=settings.stats,
        namespace=settings.namespace,
        timeout=settings.timeout,
    )
