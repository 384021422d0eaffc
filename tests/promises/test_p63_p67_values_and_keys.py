"""P63-P67 through the faces: values come back as they were, calls keep their own keys, hostile
names go the round trip or are refused, and a ttl means one thing everywhere."""

from __future__ import annotations

import asyncio
import enum
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from stage import Opener, Stage, manual_runtime, opener_for

from cachekit import MISSING, Cache
from cachekit.runtime import Runtime
from cachekit.testing.clock import ManualClock


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: int
    y: float
    tags: tuple[str, ...] = ()


VALUES: list[Any] = [
    None, True, False, 0, -1, 2**70, -0.0, 0.1, math.inf, -math.inf, "", "ä\x00\U0001f600", b"",
    b"\xff\x00", [], [1, [2, [3]]], (), (1, (2, "3")), {}, {"a": {"b": None}},
    {1: "int", "1": "str"}, {(1, 2): "tuple key"}, set(), {1, 2}, frozenset({"a"}),
    Decimal("1.10"), uuid.UUID(int=5),
    datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5))),
    datetime(2024, 1, 1), date(2024, 2, 29), timedelta(days=-1, microseconds=3),
    {"mixed": [(1, b"x"), {Decimal("0")}, {"deep": (None, -0.0)}]},
]  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return math.copysign(1, one) == math.copysign(1, other) and one == other
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            k in other and _same(v, other[k]) for k, v in one.items()
        )
    if isinstance(one, datetime):
        return bool(one == other and one.utcoffset() == other.utcoffset())
    return bool(one == other and str(one) == str(other)) or isinstance(one, (set, frozenset))


def test_p63_a_call_gives_the_same_value_and_type_on_miss_and_hit(shared_stage: Stage) -> None:
    stage = shared_stage
    here, elsewhere = (stage.open(coherence="strict") for _ in range(2))

    async def body() -> None:
        for n, value in enumerate(VALUES):
            loads: list[int] = []

            def load(value: Any = value, loads: list[int] = loads) -> Any:
                loads.append(1)
                return value

            for cache in (here, here, elsewhere):
                found = await stage.face(cache).get_or_set(f"k{n}", stage.source(load), ttl=60)
                assert _same(found, value), (found, value)
            assert loads == [1], f"{value!r} was not cached"

    stage.play(body)


def test_p63_classes_of_the_return_annotation_come_back_as_themselves(
    open_shared: Opener,
) -> None:
    for annotated, value in (
        (Point, Point(1, 2.0, ("a",))),
        (list[Point], [Point(1, -0.0)]),
        (dict[str, Colour], {"c": Colour.RED}),
    ):
        loads: list[int] = []
        caches = [open_shared(coherence="strict") for _ in range(2)]
        for cache in caches:

            def load(n: int, value: Any = value, loads: list[int] = loads) -> Any:
                loads.append(n)
                return value

            load.__annotations__["return"] = annotated
            function = cache.cached(ttl=60, key=f"{annotated}:{{n}}")(load)
            assert function(1) == value
            assert type(function(1)) is type(value)
        assert loads == [1]


def test_p63_what_can_not_be_given_back_is_returned_uncached_and_counted(
    shared_stage: Stage,
) -> None:
    stage = shared_stage
    cache = stage.open()

    class Opaque:
        pass

    async def body() -> None:
        for n, value in enumerate([Opaque(), lambda: 1, Fraction(1, 3), [Opaque()], range(3)]):
            loads: list[int] = []

            def load(value: Any = value, loads: list[int] = loads) -> Any:
                loads.append(1)
                return value

            found = [
                await stage.face(cache).get_or_set(f"k{n}", stage.source(load), ttl=60)
                for _ in range(2)
            ]
            if len(loads) == 2:
                assert found[0] is value
                assert found[1] is value
            else:  # a codec that knows the type gives it back exactly
                assert type(found[1]) is type(value)
                assert found[1] == value
        assert cache.stats().counts["refused_values"] >= 4

    stage.play(body)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_p64_with_copy_a_changed_result_changes_nothing_for_others(
    open_cache: Opener, asynchronous: bool
) -> None:
    cache = open_cache()

    def load(n: int) -> dict[str, list[int]]:
        return {"items": [n]}

    async def load_async(n: int) -> dict[str, list[int]]:
        return load(n)

    function: Any = cache.cached(ttl=60, copy=True, key="p64:{n}")(
        load_async if asynchronous else load
    )

    async def calls() -> None:
        for _ in range(4):
            result = function(1)
            result = await result if asynchronous else result
            assert result == {"items": [1]}
            result["items"].append("spoilt")
        if asynchronous:
            await cache.aio.close()

    asyncio.run(calls())


