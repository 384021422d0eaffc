"""A SQLite file as a backend, shared by the processes of one host: ``sqlite:///cache.db``.

Each step is one ``BEGIN IMMEDIATE`` transaction, in WAL mode with ``synchronous=NORMAL``. Times
are wall-clock seconds, compared on every read. Not for network file systems.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from urllib.parse import unquote

from ..core.deadline import Deadline
from ..core.notes import NoteKind
from ..errors import BackendRefused, ConfigurationError
from ..protocols import NOTHING, Bus, Grant, Item, LogFactory, Nonces, Reading, Store, World
from .base import BlockingStore
from .sqlite_bus import SQLiteBus
from .sqlite_file import Connection, SQLiteFile
from .sqlite_rows import (
    BLOCK,
    CONTESTED,
    ENTRY,
    MARK,
    MAX_BYTES,
    NEWEST_TABLE,
    TABLES,
    TOKEN,
    VERSION,
    WHOLE_SPACE,
    Row,
    Rows,
    block,
    end,
    max_bytes_of,
    space_of,
)


class SQLiteBackend:
    """A backend in one file of this host; the factory of ``sqlite://``.

    ``sqlite:///cache.db`` is relative to the working directory, ``sqlite:////var/cache/app.db``
    (four slashes) absolute. Option ``max_bytes`` (default 1 GiB) bounds the data kept: above it
    the entries that expire first go. Raises ConfigurationError for a URL it can not use.

    Its bus reaches every process that uses the file: an invalidation writes its note in the
    same transaction, and who listens looks for notes every 50 ms."""

    shared = True
    log: LogFactory | None = None

    def __init__(self, url: str, *, namespace: str = "", timeout: float = 0.25) -> None:
        self.name = "sqlite"
        where, _, query = url.partition("://")[2].partition("?")
        if not where.startswith("/") or where.endswith("/"):
            raise ConfigurationError(
                "this sqlite URL names no file: write sqlite:///cache.db, or "
                "sqlite:////var/cache/app.db (four slashes) for an absolute path"
            )
        # Made absolute now: a later chdir must not lead to another file.
        self.path = os.path.abspath(unquote(where[1:]))
        self._max_bytes = max_bytes_of(query)
        self._namespace = namespace
        self.bus: Bus | None = SQLiteBus(self.path, namespace, name=self.name)

    def open(self, world: World) -> Store:
        driver = SQLiteDriver(self.path, self._namespace, max_bytes=self._max_bytes, name=self.name)
        return BlockingStore(world, driver)

    def __repr__(self) -> str:
        return f"SQLiteBackend({self.path!r})"


class SQLiteDriver:
    """The verbs of a store on one file; blocking, safe for threads and across fork.

    ``wall`` gives Unix seconds; all processes that share the file must agree on it."""

    def __init__(
        self,
        path: str,
        namespace: str,
        *,
        max_bytes: int = MAX_BYTES,
        name: str = "sqlite",
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._rows = Rows(space_of(namespace), max_bytes)
        self._wall = wall
        self._file = SQLiteFile(
            path, tables=TABLES, newest=NEWEST_TABLE, mark=MARK, version=VERSION, name=name
        )

    @property
    def sender(self) -> bytes:
        return self._rows.sender

    def close(self) -> None:
        self._file.close()

    # -- plain records

    def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        return self._file.look("get_many", deadline, self._get, keys)

    def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
        try:
            self._file.change("set_many", deadline, self._set, items)
        except BackendRefused:
            self.delete_many([item.key for item in items], deadline)  # nothing older stays
            raise

    def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None:
        self._file.change("delete_many", deadline, self._delete, keys)

    # -- slots

    def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        return self._file.look("read", deadline, self._read, keys, tags)

    def acquire(
        self,
        key: str,
        token: bytes,
        lease: float,
        deadline: Deadline,
        *,
        over: bytes = b"",
        keep: bool = False,
    ) -> Grant:
        return self._file.change(
            "acquire", deadline, self._acquire, key, token, lease, over=over, keep=keep
        )

    def renew(self, key: str, token: bytes, lease: float, deadline: Deadline) -> bool:
        return self._file.change("renew", deadline, self._renew, key, token, lease)

    def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        return self._storing("fill", deadline, self._fill, key, token, data, ttl)

    def release(self, key: str, token: bytes, deadline: Deadline) -> None:
        self._file.change("release", deadline, self._release, key, token)

    def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        return self._storing("put", deadline, self._put, key, stamp, data, ttl)

    def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        self._file.change("void", deadline, self._void, keys)

    def seize(self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline) -> None:
        self._file.change("seize", deadline, self._seize, keys, writer, lease)

    def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        return self._storing("commit", deadline, self._commit, key, writer, data, ttl)

    def end(self, keys: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        self._file.change("end", deadline, self._end, keys, writer)

    # -- nonces

    def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        present = self._file.look("nonces", deadline, self._present, keys, tags)
        if None not in present.spaces and None not in present.tags:
            return present
        return self._file.change("nonces", deadline, self._make, keys, tags, fresh, ttl)

    def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        self._file.change("drop_tags", deadline, self._drop, tags)

    def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        self._file.change("seize_tags", deadline, self._seize_tags, tags, writer, lease)

    def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        self._file.change("end_tags", deadline, self._end_tags, tags, writer)

    def drop_space(self, deadline: Deadline) -> None:
        self._file.change("drop_space", deadline, self._drop_space)

    # -- steps, each inside one transaction

    def _get(self, connection: Connection, keys: Sequence[str]) -> list[bytes | None]:
        now = self._wall()
        return [self._rows.record(connection.db, key, now) for key in keys]

    def _set(self, connection: Connection, items: Sequence[Item]) -> None:
        now = self._wall()
        self._rows.set_records(connection.db, items, now)
        self._rows.tend(connection, now, sum(len(item.data) for item in items))

    def _delete(self, connection: Connection, keys: Sequence[str]) -> None:
        self._rows.delete_records(connection.db, keys)

    def _drop(self, connection: Connection, tags: Sequence[str]) -> None:
        self._rows.drop_nonces(connection.db, tags)
        self._rows.tell(connection.db, NoteKind.TAG, tags)

    def _seize_tags(
        self, connection: Connection, tags: Sequence[str], writer: bytes, lease: float
    ) -> None:
        now = self._wall()
        for tag in tags:
            self._rows.seize_tag(connection.db, tag, writer, lease, now)
        self._rows.tell(connection.db, NoteKind.TAG, tags)
        self._rows.tend(connection, now, 0)

    def _end_tags(self, connection: Connection, tags: Sequence[str], writer: bytes) -> None:
        db, rows, now = connection.db, self._rows, self._wall()
        rows.tell(db, NoteKind.TAG, [tag for tag in tags if rows.end_tag(db, tag, writer, now)])

    def _drop_space(self, connection: Connection) -> None:
        self._rows.drop_nonces(connection.db, [WHOLE_SPACE])
        self._rows.tell(connection.db, NoteKind.SPACE, [""])

    def _read(self, connection: Connection, keys: Sequence[str], tags: Sequence[str]) -> Reading:
        now = self._wall()
        rows = [self._rows.load(connection.db, key, now) for key in keys]
        present = self._present(connection, keys, tags)
        return Reading(
            [NOTHING if row is None else row.slot(now) for row in rows],
            present.spaces,
            present.tags,
        )

    def _present(self, connection: Connection, keys: Sequence[str], tags: Sequence[str]) -> Nonces:
        db, rows, now = connection.db, self._rows, self._wall()
        space = rows.nonce(db, WHOLE_SPACE, now) if keys else None
        return Nonces([space] * len(keys), [rows.nonce(db, tag, now) for tag in tags])

    def _make(
        self,
        connection: Connection,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
    ) -> Nonces:
        db, rows, now = connection.db, self._rows, self._wall()
        space = rows.make_nonce(db, WHOLE_SPACE, fresh, None, now) if keys else None
        found = [rows.make_nonce(db, tag, fresh, ttl, now) for tag in tags]
        rows.tend(connection, now, 0)
        return Nonces([space] * len(keys), found)

    def _acquire(
        self,
        connection: Connection,
        key: str,
        token: bytes,
        lease: float,
        *,
        over: bytes,
        keep: bool,
    ) -> Grant:
        db, rows, now = connection.db, self._rows, self._wall()
        row = rows.load(db, key, now)
        if row is None or (row.kind == ENTRY and row.stamp == over and not keep):
            rows.store(db, key, Row(TOKEN, holders=token, made=now, expires=now + lease))
            rows.tend(connection, now, 0)
        elif row.kind != ENTRY or row.stamp != over or row.refreshing(now):
            return Grant(False, row.slot(now))
        else:
            rows.hold(db, key, row._replace(holders=token, until=now + lease, made=now))
        return Grant(True, NOTHING if row is None else row.slot(now))

    def _renew(self, connection: Connection, key: str, token: bytes, lease: float) -> bool:
        now = self._wall()
        row = self._rows.load(connection.db, key, now)
        if row is None or not row.held_by(token, now):
            return False
        if row.kind == TOKEN:
            row = row._replace(made=now, expires=now + lease)
        else:
            row = row._replace(made=now, until=now + lease)
        self._rows.hold(connection.db, key, row)
        return True

    def _release(self, connection: Connection, key: str, token: bytes) -> None:
        now = self._wall()
        row = self._rows.load(connection.db, key, now)
        if row is None or not row.held_by(token, now):
            return
        if row.kind == TOKEN:
            self._rows.clear(connection.db, key)
        else:
            self._rows.hold(connection.db, key, row._replace(holders=b"", until=0.0))

    def _fill(
        self, connection: Connection, key: str, token: bytes, data: bytes, ttl: float | None
    ) -> bool:
        now = self._wall()
        row = self._rows.load(connection.db, key, now)
        if row is None or not row.held_by(token, now):
            return False
        self._enter(connection, key, token, data, ttl)
        return True

    def _put(
        self, connection: Connection, key: str, stamp: bytes, data: bytes, ttl: float | None
    ) -> bool:
        row = self._rows.load(connection.db, key, self._wall())
        if row is not None and row.kind >= BLOCK:
            self._rows.hold(connection.db, key, row._replace(kind=CONTESTED))
            return False
        self._enter(connection, key, stamp, data, ttl)
        self._rows.tell(connection.db, NoteKind.KEY, [key])
        return True

    def _commit(
        self, connection: Connection, key: str, writer: bytes, data: bytes, ttl: float | None
    ) -> bool:
        row = self._rows.load(connection.db, key, self._wall())
        if row is None or row.kind != BLOCK or row.holders != writer:
            self._end(connection, [key], writer)
            return False
        self._enter(connection, key, writer, data, ttl)
        return True

    def _void(self, connection: Connection, keys: Sequence[str]) -> None:
        now = self._wall()
        for key in keys:
            row = self._rows.load(connection.db, key, now)
            if row is not None and row.kind >= BLOCK:
                self._rows.hold(connection.db, key, row._replace(kind=CONTESTED))
            else:
                self._rows.clear(connection.db, key)
        self._rows.tell(connection.db, NoteKind.KEY, keys)

    def _seize(
        self, connection: Connection, keys: Sequence[str], writer: bytes, lease: float
    ) -> None:
        now = self._wall()
        for key in keys:
            row = self._rows.load(connection.db, key, now)
            seized = block([writer], now + lease, contested=False)
            if row is not None and row.kind >= BLOCK:
                writers = [other for other in row.writers() if other != writer]
                expires = max(now + lease, row.expires or 0.0)
                seized = block([*writers, writer], expires, contested=True)
            self._rows.store(connection.db, key, seized)
        self._rows.tell(connection.db, NoteKind.KEY, keys)

    def _end(self, connection: Connection, keys: Sequence[str], writer: bytes) -> None:
        now = self._wall()
        for key in keys:
            row = self._rows.load(connection.db, key, now)
            left = [w for w in row.writers() if w != writer] if row and row.kind >= BLOCK else []
            if row is not None and left:
                self._rows.hold(connection.db, key, block(left, row.expires, contested=True))
                continue
            self._rows.clear(connection.db, key)
            if row is None or row.kind < BLOCK:  # its own ran out: others may have copied since
                self._rows.tell(connection.db, NoteKind.KEY, [key])

    def _enter(
        self, connection: Connection, key: str, stamp: bytes, data: bytes, ttl: float | None
    ) -> None:
        now = self._wall()
        entry = Row(ENTRY, stamp=stamp, made=now, expires=end(now, ttl), data=data)
        self._rows.store(connection.db, key, entry)
        self._rows.tend(connection, now, len(data))

    def _storing(
        self,
        operation: str,
        deadline: Deadline,
        step: Callable[[Connection, str, bytes, bytes, float | None], bool],
        *what: *tuple[str, bytes, bytes, float | None],
    ) -> bool:
        """A step that stores an entry; when the file refuses it, nothing older stays."""
        key, holder, _, _ = what
        try:
            return self._file.change(operation, deadline, step, *what)
        except BackendRefused as error:
            error.key = key
            if operation == "commit":
                self.end([key], holder, deadline)
            else:
                self.void([key], deadline)
            raise
