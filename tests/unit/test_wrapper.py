"""The generated wrapper is the function's own signature and calls it as it was called."""

from __future__ import annotations

import asyncio
import functools
import inspect
import linecache
import pickle
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cachekit

cache = cachekit.Cache()
DEFAULT: list[int] = []


@cache.cached(ttl=60)
def documented(x: int, y: str | None = "d", *, z: int = 3) -> tuple[Any, ...]:
    """What it gives."""
    return x, y, z


@cache.cached
async def awaited(x: int) -> int:
    return x


def test_the_function_looks_like_itself() -> None:
    plain = documented.uncached
    assert inspect.signature(documented) == inspect.signature(plain)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(documented, name) == getattr(plain, name)
    assert documented.__defaults__ == plain.__defaults__
    assert documented.__kwdefaults__ == plain.__kwdefaults__
    assert documented.__wrapped__ is plain
    assert inspect.isfunction(documented)
    assert inspect.iscoroutinefunction(awaited)
    assert asyncio.run(awaited(3)) == 3


def test_a_decorated_function_can_be_pickled_by_name_and_made_partial() -> None:
    assert pickle.loads(pickle.dumps(documented)) is documented
    assert functools.partial(documented, 1, z=9)(y=2) == (1, 2, 9)
    assert pickle.loads(pickle.dumps(functools.partial(documented, 1)))(y=2) == (1, 2, 3)


def test_all_spellings_of_one_call_share_one_load() -> None:
    loads: list[Any] = []

    @cachekit.Cache().cached
    def load(a: int, b: int = 2, /, c: int = 3, *, d: int = 4) -> tuple[int, ...]:
        loads.append((a, b, c, d))
        return a, b, c, d

    spellings = [
        load(1),
        load(1, 2),
        load(1, 2, 3),
        load(1, c=3),
        load(1, d=4),
        load(1, 2, d=4, c=3),
    ]
    assert spellings == [(1, 2, 3, 4)] * 6
    assert loads == [(1, 2, 3, 4)]


def test_the_order_of_keywords_is_no_part_of_a_call() -> None:
    loads: list[Any] = []

    @cachekit.Cache().cached
    def load(*args: Any, **kwargs: Any) -> Any:
        loads.append((args, kwargs))
        return args, kwargs

    assert load(1, a=1, b=2) == load(1, b=2, a=1) == ((1,), {"a": 1, "b": 2})
    assert len(loads) == 1
    assert load(1, a=1, b=True)[1]["b"] is True
    assert load(1, ("a", 1)) != load(1, a=1)
    assert load((1,)) != load(1)
    assert load() == ((), {})
    assert len(loads) == 7


HEADS = [
    "x",
    "x, /",
    "x, /, y",
    "x, *, y",
    "x, y=1, *args, z, w=2, **kw",
    "*args",
    "**kw",
    "*, x=1, y",
    "self",
    "self, x",
    "type, id, tuple, sorted, **kwargs",
    "hot, clock, epoch, slow, e",
    "_ck_e, _ck_hot, _ck_call, _ck, _ck_, _ck__e",
    "_ck_k0, _ck_t0, _ck_t1, _ck_d0=5, **_ck_read0",
    "print, list, dict, Exception, None_, True_",
    "ñ, 名前=1",
    "_, __, ___=1",
    "match, case, soft=1",
    "async_, x=lambda: (), y='\\0{}%s'",
    ", ".join(f"p{i}=None" for i in range(300)),
]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_any_signature_is_wrapped_and_called_alike(head: str, kind: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"{kind} f({head}): return locals()", scope)
    plain = scope["f"]
    wrapped = cachekit.Cache().cached(ttl=60)(plain)
    assert inspect.signature(wrapped) == inspect.signature(plain)
    args, kwargs, number = [], {}, iter(range(1000))
    for p in inspect.signature(plain).parameters.values():
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty:
            args.append(next(number))
        elif p.kind is p.KEYWORD_ONLY and p.default is p.empty:
            kwargs[p.name] = next(number)
        elif p.kind is p.VAR_KEYWORD:
            kwargs.update(zz=next(number), extra=next(number))

    def result(call: Any) -> Any:
        return asyncio.run(call) if inspect.iscoroutine(call) else call

    expected = result(plain(*args, **kwargs))
    for _ in range(2):
        assert result(wrapped(*args, **kwargs)) == expected
    assert wrapped.cache_info()[:2] == (1, 1)
    assert result(wrapped.peek(*args, **kwargs)) == expected


