"""Memcached as a shared backend: ``memcached://host:port,host:port``.

Only classic commands (``gets``, ``add``, ``cas``, ``set``, ``delete``, ``incr``) are used, so any
server and proxy of the last fifteen years will do. How the slots of ``protocols.Slots`` lie in it:

- A slot is one item; its first byte names the state, then comes the token, stamp or block.
  Taking a free slot is ``add``; every other step reads with ``gets``, compares what the *value*
  says and then stores with ``cas`` on the same connection.
- Removing is ``cas`` with a negative expiry: the item is gone only if it is still the one that
  was read, so a block put there meanwhile survives. (``delete`` could not tell them apart.)
- A refresh token lies beside its entry in a side key on the same node, whose expiry is the lease
  and whose value names the stamp of the entry it may replace. It stands as long as both are
  there. So the entry itself is never rewritten for it: its remaining life is untouched without
  asking any clock, and a megabyte is not sent twice. Stamps are never reused, so a fill whose
  ``cas`` found the stamped entry still standing can not undo an invalidation.
- A block holds the lease its writers asked for; see ``values.Block`` for what that costs.
- A tag's block stands in place of its nonce, changed by ``cas`` like a slot's.
- Every step that invalidates bumps its node's counter behind the change, in the same request, and
  counts as done only when that was acknowledged too; ``bus`` polls these counters.
- Ttls and leases are whole seconds and never end early (``values.expiry``).

Several nodes form a ring (``names.Ring``). A node that does not answer means BackendUnavailable
for its keys; they never move elsewhere. Each node has its own nonce of the namespace, so the
loss of one node leaves the others' keys readable. The list of nodes is part of the data's
meaning: after changing it, ``clear()`` before the old list is ever used again.
"""

from __future__ import annotations

import ssl
from urllib.parse import parse_qsl

from ...errors import ConfigurationError
from ...protocols import Bus, LogFactory, Store, World
from ..base import BlockingStore
from .bus import MemcachedBus
from .driver import MemcachedDriver
from .epochs import Epoch
from .names import Names
from .wire import Address

__all__ = ["MemcachedBackend"]

DEFAULT_PORT = 11211
CONNECTIONS = 32


class MemcachedBackend:
    """A backend on one or more memcached nodes; the factory of ``memcached://``.

    ``memcached://a:11211,b:11211``, ``memcached:///run/memcached.sock`` for a Unix socket,
    ``memcacheds://…`` for TLS with certificate and host name verified. Option: ``connections=32``,
    the most connections to each node and world. Host names are resolved by the system's resolver,
    which keeps no deadline. Raises ConfigurationError for a URL it can not use."""

    shared = True
    log: LogFactory | None = None

    def __init__(self, url: str, *, namespace: str = "", timeout: float = 0.25) -> None:
        self.name = "memcached"
        scheme, _, rest = url.partition("://")
        where, _, query = rest.partition("?")
        self._connections = _connections(query)
        self._nodes = _nodes(where)
        self._tls = ssl.create_default_context() if scheme == "memcacheds" else None
        self._names = Names(namespace)
        # One for all worlds: the bus knows what any store of this backend does.
        self._epochs = {node: Epoch(self._names.epoch) for node in self._nodes}
        self.bus: Bus | None = MemcachedBus(self._nodes, self._epochs, self._tls)

    def open(self, world: World) -> Store:
        driver = MemcachedDriver(
            self._nodes,
            self._names,
            self._epochs,
            name=self.name,
            connections=self._connections,
            tls=self._tls,
        )
        return BlockingStore(world, driver)

    def __repr__(self) -> str:
        return f"MemcachedBackend({', '.join(self._nodes)})"


def _nodes(where: str) -> dict[str, Address]:
    if "@" in where:
        raise ConfigurationError(
            "memcached URL: user and password are not supported; "
            "write memcached://host:11211 and protect the server by its network or by TLS"
        )
    if where.startswith("/") and len(where) > 1:
        return {where: where}
    nodes: dict[str, Address] = {}
    for part in where.rstrip("/").split(","):
        host, port = _host_and_port(part)
        nodes[f"{host}:{port}"] = (host, port)
    return nodes


def _host_and_port(part: str) -> tuple[str, int]:
    host, colon, port = part.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = part, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigurationError(
            f"memcached URL: {part!r} is no node; write memcached://host:11211,other:11211"
        )
    return host, int(port)


def _connections(query: str) -> int:
    options = dict(parse_qsl(query, keep_blank_values=True))
    text = options.pop("connections", str(CONNECTIONS))
    if options:
        # What is no word may be the rest of a password that was not encoded.
        shown = repr(min(options)) if min(options).isidentifier() else "(not shown)"
        raise ConfigurationError(
            f"memcached URL: unknown option {shown}; there is only 'connections'"
        )
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"memcached URL: connections={text!r}; write a number from 1")
    return int(text)
