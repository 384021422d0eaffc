"""The memory of this process as a backend: for tests, and as a far tier within one process."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..core.deadline import Deadline
from ..core.notes import SENDER_BYTES, NoteKind
from ..errors import BackendTimeout
from ..protocols import Bus, Grant, Item, LogFactory, Nonces, Reading, Slot, Slots, SlotState, World
from .holds import SWEEP_AT_LEAST, Holds
from .local_bus import LocalBus
from .one_by_one import OneByOne


class MemoryBackend:
    """Bytes in this process; one backend's stores share its data in all worlds.

    Not bounded: expired records are reclaimed, nothing is evicted. Plain records, slots and
    tags are three keyspaces. ``clock`` is monotonic seconds. A forked child starts with a copy.
    Its bus tells a step's notes in the step's own thread, before the step returns.
    """

    shared = False
    log: LogFactory | None = None

    def __init__(
        self, name: str = "memory", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._shelf = _Shelf(clock, LocalBus(name))
        self.bus: Bus | None = self._shelf.bus

    def open(self, world: World) -> MemoryStore:
        return MemoryStore(self.name, self._shelf)


class _Timed(NamedTuple):
    until: float | None
    stamp: bytes
    data: bytes


class _Records:
    """Records that expire. Not locked: the shelf's lock guards it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: dict[str, _Timed] = {}
        self._sweep_at = SWEEP_AT_LEAST

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> _Timed | None:
        record = self._records.get(key)
        if record is None or record.until is None or record.until > self._clock():
            return record
        del self._records[key]
        return None

    def set(self, key: str, stamp: bytes, data: bytes, ttl: float | None) -> None:
        now = self._clock()
        self._records[key] = _Timed(None if ttl is None else now + ttl, stamp, bytes(data))
        if len(self._records) >= self._sweep_at:
            self._records = {
                k: r for k, r in self._records.items() if r.until is None or r.until > now
            }
            self._sweep_at = SWEEP_AT_LEAST + 2 * len(self._records)

    def drop(self, key: str) -> None:
        self._records.pop(key, None)


class _Shelf:
    """All data of one backend under one lock."""

    def __init__(self, clock: Callable[[], float], bus: LocalBus) -> None:
        self.lock = threading.RLock()
        self.bus = bus
        self.plain = _Records(clock)
        self.entries = _Records(clock)
        self.tags = _Records(clock)
        self.space: bytes | None = None
        self.holds = Holds(clock)
        self.tag_blocks = Holds(clock)
        _shelves.add(self)

    def slot(self, key: str) -> Slot:
        entry = self.entries.get(key)
        if entry is None:
            return self.holds.slot(key, None, None)
        return self.holds.slot(key, entry.stamp, entry.data)

    def nonce(self, tag: str) -> bytes | None:
        if self.tag_blocks.of(tag):
            return None
        record = self.tags.get(tag)
        return None if record is None else record.data

    def store(self, key: str, stamp: bytes, data: bytes, ttl: float | None) -> None:
        self.holds.drop(key)
        self.entries.set(key, stamp, data, ttl)


class _Face:
    """What store and slots have in common: the data and the deadline's check."""

    def __init__(self, name: str, shelf: _Shelf) -> None:
        self._name = name
        self._shelf = shelf

    def _locked(
        self, deadline: Deadline, operation: str, key: str | None = None
    ) -> threading.RLock:
        if deadline.passed():
            raise BackendTimeout(
                f"{self._name}: the deadline passed before {operation}",
                backend=self._name,
                operation=operation,
                key=key,
            )
        return self._shelf.lock


class MemoryStore(_Face):
    """One world's store; it never suspends, so any world will do."""

    def __init__(self, name: str, shelf: _Shelf) -> None:
        super().__init__(name, shelf)
        self.sender = os.urandom(SENDER_BYTES)
        self.slots: Slots = MemorySlots(name, shelf, self.sender)

    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        with self._locked(deadline, "get_many"):
            records = [self._shelf.plain.get(key) for key in keys]
        return [None if record is None else record.data for record in records]

    async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
        with self._locked(deadline, "set_many"):
            for key, data, ttl in items:
                self._shelf.plain.set(key, b"", data, ttl)

    async def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None:
        with self._locked(deadline, "delete_many"):
            for key in keys:
                self._shelf.plain.drop(key)

    async def close(self) -> None:
        """Nothing to release; the data belongs to the backend."""


