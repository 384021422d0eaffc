"""The near tier (L1): live objects, bounded, evicted by S3-FIFO, read without a lock.

The raw dictionaries of the decorated functions *are* this tier: a :class:`Shelf` holds one
function's (or one instance's) entries, and the generated wrappers look into ``shelf.hot``
directly. Everything that changes a shelf happens here, under one lock, on the miss.

A fill is refused when its flight was detached, a writer's block stands, or one of its tags was
invalidated after the load began. Code that can run while the lock is held (finalisers, a key's
``__eq__``) finds the tier busy and is passed by; invalidations that arrive so come just after.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, MutableMapping
from typing import Any

from .entry import INF, Entry, Extra, Verdict, judge
from .flights import Flight
from .keys import physical
from .place import Place, Shelf, Table
from .policy import Span
from .room import Room
from .section import Section
from .tag_clock import TagClock
from .writers import Writers


class Near(Room):
    """Every shelf of one cache. ``max_weight`` needs a ``weigh`` function of a value.

    ``mapping``: a cachetools cache or any mutable mapping that then decides what stays (its hits
    take the lock). ``clock`` is monotonic seconds."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        max_entries: int = 100_000,
        max_weight: float | None = None,
        weigh: Callable[[Any], float] | None = None,
        mapping: MutableMapping[Hashable, Any] | None = None,
    ) -> None:
        super().__init__(clock, max_entries, max_weight, mapping)
        self.weigh = weigh
        self.writers = Writers(clock)
        self.tag_clock = TagClock(clock)
        self._tables: weakref.WeakSet[Table] = weakref.WeakSet()
        self.buried: list[Shelf] = []  # shelves of dead instances; emptied at the next fill

    @property
    def seq(self) -> int:
        """The count of tag invalidations: taken before a load or write, given to ``store``."""
        return self.tag_clock.seq

    # -- reading: plain, lock-free but for a user's mapping -------------------------------

    def find(self, place: Place) -> tuple[Verdict, Entry | None]:
        """What is known of a place now, tags checked. Counts nothing."""
        if self.mapping is None:
            entry = self._entry(place)
        else:
            with self.section as free:
                entry = self._entry(place) if free else None
        verdict = Verdict.MISS if entry is None else judge(entry, self.clock())
        if entry is None or (verdict is not Verdict.MISS and not self._tags_hold(entry)):
            return Verdict.MISS, None
        return verdict, entry

    def by_text(self, text: str) -> Place | None:
        """The place of an indexed text key."""
        entry = self._named.get(physical(text))
        return None if entry is None else Place.of(entry, text)

    def may_hold(self, ident: Hashable) -> bool:
        """Whether an entry of an indexed table, or a block, may stand under a physical key."""
        return ident in self._named or self.mapping is not None or self.writers.blocked(ident)

    def enlist(self, table: Table) -> None:
        with self.section:
            self._tables.add(table)

    def tables(self) -> list[Table]:
        with self.section:
            return list(self._tables)

    def reset_after_fork(self) -> None:
        """In a forked child: nothing is held, and nothing that may be half done is kept."""
        self.section, self.buried = Section(), []
        self.writers = Writers(self.clock)
        for table in list(self._tables):
            table.reset_after_fork()
        if self.mapping is not None:
            self.mapping.clear()
        self._named = {}
        self.tag_clock.reset_after_fork()
        self._queue.clear()
        self.live, self.weight = 0, 0.0

    def _tags_hold(self, entry: Entry) -> bool:
        extra, epoch = entry.extra, entry.shelf.table.epoch
        if extra is None or not extra.tags:
            entry.epoch = epoch  # or the hit road would ask again and again
            return True
        if entry.epoch is epoch and epoch is not None:
            return True
        if self.tag_clock.moved(extra.tags, extra.seq):
            return False
        # The epoch read before the check: an invalidation in between leaves it outdated.
        entry.epoch = epoch
        return True

    # -- filling --------------------------------------------------------------------------

    def store(
        self,
        place: Place,
        value: Any,
        span: Span,
        *,
        tags: tuple[str, ...] = (),
        seq: int = 0,
        flight: Flight | None = None,
        writer: object | None = None,
    ) -> bool:
        """Keep a value, or refuse: flight detached, block in the way, tag moved, too heavy.

        ``seq`` is ``self.seq`` from before the load or write; ``writer`` fills over its own
        block if it was alone."""
        try:
            weight = float(self.weigh(value)) if self.weigh is not None else 0.0
        except Exception:  # the user's function does not take this value: it is not kept
            weight = INF
        with self.section as free:
            if not free:
                return False
            if (
                (flight is not None and flight.detached)
                or not self.writers.may_fill(place.ident, writer)
                or (tags and self.tag_clock.moved(tags, seq))
            ):
                self.refused += 1
                return False
            if self.max_weight is not None and not 0 <= weight <= self.max_weight:  # or NaN
                self._kill(place)
                return False
            while self.buried:
                self._empty(self.buried.pop())
            self._put(place, value, span, tags, seq, weight)
            return True

    def store_new(
        self, shelf: Shelf, rows: Iterable[tuple[Any, str, Any]], span: Span, seq: int
    ) -> bool:
        """Keep values of one function's that nothing stands for here yet, in one step:
        (key, physical name, value), of text or int keys of an indexed table, without tags. What
        is here already stays. False: not here, where values are weighed or a mapping holds them.

        About a third of the cost of :meth:`store` of each."""
        if self.mapping is not None or self.weigh is not None:
            return False
        with self.section as free:
            if not free:
                return True
            while self.buried:
                self._empty(self.buried.pop())
            named, blocked = self._named, self.writers.blocked
            self._put_new(shelf, (r for r in rows if r[1] not in named and not blocked(r[1])),
                          span, seq)  # fmt: skip
            return True

    # -- killing --------------------------------------------------------------------------

    def kill(self, places: Iterable[Place]) -> None:
        """Invalidate: the entries go, blocks become contested. Final when this returns."""
        with self.section as free:
            if not free:
                kept = list(places)
                self.section.defer(lambda: self.kill(kept))
                return
            for place in places:
                self.writers.contest(place.ident)
                self._kill(place)

    def kill_named(self, name: str) -> None:
        """The same for what the bus names: a physical key, which may not be here at all."""
        with self.section as free:
            if not free:
                self.section.defer(lambda: self.kill_named(name))
                return
            self.writers.contest(name)
            entry = self._named.get(name) if self.mapping is None else self.mapping.get(name)
            self._drop(name, entry)

    def kill_tags(self, tags: Collection[str]) -> None:
        """Invalidate every entry that carries one of the tags: O(number of functions)."""
        with self.section as free:
            if not free:
                kept = list(tags)
                self.section.defer(lambda: self.kill_tags(kept))
                return
            self.tag_clock.invalidate(tags)
            for table in self._tables:
                if any(table.may_carry(tag) for tag in tags):
                    table.move_epoch()

    def kill_table(self, table: Table) -> None:
        """Drop all entries of one function."""
        with self.section as free:
            if not free:
                self.section.defer(lambda: self.kill_table(table))
                return
            for shelf in table.shelves():
                self._empty(shelf)
            if self.mapping is not None:
                for key, entry in list(self.mapping.items()):
                    if entry.shelf.table is table:
                        self.mapping.pop(key, None)

    def clear(self) -> None:
        """Drop everything; blocks become contested."""
        with self.section as free:
            if not free:
                self.section.defer(self.clear)
                return
            self.tag_clock.invalidate_all()
            self.writers.contest_all()
            if self.mapping is not None:
                self.mapping.clear()
            for table in list(self._tables):
                for shelf in table.shelves():
                    self._empty(shelf)
                table.move_epoch()
            self._named.clear()
            self._queue.clear()
            self.live, self.weight = 0, 0.0

    def seize(self, places: Iterable[Place], writer: object, lease: float) -> None:
        """Block the places for a writer: their entries go, and no load may fill them."""
        with self.section as free:
            for place in places:
                self.writers.seize([place.ident], writer, lease)
                if free:
                    self._kill(place)
                else:
                    self.section.defer(lambda place=place: self.kill([place]))  # type: ignore[misc]  # lambda default

    def seize_tags(self, tags: Collection[str], writer: object, lease: float) -> None:
        """Block tags: entries with one are invalid, and none is kept until the end."""
        with self.section:
            self.tag_clock.seize(tags, writer, lease)
        self.kill_tags(tags)

    def end_tags(self, tags: Collection[str], writer: object) -> None:
        with self.section:
            self.tag_clock.end(tags, writer)
        self.kill_tags(tags)  # what was loaded in between may be old

    def end(self, places: Iterable[Place], writer: object) -> None:
        """The writer is done with the places."""
        with self.section as free:
            for place in places:
                if not self.writers.end(place.ident, writer) and free:
                    # Its block had run out: a load may have filled in between.
                    self._kill(place)

    def touch(self, place: Place, span: Span) -> bool:
        """Give a live entry a new span from now; False if it is gone."""
        with self.section as free:
            entry = self._entry(place) if free else None
            if entry is None or entry.deadline == -INF or not self._tags_hold(entry):
                return False
            now = self.clock()
            extra = entry.extra
            if extra is not None:
                extra.expires = now + span.kept
            elif span.kept != span.fresh:
                entry.extra = Extra(now + span.kept, (), 0, 0.0, None)
            entry.deadline = now + span.fresh
            return True

    def postpone(self, place: Place, seconds: float) -> None:
        """Serve a stale value as if fresh for a while: its refresh failed, the source may rest."""
        with self.section as free:
            entry = self._entry(place) if free else None
            if entry is not None and entry.deadline != -INF and entry.extra is not None:
                entry.deadline = min(self.clock() + seconds, entry.extra.expires)
