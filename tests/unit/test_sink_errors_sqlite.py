"""SQLite has one code for a table that is missing and for a row that no expression can take."""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sink_sources import Aside, at, gone, put

from cachekit import Cache, Retrying, WriteBack
from cachekit.backends.sqlite_gate import gate
from cachekit.core.ops import Op
from cachekit.sinks import AsyncSQLAlchemySink, DBAPISink, SQLAlchemySink
from cachekit.strategies.answers import is_outage

sa = pytest.importorskip("sqlalchemy")
aio = pytest.importorskip("sqlalchemy.ext.asyncio")

ITEMS = sa.Table(
    "items",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("doc", sa.Text),
)
PICKY = {
    "generated column": [
        "CREATE TABLE items (id INTEGER PRIMARY KEY, doc TEXT, "
        "name TEXT GENERATED ALWAYS AS (json_extract(doc, '$.name')) STORED)"
    ],
    "check": [
        "CREATE TABLE items (id INTEGER PRIMARY KEY, "
        "doc TEXT CHECK (json_extract(doc, '$.name') IS NOT NULL))"
    ],
    "index of an expression": [
        "CREATE TABLE items (id INTEGER PRIMARY KEY, doc TEXT)",
        "CREATE INDEX by_name ON items (json_extract(doc, '$.name'))",
    ],
    "trigger": [
        "CREATE TABLE items (id INTEGER PRIMARY KEY, doc TEXT)",
        "CREATE TABLE seen (name TEXT)",
        "CREATE TRIGGER look AFTER INSERT ON items BEGIN "
        "INSERT INTO seen VALUES (json_extract(new.doc, '$.name')); END",
    ],
    "overflow": [
        "CREATE TABLE items (id INTEGER PRIMARY KEY, doc TEXT, "
        "size INTEGER GENERATED ALWAYS AS (abs(CASE WHEN doc LIKE '%}' THEN 1 "
        "ELSE -9223372036854775807 - 1 END)) STORED)"
    ],
}
GOOD, BAD = '{"name": "pen"}', '{"name": '
WAYS = ["dbapi", "sqlalchemy", "async"]


class Shop:
    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "shop.db")
        self.engines: list[Any] = []

    def execute(self, *statements: str) -> list[Any]:
        connection = sqlite3.connect(self.path)
        try:
            with connection:
                return [connection.execute(sql).fetchall() for sql in statements][-1]
        finally:
            connection.close()

    def ids(self) -> list[int]:
        return [id for (id,) in self.execute("SELECT id FROM items ORDER BY id")]

    def writer(self, way: str) -> Callable[[Sequence[Op]], Any]:
        if way == "dbapi":
            return DBAPISink(self.path, table="items").write_many
        if way == "sqlalchemy":
            self.engines.append(sa.create_engine(f"sqlite:///{self.path}"))
            return SQLAlchemySink(self.engines[-1], ITEMS).write_many
        pytest.importorskip("aiosqlite")

        async def write(ops: Sequence[Op]) -> Any:
            engine = aio.create_async_engine(f"sqlite+aiosqlite:///{self.path}")
            try:
                return await AsyncSQLAlchemySink(engine, ITEMS).write_many(ops)
            finally:
                await engine.dispose()

        return lambda ops: asyncio.run(write(ops))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    for engine in shop.engines:
        engine.dispose()


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("picky", PICKY.values(), ids=PICKY)
def test_a_row_whose_expression_fails_is_at_fault(
    shop: Shop, picky: list[str], way: str, count: int
) -> None:
    shop.execute(*picky)
    write = shop.writer(way)
    docs = [GOOD] * (count - 1) + [BAD]
    with pytest.raises(ValueError, match=r"malformed JSON|integer overflow") as caught:
        write([put(id, {"doc": doc}) for id, doc in enumerate(docs)])
    assert not is_outage(caught.value)
    assert type(caught.value.__cause__).__name__ == "OperationalError"
    assert shop.ids() == []
    write(at(2, [put(id, {"doc": GOOD}) for id in range(count)]))
    assert len(shop.ids()) == count