class MemorySlots(_Face, OneByOne):
    """Every step of the slots under the backend's one lock; its notes go out after it."""

    def __init__(self, name: str, shelf: _Shelf, sender: bytes = bytes(SENDER_BYTES)) -> None:
        super().__init__(name, shelf)
        self._sender = sender

    async def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        shelf = self._shelf
        with self._locked(deadline, "read"):
            return Reading(
                [shelf.slot(key) for key in keys],
                [shelf.space] * len(keys),
                [shelf.nonce(tag) for tag in tags],
            )

    async def acquire(
        self,
        key: str,
        token: bytes,
        lease: float,
        deadline: Deadline,
        *,
        over: bytes = b"",
        keep: bool = False,
    ) -> Grant:
        shelf = self._shelf
        with self._locked(deadline, "acquire", key):
            slot = shelf.slot(key)
            granted = shelf.holds.may_acquire(slot, over, keep)
            if granted:
                if not keep:
                    shelf.entries.drop(key)
                shelf.holds.grant(key, token, lease)
            return Grant(granted, slot)

    async def renew(self, key: str, token: bytes, lease: float, deadline: Deadline) -> bool:
        with self._locked(deadline, "renew", key):
            return self._shelf.holds.renew(key, token, lease)

    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        with self._locked(deadline, "fill", key):
            if not self._shelf.holds.is_mine(key, token):
                return False
            self._shelf.store(key, token, data, ttl)
            return True

    async def release(self, key: str, token: bytes, deadline: Deadline) -> None:
        with self._locked(deadline, "release", key):
            self._shelf.holds.release(key, token)

    async def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        with self._locked(deadline, "put", key):
            if self._shelf.holds.contest(key):
                return False
            self._shelf.store(key, stamp, data, ttl)
            self._post(NoteKind.KEY, [key])
        self._shelf.bus.deliver()
        return True

    async def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        with self._locked(deadline, "void"):
            for key in keys:
                if not self._shelf.holds.contest(key):
                    self._shelf.entries.drop(key)
            self._post(NoteKind.KEY, keys)
        self._shelf.bus.deliver()

    async def seize(
        self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        with self._locked(deadline, "seize"):
            for key in keys:
                self._shelf.entries.drop(key)
                self._shelf.holds.seize(key, writer, lease)
            self._post(NoteKind.KEY, keys)
        self._shelf.bus.deliver()

    async def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        with self._locked(deadline, "commit", key):
            if self._shelf.holds.is_alone(key, writer):
                self._shelf.store(key, writer, data, ttl)
                return True
            self._end(key, writer)
        self._shelf.bus.deliver()
        return False

    async def end(self, keys: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        with self._locked(deadline, "end"):
            for key in keys:
                self._end(key, writer)
        self._shelf.bus.deliver()

    async def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        shelf = self._shelf
        with self._locked(deadline, "nonces"):
            if keys and shelf.space is None:
                shelf.space = fresh()
            found: list[bytes | None] = []
            for tag in tags:
                nonce = shelf.nonce(tag)
                if nonce is None and not shelf.tag_blocks.of(tag):
                    nonce = fresh()
                    shelf.tags.set(tag, b"", nonce, ttl)
                found.append(nonce)
            return Nonces([shelf.space] * len(keys), found)

    async def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        with self._locked(deadline, "drop_tags"):
            for tag in tags:
                self._shelf.tags.drop(tag)
            self._post(NoteKind.TAG, tags)
        self._shelf.bus.deliver()

    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        with self._locked(deadline, "seize_tags"):
            for tag in tags:
                self._shelf.tags.drop(tag)
                self._shelf.tag_blocks.seize(tag, writer, lease)
            self._post(NoteKind.TAG, tags)
        self._shelf.bus.deliver()

    async def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        with self._locked(deadline, "end_tags"):
            for tag in tags:
                self._end_tag(tag, writer)
        self._shelf.bus.deliver()

    async def drop_space(self, deadline: Deadline) -> None:
        with self._locked(deadline, "drop_space"):
            self._shelf.space = None
            self._post(NoteKind.SPACE, [""])
        self._shelf.bus.deliver()

    def _end(self, key: str, writer: bytes) -> None:
        shelf = self._shelf
        if shelf.slot(key).state is not SlotState.BLOCK:
            self._post(NoteKind.KEY, [key])  # its own ran out: others may have copied since
        if not shelf.holds.end(key, writer):
            shelf.entries.drop(key)

    def _end_tag(self, tag: str, writer: bytes) -> None:
        shelf = self._shelf
        if shelf.tag_blocks.of(tag) is None:
            self._post(NoteKind.TAG, [tag])
        if not shelf.tag_blocks.end(tag, writer):
            shelf.tags.drop(tag)

    def _post(self, kind: NoteKind, names: Sequence[str]) -> None:
        """Under the shelf's lock, so that notes are in the order of the steps."""
        self._shelf.bus.post(kind, names, self._sender)


_shelves: weakref.WeakSet[_Shelf] = weakref.WeakSet()


def _after_fork() -> None:
    for shelf in list(_shelves):  # another thread of the parent may have held it
        shelf.lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
