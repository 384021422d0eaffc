"""MessagePack: what comes back unchanged passes, everything else is refused."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import math
import zoneinfo
from typing import Any

import msgspec
import pytest

from cachekit.codecs import Msgpack
from cachekit.errors import CodecError


class User(msgspec.Struct):
    id: int
    tags: tuple[str, ...] = ()
    score: Any = None


@dataclasses.dataclass
class Line:
    sku: str
    price: decimal.Decimal = decimal.Decimal(0)


class Colour(enum.Enum):
    RED = "r"


PLAIN = [
    None,
    True,
    2**64 - 1,
    -(2**63),
    -0.0,
    math.inf,
    "é😀",
    b"\0\xff",
    [1, [2.5, None]],
    {"a": {1: "x", None: b"", 1.5: [], b"k": True}},
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_come_back_exactly(value):
    again = Msgpack().decode(Msgpack().encode(value))
    assert repr(again) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        (1,),
        [(1,)],
        {"a": {1}},
        {(1,): 2},
        frozenset(),
        bytearray(b"x"),
        memoryview(b"x"),
        2**64,
        "\ud800",
        decimal.Decimal(1),
        dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
        Colour.RED,
        User(1),
        Line("a"),
        collections.OrderedDict(a=1),
        type("Sub", (str,), {})("x"),
        type("Sub", (int,), {})(1),
        msgspec.Raw(b"\1"),
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_messagepack_would_change_are_refused_with_a_remedy(value):
    with pytest.raises(CodecError, match="codec=") as caught:
        Msgpack().encode(value)
    assert type(value).__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (User, User(1, ("a", "b"), [1, {"k": None}])),
        (list[User] | None, [User(1), User(2)]),
        (list[User] | None, None),
        (Line, Line("a", decimal.Decimal("1.10"))),
        (Colour, Colour.RED),
        (dict[int, tuple[int, str]], {1: (2, "x")}),
        (set[int], {1, 2}),
        (frozenset[tuple[int, int]], frozenset({(1, 2)})),
        (dt.datetime, dt.datetime(2024, 1, 1, 5, tzinfo=dt.UTC)),
        (dt.timedelta, dt.timedelta(days=-1, microseconds=1)),
        (float, -0.0),
        (float, math.nan),
    ],
    ids=repr,
)
def test_values_of_a_known_type_come_back_exactly(annotation, value):
    codec = Msgpack(type=annotation)
    again = codec.decode(codec.encode(value))
    assert repr(again) == repr(value)
    assert type(again) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (tuple[int, ...], [1]),
        (list[int], (1,)),
        (User, User(1, ["a"])),
        (User, User(1, (), (1, 2))),
        (User, {"id": 1}),
        (User, User("1")),
        (Line, Line("a", 1)),
        (Line, Line("a", decimal.Decimal("NaN"))),
        (float, 1),
        (int, True),
        (set[tuple[int, ...]], frozenset({(1,)})),
        (dict[str, float], {"a": 1}),
        (dt.datetime, dt.datetime(2024, 1, 1, 5, tzinfo=zoneinfo.ZoneInfo("Europe/Paris"))),
        (dict[str, int], collections.OrderedDict(a=1)),
        (Any, (1,)),
    ],
    ids=repr,
)
def test_values_that_would_come_back_changed_are_refused(annotation, value):
    with pytest.raises(CodecError):
        Msgpack(type=annotation).encode(value)


def test_an_entry_written_for_another_type_reads_as_damaged():
    codecs = [Msgpack(), Msgpack(type=Any), Msgpack(type=list[int]), Msgpack(type=list[Any])]
    for writer in codecs:
        data = writer.encode([1])
        assert writer.decode(data) == [1]
        for reader in codecs:
            if reader is not writer:
                with pytest.raises(CodecError):
                    reader.decode(data)


def test_a_struct_whose_fields_changed_reads_as_damaged():
    def struct(*fields):
        return msgspec.defstruct("Changing", fields, module=__name__)

    before = struct(("a", int), ("b", str, ""))
    data = Msgpack(type=before).encode(before(1))
    same = struct(("a", int), ("b", str, ""))
    assert Msgpack(type=same).decode(data) == same(1)
    for changed in (struct(("a", int)), struct(("a", float), ("b", str, ""))):
        with pytest.raises(CodecError):
            Msgpack(type=changed).decode(data)


def test_the_digest_of_a_type_does_not_hold_an_address():
    def struct():
        return msgspec.defstruct(
            "Made", [("a", list[int], msgspec.field(default_factory=lambda: [1]))], module=__name__
        )

    one, other = struct(), struct()
    assert Msgpack(type=other).decode(Msgpack(type=one).encode(one())) == other()
