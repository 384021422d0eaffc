"""What a decorated function is to a type checker. Every line marked `# error` must be one, and
no other line; `# error in mypy` pins a gap of that checker."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

import cachekit
from cachekit.functions import CacheInfo

cache = cachekit.Cache()


class Profile:
    def __init__(self, text: str) -> None:
        self.text = text


# -- def ------------------------------------------------------------------------------------------


@cache.cached(ttl="10m", tags=["user:{user_id}"])
def profile(user_id: int, *, full: bool = False) -> Profile:
    return Profile(f"{user_id} {full}")


@cache.cached
def bare(user_id: int, *, full: bool = False) -> Profile:
    return Profile(f"{user_id} {full}")


def plain_calls() -> None:
    assert_type(profile(7), Profile)
    assert_type(profile(user_id=7, full=True), Profile)
    assert_type(bare(7, full=True), Profile)
    profile("7")  # error
    profile(7, True)  # error
    profile()  # error
    profile(7, other=1)  # error
    bare("7")  # error
    print(bare(7).nothing)  # error


def plain_helpers() -> None:
    assert_type(profile.key(7), str)
    assert_type(profile.cache_info(), CacheInfo)
    assert_type(profile.cache_info().hits, int)
    assert_type(profile.refresh(7, full=True), Profile)
    assert_type(profile.uncached(7), Profile)
    profile.invalidate(7)
    profile.cache_clear()
    bare.invalidate(user_id=7)
    found = profile.peek(7)
    print(found.text)  # error
    if found is not cachekit.MISSING:
        assert_type(found, Profile)
    profile.key("7")  # error
    profile.invalidate("7")  # error
    bare.refresh(full=True)  # error


# -- async def ------------------------------------------------------------------------------------


@cache.cached(ttl=60)
async def fetch(url: str, retries: int = 3) -> bytes:
    return url.encode() * retries


@cache.cached
async def fetch_bare(url: str) -> bytes:
    return url.encode()


async def async_calls() -> None:
    assert_type(await fetch("u"), bytes)
    assert_type(await fetch("u", retries=1), bytes)
    assert_type(await fetch_bare("u"), bytes)
    fetch("u").decode()  # error
    await fetch(1)  # error
    await fetch_bare("u", 2)  # error


async def async_helpers() -> None:
    assert_type(fetch.key("u"), str)
    assert_type(fetch.cache_info(), CacheInfo)
    assert_type(await fetch.refresh("u"), bytes)
    assert_type(await fetch.uncached("u"), bytes)
    await fetch.invalidate("u")
    fetch.cache_clear()
    found = await fetch.peek("u")
    found.decode()  # error
    if found is not cachekit.MISSING:
        assert_type(found, bytes)
    await fetch.key("u")  # error
    await fetch.cache_info()  # error
    await fetch.invalidate(1)  # error


def wants_awaitable(work: Coroutine[Any, Any, None]) -> None: ...


wants_awaitable(fetch.invalidate("u"))
wants_awaitable(profile.invalidate(7))  # error


# -- as arguments ---------------------------------------------------------------------------------


def wants_plain(fn: Callable[[int], Profile]) -> None: ...


def wants_async(fn: Callable[[str], Coroutine[Any, Any, bytes]]) -> None: ...


wants_plain(profile)
wants_plain(fetch)  # error
wants_async(fetch)
wants_async(profile)  # error


# -- in classes -----------------------------------------------------------------------------------


class Repo:
    @cache.cached(ttl=60)
    def get(self, user_id: int) -> Profile:
        return Profile(str(user_id))

    @cache.cached
    def get_bare(self, user_id: int) -> Profile:
        return Profile(str(user_id))

    @cache.cached(ttl=60)
    async def fetch(self, user_id: int) -> Profile:
        return Profile(str(user_id))

    @cache.cached(ttl=60)
    @classmethod
    def made(cls, name: str) -> list[str]:
        return [cls.__name__, name]

    @classmethod
    @cache.cached(ttl=60)
    def made_inside(cls, name: str) -> list[str]:
        return [cls.__name__, name]

    @cache.cached(ttl=60)
    @staticmethod
    def counted(text: str) -> int:
        return len(text)

    @staticmethod
    @cache.cached
    def counted_inside(text: str) -> int:
        return len(text)

    @cache.cached(ttl=60)
    @staticmethod
    async def counted_async(text: str) -> int:
        return len(text)


async def methods(repo: Repo) -> None:
    assert_type(repo.get(7), Profile)
    assert_type(repo.get_bare(user_id=7), Profile)
    assert_type(await repo.fetch(7), Profile)
    assert_type(Repo.get(repo, 7), Profile)
    Repo.get.invalidate(repo, 7)
    await Repo.fetch.invalidate(repo, 7)
    assert_type(Repo.made("x"), list[str])
    assert_type(repo.made("x"), list[str])
    assert_type(Repo.made_inside("x"), list[str])
    assert_type(Repo.counted("x"), int)
    assert_type(repo.counted("x"), int)  # error in mypy
    assert_type(repo.counted_inside("x"), int)  # error in mypy
    assert_type(await Repo.counted_async("x"), int)
    repo.get("7")  # error
    repo.get_bare()  # error
    repo.get(repo, 7)  # error
    await repo.fetch("7")  # error
    Repo.get.invalidate(7)  # error
    Repo.made(1)  # error
    Repo.counted(1)  # error
    repo.counted_inside(1)  # error


class Statics:
    @cache.cached(ttl=60)
    @staticmethod
    def nothing() -> int:
        return 1

    @cache.cached
    @staticmethod
    def two(a: int, b: str) -> int:
        return a + len(b)

    @cache.cached
    @classmethod
    async def fetched(cls, n: int) -> str:
        return cls.__name__ * n


async def statics(s: Statics) -> None:
    assert_type(Statics.nothing(), int)
    assert_type(s.nothing(), int)
    assert_type(Statics.two(1, "b"), int)
    assert_type(s.two(1, "b"), int)  # error in mypy
    assert_type(await Statics.fetched(1), str)
    assert_type(await s.fetched(1), str)
    Statics.two.invalidate(1, "b")
    s.two("b", 1)  # error
    s.nothing(1)  # error
    await s.fetched("1")  # error


# -- options --------------------------------------------------------------------------------------

cache.cached(tags=[1])  # error
cache.cached(key=3)  # error
cache.cached(copy="yes")  # error
cache.cached(ttl=60, grace="5m", jitter=0.1)