@given(st.data())
def test_a_bad_call_is_refused_exactly_as_the_function_refuses_it(data: st.DataObject) -> None:
    def plain(a: int, /, b: int, c: int = 3, *, d: int, e: int = 5) -> tuple[int, ...]:
        return a, b, c, d, e

    wrapped = cachekit.Cache().cached(plain)
    args = data.draw(st.lists(st.integers(0, 3), max_size=4))
    kwargs = data.draw(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3)))

    def outcome(f: Any) -> Any:
        try:
            return f(*args, **kwargs)
        except TypeError:
            return TypeError

    assert outcome(wrapped) == outcome(plain)


def test_mutable_defaults_stay_the_functions_own_and_are_refused_as_keys() -> None:
    @cachekit.Cache().cached
    def load(x: int, into: list[int] = DEFAULT) -> int:
        return x

    assert load.__defaults__[0] is DEFAULT
    with pytest.raises(TypeError, match=r"parameter 'into'.*ignore=\(\"into\",\)"):
        load(1)
    assert load(1, ()) == 1

    @cachekit.Cache().cached(ignore=("into",))
    def ignoring(x: int, into: list[int] = DEFAULT) -> list[int]:
        into.append(x)
        return into

    assert ignoring(1) is ignoring(1) is DEFAULT
    assert DEFAULT == [1]


def test_a_function_under_another_decorator_keeps_its_defaults() -> None:
    def logged(f: Any) -> Any:
        @functools.wraps(f)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return f(*args, **kwargs)

        return inner

    @cachekit.Cache().cached
    @logged
    def load(x: int, y: int = 2, *, z: int = 3) -> int:
        return x + y + z

    assert load(1) == load(1, 2, z=3) == 6
    assert load.cache_info()[:2] == (1, 1)


def test_a_traceback_shows_the_generated_line_and_the_users_own() -> None:
    @cachekit.Cache().cached
    def failing(x: int) -> int:
        raise LookupError(x)

    with pytest.raises(LookupError) as caught:
        failing(5)
    linecache.checkcache()
    text = "".join(traceback.format_exception(caught.value))
    assert "((x,), (x,), {})" in text  # the generated line
    assert "raise LookupError(x)" in text
    assert f"<cachekit {__name__}." in text
    assert caught.value.__context__ is caught.value.__cause__ is None
    assert not caught.value.__suppress_context__


def test_what_a_template_reads_is_read_once_a_call() -> None:
    class User:
        reads = 0

        @property
        def id(self) -> int:
            self.reads += 1
            return 7

    made = []

    @cachekit.Cache().cached(key=lambda user: made.append(1) or f"u:{user.id}")
    def by_function(user: User) -> int:
        return 1

    @cachekit.Cache().cached(key="u:{user.id}")
    def by_template(user: User) -> int:
        return 1

    user = User()
    assert by_function(user) == by_function(user) == 1
    assert len(made) == user.reads == 2
    user = User()
    assert by_template(user) == by_template(user) == 1
    assert user.reads == 2


@pytest.mark.parametrize("name", ["lambda", "class_", "<lambda>", "a b", "x\ny", "'quoted'"])
def test_a_function_may_have_any_name(name: str) -> None:
    def load(x: int) -> int:
        return x

    load.__name__ = name
    load.__qualname__ = f"outer.<locals>.{name}"
    wrapped = cachekit.Cache().cached(load)
    assert wrapped(1) == wrapped(1) == 1
    assert wrapped.__name__ == name
    assert wrapped.cache_info()[:2] == (1, 1)


def test_a_lambda_can_be_decorated() -> None:
    double = cachekit.Cache().cached(lambda x: [2 * x])
    assert double(2) is double(2)
