"""A system of record in shared memory, for real processes: versions, and what may not be older.

Each key has a list of the tickets that were written, in the order in which they landed, and a
*floor*: the newest landing of which a save or invalidation has returned. A file lock guards it,
which ends with whoever held it.
"""

from __future__ import annotations

import fcntl
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEYS = 6
TICKETS = 200_000
_HEAD = struct.Struct("<IIII")  # tickets given, landed, floor, reads judged
_RANK = struct.Struct("<I")
_STRIDE = _HEAD.size + TICKETS * _RANK.size


class SharedSource:
    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            with path.open("wb") as made:
                made.truncate(KEYS * _STRIDE)
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), KEYS * _STRIDE)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _head(self, key: int) -> list[int]:
        return list(_HEAD.unpack_from(self._map, key * _STRIDE))

    def _keep(self, key: int, head: list[int]) -> None:
        _HEAD.pack_into(self._map, key * _STRIDE, *head)

    def _slot(self, key: int, ticket: int) -> int:
        return key * _STRIDE + _HEAD.size + ticket * _RANK.size

    def ticket(self, key: int) -> int:
        """A value nobody else writes."""
        with self._locked():
            head = self._head(key)
            head[0] += 1
            self._keep(key, head)
            return head[0]

    def land(self, key: int, ticket: int) -> None:
        with self._locked():
            head = self._head(key)
            head[1] += 1
            _RANK.pack_into(self._map, self._slot(key, ticket), head[1])
            _RANK.pack_into(self._map, self._slot(key, 0), ticket)  # ticket 0 is nobody's: the last
            self._keep(key, head)

    def load(self, key: int) -> int:
        """The ticket that landed last; 0 if none has."""
        with self._locked():
            return int(_RANK.unpack_from(self._map, self._slot(key, 0))[0])

    def rank(self, key: int, ticket: int) -> int:
        if not ticket:
            return 0
        return int(_RANK.unpack_from(self._map, self._slot(key, ticket))[0])

    def landed(self, key: int) -> int:
        with self._locked():
            return self._head(key)[1]

    def floor(self, key: int) -> int:
        with self._locked():
            return self._head(key)[2]

    def raise_floor(self, key: int, rank: int) -> None:
        with self._locked():
            head = self._head(key)
            head[2] = max(head[2], rank)
            self._keep(key, head)

    def judged(self, key: int) -> None:
        with self._locked():
            head = self._head(key)
            head[3] += 1
            self._keep(key, head)

    def totals(self) -> tuple[int, int]:
        """Landed writes and judged reads, of all keys."""
        heads = [self._head(key) for key in range(KEYS)]
        return sum(h[1] for h in heads), sum(h[3] for h in heads)
