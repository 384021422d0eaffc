"""Tags in the near tier: an invalidated one is never found valid, whoever looks when."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest

from cachekit.core import tag_clock as tag_clock_module
from cachekit.core.entry import Verdict
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


def test_an_entry_with_an_invalidated_tag_is_never_found() -> None:
    near, table, _ = _near()
    for number in range(4):
        tags = (f"t{number}", "all") if number else ()
        near.store(table.place((number,)), number, LONG, tags=tags, seq=near.seq)
    near.kill_tags(["t1"])
    assert [_value(near, table.place((n,))) for n in range(4)] == [0, None, 2, 3]
    near.kill_tags(["unknown"])
    assert [_value(near, table.place((n,))) for n in range(4)] == [0, None, 2, 3]
    near.kill_tags(["all"])
    assert [_value(near, table.place((n,))) for n in range(4)] == [0, None, None, None]


def test_a_moved_epoch_is_checked_once_for_tagged_and_untagged_entries() -> None:
    near, table, _ = _near()
    places = [table.place((1,)), table.place((2,))]
    near.store(places[0], "tagged", LONG, tags=("t",), seq=near.seq)
    near.store(places[1], "untagged", LONG)
    near.kill_tags(["other"])
    for place in places:
        _, entry = near.find(place)
        assert entry is not None
        assert entry.epoch is table.epoch  # so that the hit road finds it valid again


def test_a_function_that_can_not_carry_a_tag_pays_nothing_for_it() -> None:
    near, table, _ = _near()
    table.carries = lambda tag: tag.startswith("user:")
    before = table.epoch
    near.kill_tags(["order:1"])
    assert table.epoch is before
    near.kill_tags(["user:1"])
    assert table.epoch is not before


def test_tags_forgotten_for_want_of_room_cost_misses_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tag_clock_module, "MAX_TAGS_REMEMBERED", 8)
    near, table, _ = _near()
    values = {n: 0 for n in range(6)}
    for step in range(400):
        number = step % 6
        place = table.place((number,))
        found = _value(near, place)
        assert found in (None, values[number])  # a miss, or the present value
        if found is None:
            near.store(place, values[number], LONG, tags=(f"n{number}",), seq=near.seq)
        if step % 3 == 0:
            values[number] += 1
            near.kill_tags([f"n{number}"])
        near.kill_tags([f"noise{step}"])
        assert len(near.tag_clock._last) <= 8


def test_a_load_from_before_the_forgetting_fills_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_clock_module, "MAX_TAGS_REMEMBERED", 4)
    near, table, _ = _near()
    seq = near.seq
    near.kill_tags(["mine"])
    for step in range(10):
        near.kill_tags([f"noise{step}"])
    assert "mine" not in near.tag_clock._last
    assert not near.store(table.place((1,)), "old", LONG, tags=("mine",), seq=seq)


class Watched(OrderedDict[str, int]):
    """Lets a reader, who takes no lock, look at every state between two steps."""

    look: Any = staticmethod(lambda: None)

    def __setitem__(self, tag: str, seq: int) -> None:
        self.look()
        super().__setitem__(tag, seq)
        self.look()

    def __delitem__(self, tag: str) -> None:
        super().__delitem__(tag)
        self.look()

    def pop(self, *args: Any) -> Any:
        found = super().pop(*args)
        self.look()
        return found


def test_at_no_moment_does_an_invalidated_tag_look_valid_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tag_clock_module, "MAX_TAGS_REMEMBERED", 4)
    near, table, _ = _near()
    near.tag_clock._last = watched = Watched()
    place = table.place((1,))
    near.store(place, "old", LONG, tags=("t",), seq=near.seq)
    near.kill_tags(["t"])
    watched.look = lambda: seen.append(_value(near, place))
    for tag in ("t", "t", *"abcdef", "t", *"abcdef"):  # told again, and forgotten
        seen: list[Any] = []
        near.kill_tags([tag])
        assert set(seen) == {None}
