"""Decorated functions: their options, their text keys, methods, and what is refused."""

from __future__ import annotations

import enum
import functools
import gc
import math
import weakref
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

import cachekit
from cachekit.errors import ConfigurationError


class Colour(enum.Enum):
    RED = 1


class Account:
    def __cache_key__(self) -> int:
        return 5


EVERY_KIND: list[Any] = [
    0, 1, -1, 10**5000, -(10**5000), True, None, 1.5, -0.0, 0.0, 1e300, math.inf, -math.inf, "",
    "a", "'", '"', "a'b\"c", "\\", "é", "\ud800", "a\nb", "(", ")", "f(1)", b"", b"\xff'", (), (1,),
    ((1, "a"), (None,)), frozenset(), frozenset({1, "a"}), Decimal("1.50"), Decimal("Infinity"),
    UUID(int=3), datetime(2024, 1, 1, tzinfo=UTC), timedelta(1), Colour.RED, Account(), int, 1 + 2j,
]  # fmt: skip


def _function(**options: Any) -> tuple[cachekit.Cache, Any]:
    cache = cachekit.Cache()
    loads: list[Any] = []

    @cache.cached(**options)
    def f(x: Any, *more: Any, k: Any = None, **kw: Any) -> int:
        loads.append(x)
        return len(loads)

    return cache, f


# -- text keys lead back to the call -----------------------------------------------------


@pytest.mark.parametrize("value", EVERY_KIND, ids=map(str, range(len(EVERY_KIND))))
@pytest.mark.parametrize("options", [{}, {"key": "k:{x}"}, {"name": "named"}, {"version": 3}])
def test_a_text_key_invalidates_its_call_whatever_the_arguments(value: Any, options: Any) -> None:
    cache, f = _function(**options)

    @cache.cached(**{**options, **({"key": "one:{x}"} if "key" in options else {})})
    def one(x: Any) -> object:
        return object()

    for g in (f, one):
        before, other = g(value), g("another")
        cache.invalidate(keys=[g.key(value)])
        assert g.peek(value) is cachekit.MISSING
        assert g(value) != before
        assert g("another") == other
    before = f(value, value, k=value, z=value)
    cache.invalidate(keys=[f.key(value, value, k=value, z=value)])
    if "key" not in options:
        assert f(value, value, k=value, z=value) != before


def test_a_text_key_of_several_arguments_and_of_none_invalidates() -> None:
    cache = cachekit.Cache()

    @cache.cached
    def three(a: Any, b: Any, c: Any = "c") -> object:
        return object()

    @cache.cached
    def none() -> object:
        return object()

    @cache.cached(key="constant")
    def constant() -> object:
        return object()

    for call in (lambda f=three: (f, (1, math.inf)), lambda: (none, ()), lambda: (constant, ())):
        f, args = call()
        before = f(*args)
        assert f(*args) is before
        cache.invalidate(keys=[f.key(*args)])
        assert f(*args) is not before
    assert constant.key() == "constant"


@pytest.mark.parametrize(
    "text", ["f(1", "f)", "f(", "f(__import__('os'))", "f( 1)", "f(1)(2)", "g(1)"]
)
def test_a_text_that_no_call_has_invalidates_nothing_and_runs_nothing(text: str) -> None:
    cache, _ = _function(name="f")

    @cache.cached(name="only")
    def only(x: Any) -> object:
        return object()

    before = only(1)
    cache.invalidate(keys=[text, text.replace("f", "only", 1) + " "])
    assert only(1) is before


def test_a_name_that_could_be_taken_for_a_call_is_refused() -> None:
    for name in ("a(b)", "(", "f("):
        with pytest.raises(ConfigurationError, match="name="):
            _function(name=name)
    with pytest.raises(ValueError, match="name"):
        _function(name="")
    with pytest.raises(TypeError, match="name"):
        _function(name=5)


