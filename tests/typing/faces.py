"""The other doors as a type checker sees them. Every line marked `# error` must be one, and
no other line."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, assert_type

import cachekit
from cachekit import Written

cache = cachekit.Cache(max_entries=10, ttl="10m")


def load_text() -> str:
    return "x"


def load_numbers(keys: list[str]) -> dict[str, int]:
    return {key: 1 for key in keys}


def keys_directly() -> None:
    assert_type(cache.get_or_set("k", load_text, ttl=5), str)
    assert_type(cache.get_or_set_many(["a"], load_numbers), dict[str, int])
    assert_type(cache.set("k", 1, tags=["t"]), bool)
    assert_type(cache.touch("k", "5m"), bool)
    assert_type(cache.get_many(["k"]), dict[str, Any])
    assert_type(cache.stats().hits, int)
    cache.invalidate(keys=["k"], tags=["t"])
    cache.get(1)  # error
    cache.set("k")  # error
    cache.invalidate(["k"])  # error
    cache.get_or_set("k", 3)  # error
    print(cache.get_or_set("k", load_text).nothing)  # error


async def async_keys() -> None:
    assert_type(await cache.aio.set("k", 1), bool)
    assert_type(await cache.aio.get_many(["k"]), dict[str, Any])
    await cache.aio.invalidate(tags=["t"])
    cache.aio.get("k").bit_length()  # error


# -- decorators that are not cached() -------------------------------------------------------------


@cache.invalidates(tags=["user:{user_id}"])
def rename(user_id: int, name: str) -> bool:
    return bool(user_id and name)


@cache.invalidates(tags=["user:{user_id}"])
async def rename_async(user_id: int, name: str) -> bool:
    return bool(user_id and name)


@cache.cached_many(key="price:{sku}", ttl=30)
def prices(skus: list[str]) -> dict[str, Decimal]:
    return {sku: Decimal(1) for sku in skus}


@cache.cached_many(key="stock:{sku}", ttl=30)
async def stock(skus: list[str]) -> dict[str, int]:
    return {sku: 1 for sku in skus}


@cache.write_back(key="visits:{page}")
def save_visits(visits: dict[str, int]) -> None: ...


@cache.write_back(key="reads:{page}")
async def save_reads(reads: Mapping[str, int]) -> None: ...


async def decorated() -> None:
    assert_type(rename(1, "x"), bool)
    assert_type(await rename_async(1, "x"), bool)
    assert_type(prices(["a"]), dict[str, Decimal])
    assert_type(prices.peek(["a"]), dict[str, Decimal])
    assert_type(await stock(["a"]), dict[str, int])
    prices.invalidate(["a"])
    await stock.invalidate(["a"])
    save_visits("home", 3)
    assert_type(save_visits.flush(1.0), cachekit.Flushed)
    await save_reads("home", 3)
    assert_type(await save_reads.flush(), cachekit.Flushed)
    rename("1", "x")  # error
    await rename(1, "x")  # error
    prices("a", 1)  # error
    await prices(["a"])  # error
    prices.invalidate(1)  # error
    save_visits(3, "home")  # error
    save_visits({"home": 3})  # error
    save_reads("home", "3")  # error


# -- strategies and repositories ------------------------------------------------------------------


class Order:
    id: int


class Orders:
    def load(self, id: int) -> Order | None: ...

    def save(self, order: Order) -> None: ...


def strategies() -> None:
    users = cachekit.WriteThrough(cache, load=load_text, store=print, key="user:{id}", ttl="1h")
    assert_type(users.put(7, "x"), Written)
    assert_type(users.delete(7), Written)
    assert_type(users.get_many([7]), dict[Any, Any])
    assert_type(users.flush(), cachekit.Flushed)
    users.invalidate(7, 8)
    users.get()  # error
    users.put(7)  # error
    for kind in (cachekit.CacheAside, cachekit.ReadThrough, cachekit.WriteAround):
        assert_type(kind(cache, key="a:{id}").put(1, 2), Written)
    cachekit.WriteBack("not a cache")  # error


async def async_strategies() -> None:
    users = cachekit.WriteBack(cache, load=load_text, store=print, key="u:{id}", log="memory")
    assert_type(await users.aio.put(7, "x"), Written)
    await users.aio.invalidate(7)
    print(users.aio.put(7, "x").result)  # error


def repositories() -> None:
    orders = cache.repository(Orders(), strategy=cachekit.WriteBack(log="memory"))
    assert_type(orders, cachekit.Repository | cachekit.AsyncRepository)
    if isinstance(orders, cachekit.Repository):
        assert_type(orders.flush(), cachekit.Flushed)
        assert_type(orders.get_many([1]), dict[Any, Any])
    cache.repository(Orders(), strategy="write back")  # error
