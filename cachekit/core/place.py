"""Where a key lives in the near tier: a function's table, an instance's shelf, a key's place."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from ..errors import KeyEncodingError
from . import keys
from .entry import Entry


class Tally:
    """Counts of one function. ``hits`` is what evicted entries had; live ones carry their own."""

    __slots__ = ("errors", "evictions", "hits", "loads", "misses", "stale")

    def __init__(self) -> None:
        self.hits = 0.0
        self.misses = 0
        self.loads = 0
        self.errors = 0
        self.evictions = 0
        self.stale = 0


class Shelf:
    """Entries by raw key. ``hot`` holds keys of exact primitive types only, so that a look-up
    runs no user code; everything else, and equal keys of another type, is in ``side``."""

    __slots__ = ("__weakref__", "hot", "side", "table")

    def __init__(self, table: Table) -> None:
        self.table = table
        self.hot: dict[Any, Entry] = {}
        self.side: dict[Any, Entry] = {}

    def entries(self) -> Iterator[Entry]:
        for home in (self.hot, self.side):
            yield from list(home.values())


class Table:
    """One function's or strategy's part of the near tier.

    ``text`` makes the text key of a tuple of field values (raises KeyEncodingError where there
    is none). ``indexed``: entries can be found by text. ``carries``: whether this table's entries
    could have a tag; None = it has no tags."""

    def __init__(
        self,
        name: str,
        fields: tuple[str, ...],
        text: Callable[[tuple[Any, ...]], str],
        *,
        indexed: bool,
        text_required: bool,
        carries: Callable[[str], bool] | None = None,
    ) -> None:
        self.name = name
        self.fields = fields
        self.text = text
        self.indexed = indexed
        self.text_required = text_required
        self.carries = carries
        self.epoch: object | None = object() if carries is not None else None
        self.epoch_moved: Callable[[object | None], None] | None = None
        self.tally = Tally()
        # The place of one of this table's text keys, where the text can be read back.
        self.parse: Callable[[str], Place | None] | None = None
        self.shelf = Shelf(self)
        self.by_instance: dict[int, dict[Any, Entry]] = {}  # id(self) -> that shelf's hot
        self._instances: dict[int, tuple[weakref.ref[Any], Shelf]] = {}
        self._lock = threading.Lock()

    def may_carry(self, tag: str) -> bool:
        return self.carries is not None and self.carries(tag)

    def move_epoch(self) -> None:
        if self.carries is None:
            return
        self.epoch = object()
        if self.epoch_moved is not None:
            self.epoch_moved(self.epoch)

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        for shelf in self.shelves():
            shelf.hot.clear()
            shelf.side.clear()

    def shelves(self) -> list[Shelf]:
        return [self.shelf, *(shelf for _, shelf in list(self._instances.values()))]

    def shelf_of(self, instance: object, buried: list[Shelf]) -> Shelf:
        """The shelf of one instance, held weakly: it goes when the instance goes.

        Raises KeyEncodingError for instances that can not be referenced weakly."""
        number = id(instance)
        known = self._instances.get(number)
        if known is not None and known[0]() is instance:
            return known[1]
        shelf = Shelf(self)

        def gone(_: object, number: int = number, shelf: Shelf = shelf) -> None:
            # May run inside any allocation: it only pops and appends.
            self.by_instance.pop(number, None)
            self._instances.pop(number, None)
            buried.append(shelf)

        try:
            ref = weakref.ref(instance, gone)
        except TypeError:
            raise KeyEncodingError(
                f"{self.name}: {keys.class_name(type(instance))} has no __weakref__ slot, so "
                'calls can not be kept per instance; add one, or use ignore=("self",) or key='
            ) from None
        with self._lock:
            known = self._instances.get(number)
            if known is not None and known[0]() is instance:
                return known[1]
            self._instances[number] = (ref, shelf)
            self.by_instance[number] = shelf.hot
        return shelf

    def place(self, values: tuple[Any, ...], shelf: Shelf | None = None) -> Place:
        """The place of one call. Raises KeyEncodingError naming the parameter, or
        NotANumberKey for a call that is never cached."""
        return Place(self, shelf or self.shelf, values)

    def hits(self) -> int:
        return int(self.tally.hits + sum(e.uses for s in self.shelves() for e in s.entries()))

    def size(self) -> int:
        return sum(len(s.hot) + len(s.side) for s in self.shelves())


class Place:
    """One key: its raw form, types, text and identity. Made on the miss."""

    __slots__ = ("_typed", "ident", "primitive", "raw", "shelf", "text", "types", "values")

    def __init__(self, table: Table, shelf: Shelf, values: tuple[Any, ...]) -> None:
        self.shelf = shelf
        self.values = values
        if len(values) == 1:
            self.raw: Any = values[0]
            self.types: Any = type(values[0])
            self.primitive = self.types in keys.PRIMITIVES
        else:
            self.raw = values
            self.types = tuple([type(v) for v in values])
            self.primitive = keys.PRIMITIVES.issuperset(self.types)
        self._typed: Hashable = None
        if not self.primitive:
            self._typed = tuple(keys.named(keys.typed, values, table.fields, table.name))
        elif float in self.types if len(values) != 1 else self.types is float:
            keys.named(keys.typed, values, table.fields, table.name)  # refuses NaN
        self.text: str | None
        instance_bound = shelf is not table.shelf
        try:
            self.text = None if instance_bound else table.text(values)
        except keys.NotANumberKey:
            raise
        except KeyEncodingError:
            if table.text_required:
                raise
            self.text = None
        if self.text is not None:
            self.ident: Hashable = keys.physical(self.text)  # as backends and the bus name it
        else:
            self.ident = (table.name, id(shelf), self.typed)

    @classmethod
    def of(cls, entry: Entry, text: str) -> Place:
        """The place of an entry that was found by its text."""
        place = cls.__new__(cls)
        place.shelf = entry.shelf
        place.primitive = entry.types is not None
        place.raw = place._typed = entry.key
        place.types = entry.types
        place.values = ()
        place.text, place.ident = text, keys.physical(text)
        return place

    @property
    def typed(self) -> Hashable:
        """The key with its types beside it: what the side table is keyed by."""
        if self._typed is None:
            self._typed = tuple([keys.typed(v) for v in self.values])
        return self._typed