def test_embedded_functions_of_one_name_never_share() -> None:
    cache = cachekit.Cache()

    def make(number: int) -> Any:
        @cache.cached
        def load(x: int) -> int:
            return number

        return load

    functions = [make(n) for n in range(5)]
    assert [f(1) for f in functions] == [f(1) for f in functions] == [0, 1, 2, 3, 4]
    assert len({f.key(1) for f in functions}) == 5
    cache.invalidate(keys=[functions[2].key(1)])
    assert [f.peek(1) for f in functions] == [0, 1, cachekit.MISSING, 3, 4]


def test_a_new_version_starts_with_an_empty_cache() -> None:
    _, one = _function(version=1)
    _, two = _function(version=2)
    assert one.key(1) != two.key(1)


# -- options -----------------------------------------------------------------------------


def test_ignored_parameters_are_no_part_of_the_key() -> None:
    _, f = _function(ignore=("k", "kw", "more"))
    assert f(1, [], k=[], z=[]) == f(1) == 1
    with pytest.raises(ConfigurationError, match="ignore names 'zz', which is no parameter"):
        _function(ignore=("zz",))


def test_condition_decides_call_by_call_and_is_given_the_call() -> None:
    _, f = _function(condition=lambda x, *more, k=None, **kw: x > 0)
    assert f(1) == f(1)
    assert f(-1) != f(-1)
    assert f.peek(-1) is cachekit.MISSING


def test_copy_hands_out_what_can_not_change_the_kept() -> None:
    cache = cachekit.Cache()

    @cache.cached(copy=True)
    def load(x: int) -> list[int]:
        return [x]

    for read in (load, load, load.peek, load.refresh, load):
        read(1).append(9)
    assert load(1) == [1]


