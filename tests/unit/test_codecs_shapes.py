"""Registered classes: found in annotations, restored exactly, refused when they changed."""

from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import functools
import typing
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import pytest

from cachekit.codecs import Compressed, Encrypted, ExactJson, Pickle, Signed, registry_of
from cachekit.errors import CodecError, ConfigurationError

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "r"
    ALSO_RED = "r"  # noqa: PIE796 -- an alias
    ODD = (1, object())


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: Any = 0


Classic = collections.namedtuple("Classic", "a b")


@dataclasses.dataclass
class Line:
    sku: str
    price: decimal.Decimal
    sizes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    id: int
    lines: list[Line]
    colour: Colour = Colour.RED
    at: Point | None = None
    note: str = dataclasses.field(default="", init=False)


@dataclasses.dataclass
class Computed:
    raw: int
    twice: int = dataclasses.field(init=False)
    seed: dataclasses.InitVar[int] = 5

    built = 0

    def __post_init__(self, seed):
        type(self).built += 1
        self.twice = self.raw * 2 + seed

    @functools.cached_property
    def slow(self):
        return self.raw + 1


@dataclasses.dataclass
class Page(Generic[T]):
    items: list[T]


@dataclasses.dataclass
class Node:
    value: int
    next: Node | None = None


class Row(TypedDict):
    order: Order


Alias = NewType("Alias", Order)


ORDER = Order(7, [Line("a", decimal.Decimal("1.10"), (1, 2)), Line("b", decimal.Decimal("-0"))])


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Colour, Colour.ALSO_RED),
        (Colour, Colour.ODD),
        (Level, [Level.LOW, 1]),
        (Access, Access.READ | Access.WRITE),
        (Access, Access(0)),
        (Point, Point(1, (2, 3))),
        (Classic, Classic(1, [Classic(2, 3)])),
        (Order, ORDER),
        (list[Order], [ORDER, ORDER]),
        (Page[Order], Page([ORDER])),
        (Node, Node(1, Node(2))),
        (Row, {"order": ORDER}),
        (dict[Point, Level], {Point(1): Level.LOW}),
        (Access | Point, {Access.READ: {Point(1)}}),
    ],
)
def test_an_annotated_class_comes_back_exactly(annotation, value):
    codec = ExactJson().with_types(registry_of(annotation))
    again = codec.decode(codec.encode(value))
    assert again == value
    assert repr(again) == repr(value)
    assert type(again) is type(value)


@pytest.mark.parametrize(
    ("annotation", "classes"),
    [
        (None, set()),
        (int, set()),
        (Any, set()),
        ("Order", set()),
        (Order, {Order, Line, Colour, Point}),
        (list[Order] | None, {Order, Line, Colour, Point}),
        (typing.Optional[Line], {Line}),  # noqa: UP045 -- the older spelling too
        (dict[Level, list[tuple[Line, ...]]], {Level, Line}),
        (Annotated[Line, "meta", Colour.RED], {Line, Colour}),
        (Literal[Level.LOW, "x"], {Level}),
        (Page[Line], {Page, Line}),
        (Row, {Order, Line, Colour, Point}),
        (Alias, {Order, Line, Colour, Point}),
        (typing.Callable[[Line], Level], {Line, Level}),
        (typing.Awaitable[Node], {Node}),
        (TypeVar("B", bound=Line), {Line}),
        (type[Line], {Line}),
        (enum.Enum, set()),
        (collections.OrderedDict, set()),
        (object(), set()),
        ([[Line]], {Line}),
    ],
)
def test_the_classes_of_an_annotation_are_found_to_any_depth(annotation, classes):
    assert registry_of(annotation) == classes


def test_an_annotation_that_can_not_be_resolved_is_left_out():
    @dataclasses.dataclass
    class Half:
        known: list[int]
        unknown: NotThere  # noqa: F821 -- that is the point

    assert registry_of(Half) == {Half}
    codec = ExactJson([Half])
    assert codec.decode(codec.encode(Half([1], 2))) == Half([1], 2)


def test_a_class_is_restored_without_running_its_code():
    codec = ExactJson([Computed])
    value = Computed(3)
    value.twice = 99
    data = codec.encode(value)
    built = Computed.built
    again = codec.decode(data)
    assert (again.raw, again.twice) == (3, 99)
    assert Computed.built == built


def test_a_computed_property_is_left_to_be_computed_again():
    codec = ExactJson([Computed])
    value = Computed(3)
    assert value.slow == 4
    again = codec.decode(codec.encode(value))
    assert "slow" not in vars(again)
    assert again.slow == 4


