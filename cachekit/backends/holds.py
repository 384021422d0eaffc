"""Tokens, blocks and doubts kept in this process: the rules of a slot that need no I/O."""

from __future__ import annotations

import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..protocols import NOTHING, TOKEN_BYTES, Slot, SlotState

SWEEP_AT_LEAST = 64
DOUBTS = 4096
STRIPES = 1024

_MAGIC = b"\xc5LS1"
_HEADER = struct.Struct(f">4s16sQ{TOKEN_BYTES}s")  # magic, table, sequence, stamp


class Hold:
    """A token or a block. ``token`` is empty for a block."""

    __slots__ = ("contested", "token", "until", "writers")

    def __init__(self, token: bytes, writers: set[bytes], until: float) -> None:
        self.token = token
        self.writers = writers
        self.contested = False
        self.until = until


class Holds:
    """The tokens and blocks of all keys: every rule of a slot that its entry has no part in.

    A token over an entry is its refresh token. Not locked: the owner's lock guards it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._holds: dict[str, Hold] = {}
        self._sweep_at = SWEEP_AT_LEAST

    def __len__(self) -> int:
        return len(self._holds)

    def of(self, key: str) -> Hold | None:
        hold = self._holds.get(key)
        if hold is not None and hold.until <= self._clock():
            del self._holds[key]
            return None
        return hold

    def slot(self, key: str, stamp: bytes | None, data: bytes | None) -> Slot:
        """What stands under the key, given its entry (``stamp`` None: there is none)."""
        hold = self.of(key)
        if hold is not None and not hold.token:
            return Slot(SlotState.BLOCK)
        if stamp is None:
            return NOTHING if hold is None else Slot(SlotState.TOKEN)
        return Slot(SlotState.ENTRY if hold is None else SlotState.REFRESHING, stamp, data)

    def may_acquire(self, slot: Slot, over: bytes, keep: bool) -> bool:
        if slot.state is SlotState.NOTHING:
            return True
        if slot.state is SlotState.ENTRY:
            return slot.stamp == over
        return slot.state is SlotState.REFRESHING and slot.stamp == over and not keep

    def grant(self, key: str, token: bytes, lease: float) -> None:
        self._add(key, Hold(token, set(), self._clock() + lease))

    def is_mine(self, key: str, token: bytes) -> bool:
        hold = self.of(key)
        return hold is not None and bool(hold.token) and hold.token == token

    def renew(self, key: str, token: bytes, lease: float) -> bool:
        if not self.is_mine(key, token):
            return False
        self._holds[key].until = self._clock() + lease
        return True

    def release(self, key: str, token: bytes) -> None:
        if self.is_mine(key, token):
            del self._holds[key]

    def drop(self, key: str) -> None:
        self._holds.pop(key, None)

    def contest(self, key: str) -> bool:
        """Contest the block that stands there; without one, void the token and say False."""
        hold = self.of(key)
        if hold is not None and not hold.token:
            hold.contested = True
            return True
        self.drop(key)
        return False

    def seize(self, key: str, writer: bytes, lease: float) -> None:
        until = self._clock() + lease
        hold = self.of(key)
        if hold is None or hold.token:
            self._add(key, Hold(b"", {writer}, until))
            return
        hold.writers.add(writer)
        hold.contested = True
        hold.until = max(hold.until, until)

    def is_alone(self, key: str, writer: bytes) -> bool:
        hold = self.of(key)
        return hold is not None and hold.writers == {writer} and not hold.contested

    def end(self, key: str, writer: bytes) -> bool:
        """Whether a block of others is left (contested now); else nothing is held any more."""
        hold = self.of(key)
        if hold is not None and not hold.token:
            hold.writers.discard(writer)
            if hold.writers:
                hold.contested = True
                return True
        self.drop(key)
        return False

    def _add(self, key: str, hold: Hold) -> None:
        self._holds[key] = hold
        # Leases nobody came back for: a sweep each time the table has doubled is O(1) a step.
        if len(self._holds) >= self._sweep_at:
            now = self._clock()
            self._holds = {k: h for k, h in self._holds.items() if h.until > now}
            self._sweep_at = SWEEP_AT_LEAST + 2 * len(self._holds)


class Creation:
    """A nonce being created, shared by all who found it missing, so that they agree."""

    __slots__ = ("nonce", "users")

    def __init__(self, nonce: bytes) -> None:
        self.nonce = nonce
        self.users = 0


class Record(NamedTuple):
    stamp: bytes
    data: bytes


class Table:
    """This process's side of one backend's slots, shared by its stores of every world.

    Bounded: holds end with their leases; of writes in doubt only the newest ``DOUBTS`` are
    known one by one, everything older that this table wrote reads as absent.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.holds = Holds(clock)
        self.tag_blocks = Holds(clock)
        self.creations: dict[str, Creation] = {}
        self._sequence = 0
        self._floor = 0
        self._doubts: dict[int, None] = {}
        self._moves = [0] * STRIPES
        self._renew()
        _tables.add(self)

    def _renew(self) -> None:
        # A forked child: another thread may have held the lock, and two processes must not
        # number their writes alike.
        self.lock = threading.RLock()
        self.ident = os.urandom(16)

    def begin(self) -> int:
        """The number of a new write, in doubt."""
        with self.lock:
            self._sequence += 1
            self._doubts[self._sequence] = None
            if len(self._doubts) > DOUBTS:
                self._floor = next(iter(self._doubts))
                del self._doubts[self._floor]
            return self._sequence

    def settle(self, name: str, sequence: int) -> None:
        """End a write's doubt: it stands from now on, or is known to be gone."""
        with self.lock:
            self._doubts.pop(sequence, None)
            self._moves[hash(name) % STRIPES] += 1

    def moves(self, names: Sequence[str]) -> list[int]:
        with self.lock:
            return [self._moves[hash(name) % STRIPES] for name in names]

    def pack(self, sequence: int, stamp: bytes, data: bytes) -> bytes:
        return _HEADER.pack(_MAGIC, self.ident, sequence, stamp) + data

    def unpack(self, raw: bytes | None) -> Record | None:
        """The record, None where it is missing, foreign or in doubt."""
        if raw is None or len(raw) < _HEADER.size:
            return None
        magic, ident, sequence, stamp = _HEADER.unpack_from(raw)
        if magic != _MAGIC:
            return None
        if ident == self.ident and (sequence <= self._floor or sequence in self._doubts):
            return None
        return Record(stamp, raw[_HEADER.size :])


_tables: weakref.WeakSet[Table] = weakref.WeakSet()


def _after_fork() -> None:
    for table in list(_tables):
        table._renew()


os.register_at_fork(after_in_child=_after_fork)
