"""S3-FIFO eviction (Yang, Zhang, Qiu, Yue, Vigfusson, SOSP 2023).

Three queues: a small one (a tenth of the room) for what is new, a main one for what proved
itself, and a ghost of fingerprints for what left the small one unused. A hit only counts on the
entry; all work is on the miss. Two details decide the hit ratio: while the room is not yet full
the overflow of the small queue goes to main, and later main gives only when it is over its
share.

The ghost is a direct-mapped array of mixed fingerprints: 4 bytes a slot, no dict.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable

from .entry import Entry

SMALL_SHARE = 0.1
PROMOTE_AT = 2  # uses in the small queue that earn a place in main
MOST_USES = 3  # more than this buys no further stay in main

_MIX = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


class S3Fifo:
    """The order in which entries leave. Not thread-safe: the near tier's lock is held.

    Entries that died elsewhere stay queued and are passed over (``alive`` tells); :meth:`tidy`
    drops them."""

    __slots__ = (
        "_fold",
        "alive",
        "filling",
        "ghost",
        "main",
        "mask",
        "room",
        "small",
        "small_room",
    )

    def __init__(
        self, room: int, alive: Callable[[Entry], bool], fold: Callable[[Entry, float], None]
    ) -> None:
        self.room = room
        self.small_room = max(1, int(room * SMALL_SHARE))
        self.alive = alive
        self._fold = fold
        self.small: deque[Entry] = deque()
        self.main: deque[Entry] = deque()
        self.filling = True  # until the room was full once
        self.ghost: array[int] | None = None
        self.mask = 0

    def __len__(self) -> int:
        return len(self.small) + len(self.main)

    def add(self, entry: Entry) -> None:
        if self.ghost is not None:
            mixed = self._mix(entry)
            slot = (mixed >> 32) & self.mask
            if self.ghost[slot] == (mixed & 0xFFFFFFFF or 1):
                self.ghost[slot] = 0
                self.main.append(entry)
                return
        self.small.append(entry)
        if self.filling and len(self.small) > self.small_room:
            self.main.append(self.small.popleft())

    def evict(self) -> Entry | None:
        """Choose the next live entry to leave and take it out of the queues.

        Called before the new entry is added."""
        self.filling = False
        small, main = self.small, self.main
        while small or main:
            if small and (len(main) <= self.room - self.small_room or not main):
                entry = small.popleft()
                if not self.alive(entry):
                    continue
                uses = entry.uses
                if uses >= PROMOTE_AT:
                    entry.uses = 0.0
                    self._fold(entry, uses)
                    main.append(entry)
                    continue
                self._remember(entry)
                return entry
            entry = main.popleft()
            if not self.alive(entry):
                continue
            uses = entry.uses
            if uses:
                keep = min(uses, MOST_USES) - 1.0
                entry.uses = keep
                self._fold(entry, uses - keep)
                main.append(entry)
                continue
            return entry
        return None

    def fit(self, live: int) -> None:
        """Take what is live for the room, where another bound than that of entries is met: the
        shares of the queues follow it, in steps of a half."""
        room = max(1, live)
        if 3 * room < 2 * self.room or 2 * room > 3 * self.room:
            self.room, self.small_room = room, max(1, int(room * SMALL_SHARE))
            self.ghost = None

    def tidy(self, live: int, *, heavy: bool) -> None:
        """Sweep once dead entries, which hold their values, outnumber the live ones by 64; where
        values are weighed once they are a quarter as many."""
        if len(self) > live + (4 + live // 4 if heavy else 64 + live):
            self.sweep()

    def sweep(self) -> None:
        """Drop dead entries from both queues."""
        alive = self.alive
        self.small = deque(e for e in self.small if alive(e))
        self.main = deque(e for e in self.main if alive(e))

    def clear(self) -> None:
        self.small = deque()
        self.main = deque()
        self.filling = True
        self.ghost = None

    def _remember(self, entry: Entry) -> None:
        ghost = self.ghost
        if ghost is None:
            size = 1 << max(4, (self.room - 1).bit_length())
            ghost = self.ghost = array("I", bytes(4 * size))
            self.mask = size - 1
        mixed = self._mix(entry)
        ghost[(mixed >> 32) & self.mask] = mixed & 0xFFFFFFFF or 1

    def _mix(self, entry: Entry) -> int:
        mixed = ((hash(entry.key) ^ id(entry.shelf)) * _MIX) & _WORD
        return mixed ^ (mixed >> 29)