HOSTILE_PAIRS: list[tuple[Any, Any]] = [
    (1, True), (1, 1.0), (1, "1"), (True, "True"), (None, "None"), (0, False), (0, ""), ("", None),
    (1.0, "1.0"), (b"a", "a"), (b"a", "b'a'"), ("a", "'a'"), (("a", "b:c"), ("a:b", "c")), ((), ""),
    ((), None), ((1,), 1), ((1, 2), "(1, 2)"), ((1, 2), "1,2"), (((1,), 2), (1, (2,))),
    ((1, (2, 3)), ((1, 2), 3)), ((1, True), (1, 1)), (frozenset({1}), (1,)),
    (frozenset({1}), frozenset({True})), (frozenset({1}), frozenset({"1"})), (Decimal(1), 1),
    (Decimal("1"), "1"), (uuid.UUID(int=1), str(uuid.UUID(int=1))),
    (date(2024, 1, 1), "2024-01-01"),
    (date(2024, 1, 1), datetime(2024, 1, 1)), ("a b", "a%20b"), ("é", "e\u0301"), ("a\n", "a"),
    ("\x00", ""), ("{0}", "0"), ("a" * 300, "a" * 299), ("a" * 300, "a" * 299 + "b"), ("*", "?"),
    (Colour.RED, "red"), (Colour.RED, "Colour.RED"), (-1, "-1"), (10**30, float(10**30)),
]  # fmt: skip


def test_p65_hostile_pairs_of_arguments_never_share_a_key(open_cache: Opener) -> None:
    cache = open_cache(coherence="strict")

    @cache.cached(ttl=60, name="p65")
    def load(x: Any) -> str:
        return f"{type(x).__name__} {x!r}"

    @cache.cached(ttl=60, key="p65t:{x}:{y}", name="p65t")
    def two(x: Any, y: Any = "absent") -> str:
        return f"{type(x).__name__} {x!r} {y!r}"

    for one, other in HOSTILE_PAIRS:
        for _ in range(2):
            for value in (one, other):
                expected = f"{type(value).__name__} {value!r}"
                assert load(value) == expected
                assert two(value) == f"{expected} 'absent'"
        assert load.key(one) != load.key(other)  # type: ignore[attr-defined]
    # The same pair on either side of a separator.
    assert two("a", "b:c") != two("a:b", "c")
    assert two("a:b", "c") != two("a", "b:c")


def test_p65_equal_calls_share_a_key_however_they_are_written(open_cache: Opener) -> None:
    cache, loads = open_cache(coherence="strict"), []

    @cache.cached(ttl=60, name="p65")
    def load(a: int, b: float = 0.0, *, c: str = "x") -> int:
        loads.append((a, b, c))
        return len(loads)

    assert {load(1), load(a=1), load(1, 0.0), load(1, -0.0), load(1, b=0.0, c="x")} == {1}
    assert loads == [(1, 0.0, "x")]
    nan = float("nan")
    assert load(1, nan) != load(1, nan), "NaN is never cached"


HOSTILE_NAMES = [
    " ", "a b", "\r\nFLUSHALL\r\n", "set k 0 0 1\r\nx\r\n", "\x00", "\x7f", "ключ", "\U0001f600",
    "\ud800", "*", "k?[a-z]", "{tag}", "a}b{c", "x" * 1000, "x" * 1_000_000, "return 1", "%", "%25",
    "~", "../../etc/passwd", "'; drop table entries; --", '"', "\\", "a:b", ":", "tags-of k",
]  # fmt: skip


