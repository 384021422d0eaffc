"""The system of record behind the caches under test: a real database, counted."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import string
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

from ..errors import ConfigurationError

T = TypeVar("T")

_BATCH = 500  # rows in one statement, below SQLite's oldest limit of 999 parameters


class Row(TypedDict):
    """One record, as the application sees it."""

    id: int
    version: int
    payload: str


class Load(NamedTuple):
    """What the source has been asked for: rows, and calls (a batch is one call)."""

    reads: int
    read_calls: int
    writes: int
    write_calls: int

    def since(self, before: Load) -> Load:
        return Load(*(a - b for a, b in zip(self, before, strict=True)))


def payload(size: int, seed: int) -> str:
    """``size`` characters that do not compress well."""
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits, k=size))


class Pool:
    """Connections for whoever needs one now; at most ``limit`` at a time (None: no bound)."""

    def __init__(self, connect: Callable[[], Any], limit: int | None = None) -> None:
        self._connect = connect
        self._free: list[Any] = []
        self._turns = None if limit is None else threading.BoundedSemaphore(limit)

    def use(self, work: Callable[[Any], T]) -> T:
        """What ``work(connection)`` gives. A connection on which it failed is not used again."""
        if self._turns is None:
            return self._use(work)
        with self._turns:
            return self._use(work)

    def _use(self, work: Callable[[Any], T]) -> T:
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._connect()
        try:
            result = work(connection)
        except BaseException:
            connection.close()
            raise
        self._free.append(connection)
        return result

    def close(self) -> None:
        """Close what is not in use."""
        while self._free:
            self._free.pop().close()


class Source(ABC):
    """Rows of (id, version, payload) in a database; a row's last writer wins.

    Every operation waits ``delay`` seconds first (a stand-in for network and queueing). Thread-
    safe. Children give the SQL at the bottom, without delay or count.
    """

    name: str

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self._lock = threading.Lock()
        self._load = Load(0, 0, 0, 0)
        self._payload = ""

    def prepare(self, records: int, text: str) -> None:
        """Create rows 0 .. records - 1, all with this payload and version 0."""
        self._payload = text
        for start in range(0, records, 10_000):
            stop = min(records, start + 10_000)
            self._write([(number, 0, text) for number in range(start, stop)])

    def row(self, key: int, version: int) -> Row:
        return {"id": key, "version": version, "payload": self._payload}

    def load(self) -> Load:
        with self._lock:
            return self._load

    def read(self, key: int) -> Row | None:
        self._pause()
        return self._one(key)

    def read_many(self, keys: Iterable[int]) -> dict[int, Row]:
        self._pause()
        return self._several(list(keys))

    def write(self, key: int, row: Row) -> None:
        self.write_many({key: row})

    def write_many(self, rows: Mapping[int, Row]) -> None:
        """One transaction."""
        self._pause()
        self._store(rows)

    def delete(self, key: int) -> None:
        self._pause()
        self._drop(key)

    @abstractmethod
    def reset(self, records: int) -> None:
        """Bring every row back to version 0 and drop the inserted ones."""

    @abstractmethod
    def versions(self) -> list[tuple[int, int]]:
        """(id, version) of every row."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def opener(self) -> Callable[[], Source]:
        """Opens the same rows in another process; it can be pickled."""

    def _pause(self) -> None:
        if self.delay:
            time.sleep(self.delay)

    def _count(self, *added: int) -> None:
        with self._lock:
            self._load = Load(*(a + b for a, b in zip(self._load, added, strict=True)))

    def _one(self, key: int) -> Row | None:
        self._count(1, 1, 0, 0)
        found = self._read([key])
        return _as_row(found[0]) if found else None

    def _several(self, keys: Sequence[int]) -> dict[int, Row]:
        self._count(len(keys), 1, 0, 0)
        found: dict[int, Row] = {}
        for start in range(0, len(keys), _BATCH):
            for line in self._read(keys[start : start + _BATCH]):
                found[line[0]] = _as_row(line)
        return found

    def _store(self, rows: Mapping[int, Row]) -> None:
        self._write([(key, row["version"], row["payload"]) for key, row in rows.items()])
        self._count(0, 0, len(rows), 1)

    def _drop(self, key: int) -> None:
        self._remove(key)
        self._count(0, 0, 1, 1)

    @abstractmethod
    def _read(self, keys: Sequence[int]) -> list[tuple[int, int, str]]: ...

    @abstractmethod
    def _write(self, rows: Sequence[tuple[int, int, str]]) -> None: ...

    @abstractmethod
    def _remove(self, key: int) -> None: ...


