"""Clients behind a cache behind a private DAX cluster."""

from __future__ import annotations

from typing import Any

from dax_desk import Desk
from dax_server import DaxServer
from dax_stand import Stand


class Cluster:
    """A running cluster over a desk's table; ``options`` for ``install(endpoint=...)``."""

    def __init__(self, desk: Desk) -> None:
        self.server = DaxServer(desk.client())
        self.options: dict[str, Any] = {"timeout": 5.0, "reset": 0.2}

    def __enter__(self) -> Cluster:
        self.server.start()
        self.options["url"] = self.server.url
        return self

    def __exit__(self, *_: object) -> None:
        self.server.kill()


class Behind(Stand):
    """A client, its cache, and the cluster that the cache asks."""

    cluster: DaxServer


class Clustered:
    """Makes them, each with a cluster of its own, and closes them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._made: list[tuple[Behind, Cluster]] = []

    def __enter__(self) -> Clustered:
        return self

    def __exit__(self, *_: object) -> None:
        for on, cluster in self._made:
            on.dax.uninstall()
            cluster.__exit__()

    def __call__(
        self, endpoint: dict[str, Any] | None = None, *, begun: bool = True, **options: Any
    ) -> Behind:
        """``settle=0`` unless asked. Not ``begun``: the cluster does not listen yet."""
        cluster = Cluster(self._desk).__enter__()
        if not begun:
            cluster.server.kill()
        on = Behind(
            self._desk,
            endpoint={**cluster.options, **(endpoint or {})},
            **{"settle": 0, **options},
        )
        on.cluster = cluster.server
        self._made.append((on, cluster))
        return on
