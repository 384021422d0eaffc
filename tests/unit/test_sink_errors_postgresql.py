"""What a real PostgreSQL says of an outage and of a row, through psycopg and SQLAlchemy."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sink_sources import LANE, Cluster, at, postgresql_cluster, put

from cachekit.core.ops import Op
from cachekit.sinks import AsyncSQLAlchemySink, DBAPISink, SQLAlchemySink
from cachekit.strategies.answers import is_outage

psycopg = pytest.importorskip("psycopg")
sa = pytest.importorskip("sqlalchemy")
aio = pytest.importorskip("sqlalchemy.ext.asyncio")

ITEMS = sa.Table(
    "items",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("name", sa.Text),
)
OPTIONS = "-c lock_timeout=200ms -c statement_timeout=5s"
TRIGGER = """
CREATE OR REPLACE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.name LIKE 'bad%' THEN
        RAISE EXCEPTION 'unfit' USING ERRCODE = substr(new.name, 5);
    END IF;
    RETURN new;
END $$;
CREATE TRIGGER look BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION look()
"""


class Shop:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.opened: list[Any] = []
        self.ends: list[Callable[[], Any]] = []
        self.own = cluster.connect(autocommit=True)
        self.own.execute("DROP TABLE IF EXISTS items, cachekit_fence")
        self.own.execute("CREATE TABLE items (id BIGINT PRIMARY KEY, name TEXT)")

    def connect(self) -> Any:
        self.opened.append(self.cluster.connect(options=OPTIONS))
        return self.opened[-1]

    def ids(self) -> list[int]:
        return [id for (id,) in self.own.execute("SELECT id FROM items ORDER BY id")]

    def writer(self, way: str) -> Callable[[Sequence[Op]], Any]:
        """The same sink at each call, which has met its source."""
        if way == "dbapi":
            plain = DBAPISink(self.connect, table="items")
            self.ends.append(plain.close)
            plain.last_epoch(LANE)
            return plain.write_many
        if way == "sqlalchemy":
            engine = sa.create_engine(self.cluster.url, creator=self.connect)
            self.ends.append(engine.dispose)
            sink = SQLAlchemySink(engine, ITEMS)
            sink.last_epoch(LANE)
            return sink.write_many
        runner = asyncio.Runner()

        async def connect() -> Any:
            options = {"options": OPTIONS}
            self.opened.append(await psycopg.AsyncConnection.connect(self.cluster.dsn, **options))
            return self.opened[-1]

        apart = aio.create_async_engine(self.cluster.url, async_creator=connect)
        ours = AsyncSQLAlchemySink(apart, ITEMS)
        self.ends += [runner.close, lambda: runner.run(apart.dispose())]
        runner.run(ours.last_epoch(LANE))
        return lambda ops: runner.run(ours.write_many(ops))

    def close(self) -> None:
        while self.ends:
            self.ends.pop()()
        self.own.close()


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop(postgresql_cluster())
    yield shop
    shop.close()


WAYS = pytest.mark.parametrize("way", ["dbapi", "sqlalchemy", "async"])


@WAYS
def test_a_lock_that_is_not_free_in_time_parks_nothing_and_costs_no_connection(
    shop: Shop, way: str
) -> None:
    write = shop.writer(way)
    write([put(1, {"name": "pen"})])
    opened = len(shop.opened)
    for epoch, table in enumerate(("items", "cachekit_fence"), start=2):
        with shop.cluster.connect() as other:
            other.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
            with pytest.raises(Exception, match="lock timeout") as caught:
                write([put(epoch, {"name": "ink"}, epoch=epoch)])
            assert is_outage(caught.value)
        write([put(epoch, {"name": "ink"}, epoch=epoch)])
    assert shop.ids() == [1, 2, 3]
    assert len(shop.opened) == opened


@WAYS
@pytest.mark.parametrize("state", ["38000", "39000", "2F002", "P0001", "54000", "27000", "22012"])
def test_a_row_that_a_trigger_refuses_is_at_fault_whatever_its_code(
    shop: Shop, way: str, state: str
) -> None:
    """Of some of these psycopg says OperationalError, as of a server that is away."""
    shop.own.execute(TRIGGER)
    write = shop.writer(way)
    opened = len(shop.opened)
    for epoch in (1, 2, 3):
        with pytest.raises(Exception, match="unfit") as caught:
            write(
                [
                    put(1, {"name": "pen"}, epoch=epoch),
                    put(2, {"name": f"bad {state}"}, epoch=epoch),
                ]
            )
        assert not is_outage(caught.value)
    write([put(1, {"name": "pen"}, epoch=4)])
    assert shop.ids() == [1]
    assert len(shop.opened) <= opened + 1


@WAYS
@pytest.mark.parametrize("state", ["53300", "40001", "57014", "XX001", "08006"])
def test_an_outage_in_the_middle_of_a_batch_is_told_as_one(
    shop: Shop, way: str, state: str
) -> None:
    shop.own.execute(TRIGGER)
    write = shop.writer(way)
    with pytest.raises(Exception, match="unfit") as caught:
        write([put(1, {"name": "pen"}), put(2, {"name": f"bad {state}"})])
    assert is_outage(caught.value)
    write(at(2, [put(1, {"name": "pen"})]))
    assert shop.ids() == [1]


@WAYS
@pytest.mark.parametrize("state", ["54000", "23502", "42501", "P0001"])
def test_what_fails_before_the_rows_come_is_no_rows_fault(shop: Shop, way: str, state: str) -> None:
    """A server that takes no transactions more, lest their numbers run out, says 54000, as it
    does of a row that is too large for its index."""
    write = shop.writer(way)
    shop.own.execute(
        "CREATE OR REPLACE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'halted' USING ERRCODE = '{state}'; END $$; "
        "CREATE TRIGGER halt BEFORE INSERT ON cachekit_fence FOR EACH ROW EXECUTE FUNCTION halt()"
    )
    with pytest.raises(ConnectionError, match="halted") as caught:
        write([put(1, {"name": "pen"})])
    assert is_outage(caught.value)
    shop.own.execute("DROP TRIGGER halt ON cachekit_fence")
    write([put(1, {"name": "pen"})])
    assert shop.ids() == [1]


@WAYS
@pytest.mark.parametrize("table", ["items", "cachekit_fence"])
def test_a_table_without_its_key_is_set_up_wrongly(shop: Shop, way: str, table: str) -> None:
    """ON CONFLICT then has nothing to go by, for any row."""
    write = shop.writer(way)
    column = "id" if table == "items" else "lane"
    shop.own.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")
    with pytest.raises(ConnectionError, match="ON CONFLICT") as caught:
        write([put(1, {"name": "pen"})])
    assert is_outage(caught.value)
    shop.own.execute(f"ALTER TABLE {table} ADD PRIMARY KEY ({column})")
    write(at(2, [put(1, {"name": "pen"})]))
    assert shop.ids() == [1]


@WAYS
def test_a_connection_whose_driver_failed_by_itself_is_not_used_again(shop: Shop, way: str) -> None:
    """Half a message may be on its way; a refusal of the server leaves nothing behind."""
    write = shop.writer(way)
    for epoch in (1, 2):
        with pytest.raises(Exception, match="NUL"):
            write(at(epoch, [put(1, {"name": "a\0b"})]))
    opened = len(shop.opened)
    for epoch in (3, 4):
        with pytest.raises(Exception, match="surrogate") as caught:
            write(at(epoch, [put(1, {"name": "\ud800"})]))
        assert not is_outage(caught.value)
    write(at(5, [put(1, {"name": "pen"})]))
    assert len(shop.opened) == opened + 2
    assert shop.ids() == [1]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        type("DatabaseError", (Exception,), {})({"S": "FATAL", "C": "53300"}),
        type("TooManyConnectionsError", (Exception,), {"sqlstate": "53300"})(),
        psycopg.errors.InvalidCatalogName("no such database"),
    ],
    ids=["socket", "pg8000", "asyncpg", "psycopg"],
)
@pytest.mark.parametrize("way", ["dbapi", "sqlalchemy", "async"])
def test_a_server_that_takes_no_connection_parks_nothing(way: str, error: Exception) -> None:
    def connect() -> Any:
        raise error

    async def connect_async() -> Any:
        raise error

    ops = [put(1, {"name": "pen"})]
    with pytest.raises(Exception) as caught:
        if way == "dbapi":
            DBAPISink(connect, table="items").write_many(ops)
        elif way == "sqlalchemy":
            engine = sa.create_engine("postgresql+psycopg://", creator=connect)
            SQLAlchemySink(engine, ITEMS).write_many(ops)
        else:
            apart = aio.create_async_engine("postgresql+psycopg://", async_creator=connect_async)
            asyncio.run(AsyncSQLAlchemySink(apart, ITEMS).write_many(ops))
    assert is_outage(caught.value)


def test_a_full_server_and_one_that_is_gone_park_nothing(shop: Shop, tmp_path: Path) -> None:
    user, limit = "crowded", "ALTER ROLE crowded CONNECTION LIMIT {}"
    shop.own.execute("DROP ROLE IF EXISTS crowded")
    shop.own.execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
    shop.own.execute("CREATE TABLE cachekit_fence (lane TEXT PRIMARY KEY, epoch BIGINT)")
    shop.own.execute("GRANT ALL ON items, cachekit_fence TO crowded")
    try:
        sink = DBAPISink(lambda: shop.cluster.connect(user=user), table="items")
        for _ in range(2):
            with pytest.raises(Exception, match="too many connections") as caught:
                sink.write_many([put(1, {"name": "pen"})])
            assert is_outage(caught.value)
        shop.own.execute(limit.format(-1))
        sink.write_many([put(1, {"name": "pen"})])
        sink.close()
    finally:
        shop.own.execute("DROP OWNED BY crowded")
        shop.own.execute("DROP ROLE crowded")
    assert shop.ids() == [1]
    away = DBAPISink(lambda: psycopg.connect(f"host={tmp_path}"), table="items")
    with pytest.raises(psycopg.OperationalError) as gone:
        away.write_many([put(1, {"name": "pen"})])
    assert is_outage(gone.value)