def test_state_outside_the_fields_is_refused_not_lost():
    value = Computed(3)
    value.extra = 1
    with pytest.raises(CodecError, match="extra"):
        ExactJson([Computed]).encode(value)

    class Base:
        __slots__ = ("__own", "hidden")

    @dataclasses.dataclass(slots=True)
    class Sub(Base):
        shown: int

    codec = ExactJson([Sub])
    value = Sub(1)
    assert codec.decode(codec.encode(value)) == value
    value.hidden = 2
    with pytest.raises(CodecError, match="hidden"):
        codec.encode(value)
    value = Sub(1)
    value._Base__own = 2
    with pytest.raises(CodecError, match="own"):
        codec.encode(value)

    class Named(Point):
        pass

    value = Named(1, 2)
    value.extra = 3
    with pytest.raises(CodecError, match="extra"):
        ExactJson([Named]).encode(value)


def test_a_subclass_of_a_registered_class_is_refused():
    class Special(Line):
        pass

    with pytest.raises(CodecError, match="Special"):
        ExactJson([Line]).encode(Special("a", 1))


def test_a_class_is_known_only_to_the_codec_it_is_registered_with():
    data = ExactJson([Point]).encode(Point(1))
    for codec in (ExactJson(), ExactJson([Line])):
        with pytest.raises(CodecError):
            codec.decode(data)


def shape(fields, name="Changing", make=dataclasses.make_dataclass):
    return make(name, fields)


def test_a_class_whose_fields_changed_reads_as_damaged():
    before = shape([("a", int), ("b", str)])
    data = ExactJson([before]).encode(before(1, "x"))
    same = shape([("a", int), ("b", str)])
    assert ExactJson([same]).decode(data) == same(1, "x")
    for fields in (
        [("a", int)],
        [("a", int), ("c", str)],
        [("a", int), ("b", bytes)],
        [("b", str), ("a", int)],
        [("a", int), ("b", str), ("c", int, 0)],
    ):
        changed = shape(fields)
        with pytest.raises(CodecError):
            ExactJson([changed]).decode(data)


def test_a_flag_whose_bits_moved_reads_as_damaged():
    before = enum.Flag("Moving", {"A": 1, "B": 2}, module=__name__)
    after = enum.Flag("Moving", {"A": 2, "B": 1}, module=__name__)
    data = ExactJson([before]).encode(before.A)
    with pytest.raises(CodecError):
        ExactJson([after]).decode(data)


def test_a_removed_enum_member_reads_as_damaged_and_an_added_one_does_no_harm():
    two = enum.Enum("Growing", ["A", "B"], module=__name__)
    three = enum.Enum("Growing", ["A", "B", "C"], module=__name__)
    assert ExactJson([three]).decode(ExactJson([two]).encode(two.B)) is three.B
    with pytest.raises(CodecError):
        ExactJson([two]).decode(ExactJson([three]).encode(three.C))


def test_a_state_that_does_not_fit_the_class_builds_nothing():
    codec = ExactJson([Line, Point, Access, Colour])
    for value in (Line("a", 1), Point(1), Access.READ, Colour.RED):
        data = codec.encode(value).decode()
        head, name = data.split('"')[1:4:2]
        for state in (
            "null",
            "1",
            "[]",
            '["list"]',
            '["list",1,2,3]',
            "{}",
            '{"__class__":1}',
            '"NO"',
            "9",
        ):
            if isinstance(value, Access) and state == "1":
                continue
            with pytest.raises(CodecError):
                codec.decode(f'\n["{head}","{name}",{state}]'.encode())


def test_classes_are_registered_through_what_is_around_the_codec():
    for around in (
        Signed(ExactJson(), b"s" * 32),
        Encrypted(Compressed(ExactJson()), b"s" * 32),
        Compressed(Signed(ExactJson(), b"s" * 32)),
    ):
        with pytest.raises(CodecError):
            around.encode(Point(1), b"k")
        more = around.with_types([Point])
        assert more.decode(more.encode(Point(1), b"k"), b"k") == Point(1)
        assert more.mark == around.mark
        assert more.with_types([Point]) is more
        assert more.decode(around.encode(1, b"k"), b"k") == 1
    pickled = Signed(Pickle(), b"s" * 32)
    assert pickled.with_types([Point]) is pickled


def test_registering_gives_a_new_codec_and_leaves_the_old_one():
    base = ExactJson()
    more = base.with_types([Point])
    assert base.types == frozenset()
    assert more.types == {Point}
    assert more.with_types([Point]) is more
    assert more.with_types([list[Line]]).types == {Point, Line}
    assert more.with_types([int, None, dict]) is more


@pytest.mark.parametrize(
    "cls",
    [object, collections.OrderedDict, ValueError, enum.Enum, type("Plain", (), {})],
)
def test_a_class_that_can_not_be_kept_exactly_is_refused_at_registration(cls):
    with pytest.raises(ConfigurationError, match=cls.__name__):
        ExactJson([cls])


def test_a_dataclass_built_on_a_builtin_is_refused_at_registration():
    @dataclasses.dataclass
    class Odd(dict):
        a: int = 1

    with pytest.raises(ConfigurationError, match="Odd"):
        ExactJson([Odd])


def test_two_classes_of_one_name_and_shape_are_refused_together():
    with pytest.raises(ConfigurationError, match="Changing"):
        ExactJson([shape([("a", int)]), shape([("a", int)])])
