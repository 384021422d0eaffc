"""What may be read: a versioned register per key, and demands that rule older versions out.

A *demand* says: since some invalidation or write returned, no read that begins gives this key in a
version older than that (with a tag: no such version that carries the tag). A read takes the
demands that stand as it begins and is judged by them when it ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any


class Stale(AssertionError):
    """A read gave what it must not."""


class Register:
    """The source's history of one key: its values in the order in which they landed."""

    __slots__ = ("key", "values")

    def __init__(self, key: str, first: Any) -> None:
        self.key = key
        self.values = [first]

    @property
    def version(self) -> int:
        return len(self.values) - 1

    @property
    def value(self) -> Any:
        return self.values[-1]

    def land(self, value: Any) -> int:
        self.values.append(value)
        return self.version

    def newest(self, value: Any) -> int:
        """The newest version with this value; -1 if the source never had it."""
        for version in range(len(self.values) - 1, -1, -1):
            if self.values[version] == value:
                return version
        return -1


class Demand:
    """``process`` is who told (None: nobody); to the others it applies from ``at`` on, in seconds
    of the clock. ``owed``: a queue that must have been empty first. ``after``: reads that must
    have ended first. ``since``: when its call began; an unconditional ``set`` that ended later may
    have come after it."""

    __slots__ = ("after", "at", "owed", "process", "since", "tag", "version", "why")

    def __init__(
        self,
        why: str,
        version: int,
        *,
        process: Any = None,
        tag: str | None = None,
        at: float = 0.0,
        owed: Any = None,
        after: Iterable[Any] = (),
        since: int = 0,
    ) -> None:
        self.why = why
        self.version = version
        self.process = process
        self.tag = tag
        self.at = at
        self.owed = owed
        self.after = set(after)
        self.since = since

    def __repr__(self) -> str:
        what = f" with tag {self.tag!r}" if self.tag else ""
        return f"<nothing before version {self.version}{what}: {self.why}>"


class Read:
    """One read of some keys: what stood when it began."""

    __slots__ = ("actor", "began", "demands", "process")

    def __init__(self, process: Any, actor: Any, began: int) -> None:
        self.process = process
        self.actor = actor
        self.began = began
        self.demands: dict[str, list[Demand]] = {}


class Oracle:
    """``tags_of(key, value)``: the tags an entry of it may carry. ``bound``: seconds for which
    near copies of other processes may lag behind. ``heard`` returns when all processes have
    heard of what was invalidated by now. Not locked."""

    def __init__(
        self,
        clock: Callable[[], float],
        bound: float,
        tags_of: Callable[[str, Any], Any],
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self.clock = clock
        self.heard = heard
        self.bound = bound
        self.tags_of = tags_of
        self.tick = 0
        self.registers: dict[str, Register] = {}
        self.demands: dict[str, list[Demand]] = defaultdict(list)
        self.reading: set[Any] = set()
        # key -> [value, tick of begin, tick of end or None]: see ``Demand.since``.
        self.sets: dict[str, list[list[Any]]] = defaultdict(list)
        self.judged = 0
        self.bound_by_demand = 0

    def next(self) -> int:
        self.tick += 1
        return self.tick

    def demand(self, key: str, demand: Demand) -> None:
        self._from_now(demand)
        demand.since = demand.since or self.next()
        self.demands[key].append(demand)

    def drop_owed(self, process: Any) -> None:
        """A process died: what it owed is never replayed, and its reads end."""
        for key, demands in self.demands.items():
            self.demands[key] = [d for d in demands if d.owed is not process]

    def begin(self, process: Any, actor: Any, keys: Iterable[str]) -> Read:
        read = Read(process, actor, self.next())
        for key in keys:
            read.demands[key] = [d for d in self.demands[key] if self._stands(d, process)]
        self.reading.add(read)
        return read

    def _stands(self, demand: Demand, process: Any) -> bool:
        if demand.after:
            demand.after &= self.reading
            if demand.after:
                return False
            self._from_now(demand)
        if demand.process is process:
            return True
        if demand.owed is not None:
            if demand.owed.owes():
                return False
            demand.owed = None
            self._from_now(demand)
        return self.clock() >= demand.at

    def _from_now(self, demand: Demand) -> None:
        self.heard()
        demand.at = self.clock() + self.bound

    def end(self, read: Read) -> None:
        self.reading.discard(read)

    def check(
        self, read: Read, key: str, value: Any, excused: Callable[[Demand], bool] | None = None
    ) -> None:
        """Raise :class:`Stale` if ``value`` must not be the answer of this read."""
        register = self.registers[key]
        version = register.newest(value)
        self.judged += 1
        if version < 0:
            raise Stale(f"{key}: read {value!r}, which the source never had: {register.values}")
        for demand in read.demands[key]:
            if version >= demand.version:
                self.bound_by_demand += 1
                continue
            if demand.tag is not None and demand.tag not in self.tags_of(key, value):
                continue
            if any(
                was == value and (end is None or end > demand.since) and begin < read.began
                for was, begin, end in self.sets[key]
            ):
                continue
            if excused is not None and excused(demand):
                continue
            raise Stale(
                f"{key}: read {value!r}, version {version} of {register.version}; {demand!r}"
            )
