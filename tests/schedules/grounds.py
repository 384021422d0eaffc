"""The real backends a schedule is played on, and what may befall their data.

A ground hands out backends and can take single things away: an evicted entry, a nonce, a token
whose lease ended. ``timed``: its leases run by the schedule's clock; elsewhere a lease ends only
by such a fault, since a server's clock can not be stopped.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cachekit.backends.memory import MemoryBackend
from cachekit.core.deadline import Deadline
from cachekit.testing.servers import MemcachedServer, RedisServer

NAMESPACE = "s"
LOOKS = 0.004  # seconds between two looks of SQLite's bus: each demand waits for one


class Thing(NamedTuple):
    """Something stored. ``blocks``: it is a block of writers."""

    name: str
    blocks: bool
    take: Callable[[], None]


class Ground:
    """``clock`` is monotonic seconds, ``wall`` Unix seconds, both moved by the schedule only."""

    name = ""
    timed = False
    trust = False  # what a server remembers from before its restart counts

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.clock = clock
        self.wall = wall

    def backend(self) -> Any:
        """A backend as one process opens it; None for an embedded cache."""
        return None

    def adjust(self, store: Any) -> None:
        """Make an opened store live by the schedule's clock."""

    def things(self) -> list[Thing]:
        """All that is stored now, in an order that depends on nothing but the schedule."""
        return []

    def flush(self) -> None:
        """Everything is gone at once, as after a restart."""
        for thing in self.things():
            thing.take()

    def snapshot(self) -> None:
        """Have the server remember what it holds now, if it can."""

    def restart(self) -> None:
        """Kill the server with -9 and start it with what it remembers."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the last schedule."""
        self.flush()

    def close(self) -> None:
        return


class Embedded(Ground):
    name = "embedded"
    timed = True


class Memory(Ground):
    name = "memory"
    timed = True

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        super().__init__(clock, wall)
        self._backend = MemoryBackend(clock=clock)

    def backend(self) -> Any:
        return self._backend

    def things(self) -> list[Thing]:
        shelf = self._backend._shelf
        found = []

        def drop(name: str) -> None:
            shelf.entries.drop(name)
            shelf.holds.drop(name)

        for name in sorted({*shelf.entries._records, *shelf.holds._holds}):
            hold = shelf.holds.of(name)
            blocks = hold is not None and not hold.token
            found.append(Thing(name, blocks, lambda name=name: drop(name)))
        for name in sorted(shelf.tags._records):
            found.append(Thing(f"#{name}", False, lambda name=name: shelf.tags.drop(name)))
        blocked = getattr(shelf, "tag_blocks", None)
        for name in sorted(blocked._holds) if blocked is not None else ():
            found.append(Thing(f"#{name}", True, lambda name=name: blocked.drop(name)))
        for name in sorted(shelf.plain._records):
            found.append(Thing(f"={name}", False, lambda name=name: shelf.plain.drop(name)))
        if shelf.space is not None:
            found.append(Thing("!", False, lambda: setattr(shelf, "space", None)))
        return found


