"""What the default codec gives back, and what it refuses."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import ipaddress
import json
import math
import pathlib
import struct
import sys
import types
import uuid
import zoneinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.codecs import ExactJson, Msgpack, Pickle
from cachekit.errors import CodecError

JSON = ExactJson()
PARIS = zoneinfo.ZoneInfo("Europe/Paris")

PLAIN, TAGGED = b" ", b"\n"


def picture(value):
    """The value with its type at every depth, so that equal pictures are identical values."""
    kind = type(value)
    if kind is float:
        return kind, struct.pack(">d", value)
    if kind is complex:
        return kind, struct.pack(">dd", value.real, value.imag)
    if kind in (list, tuple):
        return kind, [picture(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted((picture(item) for item in value), key=repr)
    if kind is dict:
        return kind, [(picture(key), picture(item)) for key, item in value.items()]
    if kind in (dt.datetime, dt.time):
        zone = value.tzinfo
        return kind, value.isoformat(), value.fold, type(zone), repr(zone)
    return kind, repr(value)


zones = (
    st.none()
    | st.just(dt.UTC)
    | st.builds(dt.timezone, st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)))
    | st.builds(dt.timezone, st.timedeltas(dt.timedelta(0), dt.timedelta(hours=5)), st.text())
    | st.just(PARIS)
)
texts = st.text(st.characters(codec=None, exclude_categories=()))
plain_atoms = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts
hashable_leaves = (
    plain_atoms
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.binary()
    | st.decimals()
    | st.uuids()
    | st.dates()
    | st.timedeltas()
    | st.builds(
        lambda m, f, z: m.replace(fold=f, tzinfo=z), st.datetimes(), st.integers(0, 1), zones
    )
    | st.builds(lambda m, f, z: m.replace(fold=f, tzinfo=z), st.times(), st.integers(0, 1), zones)
    | st.ip_addresses()
)
hashables = st.recursive(
    hashable_leaves.filter(lambda v: not (isinstance(v, decimal.Decimal) and v.is_snan())),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
leaves = hashable_leaves | st.binary().map(bytearray)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(texts, inner, max_size=4)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.sets(hashables, max_size=3)
        | st.frozensets(hashables, max_size=3)
    ),
    max_leaves=20,
)


@given(values)
@settings(max_examples=400, deadline=None)
def test_any_nested_value_comes_back_equal_in_value_and_type(value):
    assert picture(JSON.decode(JSON.encode(value))) == picture(value)


@given(values)
@settings(max_examples=200, deadline=None)
def test_pickle_and_messagepack_give_back_the_very_value_or_refuse_it(value):
    for codec in (Pickle(), Msgpack(), Msgpack(type=list[tuple[int, str] | None])):
        try:
            data = codec.encode(value)
        except CodecError:
            continue
        assert picture(codec.decode(data)) == picture(value)


EXACT = [
    None,
    True,
    0,
    -1,
    10**4000,
    0.1,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    complex(-0.0, math.nan),
    "",
    "é\u2028😀",
    "\ud83d\ude00",  # two lone surrogates, not one character
    "\udc80 lone",
    b"",
    b"\0\xff",
    bytearray(b"x"),
    (),
    [],
    {},
    set(),
    frozenset(),
    (1,),
    [(1, [2, (3,)])],
    {1: "a", "1": "b", (1, 2): "c", None: "d", b"1": "e", 1.5: "f"},
    {"nested": {1: {2: ()}}},
    {"": 1, "list": 2, "class": 3},
    ["class", "os.system", "true"],
    {(), (1,), frozenset({1})},
    decimal.Decimal("1.10"),
    decimal.Decimal("-0"),
    decimal.Decimal("-sNaN12"),
    decimal.Decimal("1E+999999"),
    uuid.UUID(int=7),
    dt.date.min,
    dt.time.max,
    dt.time(1, 2, fold=1, tzinfo=dt.UTC),
    dt.datetime.max,
    dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=PARIS),
    dt.datetime(2024, 10, 27, 2, 30, fold=0, tzinfo=PARIS),
    dt.datetime(
        2024, 1, 1, 0, 0, 0, 1, tzinfo=dt.timezone(dt.timedelta(seconds=-1, microseconds=1))
    ),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "UTC")),
    dt.timedelta.min,
    dt.timedelta.max,
    pathlib.Path("/a//b/../c"),
    pathlib.PurePosixPath("a\udcff"),
    pathlib.PureWindowsPath(r"c:\x"),
    ipaddress.ip_address("10.0.0.1"),
    ipaddress.ip_address("fe80::1%eth0"),
    ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_network("::/0"),
    ipaddress.ip_interface("10.0.0.1/8"),
    ipaddress.ip_interface("::1/64"),
]


@pytest.mark.parametrize("value", EXACT, ids=lambda value: repr(value)[:40])
def test_each_supported_type_comes_back_exactly(value):
    assert picture(JSON.decode(JSON.encode(value))) == picture(value)
    nested = {"in": [value, (value,)], 1: value}
    assert picture(JSON.decode(JSON.encode(nested))) == picture(nested)


def test_the_named_utc_zone_stays_another_object_than_utc():
    named = dt.timezone(dt.timedelta(0), "UTC")
    moment = dt.datetime(2024, 1, 1, tzinfo=named)
    assert JSON.decode(JSON.encode(moment)).tzinfo is not dt.UTC
    utc = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    assert JSON.decode(JSON.encode(utc)).tzinfo is dt.UTC


@pytest.mark.parametrize("value", [None, -0.0, "é", [1, {"a": [None, True, 1.5]}], {"a": {}}])
def test_plain_values_are_stored_as_plain_json(value):
    data = JSON.encode(value)
    assert data[:1] == PLAIN
    assert json.loads(data) == value


@pytest.mark.parametrize("value", [(1,), {1: 2}, b"x", [math.nan], {"a": {"b": ()}}])
def test_other_values_are_tagged_and_still_one_json_text(value):
    data = JSON.encode(value)
    assert data[:1] == TAGGED
    json.loads(data)


class Text(str):
    pass


class Zone(dt.tzinfo):
    def utcoffset(self, _):
        return dt.timedelta(0)


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    A = "a"


Pair = collections.namedtuple("Pair", "a b")

REFUSED = [
    Text("x"),
    Number.ONE,
    Word.A,
    Pair(1, 2),
    collections.OrderedDict(a=1),
    collections.defaultdict(list),
    collections.Counter("a"),
    collections.deque(),
    type("Sub", (list,), {})(),
    type("Sub", (int,), {})(1),
    type("Sub", (float,), {})(1),
    type("Sub", (bytes,), {})(b""),
    type("Sub", (dict,), {})(),
    type("Sub", (dt.datetime,), {})(2024, 1, 1),
    types.SimpleNamespace(),
    object(),
    range(3),
    memoryview(b""),
    ...,
    len,
    int,
    dt.datetime(2024, 1, 1, tzinfo=Zone()),
    ValueError("x"),
    (i for i in ()),
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_a_type_that_would_change_is_refused_with_its_name_and_a_remedy(value):
    hidden = ([value], {"a": value}, {"a": (value,)})
    for box in (value, *hidden):
        with pytest.raises(CodecError, match=r"codec=") as caught:
            JSON.encode(box)
        named = type(value.tzinfo if isinstance(getattr(value, "tzinfo", None), Zone) else value)
        assert named.__qualname__ in str(caught.value)


@pytest.mark.parametrize("key", [Text("x"), Word.A, Number.ONE, Pair(1, 2)], ids=repr)
def test_a_key_of_an_unknown_type_is_refused(key):
    with pytest.raises(CodecError, match=type(key).__name__):
        JSON.encode({key: 1})


def test_a_zone_read_from_a_file_is_refused():
    for root in (*zoneinfo.TZPATH, None):
        if root is None:
            pytest.skip("no time zone files here")
        path = pathlib.Path(root, "Europe/Paris")
        if path.exists():
            break
    with path.open("rb") as file:
        zone = zoneinfo.ZoneInfo.from_file(file, key="Asia/Tokyo")
    with pytest.raises(CodecError, match="ZoneInfo"):
        JSON.encode(dt.datetime(2024, 1, 1, tzinfo=zone))


def test_a_number_with_too_many_digits_is_refused():
    for box in (10**5000, [10**5000], (10**5000,)):
        with pytest.raises(CodecError, match="codec="):
            JSON.encode(box)


def cycle(kind):
    box = kind()
    if kind is dict:
        box["self"] = box
    else:
        box.append(box)
    return box


@pytest.mark.parametrize("codec", [JSON, Msgpack(), Msgpack(type=list)], ids=repr)
def test_cycles_and_absurd_depth_are_refused(codec):
    branching = []
    branching += [branching, branching]
    tagged = [()]
    tagged.append(tagged)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (cycle(list), cycle(dict), branching, tagged, deep):
        with pytest.raises(CodecError):
            codec.encode(value)
    while deep:  # or its deallocation recurses
        deep = deep[0]


@pytest.mark.parametrize("box", [list, tuple])
def test_two_hundred_levels_come_back_and_more_are_refused(box):
    value = 1
    for _ in range(200):
        value = box([value])
    assert JSON.decode(JSON.encode(value)) == value
    with pytest.raises(CodecError, match="200 levels, or"):
        JSON.encode(box([value]))


def test_the_stack_running_out_is_contained():
    value = [(1,)]
    for _ in range(150):
        value = [value]
    data = JSON.encode(value)
    raised = []

    def down():
        try:
            down()
        except RecursionError:
            pass
        for step in (lambda: JSON.encode(value), lambda: JSON.decode(data)):
            try:
                step()
            except CodecError:
                raised.append(1)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    try:
        down()
    finally:
        sys.setrecursionlimit(limit)
    assert raised


def test_shared_references_come_back_as_copies():
    shared = [1]
    one, other = JSON.decode(JSON.encode([shared, shared]))
    assert one == other == [1]
    assert one is not other


def test_no_error_shows_the_payload_or_keeps_it_as_its_cause():
    secret = "swordfish"
    failures = [
        (JSON.encode, [secret, object()]),
        (JSON.encode, {secret: 10**5000}),
        (JSON.decode, f' "{secret}'.encode()),
        (JSON.decode, f'\n["UUID", "{secret}"]'.encode()),
        (JSON.decode, f'\n["{secret}"]'.encode()),
        (Pickle().encode, [secret, lambda: 1]),
        (Pickle().decode, b"\x80\x05\x8c\x09" + secret.encode() + b"R."),
        (Msgpack().encode, (secret,)),
        (Msgpack(type=int).decode, Msgpack(type=int).encode(1)[:4] + b"\xa9" + secret.encode()),
    ]
    for step, argument in failures:
        with pytest.raises(CodecError) as caught:
            step(argument)
        error = caught.value
        assert secret not in str(error)
        assert error.__cause__ is None
        assert error.__context__ is None


def test_interrupts_pass_through():
    class Interrupting(dict):
        def __reduce_ex__(self, _):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pickle().encode(Interrupting())
