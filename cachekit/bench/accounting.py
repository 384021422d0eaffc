"""Who wrote what and when: finds stale reads and lost writes, also between racing writers."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

LOADED = 0  # the version of every row that is in the source before the run


class Loss(NamedTuple):
    """Acknowledged writes that the source no longer shows and nothing newer replaced."""

    writes: int
    keys: int


class Ledger:
    """Every write's version and the moment it was acknowledged; judges reads by intervals.

    Writers of one key are *not* serialized, so that racing writes reach the strategy as they
    would in an application. The order of two writes is known only when one was acknowledged
    before the other began, and only then is the older one called old. Versions come from one
    counter, in the order in which writes begin, and an acknowledgement notes how many had begun
    by then. Write ``w`` began after ``v`` was acknowledged iff ``w >= ended[v]``.

    - A read is *stale* iff a write of its key, acknowledged before the read began, itself began
      after the version returned had been acknowledged; or iff the key is absent although it was
      loaded, or written and acknowledged, before the read began. A read concurrent with a write
      may return either.
    - A write is *lost* iff it was acknowledged and the source ends with a version of that key
      that had been acknowledged before the write began.

    A write that raised has an unknown outcome: it is never acknowledged, and seeing it or not
    is both right. Thread-safe. 40 bytes per write. Moments are ``time.perf_counter()``, which all
    processes of a machine share.
    """

    def __init__(self, records: int) -> None:
        """Keys 0 .. records - 1 are in the source at version 0."""
        self._records = records
        self._lock = threading.Lock()
        self._ended = array("q", [1])  # by version; 0 = not acknowledged
        self._owner = array("q", [-1])
        self._when = array("d", [time.perf_counter()])  # of the acknowledgement
        self._place = array("q", [-1])  # among the acknowledged writes of its key
        self._order: dict[int, array[int]] = {}  # key -> versions as they were acknowledged
        self._newest: dict[int, int] = {}

    def begin(self, key: int) -> int:
        """The version for a write that begins now."""
        with self._lock:
            version = len(self._ended)
            self._ended.append(0)
            self._owner.append(key)
            self._when.append(0.0)
            self._place.append(-1)
            return version

    def acknowledge(self, key: int, version: int) -> None:
        """The write returned without an error."""
        with self._lock:
            self._ended[version] = len(self._ended)
            self._when[version] = time.perf_counter()
            order = self._order.setdefault(key, array("q"))
            self._place[version] = len(order)
            order.append(version)
            if version > self._newest.get(key, LOADED):
                self._newest[key] = version

    def floor(self, key: int) -> int:
        """Take this before a read begins; give it to :meth:`is_stale`. -1: may be absent."""
        newest = self._newest.get(key)
        if newest is not None:
            return newest
        return LOADED if key < self._records else -1

    def is_stale(self, floor: int, seen: int | None) -> bool:
        """Whether a read that began at ``floor`` may not return version ``seen`` (None: absent)."""
        if seen is None:
            return floor >= LOADED
        if seen >= floor:
            return False
        ended = self._ended[seen]
        return ended != 0 and ended <= floor

    def stale_for(self, key: int, seen: int | None, at: float) -> float | None:
        """Seconds for which, when a read began at ``at``, version ``seen`` (None: absent) had been
        old; None: it was not. By the same rule as :meth:`is_stale`, for reads of any process."""
        with self._lock:
            since = self._superseded(key, seen)
        return None if since is None or since > at else at - since

    def _superseded(self, key: int, seen: int | None) -> float | None:
        """When the first write was acknowledged that makes ``seen`` old."""
        order = self._order.get(key)
        if seen is None:
            if key < self._records:
                return self._when[LOADED]
            return None if order is None else self._when[order[0]]
        ended = self._ended[seen]
        if order is None or not ended:
            return None
        # What is passed over was in flight together with ``seen``: as many as there are writers.
        for place in range(self._place[seen] + 1, len(order)):
            if order[place] >= ended:
                return self._when[order[place]]
        return None

    def written(self) -> list[int]:
        """The keys with at least one acknowledged write."""
        return list(self._newest)

    def lost(self, final: Iterable[tuple[int, int]]) -> Loss:
        """Compare the source's final (key, version) pairs with what was acknowledged."""
        present = dict(final)
        writes = 0
        keys: set[int] = set()
        for version, key in self._acknowledged():
            there = present.get(key)
            if there is None or self.is_stale(version, there):
                writes += 1
                keys.add(key)
        return Loss(writes, len(keys))

    def _acknowledged(self) -> Iterator[tuple[int, int]]:
        for version in range(1, len(self._ended)):
            if self._ended[version]:
                yield version, self._owner[version]
