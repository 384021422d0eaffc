"""Tables, shelves and places: where one key lives."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

from cachekit.core.place import Place, Shelf, Table
from cachekit.errors import KeyEncodingError


def _table(**options: Any) -> Table:
    settings = {"indexed": False, "text_required": False, **options}
    return Table("f", ("x", "y"), lambda values: f"f{values!r}", **settings)


class Thing: ...


def test_a_call_of_primitives_is_looked_up_by_its_raw_arguments() -> None:
    place = _table().place((1, "a"))
    assert place.primitive
    assert place.raw == (1, "a")
    assert place.types == (int, str)
    assert place.text == "f(1, 'a')"
    assert place.ident == "f(1,%20'a')"  # as a backend names it


def test_a_call_without_text_is_identified_by_its_typed_arguments() -> None:
    def refuse(values: tuple[Any, ...]) -> str:
        raise KeyEncodingError("no text")

    table = Table("f", ("x",), refuse, indexed=False, text_required=False)
    thing = Thing()
    place = table.place((thing,))
    assert place.text is None
    assert not place.primitive
    assert place.ident == table.place((thing,)).ident
    assert place.ident != table.place((Thing(),)).ident
    strict = Table("f", ("x",), refuse, indexed=True, text_required=True)
    with pytest.raises(KeyEncodingError):
        strict.place((thing,))


def test_shelves_of_two_instances_have_different_identities() -> None:
    table, one, two = _table(), Thing(), Thing()
    buried: list[Shelf] = []
    places = [table.place((1, 2), table.shelf_of(thing, buried)) for thing in (one, two)]
    assert places[0].ident != places[1].ident
    assert places[0].text is None


def test_a_shelf_goes_with_its_instance_and_is_handed_over_for_burial() -> None:
    table, thing = _table(), Thing()
    buried: list[Shelf] = []
    shelf = table.shelf_of(thing, buried)
    assert table.shelf_of(thing, buried) is shelf
    assert table.by_instance == {id(thing): shelf.hot}
    del thing
    gc.collect()
    assert buried == [shelf]
    assert table.by_instance == {}
    assert table.shelves() == [table.shelf]


def test_an_instance_that_can_not_be_referenced_weakly_is_refused_with_remedies() -> None:
    class Slotted:
        __slots__ = ()

    with pytest.raises(KeyEncodingError, match=r"Slotted has no __weakref__ slot.*ignore="):
        _table().shelf_of(Slotted(), [])


def test_threads_that_meet_on_a_new_instance_share_one_shelf() -> None:
    table, thing, pause = _table(), Thing(), threading.Event()
    shelves: list[Shelf] = []
    threads = [
        threading.Thread(target=lambda: shelves.append(table.shelf_of(thing, []))) for _ in range(4)
    ]
    with table._lock:
        for thread in threads:
            thread.start()
        while weakref.getweakrefcount(thing) < 4:  # all found none and made one
            pause.wait(0.001)
    for thread in threads:
        thread.join()
    assert len(set(map(id, shelves))) == 1
    assert table.by_instance[id(thing)] is shelves[0].hot


def test_the_epoch_moves_only_where_entries_can_carry_tags() -> None:
    moved: list[object] = []
    untagged = _table()
    untagged.epoch_moved = moved.append
    untagged.move_epoch()
    assert untagged.epoch is None
    assert not untagged.may_carry("t")
    tagged = _table(carries=lambda tag: tag == "t")
    tagged.epoch_moved = moved.append
    before = tagged.epoch
    tagged.move_epoch()
    assert tagged.epoch is not before
    assert moved == [tagged.epoch]
    assert tagged.may_carry("t")
    assert not tagged.may_carry("u")


def test_the_typed_form_of_a_primitive_place_keeps_types_apart() -> None:
    table = _table()
    assert Place(table, table.shelf, (1, 2)).typed != Place(table, table.shelf, (True, 2)).typed
