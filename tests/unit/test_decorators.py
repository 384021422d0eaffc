"""The doors: cached, cached_many, invalidates; the off switch; a user's errors pass unchanged."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cachekit
from cachekit.errors import ConfigurationError


class World:
    """One test body for plain and async functions: ``fn`` makes either, ``do`` finishes either."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._runner = asyncio.Runner() if kind == "async" else None

    def fn(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        if self._runner is None:
            return plain

        @functools.wraps(plain)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return plain(*args, **kwargs)

        return awaited

    def do(self, call: Any) -> Any:
        if self._runner is None or not inspect.isawaitable(call):
            return call

        async def finish() -> Any:
            return await call

        return self._runner.run(finish())

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()


@pytest.fixture(params=["plain", "async"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(request.param)
    yield made
    made.close()


# -- a user's error, StopIteration above all ---------------------------------------------


def _stop(*args: Any, **kwargs: Any) -> Any:
    raise StopIteration("mine")


class Stopping:
    @property
    def id(self) -> Any:
        raise StopIteration("mine")

    def __hash__(self) -> int:
        raise StopIteration("mine")

    def __deepcopy__(self, memo: Any) -> Any:
        raise StopIteration("mine")


def _doors(cache: cachekit.Cache) -> dict[str, Callable[[], Any]]:
    stopping = Stopping()
    tagged = cache.cached(tags=["t:{x.id}"], ignore=("x",))(lambda x: 1)
    templated = cache.cached(key="k:{x.id}")(lambda x: 1)
    by_function = cache.cached(key=_stop)(lambda x: 1)
    hashed = cache.cached(lambda x: 1)
    doors: dict[str, Callable[[], Any]] = {
        "loader": lambda: cache.cached(_stop)(),
        "loader with a timeout": lambda: cache.cached(load_timeout=10)(_stop)(),
        "refresh": lambda: cache.cached(_stop).refresh(),
        "condition": lambda: cache.cached(condition=_stop)(lambda: 1)(),
        "copy": lambda: cache.cached(copy=True)(lambda: stopping)(),
        "disabled": lambda: _disabled(cache, cache.cached(_stop)),
        "many": lambda: cache.cached_many(key="m:{i}")(lambda items: _stop())([1]),
        "invalidates": lambda: cache.invalidates(tags=["t"])(_stop)(),
        "get_or_set": lambda: cache.get_or_set("k", _stop),
        "get_or_set_many": lambda: cache.get_or_set_many(["k"], _stop),
    }
    for name, f in (
        ("tag", tagged),
        ("key", templated),
        ("key function", by_function),
        ("hash", hashed),
    ):
        doors[name] = functools.partial(f, stopping)
        for helper in ("peek", "refresh", "invalidate", "key"):
            if name == "tag" and helper in ("invalidate", "key"):
                continue
            doors[f"{name} {helper}"] = functools.partial(getattr(f, helper), stopping)
    for strategy in (cachekit.CacheAside, cachekit.ReadThrough, cachekit.WriteThrough):
        made = strategy(
            cache, load=_stop, store=_stop, delete=_stop, key=strategy.__name__ + "{id}"
        )
        doors[f"{strategy.__name__} get"] = functools.partial(made.get, 1)
        doors[f"{strategy.__name__} get_many"] = functools.partial(made.get_many, [1])
        doors[f"{strategy.__name__} put"] = functools.partial(made.put, 1, 2)
        doors[f"{strategy.__name__} delete"] = functools.partial(made.delete, 1)
    return doors


def _disabled(cache: cachekit.Cache, call: Callable[[], Any]) -> Any:
    with cache.disabled():
        return call()


@pytest.mark.parametrize("door", sorted(_doors(cachekit.Cache())))
def test_a_stop_iteration_of_the_users_reaches_a_plain_caller_unchanged(door: str) -> None:
    with pytest.raises(StopIteration, match="mine") as caught:
        _doors(cachekit.Cache())[door]()
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("error", [LookupError("x"), KeyError("x"), TimeoutError("x"), OSError(5)])
def test_a_users_error_passes_unchanged_and_is_not_kept(world: World, error: Exception) -> None:
    cache = cachekit.Cache()

    def failing(*args: Any) -> Any:
        raise error

    doors = [
        cache.cached(ttl=60)(world.fn(failing)),
        cache.cached(load_timeout=10)(world.fn(failing)),
        cache.cached_many(key="m:{i}")(world.fn(lambda items: failing())),
        cache.invalidates(tags=["t"])(world.fn(failing)),
    ]
    for door in doors:
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                world.do(door([1]) if door is doors[2] else door(1))
            assert caught.value is error
            assert caught.value.__cause__ is None


# -- cached ------------------------------------------------------------------------------


def test_helpers_look_refresh_and_forget(world: World) -> None:
    cache, loads = cachekit.Cache(), []

    @cache.cached(ttl=60)
    @world.fn
    def load(x: int) -> int:
        loads.append(x)
        return len(loads)

    assert world.do(load.peek(1)) is cachekit.MISSING
    assert [world.do(load(1)), world.do(load(1)), world.do(load.peek(1))] == [1, 1, 1]
    assert world.do(load.refresh(1)) == 2
    assert world.do(load(1)) == 2
    assert world.do(load.invalidate(1)) is None
    assert world.do(load(1)) == 3
    assert load.key(1).endswith("load(1)")
    load.cache_clear()
    assert load.cache_info() == (0, 0, 100_000, 0)
    assert world.do(load(1)) == 4
    assert world.do(load.uncached(1)) == 5


def test_none_is_a_value(world: World) -> None:
    loads = []
    load = cachekit.Cache().cached(world.fn(lambda: loads.append(1)))
    assert world.do(load()) is world.do(load()) is None
    assert world.do(load.peek()) is None
    assert loads == [1]


def test_an_async_function_called_from_the_plain_face_is_a_clear_error() -> None:
    async def load() -> int:
        return 1

    @cachekit.Cache().cached
    def plain() -> Any:
        return load()

    with pytest.raises(ConfigurationError, match="async function"):
        plain()


# -- the off switch ----------------------------------------------------------------------


def test_while_disabled_nothing_is_read_or_filled_but_invalidations_go_on(world: World) -> None:
    cache, loads = cachekit.Cache(), []

    def count(x: int) -> int:
        loads.append(x)
        return len(loads)

    before = cache.cached(world.fn(count))
    assert world.do(before(1)) == 1
    with cache.disabled():
        during = cache.cached(name="during")(world.fn(count))
        for f in (before, during, before, during):
            seen = len(loads)
            assert world.do(f(1)) == seen + 1
            assert world.do(f.refresh(1)) == seen + 2
            assert world.do(f.peek(1)) is cachekit.MISSING
        assert cache.get_or_set("k", lambda: "v") == "v"
        assert cache.get("k") is None
        world.do(before.invalidate(1))
    seen = len(loads)
    assert world.do(before(1)) == seen + 1  # it was invalidated
    assert world.do(during(1)) == seen + 2
    assert world.do(before(1)) == seen + 1
    assert world.do(during(1)) == seen + 2
    assert during.cache_info().hits == 1  # its hit road was switched on with the rest


def test_the_switch_comes_back_on_after_an_error_inside() -> None:
    cache = cachekit.Cache()
    with pytest.raises(LookupError), cache.disabled():
        raise LookupError
    load = cache.cached(lambda: object())
    assert load() is load()


# -- cached_many -------------------------------------------------------------------------


def test_many_are_loaded_by_one_call_for_all_that_miss(world: World) -> None:
    cache, calls = cachekit.Cache(), []

    @cache.cached_many(key="price:{sku}", tags=["sku:{sku}"])
    @world.fn
    def prices(skus: list[str], factor: int = 2) -> dict[str, int]:
        calls.append(list(skus))
        return {sku: len(sku) * factor for sku in skus if sku != "none"}

    assert world.do(prices(["a", "bb", "a"])) == {"a": 2, "bb": 4}
    assert world.do(prices(["bb", "none", "ccc"])) == {"bb": 4, "ccc": 6}
    assert world.do(prices(iter(["none"]))) == {}
    assert calls == [["a", "bb"], ["none", "ccc"], ["none"]]  # what is absent is not kept
    assert world.do(prices([])) == {}
    world.do(prices.invalidate(["a"]))
    cache.invalidate(tags=["sku:bb"])
    cache.invalidate(keys=["price:ccc"])
    assert world.do(prices.peek(["a", "bb", "ccc"])) == {}
    assert world.do(prices(["ccc", "a"])) == {"ccc": 6, "a": 2}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"key": "all"}, "the item"),
        ({"key": "{a}:{b}"}, "the item"),
        ({"key": "{items}"}, "the item"),
        ({"key": "p:{i}", "over": "wrong"}, "over='wrong'"),
        ({"key": "p:{i}", "tags": ["t:{j}"]}, "no parameter 'j'"),
    ],
)
def test_a_cached_many_that_can_not_work_is_refused(options: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        cachekit.Cache().cached_many(**options)(lambda items: {})


def test_many_refuses_a_result_that_is_no_mapping(world: World) -> None:
    many = cachekit.Cache().cached_many(key="p:{i}")(world.fn(lambda items: [1]))
    with pytest.raises(TypeError, match=r"must return a mapping .*got list"):
        world.do(many([1]))


# -- invalidates -------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_a_change_invalidates_also_when_it_raised_and_while_disabled(
    world: World, fails: bool
) -> None:
    cache = cachekit.Cache()
    load = cache.cached(tags=["user:{user}"])(lambda user: object())
    other = cache.cached(key="other:{user}")(lambda user: object())

    @cache.invalidates(tags=["user:{user}"], keys=["other:{user}"])
    @world.fn
    def change(user: int, name: str = "") -> str:
        if fails:
            raise LookupError
        return "done"

    def changed() -> None:
        try:
            assert world.do(change(user=7)) == "done"
        except LookupError:
            assert fails

    for switch in (threading.Lock, cache.disabled):
        kept = load(7), other(7), load(8), other(8)
        with switch():
            changed()
        assert load(7) is not kept[0]
        assert other(7) is not kept[1]
        assert (load(8), other(8)) == kept[2:]


def test_what_the_change_returned_can_name_the_tags(world: World) -> None:
    cache = cachekit.Cache()
    load = cache.cached(tags=["user:{user}"])(lambda user: object())
    change = cache.invalidates(tags=["user:{result}"])(world.fn(lambda name: 7))
    before = load(7)
    world.do(change("bob"))
    assert load(7) is not before
