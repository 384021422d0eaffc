"""The SQLAlchemy sinks over real SQLite files, plain and async."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sink_promises import SinkPromises
from sink_sources import LANE, Hold, Shop, at, gone, put

from cachekit.errors import ConfigurationError, FencedOut
from cachekit.sinks import AsyncSQLAlchemySink, SQLAlchemySink

sa = pytest.importorskip("sqlalchemy")
orm = pytest.importorskip("sqlalchemy.orm")
aio = pytest.importorskip("sqlalchemy.ext.asyncio")

METADATA = sa.MetaData()
ITEMS = sa.Table(
    "items",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("name", sa.Text, unique=True),
    sa.Column("stock", sa.Integer),
)


def open_its_fence(sink: Any) -> Any:
    made = sink._insert(sink._fence).values(lane=sa.bindparam("lane"), epoch=sa.bindparam("epoch"))
    made = made.on_conflict_do_update(
        index_elements=["lane"], set_={"epoch": made.excluded.epoch}
    ).inline()
    sink._raising = made if "sqlite" in str(sink._engine.url) else made.returning(made.table.c.lane)
    return sink


class TableShop(Shop):
    """Any database that SQLAlchemy reaches by a URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engines: list[Any] = []
        self.plain = self.engine()
        for name in ("items", "cachekit_fence"):
            self.execute(f"DROP TABLE IF EXISTS {name}")
        METADATA.create_all(self.plain)

    def engine(self, **options: Any) -> Any:
        self.engines.append(sa.create_engine(self.url, **options))
        return self.engines[-1]

    def sink(self, *, hold: Hold | None = None, **options: Any) -> SQLAlchemySink:
        engine = self.engine()
        if hold is not None:
            sa.event.listen(engine, "do_execute", writing)
            sa.event.listen(engine, "do_executemany", writing)
            sa.event.listen(engine, "commit", lambda c: c.info.pop("wrote", False) and hold())
        return SQLAlchemySink(engine, ITEMS, **options)

    def unfenced(self) -> Any:
        return open_its_fence(self.sink())

    def execute(self, sql: str) -> list[Any]:
        with self.plain.begin() as connection:
            done = connection.execute(sa.text(sql))
            return [tuple(row) for row in done] if done.returns_rows else []

    def close(self) -> None:
        for engine in self.engines:
            engine.dispose()


def writing(cursor: Any, statement: str, parameters: Any, context: Any) -> None:
    if statement.lstrip().startswith("INSERT"):
        context.root_connection.info["wrote"] = True


@pytest.fixture
def shop(tmp_path: Path):
    shop = TableShop(f"sqlite:///{tmp_path / 'shop.db'}")
    shop.execute("PRAGMA journal_mode = WAL")
    yield shop
    shop.close()


class TestSQLAlchemySink(SinkPromises):
    pass


class Base(orm.DeclarativeBase):  # type: ignore[misc,name-defined]  # sqlalchemy may be absent
    pass


class Book(Base):
    __tablename__ = "book"
    number = orm.mapped_column("no", sa.Integer, primary_key=True)
    facts = orm.mapped_column("f", sa.JSON)
    seen = orm.mapped_column(sa.DateTime, server_default=sa.func.current_timestamp())


def test_a_mapped_class_is_written_by_its_own_names_and_types(shop: TableShop) -> None:
    Base.metadata.create_all(shop.plain)
    sink = SQLAlchemySink(shop.plain, Book, key=Book.number, columns=[Book.facts])
    sink.write_many([put(1, {"facts": {"a": [1]}}), put(2, {"facts": None})])
    assert SQLAlchemySink(shop.plain, Book).write_many(at(9, [put(3, {"f": 1})])).keys() == {3}
    sink = SQLAlchemySink(shop.plain, Book.__table__, fence="fence_2")
    sink.write_many([put(1, {"f": {"a": [3]}})])
    assert shop.execute("SELECT f FROM book WHERE no = 1") == [('{"a": [3]}',)]
    sink = SQLAlchemySink(shop.plain, Book)
    sink.write_many(at(10, [put(1, {"facts": {"a": [2]}}), gone(2)]))
    with orm.Session(shop.plain) as session:
        books = session.scalars(sa.select(Book)).all()
    assert [(b.number, b.facts) for b in books] == [(1, {"a": [2]})]
    assert books[0].seen is not None


def test_more_deletes_than_a_statement_takes(shop: TableShop) -> None:
    sink = shop.sink()
    sink.write_many([put(n, {"stock": n}) for n in range(1300)])
    sink.write_many(at(2, [gone(n) for n in range(1, 1300)]))
    assert shop.rows() == [(0, None, 0)]


def test_an_engine_that_commits_every_statement_is_refused(shop: TableShop) -> None:
    engine = shop.engine(isolation_level="AUTOCOMMIT")
    sink = SQLAlchemySink(engine, ITEMS)
    for use in (lambda: sink.last_epoch(LANE), lambda: sink.write_many([put(1, {"stock": 1})])):
        with pytest.raises(ConfigurationError, match="isolation_level"):
            use()
    assert shop.rows() == []


