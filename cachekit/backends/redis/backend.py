"""The Redis backend: a URL, or redis-py clients, made into stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import ConfigurationError, MissingDependencyError
from ...protocols import Bus, Log, Store, World
from .layout import encode_namespace

Clients = tuple[Callable[[], Any] | None, Callable[[], Any] | None]


class RedisBackend:
    """Redis 6 or newer, Valkey, alone or behind Sentinel or as a Cluster: see ``options``.

    ``timeout`` is not used: every verb brings its own deadline, and nothing here outlives it.
    ``partitions`` counts only for the first process that ever uses the namespace; the number
    it records is everybody's. ``max_connections`` bounds the thread world's pool per server;
    an event loop uses one connection per server. ``clients`` replaces the URL's connections by
    two factories of redis-py clients (plain, asyncio); see ``driver`` for what is lost then.
    """

    name = "redis"
    shared = True
    bus: Bus | None = None
    log: Callable[[World], Log] | None = None

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        namespace: str = "",
        timeout: float = 0.25,
        partitions: int | None = None,
        max_connections: int | None = None,
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

        given = {"partitions": partitions, "max_connections": max_connections}
        self._options = parse_url(
            url, **{name: value for name, value in given.items() if value is not None}
        )
        self._namespace = encode_namespace(namespace)
        self._clients = clients

    def __repr__(self) -> str:
        servers = ",".join(str(address) for address in self._options.addresses)
        return f"RedisBackend({self._options.topology.value}, {servers})"

    def open(self, world: World) -> Store:
        from .store import RedisStore

        return RedisStore(self._route(world), self._namespace, self._options.partitions)

    def _route(self, world: World) -> Any:
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
        options = self._options
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