@pytest.mark.parametrize("way", WAYS)
def test_a_delete_that_a_trigger_fails_for_is_at_fault_too(shop: Shop, way: str) -> None:
    shop.execute(
        "CREATE TABLE items (id INTEGER PRIMARY KEY, doc TEXT)",
        "CREATE TABLE seen (name TEXT)",
        "CREATE TRIGGER look BEFORE DELETE ON items BEGIN "
        "INSERT INTO seen VALUES (json_extract(old.doc, '$.name')); END",
    )
    write = shop.writer(way)
    write([put(1, {"doc": BAD}), put(2, {"doc": GOOD})])
    with pytest.raises(ValueError, match="malformed JSON"):
        write([gone(1, epoch=2), gone(2, epoch=2)])
    write([gone(2, epoch=3)])
    assert shop.ids() == [1]


@pytest.mark.parametrize("way", WAYS)
def test_a_statement_that_can_not_be_compiled_is_the_sources_fault(shop: Shop, way: str) -> None:
    made = "CREATE TABLE items (id INTEGER PRIMARY KEY, doc TEXT)"
    shop.execute(made)
    write = shop.writer(way)
    write([put(1, {"doc": GOOD})])
    trigger = "CREATE TRIGGER look AFTER INSERT ON items BEGIN INSERT INTO {}; END"
    for epoch, (before, after) in enumerate(
        [
            ("ALTER TABLE items RENAME TO moved", "ALTER TABLE moved RENAME TO items"),
            (
                "ALTER TABLE items RENAME COLUMN doc TO text",
                "ALTER TABLE items RENAME COLUMN text TO doc",
            ),
            (trigger.format("seen VALUES (json_extract(new.doc, '$'))"), "DROP TRIGGER look"),
            (trigger.format("items (nope) VALUES (1)"), "DROP TRIGGER look"),
            (trigger.format("items (doc) VALUES (unheard(new.doc))"), "DROP TRIGGER look"),
        ],
        start=2,
    ):
        shop.execute(before)
        for doc in (GOOD, BAD):
            with pytest.raises(Exception, match=r"no such|no column") as caught:
                write(at(epoch, [put(1, {"doc": doc}), put(2, {"doc": doc})]))
            assert is_outage(caught.value), before
        shop.execute(after)
    write(at(99, [put(2, {"doc": GOOD})]))
    assert shop.ids() == [1, 2]


def test_each_refusal_is_looked_at_anew(shop: Shop) -> None:
    """The same statement fails for its row first, then since its table has gone."""
    shop.execute(*PICKY["check"])
    sink = DBAPISink(shop.path, table="items")
    with pytest.raises(ValueError, match="malformed"):
        sink.write_many([put(1, {"doc": BAD})])
    shop.execute("ALTER TABLE items RENAME TO moved")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        sink.write_many(at(2, [put(1, {"doc": BAD})]))
    shop.execute("ALTER TABLE moved RENAME TO items")
    with pytest.raises(ValueError, match="malformed"):
        sink.write_many(at(3, [put(1, {"doc": BAD})]))


def test_a_function_of_ones_own_that_raises_is_the_rows_fault(shop: Shop) -> None:
    shop.execute(
        "CREATE TABLE items (id INTEGER PRIMARY KEY, doc TEXT)",
        "CREATE TRIGGER look AFTER INSERT ON items BEGIN SELECT fit(new.doc); END",
    )

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(shop.path, check_same_thread=False)
        connection.create_function("fit", 1, len)  # of a None raises
        return connection

    sink = DBAPISink(connect, table="items")
    with pytest.raises(ValueError, match="function"):
        sink.write_many([put(1, {"doc": None})])
    sink.write_many(at(2, [put(1, {"doc": GOOD})]))
    assert shop.ids() == [1]


