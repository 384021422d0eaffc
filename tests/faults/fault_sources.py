"""Sources that record each delivery in the batch's own transaction, and the points of a batch at
which a process can die."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from typing import Any, Self

from checks import Delivery

from cachekit.core.ops import Op, OpKind
from cachekit.sinks import AsyncSQLAlchemySink, DBAPISink, SQLAlchemySink

IDLE_LIMIT = 1.0  # seconds until PostgreSQL ends the transaction of a frozen writer
COLUMNS = ("lane", "epoch", "key", "version", "value", "pid")
INSERT = f"INSERT INTO deliveries ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


class Doom:
    """SIGKILL to this very process, the ``count``-th time that it reaches a point."""

    def __init__(self, point: str = "", count: int = 1) -> None:
        self._point = point
        self._left = count
        self._lock = Lock()

    def reach(self, point: str) -> None:
        if point != self._point:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Ledger:
    """What the batch under way in this thread or task will append to the table of deliveries."""

    def __init__(self, doom: Doom) -> None:
        self.doom = doom
        self._here: ContextVar[Sequence[Op]] = ContextVar("ops", default=())

    @property
    def ops(self) -> Sequence[Op]:
        return self._here.get()

    @contextmanager
    def batch(self, ops: Sequence[Op]) -> Iterator[None]:
        self.doom.reach("called")
        mark = self._here.set(ops)
        try:
            yield
        finally:
            self._here.reset(mark)
        self.doom.reach("committed")

    def lines(self) -> list[tuple[Any, ...]]:
        return [(op.lane, op.epoch, op.id, op.version, content(op), os.getpid()) for op in self.ops]


def content(op: Op) -> str | None:
    return None if op.kind is OpKind.DELETE else op.value["value"]


class RecordedSink:
    """A fenced sink, with its ledger. Its process can die before a batch (``called``), in the
    middle of one (``written``, ``sink``: before the commit), or between commit and settling
    (``committed``)."""

    fences = True

    def __init__(self, sink: Any, ledger: Ledger) -> None:
        self._sink = sink
        self._ledger = ledger

    def write_many(self, ops: Sequence[Op]) -> Any:
        with self._ledger.batch(ops):
            return self._sink.write_many(ops)

    def last_epoch(self, lane: str) -> int:
        return int(self._sink.last_epoch(lane))


class AsyncRecordedSink(RecordedSink):
    async def write_many(self, ops: Sequence[Op]) -> Any:
        with self._ledger.batch(ops):
            return await self._sink.write_many(ops)

    async def last_epoch(self, lane: str) -> int:
        return int(await self._sink.last_epoch(lane))


class SQLiteSource:
    """``items(id, value)`` in a file."""

    def __init__(self, place: str) -> None:
        self._path = place

    @classmethod
    def made(cls, folder: Path) -> Self:
        source = cls(str(folder / "source.db"))
        with source._connect() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, value TEXT NOT NULL)")
            db.execute(
                "CREATE TABLE deliveries (seq INTEGER PRIMARY KEY AUTOINCREMENT, lane TEXT, "
                "epoch INTEGER, key TEXT, version INTEGER, value TEXT, pid INTEGER)"
            )
        db.close()
        return source

    @property
    def spec(self) -> tuple[str, str]:
        return ("sqlite", self._path)

    def sink(self, doom: Doom) -> RecordedSink:
        ledger = Ledger(doom)

        class Recording(sqlite3.Connection):
            def commit(self) -> None:
                if ledger.ops:
                    doom.reach("written")
                    self.executemany(INSERT, ledger.lines())
                    doom.reach("sink")
                super().commit()

        def connect() -> sqlite3.Connection:
            return self._connect(check_same_thread=False, factory=Recording)

        return RecordedSink(DBAPISink(connect, table="items"), ledger)

    def write(self, pairs: Sequence[tuple[str, str | None]]) -> None:
        """Without any fence; None deletes."""
        with self._connect() as db:
            for id, value in pairs:
                db.execute("DELETE FROM items WHERE id = ?", (id,))
                if value is not None:
                    db.execute("INSERT INTO items VALUES (?, ?)", (id, value))
        db.close()

    def load(self, id: str) -> dict[str, str] | None:
        found = self._ask("SELECT value FROM items WHERE id = ?", id)
        return {"value": found[0][0]} if found else None

    def rows(self) -> dict[str, str]:
        return dict(self._ask("SELECT id, value FROM items"))

    def deliveries(self) -> list[Delivery]:
        names = ", ".join(COLUMNS[:5])
        return [Delivery(*row) for row in self._ask(f"SELECT {names} FROM deliveries ORDER BY seq")]

    def _ask(self, sql: str, *values: Any) -> list[Any]:
        db = self._connect()
        try:
            return db.execute(sql, values).fetchall()
        finally:
            db.close()

    def _connect(self, **options: Any) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=20, **options)
        db.execute("PRAGMA synchronous=OFF")  # only processes die here, never the machine
        return db


class AsyncSQLiteSource(SQLiteSource):
    """The same file, written by an event loop."""

    @property
    def spec(self) -> tuple[str, str]:
        return ("sqlite-async", self._path)

    def sink(self, doom: Doom) -> RecordedSink:
        import sqlalchemy as sa
        from sqlalchemy.ext.asyncio import create_async_engine

        ledger = Ledger(doom)
        engine = create_async_engine(f"sqlite+aiosqlite:///{self._path}")
        columns = (sa.Column("id", sa.Text, primary_key=True), sa.Column("value", sa.Text))

        def record(connection: Any) -> None:
            if ledger.ops:
                doom.reach("written")
                connection.exec_driver_sql(INSERT, ledger.lines())
                doom.reach("sink")

        sa.event.listen(engine.sync_engine, "commit", record)
        items = sa.Table("items", sa.MetaData(), *columns)
        return AsyncRecordedSink(AsyncSQLAlchemySink(engine, items), ledger)


class PostgreSQLSource:
    """The same tables in a PostgreSQL database, written through SQLAlchemy."""

    def __init__(self, place: str) -> None:
        import sqlalchemy as sa

        self._url = place
        self._sa = sa
        self._engine = sa.create_engine(place)
        columns = (sa.Column("id", sa.Text, primary_key=True), sa.Column("value", sa.Text))
        self._items = sa.Table("items", sa.MetaData(), *columns)

    @classmethod
    def made(cls, url: str) -> Self:
        """Drops what another run left there."""
        source = cls(url)
        with source._engine.begin() as connection:
            for sql in (
                "DROP TABLE IF EXISTS items, deliveries, cachekit_fence",
                "CREATE TABLE items (id TEXT PRIMARY KEY, value TEXT NOT NULL)",
                "CREATE TABLE deliveries (seq BIGSERIAL PRIMARY KEY, lane TEXT, epoch BIGINT, "
                "key TEXT, version BIGINT, value TEXT, pid INTEGER)",
            ):
                connection.exec_driver_sql(sql)
        return source

    @property
    def spec(self) -> tuple[str, str]:
        return ("postgresql", self._url)

    def sink(self, doom: Doom) -> RecordedSink:
        ledger = Ledger(doom)
        marks = f"({', '.join(['%s'] * len(COLUMNS))})"
        insert = f"INSERT INTO deliveries ({', '.join(COLUMNS)}) VALUES "

        def record(connection: Any) -> None:
            if not ledger.ops:
                return
            doom.reach("written")
            lines = ledger.lines()
            values = tuple(value for line in lines for value in line)
            connection.exec_driver_sql(insert + ", ".join([marks] * len(lines)), values)
            doom.reach("sink")

        self._sa.event.listen(self._engine, "commit", record)
        sink = SQLAlchemySink(self._engine, self._items, idle_limit=IDLE_LIMIT)
        return RecordedSink(sink, ledger)

    def load(self, id: str) -> dict[str, str] | None:
        found = self._ask("SELECT value FROM items WHERE id = :id", id=id)
        return {"value": found[0][0]} if found else None

    def rows(self) -> dict[str, str]:
        return {id: value for id, value in self._ask("SELECT id, value FROM items")}

    def deliveries(self) -> list[Delivery]:
        names = ", ".join(COLUMNS[:5])
        found = self._ask(f"SELECT {names} FROM deliveries ORDER BY seq")
        return [Delivery(*row) for row in found]

    def _ask(self, sql: str, **values: Any) -> list[Any]:
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(self._sa.text(sql), values)]


def source_of(spec: Sequence[str]) -> Any:
    kind, place = spec
    kinds = {
        "sqlite": SQLiteSource,
        "sqlite-async": AsyncSQLiteSource,
        "postgresql": PostgreSQLSource,
    }
    return kinds[kind](place)
