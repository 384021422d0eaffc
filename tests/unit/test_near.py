"""The near tier: bounds, what a fill may not do, tags, re-entrance."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest

import cachekit
from cachekit.core.entry import Verdict
from cachekit.core.flights import Flight
from cachekit.core.near import Near
from cachekit.core.place import Place, Table
from cachekit.core.policy import Span
from cachekit.testing import ManualClock

LONG = Span(math.inf, math.inf)


def _near(**options: Any) -> tuple[Near, Table, ManualClock]:
    clock = ManualClock()
    near = Near(clock, **options)
    table = Table(
        "f",
        ("x",),
        lambda values: f"f({values[0]!r})",
        indexed=False,
        text_required=False,
        carries=lambda tag: True,
    )
    near.enlist(table)
    return near, table, clock


def _value(near: Near, place: Place) -> Any:
    verdict, entry = near.find(place)
    return entry.value if entry is not None and verdict is Verdict.FRESH else None


# -- bounds ------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2, 7, 100])
def test_the_bound_by_entries_is_never_exceeded(room: int) -> None:
    near, table, _ = _near(max_entries=room)
    for number in range(5 * room):
        near.store(table.place((number % (2 * room),)), number, LONG)
        near.store(table.place(((number,),)), number, LONG)  # the side table counts too
        assert near.live == table.size() <= room


def test_the_bound_by_weight_is_never_exceeded_nor_is_weight_lost() -> None:
    near, table, _ = _near(max_entries=1000, max_weight=100, weigh=float)
    for number in range(400):
        near.store(table.place((number % 60,)), (number * 7) % 40, LONG)
        weights = [e.value for e in table.shelf.entries()]
        assert near.weight == sum(weights) <= 100
    near.kill([table.place((n,)) for n in range(60)])
    assert (near.weight, near.live) == (0.0, 0)


@pytest.mark.parametrize("weight", [101, math.inf, math.nan, -1])
def test_a_value_of_impossible_weight_is_not_kept_and_harms_no_bound(weight: float) -> None:
    near, table, _ = _near(max_weight=100, weigh=lambda value: value)
    place = table.place((1,))
    assert near.store(place, 5.0, LONG)
    assert not near.store(place, weight, LONG)
    assert _value(near, place) is None  # the older value is not what was stored last
    assert near.weight == 0.0


def test_a_replaced_value_keeps_its_place_and_counts_once() -> None:
    near, table, _ = _near(max_weight=100, weigh=float)
    place = table.place((1,))
    for value in (10, 20, 30):
        near.store(place, value, LONG)
    assert (near.live, near.weight, len(near._queue)) == (1, 30.0, 1)
    assert _value(near, place) == 30


def test_killed_entries_do_not_pile_up_in_the_queues() -> None:
    near, table, _ = _near(max_entries=100)
    for number in range(5_000):
        place = table.place((number,))
        near.store(place, number, LONG)
        near.kill([place])
    assert len(near._queue) <= 2 * near.live + 64


def test_values_that_are_weighed_are_let_go_soon_after_their_end() -> None:
    class Heavy: ...

    near, table, _ = _near(max_weight=100, weigh=lambda value: 10.0)
    place, gone = table.place((1,)), []
    for _ in range(60):
        value = Heavy()
        gone.append(weakref.ref(value))
        near.store(place, value, LONG)
        near.kill([place])
    del value
    assert sum(ref() is not None for ref in gone) <= 6


def test_a_tier_of_no_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="max_entries"):
        Near(ManualClock(), max_entries=0)


# -- fills that raced an invalidation ----------------------------------------------------


def test_a_load_whose_flight_was_detached_fills_nothing() -> None:
    near, table, _ = _near()
    place, flight = table.place((1,)), Flight("k")
    flight.detached = True
    assert not near.store(place, "old", LONG, flight=flight)
    assert _value(near, place) is None
    assert near.refused == 1


def test_a_load_behind_a_writers_block_fills_nothing_until_he_ends() -> None:
    near, table, _ = _near()
    place = table.place((1,))
    near.store(place, "before", LONG)
    near.seize([place], "w", 30)
    assert _value(near, place) is None
    assert not near.store(place, "loaded", LONG, flight=Flight("k"))
    assert near.store(place, "written", LONG, writer="w")
    near.end([place], "w")
    assert _value(near, place) == "written"


def test_an_invalidation_during_a_write_keeps_the_writer_from_filling() -> None:
    near, table, _ = _near()
    place = table.place((1,))
    near.seize([place], "w", 30)
    near.kill([place])
    assert not near.store(place, "written", LONG, writer="w")
    near.seize([place], "v", 30)
    near.clear()
    assert not near.store(place, "written", LONG, writer="v")


@pytest.mark.parametrize("invalidate", [lambda n: n.kill_tags(["t"]), lambda n: n.clear()])
def test_a_load_that_began_before_its_tag_went_fills_nothing(invalidate: Any) -> None:
    near, table, _ = _near()
    place, seq = table.place((1,)), near.seq
    invalidate(near)
    assert not near.store(place, "old", LONG, tags=("t",), seq=seq)
    assert near.store(place, "new", LONG, tags=("t",), seq=near.seq)
    assert _value(near, place) == "new"


def test_a_killed_entry_is_never_served_though_someone_still_holds_it() -> None:
    near, table, _ = _near()
    place = table.place((1,))
    near.store(place, "v", Span(10.0, 1000.0))
    _, held = near.find(place)
    near.kill([place])
    assert held is not None
    assert held.deadline == -math.inf
    assert held.value == "v"  # a hit in progress may still return it
    near.postpone(place, 100)
    assert not near.touch(place, LONG)
    assert _value(near, place) is None


# -- finding by text ---------------------------------------------------------------------


def test_an_entry_of_an_indexed_table_is_found_by_its_text_until_it_goes() -> None:
    near, table, _ = _near()
    table.indexed = True
    near.store(table.place((1,)), "v", LONG)
    found = near.by_text("f(1)")
    assert found is not None
    assert _value(near, found) == "v"
    near.kill([found])
    assert near.by_text("f(1)") is None
    assert near._named == {}


# -- re-entrance -------------------------------------------------------------------------


class Dying:
    """A value whose end calls back into the cache."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def __del__(self) -> None:
        self.act()