@pytest.mark.parametrize("way", ["dbapi", "sqlalchemy"])
def test_the_row_is_parked_and_all_others_land(shop: Shop, way: str, tmp_path: Path) -> None:
    shop.execute(*PICKY["generated column"])
    with Cache() as cache:
        book = WriteBack(
            cache,
            key="item:{id}",
            load=lambda id: None,
            sink=shop.writer(way),
            log="memory",
            batch=20,
            retry=Retrying(attempts=2, base=0.01, cap=0.02),
        )
        book.put_many({id: {"doc": BAD if id == 5 else GOOD} for id in range(100)})
        flushed = book.flush(30)
        assert (flushed.applied, flushed.parked, flushed.left) == (99, 1, 0)
        assert "malformed JSON" in flushed.errors[0]
    assert shop.ids() == [id for id in range(100) if id != 5]


# -- how a sink connects ------------------------------------------------------------------


def in_a_forked_child(look: Callable[[], bool]) -> bool:
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if look() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_source_that_hangs_at_connect_is_in_no_forks_way() -> None:
    began, over = threading.Event(), threading.Event()

    def connect() -> Any:
        began.set()
        assert over.wait(30)
        raise ConnectionRefusedError

    sink = DBAPISink(connect, table="items")
    hanging = Aside(lambda: sink.write_many([put(1, {"doc": GOOD})]))
    assert began.wait(10)
    try:
        assert in_a_forked_child(lambda: not gate.cut)
    finally:
        over.set()
    with pytest.raises(ConnectionRefusedError):
        hanging.result()


@pytest.mark.parametrize("known", ["path", "partial", "used before"])
def test_one_that_is_known_to_be_sqlite_is_opened_within_the_gate(shop: Shop, known: str) -> None:
    """What a child inherits half-opened would have locks that it does not know of."""
    shop.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, doc TEXT)")
    inside: list[bool] = []

    class Watched(sqlite3.Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            inside.append(bool(gate._inside))
            super().__init__(*args, **options)

    connect: Any = functools.partial(
        sqlite3.connect, shop.path, check_same_thread=False, factory=Watched
    )
    if known == "path":
        assert DBAPISink(shop.path, table="items")._gated() is gate
        return
    sink = DBAPISink(connect if known == "partial" else lambda: connect(), table="items")
    sink.last_epoch("shop/0")
    sink.close()
    sink.last_epoch("shop/0")
    assert inside == [known == "partial", True, True][: len(inside)]
    assert len(inside) >= 2


def test_the_first_look_at_a_sqlite_file_is_within_the_gate(shop: Shop) -> None:
    shop.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, doc TEXT)")
    inside: list[bool] = []

    class Watched(sqlite3.Connection):
        def cursor(self, *args: Any, **options: Any) -> sqlite3.Cursor:
            inside.append(bool(gate._inside))
            return super().cursor(*args, **options)

        def close(self) -> None:
            inside.append(bool(gate._inside))
            super().close()

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(shop.path, check_same_thread=False, factory=Watched)

    DBAPISink(connect, table="items").write_many([put(1, {"doc": GOOD})])
    assert len(inside) > 3
    assert all(inside)


@pytest.mark.parametrize("error", [KeyError("DSN"), FileNotFoundError(2, "No", "pw"), OSError()])
def test_what_keeps_a_sink_from_connecting_parks_nothing(shop: Shop, error: Exception) -> None:
    shop.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, doc TEXT)")
    broken = [error] * 2

    def connect() -> sqlite3.Connection:
        if broken:
            raise broken.pop()
        return sqlite3.connect(shop.path, check_same_thread=False)

    sink = DBAPISink(connect, table="items")
    for _ in range(2):
        with pytest.raises(ConnectionError) as caught:
            sink.write_many([put(1, {"doc": GOOD})])
        assert caught.value.__cause__ is error
    sink.last_epoch("shop/0")
    sink.close()
    broken.append(error)
    with pytest.raises(ConnectionError):
        sink.write_many([put(1, {"doc": GOOD})])
    sink.write_many([put(1, {"doc": GOOD})])
    assert shop.ids() == [1]
