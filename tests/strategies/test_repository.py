"""Repositories over any object that loads and saves records."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from stage import PLACES, Opener, Stage, opener_for

import cachekit
from cachekit import AsyncRepository, CacheAside, ReadThrough, Repository, WriteBack, WriteThrough
from cachekit.errors import ConfigurationError


@dataclass
class Order:
    id: int | None
    item: str
    shop: str = "north"


class Orders:
    """A table with the method names a repository finds by itself."""

    currency = "EUR"

    def __init__(self) -> None:
        self.rows: dict[int, Order] = {}
        self.calls: list[str] = []

    def load(self, id: int) -> Order | None:
        self.calls.append(f"load {id}")
        return self.rows.get(id)

    def load_many(self, ids: Iterable[int]) -> list[Order]:
        ids = list(ids)
        self.calls.append(f"load_many {ids}")
        return [self.rows[id] for id in ids if id in self.rows]

    def save(self, order: Order) -> str:
        self.calls.append(f"save {order.id}")
        if order.id is None:
            order.id = max(self.rows, default=0) + 1
        self.rows[order.id] = replace(order)
        return "saved"

    def save_many(self, orders: list[Order]) -> None:
        self.calls.append(f"save_many {[order.id for order in orders]}")
        for order in orders:
            assert order.id is not None
            self.rows[order.id] = replace(order)

    def delete(self, id: int) -> bool:
        self.calls.append(f"delete {id}")
        return self.rows.pop(id, None) is not None

    def total(self, shop: str) -> int:
        return sum(1 for order in self.rows.values() if order.shop == shop)


class AsyncOrders:
    """The same with coroutine methods."""

    def __init__(self) -> None:
        self.inner = Orders()

    async def load(self, id: int) -> Order | None:
        return self.inner.load(id)

    async def load_many(self, ids: Iterable[int]) -> list[Order]:
        return self.inner.load_many(ids)

    async def save(self, order: Order) -> str:
        return self.inner.save(order)

    async def save_many(self, orders: list[Order]) -> None:
        self.inner.save_many(orders)

    async def delete(self, id: int) -> bool:
        return self.inner.delete(id)

    async def total(self, shop: str) -> int:
        return self.inner.total(shop)


def _both(stage: Stage, **options: Any) -> tuple[Any, Orders, Any]:
    """A repository of this world, its table, and its verbs, awaitable."""
    cache = stage.open()
    if stage.plain:
        orders = Orders()
        repo = cache.repository(orders, ttl=60, **options)
        assert isinstance(repo, Repository)
        return repo, orders, stage.face(repo)
    source = AsyncOrders()
    repo = cache.repository(source, ttl=60, **options)
    assert isinstance(repo, AsyncRepository)
    return repo, source.inner, repo


every_strategy = pytest.mark.parametrize(
    "strategy",
    [None, CacheAside, WriteThrough, ReadThrough, WriteBack(log="memory", delay=0.01)],
    ids=["default", "cache-aside", "write-through", "read-through", "write-back"],
)


@every_strategy
def test_records_are_loaded_once_and_saved_through(stage: Stage, strategy: Any) -> None:
    _, orders, repo = _both(stage, strategy=strategy)
    orders.rows[1] = Order(1, "book")

    async def body() -> None:
        assert [await repo.get(1), await repo.get(1)] == [Order(1, "book")] * 2
        assert orders.calls == ["load 1"]
        assert await repo.get(2) is None
        assert await repo.get(2, "none") == "none"
        assert orders.calls == ["load 1", "load 2"]
        await repo.save(Order(1, "pen"))
        assert await repo.get(1) == Order(1, "pen")
        await repo.save(Order(2, "ink"))
        assert await repo.get_many([1, 2, 3]) == {1: Order(1, "pen"), 2: Order(2, "ink")}
        assert (await repo.flush(5)).complete
        assert orders.rows == {1: Order(1, "pen"), 2: Order(2, "ink")}
        await repo.delete(1)
        assert await repo.get(1) is None
        await repo.save_many([Order(3, "a"), Order(4, "b")])
        assert set(await repo.get_many([1, 2, 3, 4])) == {2, 3, 4}
        assert (await repo.close(5)).complete
        assert set(orders.rows) == {2, 3, 4}

    stage.play(body)


def test_what_the_sources_methods_return_is_given_back(stage: Stage) -> None:
    _, _, repo = _both(stage)

    async def body() -> None:
        assert await repo.save(Order(1, "a")) == "saved"
        assert await repo.delete(1) is True
        assert await repo.delete(1) is False

    stage.play(body)


def test_many_records_are_loaded_by_one_call(stage: Stage) -> None:
    _, orders, repo = _both(stage)
    orders.rows = {n: Order(n, "x") for n in (1, 2, 3)}

    async def body() -> None:
        await repo.get(2)
        orders.calls.clear()
        assert set(await repo.get_many([1, 2, 3, 4])) == {1, 2, 3}
        assert orders.calls == ["load_many [1, 3, 4]"]
        await repo.invalidate(1, 2)
        orders.calls.clear()
        assert set(await repo.get_many([1, 2, 3])) == {1, 2, 3}
        assert orders.calls == ["load_many [1, 2]"]

    stage.play(body)


def test_all_other_methods_and_attributes_are_the_sources_own(stage: Stage) -> None:
    repo, orders, _ = _both(stage)
    orders.rows[1] = Order(1, "a", "south")

    async def body() -> None:
        total = repo.total("south")
        assert (total if stage.plain else await total) == 1

    stage.play(body)
    if stage.plain:
        assert repo.currency == "EUR"
        assert repo.rows is orders.rows
    with pytest.raises(AttributeError, match="nonsense"):
        _ = repo.nonsense
    assert "Orders" in repr(repo)


@pytest.mark.parametrize("invalidates", [(), ["orders"], ["shop:{value.shop}"]])
def test_a_record_without_an_id_is_saved_uncached_and_known_afterwards(
    stage: Stage, invalidates: list[str]
) -> None:
    repo_, _, repo = _both(stage, invalidates=invalidates)
    cache = stage.open.caches[0]

    async def body() -> None:
        plain = stage.face(cache)
        assert await repo.get(1) is None  # cached as absent: the save must undo that
        for tag in ("orders", "shop:north"):
            await plain.set(f"list of {tag}", "cached", tags=[tag])
        order = Order(None, "book")
        assert await repo.save(order) == "saved"
        assert await repo.get(1) == Order(1, "book")
        for tag in ("orders", "shop:north"):
            dropped = any(tag.split(":")[0] in t for t in invalidates)
            assert await plain.get(f"list of {tag}") == (None if dropped else "cached")

    stage.play(body)
    assert repo_.strategy is not None


def test_save_many_takes_records_with_and_without_ids(stage: Stage) -> None:
    _, orders, repo = _both(stage)

    async def body() -> None:
        await repo.save_many([Order(5, "known"), Order(None, "new")])
        assert {order.item for order in orders.rows.values()} == {"known", "new"}

    stage.play(body)


def test_the_id_may_be_a_mapping_key_or_a_function() -> None:
    class Rows:
        def __init__(self) -> None:
            self.rows: dict[str, dict[str, str]] = {}

        def get(self, id: str) -> dict[str, str] | None:
            return self.rows.get(id)

        def put(self, row: dict[str, str]) -> None:
            self.rows[f"{row['land']}-{row['no']}"] = row

    with cachekit.Cache() as cache:
        rows = Rows()
        repo = cache.repository(rows, id=lambda row: f"{row['land']}-{row['no']}")
        repo.save({"land": "de", "no": "1"})
        assert repo.get("de-1") == {"land": "de", "no": "1"}
        by_key = cache.repository(Rows(), id="no", key="row:{id}")
        by_key.save({"land": "at", "no": "7"})
        assert by_key.strategy.key("7") == "row:'7'"
        assert by_key.get("7") == {"land": "at", "no": "7"} or by_key.get("at-7") is not None


def test_method_names_can_be_given_and_a_wrong_one_is_refused() -> None:
    class Users:
        def by_id(self, id: int) -> str:
            return f"user {id}"

        def write(self, user: str) -> None:
            raise AssertionError

    with cachekit.Cache() as cache:
        assert cache.repository(Users(), load="by_id", save="write").get(1) == "user 1"
        with pytest.raises(ConfigurationError, match="nope"):
            cache.repository(Users(), load="nope")
        with pytest.raises(ConfigurationError, match="load"):
            cache.repository(Users())
        with pytest.raises(ConfigurationError, match="save"):
            cache.repository(Users(), load="by_id").save(Order(None, "x"))
        with pytest.raises(ConfigurationError, match="delete"):
            cache.repository(Users(), load="by_id").delete(1)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_exception_may_mean_that_there_is_none(asynchronous: bool) -> None:
    loads: list[int] = []

    class Plain:
        def get(self, id: int) -> str:
            loads.append(id)
            return {1: "one"}[id]

    class Async:
        async def get(self, id: int) -> str:
            return Plain().get(id)

    with cachekit.Cache() as cache:
        repo = cache.repository(Async() if asynchronous else Plain(), absent=(KeyError,))

        def get(id: int) -> Any:
            found = repo.get(id)
            return asyncio.run(found) if asynchronous else found  # type: ignore[arg-type]

        assert [get(1), get(2), get(2)] == ["one", None, None]
        assert loads == [1, 2]
        strict = cache.repository(Plain(), key="strict:{id}")
        for _ in range(2):
            with pytest.raises(KeyError):
                strict.get(2)
        assert loads == [1, 2, 2, 2]


def test_many_may_come_as_a_mapping() -> None:
    class Rows:
        def get_many(self, ids: list[int]) -> dict[int, str]:
            return {id: f"row {id}" for id in ids if id < 3}

    with cachekit.Cache() as cache:
        repo = cache.repository(Rows())
        assert repo.get_many([1, 2, 3]) == {1: "row 1", 2: "row 2"}
        assert repo.get(1) == "row 1"
        assert repo.get(9) is None


def test_two_repositories_over_tables_of_one_class_need_keys_of_their_own() -> None:
    with cachekit.Cache() as cache:
        one, two = Orders(), Orders()
        one.rows[1], two.rows[1] = Order(1, "one"), Order(1, "two")
        first = cache.repository(one, key="one:{id}")
        second = cache.repository(two, key="two:{id}")
        assert (first.get(1), second.get(1)) == (Order(1, "one"), Order(1, "two"))


class SqlTable:
    """A real table, the same under every strategy."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self.reads = 0
        with self._db() as db:
            db.execute("create table if not exists items (id integer primary key, name text)")

    def _db(self) -> sqlite3.Connection:
        db = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = sqlite3.connect(self._path, timeout=10)
        return db

    def get(self, id: int) -> dict[str, Any] | None:
        self.reads += 1
        row = self._db().execute("select id, name from items where id = ?", (id,)).fetchone()
        return None if row is None else {"id": row[0], "name": row[1]}

    def save(self, item: dict[str, Any]) -> None:
        with self._db() as db:
            db.execute("insert or replace into items values (:id, :name)", item)

    def save_many(self, items: list[dict[str, Any]]) -> None:
        with self._db() as db:
            db.executemany("insert or replace into items values (:id, :name)", items)

    def delete(self, id: int) -> None:
        with self._db() as db:
            db.execute("delete from items where id = ?", (id,))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "strategy",
    [CacheAside(), WriteThrough(), WriteBack(log="memory", batch=8, delay="5ms")],
    ids=lambda s: type(s).__name__,
)
def test_three_strategies_over_one_table_give_the_same_answers(
    request: pytest.FixtureRequest, tmp_path: Path, place: str, strategy: Any
) -> None:
    """The strategy is the only word that changes."""
    opener: Opener = opener_for(place, request, tmp_path)
    table = SqlTable(tmp_path / "items.db")
    repo = opener().repository(table, strategy=strategy, ttl=60)
    assert isinstance(repo, Repository)
    for n in range(30):
        repo.save({"id": n % 10, "name": f"v{n}"})
        assert repo.get(n % 10) == {"id": n % 10, "name": f"v{n}"}
    repo.delete(3)
    assert repo.get(3) is None
    repo.save_many([{"id": 20, "name": "a"}, {"id": 21, "name": "b"}])
    assert repo.get_many([3, 20, 21]) == {
        20: {"id": 20, "name": "a"}, 21: {"id": 21, "name": "b"},
    }  # fmt: skip
    assert repo.flush(5).complete
    before = table.reads
    for _ in range(20):
        repo.get_many(range(10))
    assert table.reads - before <= 10
    fresh = SqlTable(tmp_path / "items.db")
    assert fresh.get(3) is None
    assert fresh.get(9) == {"id": 9, "name": "v29"}
    assert fresh.get(21) == {"id": 21, "name": "b"}
    repo.close()
    opener.close()


