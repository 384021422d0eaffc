"""The DB-API sink over real SQLite files."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sink_promises import SinkPromises
from sink_sources import LANE, Aside, Hold, Shop, at, gone, put

from cachekit.errors import ConfigurationError, FencedOut
from cachekit.sinks import DBAPISink, statements


class FileShop(Shop):
    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "shop.db")
        self.sinks: list[Any] = []
        self.execute("PRAGMA journal_mode = WAL")
        self.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT UNIQUE, stock INTEGER)")

    def connect(self, **options: Any) -> sqlite3.Connection:
        return sqlite3.connect(self.path, **{"check_same_thread": False, "timeout": 10, **options})

    def sink(self, *, hold: Hold | None = None, **options: Any) -> DBAPISink:
        def connect() -> sqlite3.Connection:
            return self.connect(**({"factory": held(hold)} if hold else {}))

        return DBAPISink(connect, **{"table": "items", **options})

    def unfenced(self) -> DBAPISink:
        sink = self.sink()
        sink._raising = lambda driver: driver.sql(OPEN_FENCE)  # type: ignore[method-assign]
        return sink

    def execute(self, sql: str) -> list[Any]:
        connection = self.connect()
        try:
            with connection:
                return connection.execute(sql).fetchall()
        finally:
            connection.close()


OPEN_FENCE = statements.raise_fence('"cachekit_fence"', None).replace(
    "fence.epoch < excluded.epoch", "0 < excluded.epoch"
)


def held(hold: Hold) -> type[sqlite3.Connection]:
    class Held(sqlite3.Connection):
        def commit(self) -> None:
            if self.total_changes:
                hold()
            super().commit()

    return Held


@pytest.fixture
def shop(tmp_path: Path) -> FileShop:
    return FileShop(tmp_path)


class TestSQLiteSink(SinkPromises):
    pass


def test_a_path_is_opened_where_it_was_named_and_not_before_its_use(
    tmp_path: Path, shop: FileShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.rename(shop.path, shop.path + ".aside")
    sink = DBAPISink("shop.db", table="items")
    assert not os.path.exists(shop.path)
    os.rename(shop.path + ".aside", shop.path)
    monkeypatch.chdir("/")
    sink.write_many([put(1, {"name": "pen", "stock": 1})])
    assert shop.rows() == [(1, "pen", 1)]


@pytest.mark.parametrize("most", [3, 23, 24, 100, 999])
def test_a_file_that_takes_few_values_at_once_gets_few(shop: FileShop, most: int) -> None:
    def connect() -> sqlite3.Connection:
        connection = shop.connect()
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, most)
        return connection

    sink = DBAPISink(connect, table="items")
    ops = [put(id, {"name": f"n{id}", "stock": id}) for id in range(400)]
    assert sink.write_many(ops) == {}
    assert shop.rows() == [(id, f"n{id}", id) for id in range(400)]


def test_two_ids_that_are_one_for_the_table_are_written_in_their_order(shop: FileShop) -> None:
    ops = [put(id, {"stock": id}) for id in range(20)]
    ops[3:3] = [put("7", {"stock": 70})]
    ops.append(put("8", {"stock": 80}))
    assert shop.sink().write_many(ops) == {}
    assert [stock for _, _, stock in shop.rows()] == [*range(8), 80, *range(9, 20)]


@pytest.mark.parametrize("isolation", [None, "", "IMMEDIATE", "EXCLUSIVE"])
def test_the_way_a_connection_was_opened_does_not_break_the_transaction(
    shop: FileShop, isolation: Any
) -> None:
    sink = DBAPISink(lambda: shop.connect(isolation_level=isolation), table="items")
    sink.write_many(at(2, [put(1, {"name": "pen", "stock": 1})]))
    with pytest.raises(FencedOut):
        sink.write_many([gone(1)])
    with pytest.raises(sqlite3.IntegrityError):
        sink.write_many(at(3, [put(2, {"name": "ink"}), put(3, {"name": "pen"})]))
    assert shop.rows() == [(1, "pen", 1)]
    assert sink.last_epoch(LANE) == 2


@pytest.mark.skipif(sys.version_info < (3, 12), reason="connections have no autocommit")
@pytest.mark.parametrize("autocommit", [True, False])
def test_neither_does_the_newer_autocommit(shop: FileShop, autocommit: bool) -> None:
    sink = DBAPISink(lambda: shop.connect(autocommit=autocommit), table="items")
    sink.write_many([put(1, {"name": "pen", "stock": 1})])
    with pytest.raises(sqlite3.IntegrityError):
        sink.write_many(at(3, [put(2, {"name": "ink"}), put(3, {"name": "pen"})]))
    assert shop.rows() == [(1, "pen", 1)]


def test_names_are_taken_as_they_are_spelled(shop: FileShop) -> None:
    shop.execute('CREATE TABLE "od""d ?%s" ("k y" TEXT PRIMARY KEY, "se;lect" TEXT)')
    sink = DBAPISink(shop.path, table='od"d ?%s', key="k y", fence="main.the fence")
    sink.write_many([put("a", {"se;lect": "1"}), put("b", {"se;lect": "2"})])
    sink.write_many(at(2, [gone("a")]))
    assert shop.execute('SELECT * FROM "od""d ?%s"') == [("b", "2")]
    assert shop.execute('SELECT * FROM "the fence"') == [(LANE, 2)]


@pytest.mark.parametrize("options", [{"key": "nope"}, {"columns": ["name", "nope"]}], ids=str)
def test_a_table_without_the_columns_it_must_have_takes_no_batch_yet(
    shop: FileShop, options: Any
) -> None:
    sink = DBAPISink(shop.path, table="items", **options)
    for op in (gone("nope"), put(1, {"name": "pen", "nope": 1})):
        with pytest.raises(ConnectionError, match="nope"):
            sink.write_many([op])
    shop.execute("ALTER TABLE items ADD COLUMN nope INTEGER")
    shop.execute("CREATE UNIQUE INDEX only ON items (nope)")
    sink.write_many([put(1, {"name": "pen", "nope": 1})])
    assert shop.execute("SELECT name, nope FROM items") == [("pen", 1)]


def test_a_key_that_was_renamed_is_not_taken_for_a_text(shop: FileShop) -> None:
    sink = DBAPISink(shop.path, table="items")
    sink.write_many([put(1, {"name": "pen"})])
    shop.execute("ALTER TABLE items RENAME COLUMN id TO number")
    with pytest.raises(sqlite3.OperationalError, match="id"):
        sink.write_many(at(2, [gone(1)]))


def test_a_file_that_is_locked_is_told_as_a_loss_and_the_batch_can_come_again(
    shop: FileShop,
) -> None:
    sink = DBAPISink(lambda: shop.connect(timeout=0.05), table="items")
    sink.last_epoch(LANE)
    other = shop.connect(isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sink.write_many([put(1, {"name": "pen", "stock": 1})])
    other.close()
    sink.write_many(at(2, [put(1, {"name": "pen", "stock": 1})]))
    assert shop.rows() == [(1, "pen", 1)]


def test_a_value_that_the_driver_can_not_store_is_told_as_the_rows_fault(shop: FileShop) -> None:
    for value in ({}, 2**70, "\ud800"):
        with pytest.raises(Exception) as caught:
            DBAPISink(shop.path, table="items").write_many([put(1, {"name": value})])
        names = {cls.__name__ for cls in type(caught.value).__mro__}
        assert not names & {"OperationalError", "InterfaceError"}
    assert shop.rows() == []


def test_a_damaged_file_is_told_as_the_sources_fault(shop: FileShop) -> None:
    sink = DBAPISink(shop.path, table="items")
    sink.write_many([put(1, {"name": "pen"})])
    sink.close()
    Path(shop.path).write_bytes(b"nothing that SQLite wrote" * 400)
    with pytest.raises(ConnectionError, match="not a database"):
        sink.write_many(at(2, [put(1, {"name": "pen"})]))


def test_a_column_added_by_a_migration_is_noticed(shop: FileShop) -> None:
    sink = DBAPISink(shop.path, table="items")
    assert sink.write_many([put(1, {"name": "pen", "colour": "red"})])
    shop.execute("ALTER TABLE items ADD COLUMN colour TEXT")
    assert not sink.write_many(at(2, [put(1, {"name": "pen", "colour": "red"})]))
    assert shop.execute("SELECT colour FROM items") == [("red",)]


def counted(shop: FileShop, **options: Any) -> tuple[list[Any], Callable[[], Any]]:
    opened: list[Any] = []

    def connect() -> sqlite3.Connection:
        opened.append(shop.connect(**options))
        return opened[-1]

    return opened, connect


def is_closed(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return True
    return False


def test_a_connection_serves_many_batches_also_after_refusals(shop: FileShop) -> None:
    opened, connect = counted(shop)
    sink = DBAPISink(connect, table="items")
    for epoch in range(1, 20):
        sink.write_many(at(epoch, [put(1, {"name": "pen", "stock": epoch})]))
        with pytest.raises(FencedOut):
            sink.write_many(at(epoch, [gone(1)]))
        with pytest.raises(sqlite3.IntegrityError):
            sink.write_many(at(epoch + 1, [put(2, {"name": "pen"})]))
    assert len(opened) == 2  # one to look at the table, one to write
    sink.close()
    assert all(is_closed(connection) for connection in opened)
    sink.close()
    sink.write_many(at(99, [gone(1)]))
    assert shop.rows() == []


def test_connections_bound_to_a_thread_serve_one_batch_each_and_say_so(
    shop: FileShop, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[Any] = []

    def connect() -> sqlite3.Connection:
        opened.append(shop.connect(check_same_thread=True))
        return opened[-1]

    sink = DBAPISink(connect, table="items")
    with caplog.at_level(logging.WARNING, "cachekit"):
        for epoch in range(1, 4):
            batch = at(epoch, [put(1, {"name": "pen", "stock": epoch})])
            Aside(lambda batch=batch: sink.write_many(batch)).result()
            with pytest.raises(FencedOut):
                sink.write_many(batch)
    assert shop.rows() == [(1, "pen", 3)]
    assert len(opened) == 7
    assert [r.message.count("check_same_thread=False") for r in caplog.records] == [1]


def test_no_connection_crosses_a_fork(shop: FileShop) -> None:
    opened, connect = counted(shop)
    sink = DBAPISink(connect, table="items")
    sink.write_many([put(1, {"name": "pen", "stock": 0})])
    assert not is_closed(opened[-1])
    child = os.fork()
    if not child:
        status = 1
        try:
            for epoch in range(1, 60):
                sink.write_many([put(2, {"name": "c", "stock": epoch}, epoch=epoch, lane="c/0")])
            status = 0
        finally:
            os._exit(status)
    assert is_closed(opened[1])
    for epoch in range(2, 60):
        sink.write_many(at(epoch, [put(1, {"name": "pen", "stock": epoch})]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shop.rows() == [(1, "pen", 59), (2, "c", 59)]
    assert shop.execute("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize(
    "options",
    [
        {"connect": ":memory:"},
        {"connect": ""},
        {"connect": 5},
        {"connect": "sqlite:///shop.db"},
        {"table": ""},
        {"table": "a..b"},
        {"key": "a\0b"},
        {"columns": "name"},
        {"columns": [""]},
        {"to_row": "name"},
        {"style": "numeric"},
        {"fence": ""},
        {"idle_limit": 0},
        {"idle_limit": "soon"},
    ],
    ids=str,
)
def test_what_can_not_be_is_refused_at_birth(options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"connect": "shop.db", "table": "items", **options}
    with pytest.raises(ConfigurationError):
        DBAPISink(given.pop("connect"), **given)


def test_a_driver_that_does_not_tell_its_style_must_be_told(shop: FileShop) -> None:
    class Foreign:
        def __init__(self) -> None:
            self._real = shop.connect()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    with pytest.raises(ConfigurationError, match="style"):
        DBAPISink(Foreign, table="items").write_many([gone(1)])
    sink = DBAPISink(Foreign, table="items", style="qmark")
    sink.write_many([put(1, {"name": "pen", "stock": 1})])
    with pytest.raises(FencedOut):
        sink.write_many([gone(1)])
    assert shop.rows() == [(1, "pen", 1)]