class SQLite(Ground):
    name = "sqlite"
    timed = True

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        super().__init__(clock, wall)
        self._folder = Path(tempfile.mkdtemp(prefix="cachekit-schedules-"))
        self._driver: Any = None

    def backend(self) -> Any:
        from cachekit.backends.sqlite import SQLiteBackend
        from cachekit.backends.sqlite_bus import SQLiteBus

        made = SQLiteBackend(f"sqlite:///{self._folder}/cache.db", namespace=NAMESPACE)
        assert isinstance(made.bus, SQLiteBus)
        made.bus._interval = LOOKS
        return made

    def adjust(self, store: Any) -> None:
        self._driver = store._driver
        store._driver._wall = self.wall

    def _run(self, statement: str, *given: Any) -> list[Any]:
        if self._driver is None:
            return []
        import time

        return self._driver._file.change(  # type: ignore[no-any-return]
            "fault",
            Deadline(5.0, time.monotonic),
            lambda connection: connection.db.execute(statement, given).fetchall(),
        )

    def things(self) -> list[Thing]:
        found = []
        for table, column in (("slots", "key"), ("nonces", "tag"), ("records", "key")):
            kind = {"slots": "kind", "nonces": "length(nonce)"}.get(table, "0")
            for name, what in sorted(self._run(f"SELECT {column}, {kind} FROM {table}")):
                blocks = what >= 2 if table == "slots" else table == "nonces" and what != 16
                statement = f"DELETE FROM {table} WHERE {column} = ?"
                found.append(
                    Thing(
                        f"{table[0]}:{name}",
                        blocks,
                        lambda statement=statement, name=name: self._run(statement, name) and None,
                    )
                )
        return found

    def flush(self) -> None:
        for table in ("slots", "nonces", "records"):
            self._run(f"DELETE FROM {table}")

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class Redis(Ground):
    name = "redis"

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        super().__init__(clock, wall)
        import redis

        self._server = RedisServer(unix_socket=True)
        self._server.start()
        self._client = redis.Redis(unix_socket_path=str(self._server.socket_path))

    def backend(self) -> Any:
        from cachekit.backends.redis import RedisBackend

        return RedisBackend(
            self._server.url, namespace=NAMESPACE, partitions=2, trust_restart=self.trust or None
        )

    def things(self) -> list[Thing]:
        names = sorted(n for n in self._client.keys("*") if not n.endswith(b":partitions"))
        values = self._client.mget(names) if names else []
        return [
            Thing(
                name.decode(),
                value is not None and value[:2] == b"B\x01",
                lambda name=name: self._client.delete(name) and None,
            )
            for name, value in zip(names, values, strict=True)
        ]

    def flush(self) -> None:
        self._client.flushall()

    def snapshot(self) -> None:
        self._client.save()

    def restart(self) -> None:
        self._server.kill()
        self._client.connection_pool.disconnect()
        self._server.start()

    def reset(self) -> None:
        self.flush()
        (self._server.folder / "dump.rdb").unlink(missing_ok=True)

    def close(self) -> None:
        self._client.close()
        self._server.close()


class Memcached(Ground):
    """Its names are known by what was used: classic commands can not list them."""

    name = "memcached"

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        super().__init__(clock, wall)
        from pymemcache.client.base import Client

        from cachekit.backends.memcached.names import Names

        self._server = MemcachedServer()
        self._server.start()
        self._client = Client(("127.0.0.1", self._server.port), no_delay=True)
        self._names = Names(NAMESPACE)
        self.used: dict[bytes, None] = {}

    def backend(self) -> Any:
        from cachekit.backends.memcached import MemcachedBackend

        return MemcachedBackend(self._server.url, namespace=NAMESPACE)

    def note(self, keys: Any, tags: Any) -> None:
        names = self._names
        self.used[names.space] = None
        for key in keys:
            self.used[names.slot(key)] = None
            self.used[names.refresh(key)] = None
            self.used[names.record(key)] = None
        for tag in tags:
            self.used[names.tag(tag)] = None

    def things(self) -> list[Thing]:
        names = sorted(self.used)
        found = self._client.get_many(names) if names else {}
        return [
            Thing(
                name.decode(),
                found[name][:1] == b"B" and len(found[name]) != 16,
                lambda name=name: self._client.delete(name) and None,
            )
            for name in names
            if name in found
        ]

    def restart(self) -> None:
        self._server.kill()
        self._client.close()
        self._server.start()

    def reset(self) -> None:
        self._client.delete_many(list(self.used), noreply=False)
        self.used.clear()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.close()
        self._server.close()


GROUNDS: dict[str, type[Ground]] = {
    each.name: each for each in (Embedded, Memory, SQLite, Redis, Memcached)
}