def test_an_engine_that_begins_its_transactions_itself_is_taken(shop: TableShop) -> None:
    engine = shop.engine()

    @sa.event.listens_for(engine, "connect")
    def by_hand(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sink = SQLAlchemySink(engine, ITEMS)
    sink.write_many([put(1, {"name": "pen", "stock": 1})])
    with pytest.raises(FencedOut):
        sink.write_many([gone(1)])
    assert shop.rows() == [(1, "pen", 1)]


def test_a_locked_file_is_told_as_a_loss(shop: TableShop, tmp_path: Path) -> None:
    sink = SQLAlchemySink(shop.engine(connect_args={"timeout": 0.05}), ITEMS)
    sink.last_epoch(LANE)
    other = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sa.exc.OperationalError, match="locked"):
        sink.write_many([put(1, {"stock": 1})])
    other.close()
    sink.write_many(at(2, [put(1, {"stock": 1})]))


def test_no_connection_crosses_a_fork(shop: TableShop) -> None:
    engine = shop.engine()
    sink = SQLAlchemySink(engine, ITEMS)
    sink.write_many([put(1, {"name": "pen", "stock": 0})])
    assert engine.pool.checkedin() == 1
    shop.plain.dispose()
    child = os.fork()
    if not child:
        status = 1
        try:
            for epoch in range(1, 40):
                sink.write_many([put(2, {"name": "c", "stock": epoch}, epoch=epoch, lane="c/0")])
            status = 0
        finally:
            os._exit(status)
    assert engine.pool.checkedin() == 0  # closed before the fork
    for epoch in range(2, 40):
        sink.write_many(at(epoch, [put(1, {"name": "pen", "stock": epoch})]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shop.rows() == [(1, "pen", 39), (2, "c", 39)]
    assert shop.execute("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///file::memory:?uri=true"])
def test_a_fork_leaves_a_database_in_memory_alone(url: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.pool.StaticPool)
    METADATA.create_all(engine)
    sink = SQLAlchemySink(engine, ITEMS)
    sink.write_many([put(1, {"stock": 1})])
    child = os.fork()
    if not child:
        status = 1
        try:
            sink.write_many(at(2, [put(2, {"stock": 2})]))
            with engine.connect() as connection:
                status = len(connection.execute(sa.select(ITEMS)).all())
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert sink.last_epoch(LANE) == 1
    engine.dispose()


def test_the_async_sink_keeps_the_same(shop: TableShop) -> None:
    pytest.importorskip("aiosqlite")

    async def work() -> None:
        engine = aio.create_async_engine(shop.url.replace("sqlite:", "sqlite+aiosqlite:"))
        sink = AsyncSQLAlchemySink(engine, ITEMS)
        assert await sink.last_epoch(LANE) == 0
        assert not await sink.write_many([put(1, {"name": "pen", "stock": 1}), put(2, {})])
        assert (await sink.write_many(at(2, [put(3, {"colour": "red"}), gone(2)]))).keys() == {3}
        with pytest.raises(FencedOut):
            await sink.write_many([gone(1)])
        with pytest.raises(sa.exc.IntegrityError):
            await sink.write_many(at(3, [put(4, {"name": "pen"}), gone(1)][:1]))
        assert await sink.last_epoch(LANE) == 2
        await engine.dispose()
        bare = aio.create_async_engine(str(engine.url), isolation_level="AUTOCOMMIT")
        with pytest.raises(ConfigurationError):
            await AsyncSQLAlchemySink(bare, ITEMS).last_epoch(LANE)
        await bare.dispose()

    asyncio.run(work())
    assert shop.rows() == [(1, "pen", 1)]


TWO = sa.Table(
    "two",
    sa.MetaData(),
    sa.Column("a", sa.Integer, primary_key=True),
    sa.Column("b", sa.Integer, primary_key=True),
)


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (TWO, {}),
        (ITEMS, {"key": "nope"}),
        (ITEMS, {"key": 5}),
        (ITEMS, {"columns": ["nope"]}),
        (ITEMS, {"columns": "name"}),
        (ITEMS, {"to_row": 5}),
        (ITEMS, {"idle_limit": -1}),
        ("items", {}),
    ],
    ids=["composite", "key", "key-type", "column", "columns", "to_row", "limit", "table"],
)
def test_what_can_not_be_is_refused_at_birth(table: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SQLAlchemySink(sa.create_engine("sqlite://"), table, **options)


def test_an_engine_of_another_kind_is_refused_at_birth() -> None:
    class Dialect:
        name = "oracle"

    class Engine:
        dialect = Dialect()

    plain = sa.create_engine("sqlite://")
    for sink, engine in [
        (SQLAlchemySink, Engine()),
        (SQLAlchemySink, "sqlite://"),
        (SQLAlchemySink, aio.create_async_engine("sqlite+aiosqlite://")),
        (AsyncSQLAlchemySink, plain),
    ]:
        with pytest.raises(ConfigurationError):
            sink(engine, ITEMS)
