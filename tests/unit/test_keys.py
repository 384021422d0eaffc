"""Keys: equal arguments of equal types share one, nothing else does."""

from __future__ import annotations

import enum
import math
import pathlib
import string
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cachekit
from cachekit.core import keys
from cachekit.core.keys import NotANumberKey, literal, physical, typed
from cachekit.errors import KeyEncodingError

Pair = namedtuple("Pair", "left right")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Number(enum.IntEnum):
    ONE = 1


class Right(enum.IntFlag):
    READ = 1


class Account:
    def __init__(self, number: Any) -> None:
        self.number = number

    def __cache_key__(self) -> Any:
        return self.number


class Invoice(Account):
    pass


class Text(str):
    pass


class Unhashable:
    __hash__ = None  # type: ignore[assignment]  # what the test is about


class RaisingHash:
    def __hash__(self) -> int:
        raise LookupError("hash")


class RaisingEq:
    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        raise LookupError("eq")


BERLIN = ZoneInfo("Europe/Berlin")
TWICE = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN)  # this hour comes twice
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)

DIFFERENT: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = [
    ((1,), (True,)),
    ((1,), (1.0,)),
    ((1,), ("1",)),
    ((True,), (1.0,)),
    ((1,), (Decimal(1),)),
    ((1.0,), (Decimal(1),)),
    ((1,), (1 + 0j,)),
    ((0,), (False,)),
    ((0,), (None,)),
    ((None,), ("None",)),
    (("",), (None,)),
    (("True",), (True,)),
    (("a",), (b"a",)),
    (("a",), (Text("a"),)),
    ((b"a",), ("b'a'",)),
    (("a", "b:c"), ("a:b", "c")),
    (("a", "b,c"), ("a,b", "c")),
    (("a','b", "c"), ("a", "b','c")),
    (("a", ""), ("", "a")),
    (((1, 2),), ((1, 2.0),)),
    (((1, (2,)),), ((1, (True + 1.0,)),)),
    ((((1,),),), (((True,),),)),
    (((),), (frozenset(),)),
    (((1,),), (1,)),
    (((),), ("()",)),
    (((),), (None,)),
    ((frozenset({1}),), (frozenset({True}),)),
    ((frozenset({(1,)}),), (frozenset({(1.0,)}),)),
    ((Pair(1, 2),), (Pair(True, 2),)),
    ((Pair(1, 2),), ((1, 2),)),
    ((Number.ONE,), (1,)),
    ((Colour.RED,), (Colour.BLUE,)),
    ((Colour.RED,), ("Colour.RED",)),
    ((Right(8),), (Right(16),)),
    ((Right.READ,), (1,)),
    ((UUID(int=1),), (str(UUID(int=1)),)),
    ((TWICE,), (TWICE.replace(fold=1),)),
    ((NOON,), (NOON.replace(tzinfo=None),)),
    ((datetime(2024, 1, 1),), (date(2024, 1, 1),)),
    ((timedelta(1),), (86400,)),
    ((Account(1),), (Invoice(1),)),
    ((Account(1),), (Account(True),)),
    ((Account(1),), (1,)),
    ((pathlib.PurePosixPath("a"),), ("a",)),
    ((int,), ("int",)),
    ((int,), (float,)),
    (("\ud800",), ("\\ud800",)),
    (("é",), ("e\u0301",)),
    ((10**5000,), (10**5000 + 1,)),
    ((math.inf,), ("inf",)),
    ((math.inf,), (-math.inf,)),
    ((1,), (1, 0)),
]

SAME: list[tuple[Any, Any]] = [
    (0.0, -0.0),
    ((0.0,), (-0.0,)),
    (Decimal("1.0"), Decimal("1.00")),
    (Decimal("0"), Decimal("-0.0")),
    (frozenset({1, "a"}), frozenset({"a", 1})),
    (NOON, NOON.astimezone(BERLIN)),
    (NOON, NOON.astimezone(timezone(timedelta(hours=5)))),
    (Account((1, "x")), Account((1, "x"))),
    (Pair(1, "x"), Pair(1, "x")),
    (10**5000, 10**5000),
]