def test_p66_hostile_keys_and_tags_make_the_round_trip_or_are_refused(stage: Stage) -> None:
    cache = stage.open()

    async def body() -> None:
        face = stage.face(cache)
        await face.set("bystander", "untouched", tags=["innocent"])
        for n, name in enumerate(HOSTILE_NAMES):
            assert await face.set(name, n, tags=[name])
        for n, name in enumerate(HOSTILE_NAMES):
            assert await face.get(name, MISSING) == n, f"{name[:20]!r}"
        for name in HOSTILE_NAMES[::2]:
            await face.delete(name)
        for n, name in enumerate(HOSTILE_NAMES):
            assert await face.get(name, MISSING) == (MISSING if n % 2 == 0 else n)
        for name in HOSTILE_NAMES:
            await face.invalidate(tags=[name])
        assert await face.get_many(HOSTILE_NAMES) == {}
        assert await face.get("bystander") == "untouched"

    stage.play(body)


@pytest.mark.parametrize("place", ["redis", "memcached", "sqlite"])
@pytest.mark.parametrize("name", [" ", "a b", "\r\n", "ключ", "*", "{", "}", "%", ":", "x" * 150])
def test_p66_hostile_namespaces_are_kept_apart(
    request: pytest.FixtureRequest, tmp_path: Any, place: str, name: str
) -> None:
    opener = opener_for(place, request, tmp_path)
    base = opener.namespace
    hostile = opener(namespace=base + name)
    neighbour = opener(namespace=base)
    neighbour.set("k", "mine", tags=["t"])
    hostile.set("k", "theirs", tags=["t"])
    assert (neighbour.get("k"), hostile.get("k")) == ("mine", "theirs")
    hostile.invalidate(tags=["t"])
    hostile.clear()
    assert (neighbour.get("k"), hostile.get("k")) == ("mine", None)
    opener.close()


@pytest.mark.parametrize(
    ("ttl", "error"),
    [(-1, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("soon", ValueError),
     ("-5s", ValueError), (True, TypeError), ([], TypeError), (b"5", TypeError)],
    ids=repr,
)  # fmt: skip
def test_p67_a_ttl_that_makes_no_sense_is_refused_alike_everywhere(
    stage: Stage, ttl: Any, error: type[Exception]
) -> None:
    cache = stage.open()
    with pytest.raises(error):
        cache.cached(ttl=ttl)
    with pytest.raises(error):
        Cache(ttl=ttl)

    async def body() -> None:
        face = stage.face(cache)
        calls: list[Callable[[], Any]] = [
            lambda: face.set("k", 1, ttl=ttl),
            lambda: face.get_or_set("k", stage.source(lambda: 1), ttl=ttl),
            lambda: face.touch("k", ttl),
        ]
        for call in calls:
            with pytest.raises(error):
                await call()
        assert await face.get("k") is None

    stage.play(body)


def test_p67_zero_none_and_very_long_mean_one_thing(stage: Stage) -> None:
    clock = ManualClock()
    cache = stage.open(runtime=manual_runtime(clock))

    async def body() -> None:
        face = stage.face(cache)
        day = 86400
        for key, ttl in {"none": None, "40 days": "40d", "half": 0.5}.items():
            assert await face.set(key, key, ttl=ttl)
        assert await face.set("zero", 1, ttl=0) is False
        assert set(await face.get_many(["none", "40 days", "half", "zero"])) == {
            "none", "40 days", "half",
        }  # fmt: skip
        clock.advance(0.6)
        assert set(await face.get_many(["none", "40 days", "half"])) == {"none", "40 days"}
        clock.advance(39 * day)
        assert set(await face.get_many(["none", "40 days"])) == {"none", "40 days"}
        clock.advance(2 * day)
        assert set(await face.get_many(["none", "40 days"])) == {"none"}

    stage.play(body)


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 400 * 86400.0, -400 * 86400.0])
def test_p67_a_jump_of_the_wall_clock_does_no_harm_inside_a_process(
    open_cache: Opener, jump: float
) -> None:
    clock = ManualClock()
    offset = [0.0]
    wall = lambda: clock() + 1_700_000_000 + offset[0]  # noqa: E731
    cache = open_cache(runtime=Runtime(clock=clock, wall=wall), coherence=30.0)
    loads: list[int] = []

    @cache.cached(ttl=60, name="p67", tags=["t"])
    def load(n: int) -> int:
        loads.append(n)
        return len(loads)

    assert load(1) == 1
    offset[0] = jump
    clock.advance(10)
    assert load(1) == 1, "the near tier goes by the monotonic clock"
    clock.advance(51)
    # Beyond its ttl: never older, whatever the wall says.
    assert load(1) == 2
    cache.invalidate(tags=["t"])
    assert load(1) == 3
    assert load(1) == 3
