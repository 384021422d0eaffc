"""The sinks over a real PostgreSQL: psycopg by itself, and through SQLAlchemy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sink_promises import SinkPromises
from sink_server_promises import WAITING, ServerPromises
from sink_sources import (
    LANE,
    Aside,
    Cluster,
    Hold,
    Shop,
    at,
    gone,
    in_a_child,
    lost,
    postgresql_cluster,
    put,
    until,
)

from cachekit.errors import ConfigurationError, FencedOut
from cachekit.sinks import DBAPISink, SQLAlchemySink, statements

psycopg = pytest.importorskip("psycopg")

OPEN_FENCE = statements.raise_fence('"cachekit_fence"', None).replace(
    "fence.epoch < excluded.epoch", "0 < excluded.epoch"
)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return postgresql_cluster()


class ServerShop(Shop):
    """The same table in PostgreSQL; sinks over psycopg."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.sinks: list[Any] = []
        self.own = cluster.connect(autocommit=True)
        self.execute("DROP TABLE IF EXISTS items, cachekit_fence")
        self.execute("CREATE TABLE items (id BIGINT PRIMARY KEY, name TEXT UNIQUE, stock INT)")

    def sink(self, *, hold: Hold | None = None, **options: Any) -> DBAPISink:
        kind = held(hold) if hold else psycopg.Connection
        connect = options.pop("connect", lambda: kind.connect(self.cluster.dsn))
        self.sinks.append(DBAPISink(connect, **{"table": "items", **options}))
        return self.sinks[-1]

    def unfenced(self) -> DBAPISink:
        sink = self.sink()
        sink._raising = lambda driver: driver.sql(OPEN_FENCE)  # type: ignore[method-assign]
        return sink

    def sink_through(self, act: Callable[[Any], None]) -> DBAPISink:
        def connect() -> Any:
            connection = self.cluster.connect()
            act(connection)
            return connection

        return self.sink(connect=connect)

    def execute(self, sql: str) -> list[Any]:
        done = self.own.execute(sql)
        return done.fetchall() if done.description else []

    def someone_waits(self) -> bool:
        return bool(self.execute(WAITING)[0][0])

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
        self.own.close()


def held(hold: Hold) -> Any:
    class Held(psycopg.Connection):
        def commit(self) -> None:
            if any(self.execute("SELECT txid_current_if_assigned()").fetchone()):
                hold()
            super().commit()

    return Held


@pytest.fixture
def shop(cluster: Cluster):
    shop = ServerShop(cluster)
    yield shop
    shop.close()


class TestPsycopgSink(SinkPromises, ServerPromises):
    pass


class TestSQLAlchemySinkOnPostgreSQL(SinkPromises, ServerPromises):
    @pytest.fixture
    def shop(self, cluster: Cluster):
        event = pytest.importorskip("sqlalchemy").event
        from test_sinks_sqlalchemy import TableShop

        class Engines(TableShop):
            def someone_waits(self) -> bool:
                return bool(self.execute(WAITING)[0][0])

            def sink_through(self, act: Callable[[Any], None]) -> SQLAlchemySink:
                sink = self.sink()
                event.listen(sink._engine, "connect", lambda connection, _: act(connection))
                return sink

        shop = Engines(cluster.url)
        yield shop
        shop.close()

    def test_keys_of_more_deletes_than_a_statement_takes(self, shop: Any) -> None:
        sink = shop.sink()
        sink.write_many([put(n, {"stock": n}) for n in range(1300)])
        sink.write_many(at(2, [gone(n) for n in range(1, 1300)]))
        assert shop.rows() == [(0, None, 0)]

    def test_the_limit_stays_with_the_sinks_own_transactions(self, shop: Any) -> None:
        sink = shop.sink(idle_limit="123s")
        sink.write_many([put(1, {"stock": 1})])
        with sink._engine.connect() as connection:
            query = "SHOW idle_in_transaction_session_timeout"
            assert connection.exec_driver_sql(query).scalar() == "0"

    def test_the_async_face_races_the_plain_one(self, shop: Any) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine
        from test_sinks_sqlalchemy import ITEMS

        from cachekit.sinks import AsyncSQLAlchemySink

        async def work() -> int:
            engine = create_async_engine(shop.url)
            sink = AsyncSQLAlchemySink(engine, ITEMS)
            await sink.write_many([put(1, {"name": "pen", "stock": 1}, epoch=2)])
            shop.sink().write_many([put(1, {"name": "pen", "stock": 2}, epoch=3)])
            with pytest.raises(FencedOut):
                await sink.write_many([put(1, {"name": "pen", "stock": 1}, epoch=2)])
            seen = await sink.last_epoch(LANE)
            await engine.dispose()
            return seen

        assert asyncio.run(work()) == 3
        assert shop.rows() == [(1, "pen", 2)]

    def test_a_child_of_a_fork_leaves_the_parents_connections_alone(self, shop: Any) -> None:
        # The table notes which of the server's processes wrote a row.
        shop.execute("ALTER TABLE items ADD COLUMN by_process INT DEFAULT pg_backend_pid()")
        sink = shop.sink()
        sink.write_many([put(1, {"name": "pen", "stock": 1})])
        in_a_child(lambda: sink.write_many([put(2, {"name": "c"}, lane="c/0")]))
        sink.write_many(at(2, [put(3, {"name": "ink"})]))
        one, child, two = shop.execute("SELECT by_process FROM items ORDER BY id = 3, id")
        assert one == two
        assert child != one

    def test_an_engine_that_commits_every_statement_is_refused(self, shop: Any) -> None:
        from test_sinks_sqlalchemy import ITEMS

        sink = SQLAlchemySink(shop.engine(isolation_level="AUTOCOMMIT"), ITEMS)
        with pytest.raises(ConfigurationError, match="isolation_level"):
            sink.write_many([put(1, {"stock": 1})])
        assert shop.rows() == []


