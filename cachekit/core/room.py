"""The room of the near tier: entries on their shelves and by name, bounded in number and weight.

No lock and no rules: who may keep what, and when, is :class:`~cachekit.core.near.Near`'s, which
holds its section while it changes anything here. Each step leaves what a signal handler may see.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, MutableMapping
from typing import Any

from .entry import INF, Entry, Extra, LooseEntry, fold, is_alive
from .place import Place, Shelf
from .policy import Span
from .s3fifo import S3Fifo
from .section import Section


class Room:
    """``live`` entries of ``weight`` in all. With a ``mapping`` of the user's, that holds them and
    decides what stays."""

    def __init__(
        self,
        clock: Callable[[], float],
        max_entries: int,
        max_weight: float | None,
        mapping: MutableMapping[Hashable, Any] | None,
    ) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, got {max_entries}")
        self.clock = clock
        self.max_entries = max_entries
        self.max_weight = max_weight
        self.mapping = mapping
        self.section = Section()
        self.live = 0
        self.weight = 0.0
        self.refused = 0
        self._named: dict[Hashable, Entry] = {}
        self._queue = S3Fifo(max_entries, is_alive, fold)

    def _entry(self, place: Place) -> Entry | None:
        if self.mapping is not None:
            try:
                return self.mapping[place.ident]  # type: ignore[no-any-return]  # ours
            except Exception:  # absent, or the user's mapping failed
                return None
        shelf = place.shelf
        if place.primitive:
            entry = shelf.hot.get(place.raw)
            if entry is not None and entry.types == place.types:
                return entry
        entry = shelf.side.get(place.typed) if shelf.side else None
        if entry is None and place.text is not None:
            entry = self._named.get(place.ident)
        return entry

    def _put(
        self,
        place: Place,
        value: Any,
        span: Span,
        tags: tuple[str, ...],
        seq: int,
        weight: float,
    ) -> None:
        now = self.clock()
        deadline = now + span.fresh
        shelf = place.shelf
        table = shelf.table
        # A key of other than primitive types can not be read back from its text.
        indexed = place.text is not None and (table.indexed or not place.primitive)
        name = str(place.ident) if indexed else None
        extra = None
        if tags or name is not None or weight or span.kept != span.fresh:
            extra = Extra(now + span.kept, tags, seq, weight, name)
        # The hit road of a table does not look at tags that are not its own: such an entry lies
        # where only the slow road finds it.
        foreign = not all(table.may_carry(tag) for tag in tags)
        old = self._entry(place)
        if foreign and old is not None and old.types is not None and self.mapping is None:
            self._remove(old)
            old = None
        if old is not None and old.shelf is shelf and self.mapping is None:
            # In place: the entry keeps its turn in the queue.
            if old.extra is not None:
                self.weight -= old.extra.weight
            old.value, old.extra, old.epoch, old.deadline = value, extra, table.epoch, deadline
        else:
            if self.mapping is None:
                if old is not None:
                    self._remove(old)
                self._make_room(1, weight)
            hot = place.primitive and not foreign and place.raw not in shelf.hot
            key = place.raw if hot else place.typed
            make = Entry if self.mapping is None else LooseEntry
            entry = make(value, deadline, key, place.types if hot else None, shelf, table.epoch)
            entry.extra = extra
            if self.mapping is not None:
                try:
                    self.mapping[place.ident] = entry
                except Exception:  # cachetools: too large for it; or the user's own
                    self.refused += 1
                return
            if hot:
                shelf.hot[key] = entry
            else:
                shelf.side[key] = entry
            if name is not None:
                self._named[name] = entry
            self.live += 1
            self._queue.add(entry)
        self.weight += weight
        if self.max_weight is not None:
            self._make_room(0, 0.0)

    def _put_new(
        self, shelf: Shelf, rows: Iterable[tuple[Any, str, Any]], span: Span, seq: int
    ) -> None:
        """As :meth:`_put` of each (raw key, name, value) that is not here yet: of primitive keys
        of an indexed table, without tags or weight, where there is no mapping."""
        now = self.clock()
        deadline, expires = now + span.fresh, now + span.kept
        hot, named, epoch, add = shelf.hot, self._named, shelf.table.epoch, self._queue.add
        for raw, name, value in rows:
            if raw in hot:  # of another type: 1 and True
                self._put(shelf.table.place((raw,), shelf), value, span, (), seq, 0.0)
                continue
            if self.live >= self.max_entries:
                self._make_room(1, 0.0)
            entry = Entry(value, deadline, raw, type(raw), shelf, epoch)
            entry.extra = Extra(expires, (), seq, 0.0, name)
            hot[raw] = named[name] = entry
            self.live += 1
            add(entry)

    def _make_room(self, entries: int, weight: float) -> None:
        while self.live + entries > self.max_entries or (
            self.max_weight is not None and self.weight + weight > self.max_weight
        ):
            self._queue.fit(self.live)  # fewer than the room where the weight is what is bounded
            entry = self._queue.evict()
            if entry is None:
                return
            entry.shelf.table.tally.evictions += 1
            self._remove(entry)
        self._queue.tidy(self.live, heavy=self.max_weight is not None)

    def _kill(self, place: Place) -> None:
        self._drop(place.ident, self._entry(place))

    def _drop(self, ident: Hashable, entry: Entry | None) -> None:
        if entry is not None:
            entry.deadline = -INF
            if self.mapping is None:
                self._remove(entry)
            else:
                self.mapping.pop(ident, None)

    def _remove(self, entry: Entry) -> None:
        shelf = entry.shelf
        home = shelf.hot if entry.types is not None else shelf.side
        if home.get(entry.key) is entry:
            del home[entry.key]
        entry.deadline = -INF
        extra = entry.extra
        if extra is not None:
            self.weight -= extra.weight
            if extra.name is not None and self._named.get(extra.name) is entry:
                del self._named[extra.name]
        self.live -= 1
        shelf.table.tally.hits += entry.uses
        entry.uses = 0.0
        self.section.garbage.append(entry)

    def _empty(self, shelf: Shelf) -> None:
        for home in (shelf.hot, shelf.side):
            for entry in list(home.values()):
                self._remove(entry)