def test_without_copy_a_hit_shares_the_object() -> None:
    @cachekit.Cache().cached
    def load(x: int) -> list[int]:
        return [x]

    assert load(1) is load(1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"stats": "often"}, "stats='often'"),
        ({"key": 5}, "key must be a template or a function"),
        ({"tags": "user:{x}"}, "tags must be a list"),
        ({"tags": ["r:{result.id}:{x}"]}, "mixes result with parameters"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_decoration(options: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        _function(**options)


def test_generators_are_refused_at_decoration_and_their_likes_at_the_fill() -> None:
    cache = cachekit.Cache()

    def generator() -> Any:
        yield 1

    async def agenerator() -> Any:
        yield 1

    for door in (cache.cached, cache.cached_many(key="{i}"), cache.invalidates(tags=["t"])):
        for fn in (generator, agenerator):
            with pytest.raises(ConfigurationError, match="generator function"):
                door(fn)

    @cache.cached
    def load(make: Any) -> Any:
        return make()

    for make in (lambda: iter([1]), generator, lambda: map(str, [])):
        with pytest.raises(TypeError, match="used only once; return a list"):
            load(make)
        assert load.peek(make) is cachekit.MISSING


@pytest.mark.parametrize("thing", [len, functools.partial(int, "1"), object(), int, property(id)])
def test_what_is_no_function_is_refused_with_the_remedy(thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="get_or_set"):
        cachekit.Cache().cached(thing)


def test_tags_may_be_taken_from_arguments_or_from_the_result() -> None:
    cache = cachekit.Cache()

    @cache.cached(tags=["x:{x}", "all"])
    def by_argument(x: int) -> object:
        return object()

    @cache.cached(tags=["r:{result[id]}"])
    def by_result(x: int) -> dict[str, int]:
        return {"id": x + 100}

    @cache.cached(tags=lambda r: [f"f:{r['id']}"])
    def by_function(x: int) -> dict[str, int]:
        return {"id": x + 100}

    for f, tag, other in (
        (by_argument, "x:1", "x:2"),
        (by_argument, "all", "none"),
        (by_result, "r:101", "r:1"),
        (by_function, "f:101", "f:1"),
    ):
        before = f(1)
        cache.invalidate(tags=[other])
        assert f(1) is before
        cache.invalidate(tags=[tag])
        assert f(1) is not before


# -- methods -----------------------------------------------------------------------------


def _repository(cache: cachekit.Cache, order: str) -> Any:
    def on(kind: Any, fn: Any) -> Any:
        return cache.cached(kind(fn)) if order == "outside" else kind(cache.cached(fn))

    class Base:
        loads = 0

        @cache.cached(ttl=60, tags=["n:{n}"])
        def get(self, n: int) -> tuple[Any, ...]:
            type(self).loads += 1
            return id(self), n, type(self).loads

        def _made(cls, n: int) -> tuple[Any, ...]:
            cls.loads += 1
            return cls, n, cls.loads

        def _helped(n: int) -> tuple[Any, ...]:
            Base.loads += 1
            return n, Base.loads

        _made.__qualname__ = f"{__qualname__}.made"
        made = on(classmethod, _made)
        helped = on(staticmethod, _helped)

    return Base


@pytest.mark.parametrize("order", ["inside", "outside"])
def test_every_kind_of_method_is_cached_in_both_orders(order: str) -> None:
    cache = cachekit.Cache()
    base = _repository(cache, order)

    class Child(base):  # type: ignore[misc,valid-type]  # made above
        loads = 100

        @cache.cached
        def get(self, n: int) -> Any:
            return "child", super().get(n)

    one, two, child = base(), base(), Child()
    assert one.get(1) == one.get(n=1) != two.get(1) == two.get(1)
    assert child.get(1) == child.get(1) != one.get(1)
    assert child.get(1)[0] == "child"
    assert base.made(1) == base.made(1)
    assert Child.made(1) == Child.made(1) != base.made(1)  # by the class
    assert child.made(1)[0] is Child
    assert base.helped(1) == one.helped(1) == base.helped(1)
    before = one.get(1), two.get(1)
    base.get.invalidate(one, 1)
    assert one.get(1) != before[0]
    assert two.get(1) == before[1]
    cache.invalidate(tags=["n:1"])
    assert two.get(1) != before[1]
    assert base.made.invalidate(base, 1) is None
    assert base.made.peek(base, 1) is cachekit.MISSING
    assert Child.made.peek(Child, 1) is not cachekit.MISSING


def test_a_new_instance_at_a_dead_ones_address_inherits_nothing() -> None:
    cache = cachekit.Cache()

    class Repo:
        @cache.cached
        def get(self, n: int) -> int:
            return self.number

        def __init__(self, number: int) -> None:
            self.number = number

    for number in range(500):
        assert Repo(number).get(1) == number
    gc.collect()
    assert len(Repo.get.cached_function.table.shelves()) == 1


def test_an_instance_may_be_unhashable_and_is_held_weakly() -> None:
    cache = cachekit.Cache()

    class Repo:
        __hash__ = None  # type: ignore[assignment]  # what the test is about

        @cache.cached
        def get(self, n: int) -> object:
            return object()

    repo = Repo()
    assert repo.get(1) is repo.get(1)
    gone = weakref.ref(repo)
    del repo
    assert gone() is None


def test_slots_without_weakref_are_refused_at_the_call_with_remedies() -> None:
    cache = cachekit.Cache()

    class Slotted:
        __slots__ = ("x",)

        @cache.cached
        def get(self, n: int) -> int:
            return n

        @cache.cached(ignore=("self",))
        def shared(self, n: int) -> int:
            return n

        @cache.cached(key="get:{self.x}:{n}")
        def keyed(self, n: int) -> int:
            return n

    slotted = Slotted()
    slotted.x = "a"
    with pytest.raises(TypeError, match=r"__weakref__.*ignore=\(\"self\",\)"):
        slotted.get(1)
    assert slotted.shared(1) == slotted.keyed(1) == 1
    assert Slotted.keyed.key(slotted, 1) == "get:a:1"