def _counted(**options: Any) -> Any:
    calls = []

    @cachekit.Cache().cached(**options)
    def f(*args: Any) -> int:
        calls.append(args)
        return len(calls)

    @cachekit.Cache().cached(**options)
    def one(x: Any, y: Any = None) -> int:
        calls.append((x, y))
        return len(calls)

    return f, one


@pytest.mark.parametrize(("left", "right"), DIFFERENT, ids=map(str, range(len(DIFFERENT))))
def test_different_calls_never_share_a_value(left: Any, right: Any) -> None:
    for f in _counted():
        first, second = f(*left), f(*right)
        assert first != second
        assert (f(*left), f(*right)) == (first, second)  # both are kept, side by side


@pytest.mark.parametrize(("left", "right"), DIFFERENT, ids=map(str, range(len(DIFFERENT))))
def test_different_calls_never_share_a_text_key(left: Any, right: Any) -> None:
    f, _ = _counted()
    try:
        assert f.key(*left) != f.key(*right)
    except TypeError:
        pass  # a value without a text has no text key to share


@pytest.mark.parametrize(("left", "right"), SAME, ids=map(str, range(len(SAME))))
def test_equal_arguments_of_equal_types_share_one(left: Any, right: Any) -> None:
    f, _ = _counted()
    assert f(left) == f(right) == f(left)
    f.invalidate(right)
    assert f(left) == 2
    if not isinstance(left, Pair):  # which has no text
        assert literal(left) == literal(right)


@given(st.data())
def test_the_text_of_values_is_equal_exactly_where_their_typed_form_is(data: st.DataObject) -> None:
    leaf = (
        st.none()
        | st.booleans()
        | st.integers(-3, 3)
        | st.sampled_from([0.0, -0.0, 1.0, 1.5, math.inf, -math.inf])
        | st.text("a'\",(){}\\\n\x00é", max_size=3)
        | st.binary(max_size=2)
        | st.sampled_from([Decimal("1"), Decimal("1.0"), Decimal("-0"), Decimal("Infinity")])
        | st.sampled_from([*Colour, Number.ONE, Right(8), UUID(int=1), NOON, time(1)])
    )
    nested = st.recursive(
        leaf,
        lambda inner: (
            st.tuples(inner)
            | st.tuples(inner, inner)
            | st.frozensets(inner, max_size=2)
            | inner.map(Account)
        ),
        max_leaves=4,
    )
    left, right = data.draw(nested), data.draw(nested)
    assert (literal(left) == literal(right)) == (typed(left) == typed(right))


@given(st.text(max_size=300) | st.text("~%aé ", max_size=260))
def test_a_physical_name_is_printable_ascii_without_blanks(text: str) -> None:
    name = physical(text)
    assert 1 <= len(name) <= keys.MAX_KEY
    assert all("!" <= c <= "~" for c in name)


@given(st.lists(st.text("~%A0é \n", max_size=4), min_size=2, max_size=2, unique=True))
def test_physical_names_of_different_texts_differ(texts: list[str]) -> None:
    assert physical(texts[0]) != physical(texts[1])


@pytest.mark.parametrize("length", [199, 200, 201, 400, 1_000_000])
def test_long_names_are_hashed_and_cannot_be_forged(length: int) -> None:
    name = physical("k" * length)
    assert len(name) <= keys.MAX_KEY
    assert physical("k" * (length + 1)) != name
    # Writing another key's hashed form gives a key of its own.
    assert physical(name) == name if "~" not in name else physical(name) != name


def test_escaped_forms_can_not_be_written_by_a_caller() -> None:
    assert physical("a b") == "a%20b"
    assert physical("a%20b") not in {physical("a b"), "a%20b"}


