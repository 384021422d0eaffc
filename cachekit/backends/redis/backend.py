"""The Redis backend: a URL, or redis-py clients, made into stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError, MissingDependencyError
from ...protocols import Bounds, Bus, LogFactory, Store, Stream, World
from .layout import encode_namespace

if TYPE_CHECKING:
    from .log import RedisLog
    from .options import Options

Clients = tuple[Callable[[], Any] | None, Callable[[], Any] | None]


class RedisBackend:
    """Redis 6 or newer, Valkey, alone or behind Sentinel or as a Cluster: see ``options``.

    ``timeout`` is not used: every verb brings its own deadline, and nothing here outlives it.
    ``partitions`` counts only for the first process that ever uses the namespace; the number
    it records is everybody's. ``max_connections`` bounds the thread world's pool per server;
    an event loop uses one connection per server. ``clients`` replaces the URL's connections by
    two factories of redis-py clients (plain, asyncio); see ``driver`` for what is lost then.

    After a restart or a failover everything from before reads as missing, since the server may
    have come back with older memory than it had: ``INFO`` tells which run it is, and a user who
    may not ask goes without. ``trust_restart`` keeps the cache warm instead, and with it what was
    invalidated after the last save or replication. A proxy that spreads commands over several
    servers needs it too.

    ``bus``: how near tiers follow: "push" (the scripts publish what they invalidate), or
    "tracking" (the server tells of every change of a key, so that foreign writers, expiry and
    eviction are heard of too; each fill then costs one more read; not for a cluster).

    ``log`` opens write-back queues, see ``RedisLog``; there are none with ``clients``.
    """

    name = "redis"
    shared = True
    bus: Bus | None = None
    stream: Stream | None = None
    log: LogFactory | None = None

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        namespace: str = "",
        timeout: float = 0.25,
        partitions: int | None = None,
        max_connections: int | None = None,
        trust_restart: bool | None = None,
        bus: str | None = None,
        clients: Clients | None = None,
    ) -> None:
        try:
            import hiredis  # noqa: F401  # the parser of both wires
            import redis  # noqa: F401  # cluster slots, and the clients a caller brings
        except ImportError as missing:
            raise MissingDependencyError(
                "the Redis backend needs two packages: pip install 'cachekit-strategies[redis]'"
            ) from missing
        from .options import parse_url

        given = {
            "partitions": partitions,
            "max_connections": max_connections,
            "trust_restart": trust_restart,
            "bus": bus,
        }
        self._options = parse_url(
            url, **{name: value for name, value in given.items() if value is not None}
        )
        self._namespace = encode_namespace(namespace)
        self._clients = clients
        if clients is None:  # a caller's own clients say nothing of how to listen
            from .bus import RedisBus
            from .streams import RedisStream

            tracking = self._options.bus == "tracking"
            self.bus = RedisBus(self._options, self._namespace, tracking=tracking)
            self.stream = RedisStream(self._options, self._namespace, self._route)
            self.log = self._log

    def __repr__(self) -> str:
        servers = ",".join(str(address) for address in self._options.addresses)
        return f"RedisBackend({self._options.topology.value}, {servers})"

    def open(self, world: World) -> Store:
        from .store import RedisStore

        options = self._options
        return RedisStore(
            self._route(world), self._namespace, options.partitions, options.trust_restart
        )

    def _log(
        self,
        queue: str,
        *,
        level: str | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008  # immutable
        parts: int = 1,
    ) -> RedisLog:
        from .log import RedisLog

        login = replace(self._options.login, ask_run=True)  # which server kept what it accepted
        options = replace(self._options, login=login)

        def route(world: World) -> Any:
            return self._route(world, options)

        return RedisLog(self._namespace, queue, route, level=level, bounds=bounds, parts=parts)

    def _route(self, world: World, options: Options | None = None) -> Any:
        from .options import Topology
        from .routes import SentinelRoute, SingleRoute

        if world.name not in ("threads", "asyncio"):
            raise ConfigurationError(f"the Redis backend has no face for {world.name!r}")
        if self._clients is not None:
            return self._driver_route(world)
        wire: Any
        if world.name == "threads":
            from .blocking import BlockingWire as wire
        else:
            from .pipelined import PipelinedWire as wire
        options = options or self._options
        if options.topology is Topology.CLUSTER:
            from .cluster import ClusterRoute

            return ClusterRoute(wire(options.login), options.addresses, world.sleep)
        if options.topology is Topology.SENTINEL:
            return SentinelRoute(
                wire(options.login),
                wire(options.sentinel_login),
                options.addresses,
                options.service,
            )
        return SingleRoute(wire(options.login), options.addresses[0])

    def _driver_route(self, world: World) -> Any:
        from .driver import AsyncDriverRoute, BlockingDriverRoute

        plain, asynchronous = self._clients or (None, None)
        factory = plain if world.name == "threads" else asynchronous
        if factory is None:
            raise ConfigurationError(f"clients= has no factory for the world of {world.name}")
        if world.name == "threads":
            return BlockingDriverRoute(factory())
        return AsyncDriverRoute(factory())