@pytest.mark.parametrize("how", ["evict", "kill", "clear", "replace", "clear table"])
def test_a_value_whose_end_calls_the_cache_harms_nothing(how: str) -> None:
    cache = cachekit.Cache(max_entries=4)
    seen: list[Any] = []
    alive = [True]

    @cache.cached(tags=["n:{x}"])
    def load(x: int) -> Any:
        return Dying(act) if x < 100 else x

    def act() -> None:
        if not alive:
            return
        load(500 + len(seen))
        load.invalidate(501)
        cache.invalidate(tags=["n:502"], keys=[load.key(503)])
        seen.append(load(500))

    load(1)
    if how == "evict":
        for x in range(200, 203):  # the first of all came to main and stays
            load(x)
        load.cache_clear()
        for x in (200, 201, 202, 203, 1, 204, 205, 206, 207):
            load(x)
    elif how == "kill":
        load.invalidate(1)
    elif how == "clear":
        cache.clear()
    elif how == "replace":
        load.refresh(1)
    else:
        load.cache_clear()
    for x in range(300, 400):  # dead entries wait in the queue for a sweep
        load(x)
        load.invalidate(x)
    gc.collect()
    assert seen
    near = cache.parts.near
    assert near.live == load.cached_function.table.size() <= 4
    assert near.section.idle
    load.invalidate(1)
    assert load.peek(1) is cachekit.MISSING
    alive.clear()  # whatever is left may die in peace


@pytest.mark.parametrize("by", ["kill", "kill_tags", "clear", "kill_table", "seize"])
def test_an_invalidation_from_under_the_lock_is_carried_out_when_it_is_free(by: str) -> None:
    near, table, _ = _near()
    place = table.place((1,))
    near.store(place, "v", LONG, tags=("t",), seq=near.seq)
    with near.section:
        {
            "kill": lambda: near.kill(iter([place])),
            "kill_tags": lambda: near.kill_tags(iter(["t"])),
            "clear": near.clear,
            "kill_table": lambda: near.kill_table(table),
            "seize": lambda: near.seize(iter([place]), "w", 30),
        }[by]()
        assert not near.store(place, "w", LONG)  # nothing is filled meanwhile
    assert _value(near, place) is None


def test_an_equality_that_calls_the_cache_under_its_lock_is_passed_by() -> None:
    cache = cachekit.Cache()

    class Nosy:
        def __init__(self, number: int) -> None:
            self.number = number

        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            load(self.number)
            load.invalidate(99)
            return isinstance(other, Nosy) and other.number == self.number

    @cache.cached
    def load(x: Any) -> Any:
        return x if isinstance(x, int) else x.number

    load(99)
    things = [Nosy(n) for n in range(5)]
    assert [load(thing) for thing in things] == [0, 1, 2, 3, 4]
    assert [load(thing) for thing in things] == [0, 1, 2, 3, 4]
    assert load.peek(99) is cachekit.MISSING  # its invalidation was carried out


def test_an_instance_takes_its_entries_with_it() -> None:
    cache = cachekit.Cache()

    class Value: ...

    class Repo:
        @cache.cached
        def get(self, n: int) -> Value:
            return Value()

    repo, other = Repo(), Repo()
    gone = weakref.ref(repo)
    value = weakref.ref(repo.get(1))
    kept = other.get(1)
    del repo
    gc.collect()
    assert gone() is None  # the cache does not keep it alive
    other.get(2)  # the next fill buries what it left
    assert cache.parts.near.live == 2
    for n in range(100, 200):  # and a sweep of the queue lets go of it
        other.get(n)
        Repo.get.invalidate(other, n)
    gc.collect()
    assert value() is None
    assert other.get(1) is kept
    assert cache.parts.near.live == 2
