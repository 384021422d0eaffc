"""Writes of others, as they are told of: by a bus, by a stream, by the caller himself.

They move the same spots as one's own. A write that somebody else has begun holds its spots until
its end is told; should the writer have died, until the write can not land any more.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final

from . import notes
from .notes import Told
from .protocol import Outcome, Write
from .store import Store, TableState
from .values import Image, Kept, Key, part_of

MOST_UNDER_WAY: Final = 10_000
MOST_ENDED: Final = 1_000
_OUTCOMES: Final = {
    notes.APPLIED: Outcome.APPLIED,
    notes.REFUSED: Outcome.REFUSED,
    notes.UNKNOWN: Outcome.UNKNOWN,
    notes.CHANGED: Outcome.APPLIED,
}
_One = tuple[bytes, bytes, Key | None]  # mark of the write, table, key


class Others:
    """What others write, in one store. ``patience``: seconds for which a write may be under way
    without a word of its end."""

    def __init__(self, store: Store, patience: float) -> None:
        self._store = store
        self.patience = patience
        self._under_way: dict[_One, tuple[Write, float]] = {}  # in the order of their beginnings
        self._ended: dict[_One, None] = {}  # a bus of several servers may turn two around
        self._due = float("inf")

    def hear(self, told: Iterable[Told]) -> None:
        """Follow, in order. All at once: no read sees half of it."""
        with self._store.gate:
            self.expire()
            for each in told:
                self._follow(each)

    def _follow(self, told: Told) -> None:
        if told.mark == notes.NONE:
            self.written(told.table, told.key, _OUTCOMES.get(told.kind, Outcome.UNKNOWN))
        elif told.kind == notes.CHANGED:
            self.changed(told.table, told.key, told.mark)
        elif told.kind == notes.BEGIN:
            self._begin((told.mark, told.table, told.key))
        elif told.kind in _OUTCOMES:
            self._end((told.mark, told.table, told.key), _OUTCOMES[told.kind])

    def _begin(self, one: _One) -> None:
        if one in self._ended:
            del self._ended[one]
            self.written(one[1], one[2], Outcome.APPLIED)
            return
        if one in self._under_way:
            return
        if len(self._under_way) >= MOST_UNDER_WAY:
            self._give_up(next(iter(self._under_way)))
        until = self._store.clock() + self.patience
        self._under_way[one] = (self._evicted(one[1], one[2]), until)
        self._due = min(self._due, until)

    def _end(self, one: _One, outcome: Outcome) -> None:
        found = self._under_way.pop(one, None)
        if found is None:
            self._ended[one] = None
            if len(self._ended) > MOST_ENDED:
                del self._ended[next(iter(self._ended))]
            self.written(one[1], one[2], outcome)
            return
        self._over(one, found[0], outcome)

    def _over(self, one: _One, write: Write, outcome: Outcome) -> None:
        """It ends, also for the partitions that a table learned to have while it was under way."""
        _, table, key = one
        self._evict(table, key)
        protocol = self._store.protocol
        known = {spot.name for spot in write.spots}
        protocol.end(write, outcome)
        late = [] if table == notes.EVERYTHING else self._spots(table, key)
        late = [name for name in late if name not in known]
        if late:
            protocol.end(protocol.begin(late), outcome)

    def _give_up(self, one: _One) -> None:
        """Nobody told of its end: it may still land."""
        write, _ = self._under_way.pop(one)
        self._store.meter.count("writers_silent")
        self._over(one, write, Outcome.UNKNOWN)

    def expire(self) -> None:
        """End what nobody tells of any more. With the gate held, before what is held is looked
        at; costs a comparison."""
        now = self._store.clock()
        if now < self._due:
            return
        for one, (write, until) in list(self._under_way.items()):
            if until > now:
                break
            del self._under_way[one]
            self._store.meter.count("writers_silent")
            self._over(one, write, Outcome.APPLIED)
        self._due = next((until for _, until in self._under_way.values()), float("inf"))

    def reset_after_fork(self) -> None:
        """The child has heard of nothing yet."""
        self._under_way, self._ended, self._due = {}, {}, float("inf")

    # -- what was written, by table and key; with the gate held -------------------------------

    def written(self, table: bytes, key: Key | None, outcome: Outcome = Outcome.APPLIED) -> None:
        """An item (None: anything) of a table was written."""
        self._store.protocol.end(self._evicted(table, key), outcome)

    def changed(self, table: bytes, key: Key | None, image: bytes) -> None:
        """A stream told of a change and how the item is now. One that is kept so stays: it is
        one's own write, told again. Its pages go."""
        protocol, kept = self._store.protocol, self._is_kept(table, key, image)
        write = protocol.begin(self._spots(table, key))
        self._evict(table, None if key is None else key, but_item=kept)
        protocol.end(write, Outcome.APPLIED)
        self._store.meter.count("stream_echoes", int(kept))

    def _is_kept(self, table: bytes, key: Key | None, image: bytes) -> bool:
        """Whether whatever is kept of the item is this."""
        found = [
            entry.value
            for state in self._store.by_mark.get(table, ())
            if (entry := state.hot.get(key)) is not None
        ]
        return bool(found) and all(_mark_of(kept) == image for kept in found)

    def lost(self) -> None:
        """Anything may have been missed: all goes, what is being read is not kept, and replicas
        may lag."""
        store = self._store
        with store.gate:
            store.protocol.disturb_all()
            store.empty_all()

    def disturb(self) -> None:
        """From now on all is told; what was written just before may not be on all replicas."""
        with self._store.gate:
            self._store.protocol.disturb_all()

    def _evicted(self, table: bytes, key: Key | None) -> Write:
        protocol = self._store.protocol
        every = table == notes.EVERYTHING
        write = protocol.begin_all() if every else protocol.begin(self._spots(table, key))
        self._evict(table, key)
        return write

    def _spots(self, table: bytes, key: Key | None) -> list[Hashable]:
        """As ``TableState`` names them; a table that is not used here yet has them too."""
        spots: list[Hashable] = [("any", table)]
        if key is None:
            return [*spots, ("table", table)]
        spots.append(("item", table, key))
        spots += [("partition", table, each) for each in self._partitions(table, key)]
        return spots

    def _partitions(self, table: bytes, key: Key) -> list[Key]:
        found = [
            part
            for state in self._store.by_mark.get(table, ())
            if state.schema is not None
            and (part := part_of(key, state.schema.names[0])) is not None
        ]
        return list(dict.fromkeys(found))

    def _evict(self, table: bytes, key: Key | None, *, but_item: bool = False) -> None:
        store = self._store
        if table == notes.EVERYTHING:
            store.empty_all()
            return
        states: list[TableState] = store.by_mark.get(table, [])
        if not states:
            return
        if key is None:
            store.empty(states[0])
            return
        tags: list[str] = []
        if states[0].settings.query_invalidation != "none":
            tags.append(states[0].any_tag)
            tags += [states[0].partition_tag(part) for part in self._partitions(table, key)]
        store.evict(states[0], [] if but_item else [key], tags)


def _mark_of(kept: Kept) -> bytes:
    return notes.image_mark(kept.wire()) if isinstance(kept, Image) else notes.NO_ITEM
