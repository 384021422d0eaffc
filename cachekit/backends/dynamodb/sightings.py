"""When a lease is over, judged without trusting anybody's clock.

A block that ends too early can let the older value of a row back in, so its end must not depend
on how far the clocks of two machines are apart. A lease is written as a duration, and is over for
a process when that process has seen it stand *unchanged* for that long by its own monotonic clock
(the rule by which Amazon's DynamoDB lock client takes over a lock). Whoever wrote it saw it first,
so there it ends exactly on time; elsewhere it can only stand longer, by the time until it was
first seen. A process that lives too short to wait is helped by the wall clock, once the written
end is past by ``CLOCKS_APART``.
"""

from __future__ import annotations

from collections.abc import Callable

from .items import Row

CLOCKS_APART = 15 * 60.0
"""Seconds by which two clocks may differ before a lease could end early. AWS refuses requests
signed by a clock that is more than 5 minutes off, so those that reach it are within 10."""
REMEMBERED = 8192


class Sightings:
    """Which leases this process has seen since when. Bounded; what is forgotten is seen anew, so it
    stands longer. Safe for threads: every step on the dicts is atomic, a race only forgets."""

    def __init__(self, wall: Callable[[], float], clock: Callable[[], float]) -> None:
        self.wall = wall
        self.clock = clock
        self._young: dict[bytes, float] = {}
        self._old: dict[bytes, float] = {}

    def now(self) -> int:
        """Unix milliseconds."""
        return int(self.wall() * 1000)

    def first(self, version: bytes) -> float:
        """When this version was first seen, which may be now (monotonic seconds)."""
        found = self._young.get(version)
        if found is None:
            found = self._old.get(version)
            found = self.note(version, self.clock() if found is None else found)
        return found

    def note(self, version: bytes, since: float | None = None) -> float:
        """It was seen, or written, at ``since`` (default: now)."""
        if len(self._young) >= REMEMBERED:
            self._old, self._young = self._young, {}
        return self._young.setdefault(version, self.clock() if since is None else since)

    def left(self, row: Row) -> int:
        """Milliseconds of a row's lease that may be left, at most."""
        passed = int((self.clock() - self.first(row.version)) * 1000)
        return max(0, row.lease - passed)

    def over(self, row: Row) -> bool:
        if self.left(row) == 0:
            return True
        return self.now() > row.until + CLOCKS_APART * 1000

    def present(self, row: Row) -> Row:
        """What of a row counts now."""
        if row.held and self.over(row):
            row = row._replace(holder=b"", writers=b"")
        if row.expires is not None and row.expires <= self.now():
            row = row._replace(stamp=b"", data=None)
        return row
