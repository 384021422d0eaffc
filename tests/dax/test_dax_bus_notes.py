"""What is told between processes: names there and back, and what a receiver makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.core.keys import physical
from cachekit.core.notes import MAX_NAME, Note, NoteKind, pack, unpack
from cachekit.dax import Dax, notes
from cachekit.dax.notes import Reader, Told
from cachekit.dax.others import Others
from cachekit.dax.protocol import Look
from cachekit.dax.settings import Settings
from cachekit.dax.store import Schema
from cachekit.dax.values import Absent, Image
from cachekit.runtime import Runtime
from cachekit.testing.clock import ManualClock

_ATOM = st.one_of(
    st.tuples(st.just("S"), st.text(max_size=1024)),
    st.tuples(st.just("N"), st.from_regex(r"-?[1-9][0-9]{0,37}", fullmatch=True)),
    st.tuples(st.just("B"), st.binary(max_size=1024)),
)
_ONE = st.tuples(st.text(min_size=1, max_size=255), _ATOM).map(lambda a: (a[0], *a[1]))
_KEYS = st.lists(_ONE, min_size=1, max_size=2).map(lambda parts: tuple(x for p in parts for x in p))
_MARKS = st.binary(min_size=notes.MARK, max_size=notes.MARK)
_KINDS = st.sampled_from([notes.BEGIN, notes.APPLIED, notes.UNKNOWN, notes.CHANGED])


@given(st.builds(Told, _KINDS, _MARKS, st.none() | _KEYS, _MARKS))
@settings(max_examples=200, deadline=None)
def test_what_is_told_comes_back_by_names_that_every_bus_carries(told: Told) -> None:
    reader, found = Reader(), []
    for name in notes.names_of([told]):
        assert physical(name) == name
        assert len(name) <= 200 < MAX_NAME
        note = unpack(pack(Note(NoteKind.KEY, name)))
        assert note is not None
        found.append(reader.read(note.name))
    assert found[-1] == told
    assert not any(found[:-1])


@given(st.text(max_size=60) | st.text(max_size=260).map(lambda text: notes.PREFIX + text))
@settings(max_examples=300, deadline=None)
def test_other_names_say_nothing(name: str) -> None:
    told = Reader().read(name)
    assert told is None or name in notes.names_of([told])


def test_pieces_may_come_twice_mixed_and_in_any_order_but_not_wrong() -> None:
    one = Told(notes.BEGIN, b"t" * 12, ("pk", "S", "a" * 900), b"1" * 12)
    other = one._replace(mark=b"2" * 12)
    first, second = (notes.names_of([each]) for each in (one, other))
    reader = Reader()
    mixed = [name for pair in zip(first, second, strict=True) for name in pair]
    assert [t for n in [mixed[0], *mixed] if (t := reader.read(n))] == [one, other]
    assert [t for n in reversed(first) if (t := reader.read(n))] == [one]
    for number in range(notes.MOST_PARTIAL + 1):
        assert not reader.missed()
        reader.read(notes.names_of([one._replace(mark=b"%012d" % number)])[0])
    assert reader.missed()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://dynamodb.eu-west-1.amazonaws.com",
         "https://123.ddb.eu-west-1.amazonaws.com", True),
        ("https://vpce-1.dynamodb.eu-west-1.vpce.amazonaws.com",
         "https://dynamodb.eu-west-1.api.aws", True),
        ("http://db.local:8000", "http://DB.local:8000/", True),
        ("http://db.local:8000", "http://db.local:8001", False),
        ("http://amazonaws.com.example", "https://dynamodb.eu-west-1.amazonaws.com", False),
    ],
)  # fmt: skip
def test_a_table_has_one_mark_whatever_the_endpoint_of_its_region(
    one: str, other: str, same: bool
) -> None:
    region = "eu-west-1"
    marks = {notes.table_mark((url, region), "t") for url in (one, other)}
    assert len(marks) == (1 if same else 2)
    assert notes.table_mark((one, "us-east-1"), "t") not in marks
    assert notes.table_mark((one, region), "u") not in marks


def test_the_mark_of_an_item_knows_sets_from_lists() -> None:
    one = {"a": {"SS": ["x", "y"]}, "b": {"L": [{"S": "1"}, {"S": "2"}]}}
    assert notes.image_mark(one) == notes.image_mark({"b": one["b"], "a": {"SS": ["y", "x"]}})
    assert notes.image_mark(one) != notes.image_mark({**one, "b": {"L": one["b"]["L"][::-1]}})


class Receiver:
    """A handle with one item, and its followed writes on a manual clock."""

    def __init__(self) -> None:
        self.clock = ManualClock(100.0)
        self.dax = Dax(Settings.make(settle=1, quarantine=10), runtime=Runtime(clock=self.clock))
        self.store = self.dax._store
        state = self.store.scope(("http://x", "r"), "me").table("t")
        assert state is not None
        self.state = state
        self.key = ("pk", "S", "a")
        self.others: Others = self.dax._others

    def told(self, kind: bytes, mark: bytes = b"m" * 12, **more: Any) -> None:
        self.others.hear([Told(kind, self.state.mark, more.get("key", self.key), mark)])

    def may_keep(self) -> bool:
        with self.store.gate:
            look = self.store.look([self.state.key_spot(self.key), self.state.table_spot])
            may = self.store.protocol.may_fill(look, was_strong=True)
            self.store.protocol.leave(look)
        return may

    def keep(self, kept: Any) -> None:
        with self.store.gate:
            self.store.keep_item(self.state, self.key, kept, self.clock())

    def holds(self) -> bool:
        return self.store.item(self.state, self.key) is not None


def test_what_somebody_writes_is_held_from_its_beginning_to_its_end() -> None:
    on = Receiver()
    on.keep(Absent())
    on.told(notes.BEGIN)
    assert not on.holds()
    assert not on.may_keep()
    on.told(notes.BEGIN, b"n" * 12)
    on.told(notes.APPLIED)
    assert not on.may_keep(), "the other is under way"
    on.told(notes.APPLIED, b"n" * 12)
    assert on.may_keep()


def test_an_end_that_comes_before_its_beginning_leaves_nothing_held() -> None:
    on = Receiver()
    on.told(notes.APPLIED)
    on.keep(Absent())
    on.told(notes.BEGIN)
    assert not on.holds()
    assert on.may_keep()


def test_a_writer_that_is_not_heard_of_any_more_holds_for_two_quarantines() -> None:
    on = Receiver()
    on.told(notes.BEGIN)
    on.clock.advance(19.9)
    assert not on.may_keep()
    on.clock.advance(0.2)
    assert on.may_keep()
    assert on.dax.stats()["writers_silent"] == 1


def test_a_write_of_unknown_outcome_quarantines_here_too() -> None:
    on = Receiver()
    on.told(notes.BEGIN)
    on.told(notes.UNKNOWN)
    on.clock.advance(9.9)
    assert not on.may_keep()
    on.clock.advance(0.2)
    assert on.may_keep()


def test_an_image_that_is_kept_stays_and_pages_and_reads_under_way_do_not() -> None:
    on = Receiver()
    row = {"pk": {"S": "a"}, "v": {"N": "1"}}
    on.keep(Image(row))
    with on.store.gate:
        look = on.store.look([on.state.key_spot(on.key), on.state.table_spot])
    on.told(notes.CHANGED, notes.image_mark(row))
    assert on.holds()
    with on.store.gate:
        assert not on.store.protocol.may_fill(look, was_strong=True)
        on.store.protocol.leave(look)
    on.told(notes.CHANGED, notes.image_mark({**row, "v": {"N": "2"}}))
    assert not on.holds()
    on.keep(Absent())
    on.told(notes.CHANGED, notes.NO_ITEM)
    assert on.holds()
    on.told(notes.CHANGED, notes.NONE)
    assert not on.holds()


def test_tables_that_are_not_used_here_yet_are_held_too() -> None:
    on = Receiver()
    mark = notes.table_mark(("http://x", "r"), "later")
    on.others.hear([Told(notes.BEGIN, mark, on.key, b"m" * 12)])
    state = on.store.scope(("http://x", "r"), "me").table("later")
    assert state is not None
    with on.store.gate:
        look = on.store.look([state.key_spot(on.key), state.table_spot])
        assert look.held
        on.store.protocol.leave(look)


@pytest.mark.parametrize(
    ("kind", "seconds"), [(notes.APPLIED, 0.0), (notes.UNKNOWN, 10.0), (None, 20.0)]
)
def test_a_partition_learned_of_while_another_writes_hears_of_the_end(
    kind: bytes | None, seconds: float
) -> None:
    """The key of the table was not known when the write began. ``None``: no end is told."""
    on = Receiver()
    on.told(notes.BEGIN)
    on.state.schema = Schema(("pk",), frozenset(), None)
    page = [on.state.partition_spot(("S", "a")), on.state.table_spot]

    def look() -> Look:
        with on.store.gate:
            return on.store.look(page)

    def may_fill(one: Look, *, strong: bool) -> bool:
        with on.store.gate:
            may = on.store.protocol.may_fill(one, was_strong=strong)
            on.store.protocol.leave(one)
        return may

    before = look()
    if kind is None:
        on.clock.advance(20.1)
    else:
        on.told(kind)
    after = look()
    assert not may_fill(before, strong=True), "it may have read what was before"
    assert not may_fill(after, strong=False), "replicas may lag"
    on.clock.advance(seconds + 1.1 if kind is notes.UNKNOWN else 1.1)
    assert may_fill(look(), strong=False)