def _as_row(line: tuple[int, int, str]) -> Row:
    return {"id": line[0], "version": line[1], "payload": line[2]}


class SQLiteSource(Source):
    """A SQLite file in WAL mode; every commit is synced to the disk (``synchronous=FULL``)."""

    def __init__(self, path: Path, delay: float = 0.0, *, create: bool = True) -> None:
        super().__init__(delay)
        self.name = f"SQLite {sqlite3.sqlite_version} file (WAL, synchronous=FULL)"
        self._path = path
        self._pool = Pool(self._connect)
        # SQLite allows one writer at a time and lets the others poll: a lock is fair.
        self._writer = threading.Lock()
        if not create:
            return
        try:
            self._do(
                "CREATE TABLE row (id INTEGER PRIMARY KEY, version INTEGER NOT NULL,"
                " payload TEXT NOT NULL)"
            )
        except sqlite3.Error as error:
            raise ConfigurationError(f"source {path} can not be made: {error}") from error

    def reset(self, records: int) -> None:
        with self._writer:
            self._do("DELETE FROM row WHERE id >= ?", (records,))
            self._do("UPDATE row SET version = 0 WHERE version <> 0")
            self._do("PRAGMA wal_checkpoint(TRUNCATE)")

    def versions(self) -> list[tuple[int, int]]:
        return self._do("SELECT id, version FROM row")

    def close(self) -> None:
        self._pool.close()

    def opener(self) -> Callable[[], Source]:
        return partial(SQLiteSource, self._path, self.delay, create=False)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=30.0, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _do(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        def run(connection: sqlite3.Connection) -> list[Any]:
            return connection.execute(sql, values).fetchall()

        return self._pool.use(run)

    def _read(self, keys: Sequence[int]) -> list[tuple[int, int, str]]:
        marks = ",".join("?" * len(keys))
        return self._do(f"SELECT id, version, payload FROM row WHERE id IN ({marks})", keys)

    def _write(self, rows: Sequence[tuple[int, int, str]]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO row VALUES (?, ?, ?)", rows)
            connection.execute("COMMIT")

        with self._writer:
            self._pool.use(write)  # on an error the connection is closed, which rolls back

    def _remove(self, key: int) -> None:
        with self._writer:
            self._do("DELETE FROM row WHERE id = ?", (key,))


class AsyncSource:
    """The same source for tasks: its blocking calls run in threads, ``threads`` at a time."""

    def __init__(self, source: Source, threads: int) -> None:
        self._source = source
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cachekit-bench-source")

    async def read(self, key: int) -> Row | None:
        found: Row | None = await self._run(self._source._one, key)
        return found

    async def read_many(self, keys: Iterable[int]) -> dict[int, Row]:
        found: dict[int, Row] = await self._run(self._source._several, list(keys))
        return found

    async def write(self, key: int, row: Row) -> None:
        await self.write_many({key: row})

    async def write_many(self, rows: Mapping[int, Row]) -> None:
        await self._run(self._source._store, rows)

    async def delete(self, key: int) -> None:
        await self._run(self._source._drop, key)

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    async def _run(self, call: Any, argument: Any) -> Any:
        if self._source.delay:  # waited for here, so that it does not hold a thread
            await asyncio.sleep(self._source.delay)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, argument)


def open_source(spec: str, *, folder: Path, delay: float) -> Source:
    """``sqlite`` (a file in ``folder``) or a PostgreSQL URL.

    Raises ConfigurationError when it can not be opened or the word is unknown."""
    if spec == "sqlite":
        return SQLiteSource(folder / "source.db", delay)
    scheme = spec.split("://", 1)[0] if "://" in spec else ""
    if scheme in ("postgresql", "postgres"):
        from .postgresql import PostgreSQLSource

        return PostgreSQLSource(spec, delay)
    shown = f"{scheme}://" if scheme else spec
    raise ConfigurationError(f"unknown source {shown!r}; give 'sqlite' or postgresql://...")
