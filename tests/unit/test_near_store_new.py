"""Many values at once, where nothing stands yet: as ``store`` of each, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cachekit.core.entry import Verdict
from cachekit.core.keys import physical
from cachekit.core.near import Near
from cachekit.core.place import Table
from cachekit.core.policy import Span
from cachekit.testing import ManualClock

LONG = Span(math.inf, math.inf)


def _near(**options: Any) -> tuple[Near, Table, ManualClock]:
    clock = ManualClock()
    near = Near(clock, **options)
    table = Table("f", ("x",), lambda values: f"f:{values[0]}", indexed=True, text_required=True)
    near.enlist(table)
    return near, table, clock


def _rows(*keys: Any) -> list[tuple[Any, str, Any]]:
    return [(key, physical(f"f:{key}"), f"new {key}") for key in keys]


def _found(near: Near, table: Table, key: Any) -> Any:
    verdict, entry = near.find(table.place((key,)))
    return entry.value if entry is not None and verdict is Verdict.FRESH else None


def _state(near: Near, table: Table) -> Any:
    kept = {
        e.key: (e.value, e.types, e.deadline, e.epoch, e.extra.expires, e.extra.name, e.extra.seq)
        for e in table.shelf.entries()
        if e.extra is not None
    }
    return kept, near.live, near.weight, sorted(map(str, near._named)), len(near._queue)


@pytest.mark.parametrize("span", [LONG, Span(5.0, 5.0), Span(5.0, 9.0)])
@pytest.mark.parametrize("room", [3, 100])
def test_it_leaves_what_store_of_each_leaves(span: Span, room: int) -> None:
    one, ones, _ = _near(max_entries=room)
    many, manys, _ = _near(max_entries=room)
    keys = [1, "a", 2, "b", -7, "1"]
    for key in keys:
        one.store(ones.place((key,)), f"new {key}", span)
    assert many.store_new(manys.shelf, _rows(*keys), span, 0)
    assert _state(one, ones) == _state(many, manys)
    assert many.live <= room


def test_what_stands_already_stays() -> None:
    near, table, _ = _near()
    near.store(table.place((1,)), "newer", LONG)
    assert near.store_new(table.shelf, _rows(1, 2), LONG, 0)
    assert (_found(near, table, 1), _found(near, table, 2)) == ("newer", "new 2")


def test_a_writer_in_the_way_keeps_its_key_free() -> None:
    near, table, _ = _near()
    near.seize([table.place((1,))], "writer", 30.0)
    assert near.store_new(table.shelf, _rows(1, 2), LONG, 0)
    assert (_found(near, table, 1), _found(near, table, 2)) == (None, "new 2")


def test_keys_that_only_python_takes_for_one_are_two() -> None:
    near, table, _ = _near()
    near.store(table.place((True,)), "truth", LONG)
    assert near.store_new(table.shelf, _rows(1), LONG, 0)
    assert (_found(near, table, True), _found(near, table, 1)) == ("truth", "new 1")


def test_an_entry_ends_with_its_span_and_dies_by_its_name() -> None:
    near, table, clock = _near()
    near.store_new(table.shelf, _rows(1, 2), Span(5.0, 5.0), 0)
    near.kill_named(physical("f:2"))
    assert (_found(near, table, 1), _found(near, table, 2)) == ("new 1", None)
    clock.advance(5.1)
    assert _found(near, table, 1) is None


def test_where_values_are_weighed_or_lie_in_a_mapping_it_declines() -> None:
    weighed, table, _ = _near(max_weight=10.0, weigh=len)
    assert not weighed.store_new(table.shelf, _rows(1), LONG, 0)
    mapped, other, _ = _near(mapping={})
    assert not mapped.store_new(other.shelf, _rows(1), LONG, 0)
    assert weighed.live == mapped.live == 0


def test_from_inside_the_tier_it_changes_nothing() -> None:
    near, table, _ = _near()
    with near.section:
        assert near.store_new(table.shelf, _rows(1), LONG, 0)
    assert near.live == 0