def test_dataclasses_come_back_as_what_they_were_from_a_shared_backend(
    open_shared: Opener,
) -> None:
    orders = Orders()
    orders.rows[1] = Order(1, "book")
    first = open_shared().repository(orders, ttl=60)
    second = open_shared().repository(Orders(), ttl=60)
    assert first.get(1) == Order(1, "book")
    found = second.get(1)
    assert found == Order(1, "book")
    assert type(found) is Order


class Shelves(Orders):
    """Orders by their item, of one of several shelves."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __cache_key__(self) -> str:
        return self.name

    def __cache_id__(self, order: Order) -> str:
        return order.item

    def save(self, order: Order) -> str:
        self.rows[order.item] = replace(order)  # type: ignore[index]  # by its own id
        return "saved"


def test_an_object_may_say_which_records_it_has_and_what_identifies_them() -> None:
    with cachekit.Cache() as cache:
        one, other = (cache.repository(Shelves(name)) for name in ("{one}", "other"))
        assert isinstance(one, Repository)
        assert isinstance(other, Repository)
        one.save(Order(1, "pen"))
        other.save(Order(2, "pen"))
        assert (one.load("pen").id, other.load("pen").id) == (1, 2)
        one.save(Order(3, "pen"))
        assert (one.load("pen").id, other.load("pen").id) == (3, 2)
