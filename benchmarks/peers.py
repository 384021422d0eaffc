"""Other libraries' ways to decorate a function, each through its own documented call.

A library that is not installed is reported as missing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from interleave import Group

SIZE = 100_000
TTL = 60
PACKAGES = (
    "cachetools",
    "cachebox",
    "async-lru",
    "dogpile.cache",
    "cashews",
    "aiocache",
    "redis",
    "hiredis",
)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def identity(k: int) -> int:
    return k


async def identity_async(k: int) -> int:
    return k


def cachetools_lru() -> Any:
    import cachetools

    return cachetools.cached(cachetools.LRUCache(SIZE))(identity)


def cachetools_lru_locked() -> Any:
    import cachetools

    return cachetools.cached(cachetools.LRUCache(SIZE), lock=threading.RLock())(identity)


def cachetools_ttl_locked() -> Any:
    import cachetools

    return cachetools.cached(cachetools.TTLCache(SIZE, TTL), lock=threading.RLock())(identity)


def cachebox_lru() -> Any:
    import cachebox

    return cachebox.cached(cachebox.LRUCache(SIZE))(identity)


def cachebox_ttl() -> Any:
    import cachebox

    return cachebox.cached(cachebox.TTLCache(SIZE, TTL))(identity)


def dogpile_memory() -> Any:
    from dogpile.cache import make_region

    region = make_region().configure("dogpile.cache.memory", expiration_time=TTL)
    return region.cache_on_arguments()(identity)


def async_lru() -> Any:
    from async_lru import alru_cache

    return alru_cache(maxsize=SIZE)(identity_async)


def cachebox_async() -> Any:
    import cachebox

    return cachebox.cached(cachebox.TTLCache(SIZE, TTL))(identity_async)


def cashews_memory() -> Any:
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://", size=SIZE)
    return cache(ttl=TTL)(identity_async)


def aiocache_memory() -> Any:
    import aiocache  # type: ignore[import-untyped]  # it has no stubs

    return aiocache.cached(ttl=TTL, cache=aiocache.Cache.MEMORY)(identity_async)


Maker = Callable[[], Any]

SYNC: dict[str, Maker] = {
    "cachetools LRU": cachetools_lru,
    "cachetools LRU + lock": cachetools_lru_locked,
    "cachetools TTL + lock": cachetools_ttl_locked,
    "cachebox LRU": cachebox_lru,
    "cachebox TTL": cachebox_ttl,
    "dogpile.cache memory": dogpile_memory,
}
ASYNC: dict[str, Maker] = {
    "cachebox TTL": cachebox_async,
    "aiocache memory": aiocache_memory,
    "cashews mem": cashews_memory,
}


def join(group: Group, name: str, make: Maker, call: str) -> bool:
    """Add a peer to a group; False, and a row that says so, when it is not installed."""
    try:
        group.add(name, call, f=make())
    except ImportError as error:
        group.missing[name] = str(error)
        return False
    return True