@pytest.mark.parametrize(
    "nan",
    [math.nan, Decimal("NaN"), Decimal("sNaN"), complex(0, math.nan), (1, (math.nan,)),
     frozenset({math.nan}), Pair(math.nan, 1), Account(math.nan)],
)  # fmt: skip
def test_nan_is_never_cached_and_no_helper_stumbles_over_it(nan: Any) -> None:
    f, one = _counted()
    assert f(nan) != f(nan)
    assert one(nan, 1) != one(nan, 1)
    assert f.peek(nan) is cachekit.MISSING
    assert f.invalidate(nan) is None
    assert f.refresh(nan) != f.refresh(nan)
    with pytest.raises(NotANumberKey):
        f.key(nan)


@pytest.mark.parametrize("value", [[], {}, set(), bytearray(), Unhashable(), ([],), Pair([], 1)])
def test_an_unhashable_argument_is_refused_with_parameter_and_remedy(value: Any) -> None:
    _, one = _counted()
    with pytest.raises(TypeError, match=r"parameter 'x' .*ignore=\(\"x\",\)"):
        one(value)
    with pytest.raises(TypeError, match="parameter 'y'"):
        one(1, value)


def test_a_tuple_nested_too_deeply_is_refused_by_name() -> None:
    value: Any = ()
    for _ in range(20_000):
        value = (value,)
    with pytest.raises(KeyEncodingError, match="parameter 'x'"):
        _counted()[1](value)


@pytest.mark.parametrize("value", [RaisingHash(), (RaisingHash(),)])
def test_what_a_users_hash_raises_reaches_the_caller_unchanged(value: Any) -> None:
    _, one = _counted()
    for call in (one, one.peek, one.invalidate, one.refresh):
        # In a thread of its own: nothing that another test is still handling is its context.
        with ThreadPoolExecutor(1) as pool:
            failed = pool.submit(call, value)
        with pytest.raises(LookupError, match="hash") as caught:
            failed.result()
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None


def test_what_a_users_equality_raises_reaches_the_caller_and_harms_nothing() -> None:
    _, one = _counted()
    one(5)
    with pytest.raises(LookupError, match="eq"):
        one(RaisingEq())
    assert one(5) == 1
    assert one(6) == one(6)


def test_local_classes_of_one_name_are_told_apart() -> None:
    def make() -> type:
        class Model: ...

        return Model

    one, two = make(), make()
    f, _ = _counted()
    assert f(one) != f(two)
    with pytest.raises(KeyEncodingError, match="found by its name"):
        literal(one)


def test_members_of_local_enums_of_one_name_are_told_apart() -> None:
    def make() -> Any:
        class Local(enum.Enum):
            A = 1

        return Local.A

    f, _ = _counted()
    assert f(make()) != f(make())


def test_a_class_with_a_cache_key_is_still_keyed_as_a_class() -> None:
    f, _ = _counted()
    assert f(Account) == f(Account) != f(Invoice)


def test_a_text_key_says_what_is_in_it() -> None:
    assert literal(("a", 7, None, 1.5)) == "('a',7,None,1.5,)"
    assert literal(UUID(int=1)).startswith("UUID(0000")
    assert literal(Colour.RED) == f"enum({__name__}.Colour.RED)"
    assert set(literal("é\n\x00 ")) <= set(string.printable) - set("\n\x00")


@pytest.mark.parametrize("value", ["7", "-1", "1e5", "None", "True", "inf", "-nan", "", "a b", "é"])
def test_a_bare_string_is_quoted_where_something_else_could_be_meant(value: str) -> None:
    assert keys.bare(value) == ascii(value)


@pytest.mark.parametrize("value", ["bob", "a.b", "x-1", "me@here", "infinite"])
def test_a_plain_word_stands_without_quotes(value: str) -> None:
    assert keys.bare(value) == value


@pytest.mark.parametrize(("bad", "error"), [(None, TypeError), (b"k", TypeError), ("", ValueError)])
def test_a_key_that_is_no_text_is_refused(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="a key must"):
        cachekit.Cache().get(bad)