def test_without_a_limit_the_successor_waits_for_the_frozen_writer(shop: ServerShop) -> None:
    hold = Hold()
    frozen = shop.sink(hold=hold, idle_limit=None)
    new = shop.sink(connect=lambda: shop.cluster.connect(options="-c lock_timeout=600ms"))
    new.last_epoch(LANE)
    hold.shut()
    old = Aside(lambda: frozen.write_many([put(1, {"name": "old", "stock": 1}, epoch=4)]))
    hold.wait_for_one()
    with pytest.raises(psycopg.OperationalError, match="lock timeout"):
        new.write_many([put(1, {"name": "new", "stock": 2}, epoch=5)])
    hold.open.set()
    old.result()
    new.write_many([put(1, {"name": "new", "stock": 2}, epoch=6)])
    assert shop.rows() == [(1, "new", 2)]


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_no_isolation_level_lets_a_late_batch_land(shop: ServerShop, level: str) -> None:
    options = f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    hold = Hold()
    holder = shop.sink(hold=hold)
    late = shop.sink(connect=lambda: shop.cluster.connect(options=options))
    late.last_epoch(LANE)
    holder.write_many([put(1, {"name": "first", "stock": 0}, epoch=1)])
    hold.wait_for_one()
    hold.shut()
    new = Aside(lambda: holder.write_many([put(1, {"name": "new", "stock": 2}, epoch=3)]))
    hold.wait_for_one()
    old = Aside(lambda: late.write_many([put(1, {"name": "old", "stock": 1}, epoch=2)]))
    until(shop.someone_waits, 5)
    hold.open.set()
    new.result()
    with pytest.raises((FencedOut, psycopg.errors.SerializationFailure)) as caught:
        old.result()
    assert caught.type is FencedOut or lost(caught.value)
    with pytest.raises(FencedOut):
        late.write_many([put(1, {"name": "old", "stock": 1}, epoch=2)])
    assert shop.rows() == [(1, "new", 2)]


def test_a_connection_that_commits_by_itself_is_brought_to_transactions(shop: ServerShop) -> None:
    sink = shop.sink(connect=lambda: shop.cluster.connect(autocommit=True))
    with pytest.raises(psycopg.errors.UniqueViolation):
        sink.write_many([put(1, {"name": "pen"}), put(2, {"name": "pen"})])
    assert shop.rows() == []
    assert shop.epochs() == {}


def test_a_server_that_is_not_there_is_told_as_a_loss(tmp_path: Any) -> None:
    sink = DBAPISink(lambda: psycopg.connect(f"host={tmp_path} user=postgres"), table="items")
    with pytest.raises(psycopg.OperationalError):
        sink.write_many([put(1, {"stock": 1})])


def test_connections_end_no_other_process_and_are_not_shared_with_it(shop: ServerShop) -> None:
    sink = shop.sink()
    sink.write_many([put(1, {"name": "pen", "stock": 1})])

    def work() -> None:
        sink.write_many([put(2, {"name": "c", "stock": 1}, lane="c/0")])
        sink.close()

    in_a_child(work)
    sink.write_many(at(2, [put(1, {"name": "pen", "stock": 2})]))
    assert shop.rows() == [(1, "pen", 2), (2, "c", 1)]


def test_tables_may_be_in_schemas_and_named_in_any_way(shop: ServerShop) -> None:
    shop.execute('DROP SCHEMA IF EXISTS "My Shop" CASCADE')
    shop.execute('CREATE SCHEMA "My Shop"')
    shop.execute('CREATE TABLE "My Shop"."It%sems" (id INT PRIMARY KEY, "na?%me" TEXT)')
    sink = shop.sink(table="My Shop.It%sems", fence="My Shop.fence")
    sink.write_many([put(1, {"na?%me": "100 %s"}), put(2, {"na?%me": "?"})])
    sink.write_many(at(2, [gone(2)]))
    assert shop.execute('SELECT * FROM "My Shop"."It%sems"') == [(1, "100 %s")]
    assert shop.execute('SELECT * FROM "My Shop".fence') == [(LANE, 2)]


def test_a_role_that_may_only_write_rows_uses_the_fence_that_is_there(shop: ServerShop) -> None:
    shop.execute("DROP ROLE IF EXISTS clerk")
    shop.execute("CREATE ROLE clerk LOGIN")
    shop.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    shop.execute(shop.sink().ddl)
    shop.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON items, cachekit_fence TO clerk")
    try:
        sink = shop.sink(connect=lambda: shop.cluster.connect(user="clerk"))
        sink.write_many([put(1, {"name": "pen", "stock": 1})])
        assert shop.rows() == [(1, "pen", 1)]
    finally:
        shop.execute("DROP OWNED BY clerk")
        shop.execute("DROP ROLE clerk")


def test_batches_wait_for_one_of_sixteen_connections(shop: ServerShop) -> None:
    opened: list[Any] = []
    lock = threading.Lock()

    def connect() -> Any:
        connection = shop.cluster.connect()
        with lock:
            opened.append(connection)
        return connection

    sink = shop.sink(connect=connect)
    sink.last_epoch(LANE)

    def work(number: int) -> Any:
        return sink.write_many([put(number, {"stock": 1}, lane=f"shop/{number}")])

    for thread in [Aside(lambda n=n: work(n)) for n in range(40)]:
        assert thread.result() == {}
    assert len(shop.rows()) == 40
    assert 1 < len(opened) <= 17
