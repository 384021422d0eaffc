"""What cachekit stored, read and changed behind its back: one raw client per real backend."""

from __future__ import annotations

import socket
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cachekit import Cache
from cachekit.backends.memcached.names import Names
from cachekit.backends.redis.layout import Layout
from cachekit.core import envelope as wire
from cachekit.core.keys import physical
from cachekit.testing.servers import MemcachedServer, RedisServer

BACKENDS = ("redis", "sqlite", "memcached")
LOADED = "loaded anew"


class Raw:
    """The bytes under the keys of one namespace. ``head``: bytes of the slot before the entry."""

    head = 0

    def __init__(self, url: str) -> None:
        self.url = url
        self.namespace = f"raw-{uuid.uuid4().hex[:12]}"
        self._opened: list[Cache] = []

    def cache(self, **options: Any) -> Cache:
        """A cache that keeps nothing near: every read sees the stored bytes."""
        given = {"namespace": self.namespace, "coherence": "strict", "timeout": 5.0, **options}
        cache = Cache(self.url, **given)
        self._opened.append(cache)
        return cache

    def read(self, key: str) -> bytes | None:
        raise NotImplementedError

    def write(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def nonce(self, data: bytes | None = None, namespace: str | None = None) -> bytes:
        """The nonce of the namespace as it is stored; replaced by ``data`` where given."""
        raise NotImplementedError

    def stored(self, key: str) -> bytes:
        found = self.read(key)
        assert found is not None, f"nothing is stored under {key}"
        return found

    def entry(self, key: str) -> wire.Envelope:
        found = wire.unpack(self.stored(key)[self.head :], physical(key))
        assert found is not None
        return found

    def forge(self, key: str, entry: wire.Envelope, *, after: bytes | None = None) -> None:
        """Store an entry whose checksum fits, as who knows the format but no secret could."""
        head = self.stored(key)[: self.head] if after is None else after
        self.write(key, head + wire.pack(entry, physical(key)))

    def close(self) -> None:
        for cache in self._opened:
            cache.close()


class RawRedis(Raw):
    head = 18

    def __init__(self, server: RedisServer) -> None:
        super().__init__(server.url)
        self.client = redis.Redis(port=server.port)

    def _name(self, key: str) -> bytes:
        partitions = int(self.client.get(f"{{{self.namespace}}}:partitions") or 0)
        return Layout(self.namespace, partitions).slot(physical(key))

    def read(self, key: str) -> bytes | None:
        return self.client.get(self._name(key))  # type: ignore[no-any-return]

    def write(self, key: str, data: bytes) -> None:
        self.client.set(self._name(key), data)

    def write_other_type(self, key: str) -> None:
        self.client.delete(self._name(key))
        self.client.rpush(self._name(key), "of", "another")

    def nonce(self, data: bytes | None = None, namespace: str | None = None) -> bytes:
        names = self.client.keys(f"{{{namespace or self.namespace}:*}}!")
        found: bytes = self.client.get(names[0])
        if data is not None:
            for name in names:
                self.client.set(name, data)
        return found

    def close(self) -> None:
        super().close()
        self.client.close()


class RawSQLite(Raw):
    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None, timeout=5.0)

    def read(self, key: str) -> bytes | None:
        row = self.db.execute(
            "SELECT data FROM slots WHERE space = ? AND key = ?", (self.namespace, physical(key))
        ).fetchone()
        return None if row is None else row[0]

    def write(self, key: str, data: bytes) -> None:
        changed = self.db.execute(
            "UPDATE slots SET data = ? WHERE space = ? AND key = ?",
            (data, self.namespace, physical(key)),
        )
        assert changed.rowcount == 1

    def nonce(self, data: bytes | None = None, namespace: str | None = None) -> bytes:
        space = namespace or self.namespace
        where = "space = ? AND tag = ''"
        row = self.db.execute(f"SELECT nonce FROM nonces WHERE {where}", (space,)).fetchone()
        if data is not None:
            self.db.execute(f"UPDATE nonces SET nonce = ? WHERE {where}", (data, space))
        return bytes(row[0])

    def close(self) -> None:
        super().close()
        self.db.close()


class RawMemcached(Raw):
    head = 17

    def __init__(self, server: MemcachedServer) -> None:
        super().__init__(server.url)
        self.socket = socket.create_connection(("127.0.0.1", server.port), 5.0)
        self.file = self.socket.makefile("rb")

    def read(self, key: str) -> bytes | None:
        return self._get(Names(self.namespace).slot(physical(key)))

    def write(self, key: str, data: bytes) -> None:
        self._set(Names(self.namespace).slot(physical(key)), data)

    def nonce(self, data: bytes | None = None, namespace: str | None = None) -> bytes:
        name = Names(namespace or self.namespace).space
        found = self._get(name)
        if data is not None:
            self._set(name, data)
        assert found is not None
        return found

    def _get(self, name: bytes) -> bytes | None:
        self.socket.sendall(b"get %b\r\n" % name)
        line = self.file.readline()
        if line == b"END\r\n":
            return None
        data = self.file.read(int(line.split()[3]) + 2)[:-2]
        assert self.file.readline() == b"END\r\n"
        return data

    def _set(self, name: bytes, data: bytes) -> None:
        self.socket.sendall(b"set %b 0 0 %d\r\n%b\r\n" % (name, len(data), data))
        assert self.file.readline() == b"STORED\r\n"

    def close(self) -> None:
        super().close()
        self.file.close()
        self.socket.close()


_MAKERS: dict[str, Callable[[pytest.FixtureRequest, Path], Raw]] = {
    "redis": lambda request, folder: RawRedis(request.getfixturevalue("redis_server")),
    "sqlite": lambda request, folder: RawSQLite(_private(folder) / "cache.db"),
    "memcached": lambda request, folder: RawMemcached(request.getfixturevalue("memcached_server")),
}


def _private(folder: Path) -> Path:
    # The cache makes its file itself, so that it has its marks: one call is enough for that.
    with Cache(f"sqlite:///{folder}/cache.db", timeout=5.0) as cache:
        cache.set("first", 1)
    return folder


def raw_stores(request: pytest.FixtureRequest, folder: Path) -> Iterator[Raw]:
    raw = _MAKERS[request.param](request, folder)
    yield raw
    raw.close()


class Watched:
    """A cache, and the events it told its observers."""

    def __init__(self, raw: Raw, **options: Any) -> None:
        self.events: list[str] = []
        self.cache = raw.cache(observers=[lambda name, fields: self.events.append(name)], **options)

    def read(self, key: str = "k") -> tuple[Any, bool]:
        """What one read gives, and whether it told that something was unreadable."""
        del self.events[:]
        value = self.cache.get_or_set(key, lambda: LOADED, ttl=60)
        return value, "unreadable" in self.events

    async def read_async(self, key: str = "k") -> tuple[Any, bool]:
        del self.events[:]
        value = await self.cache.aio.get_or_set(key, lambda: LOADED, ttl=60)
        return value, "unreadable" in self.events
