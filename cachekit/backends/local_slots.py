"""Slots for a store that can only get, set and delete: tokens and blocks live in this process.

No step waits for another and no lock is held over an await, so one :class:`Table` serves
threads and any number of event loops at once. A step decides in the table, does its I/O, and
then decides again: every record carries the sequence number of its write, a write is *in
doubt* from before its I/O until the second decision *settles* it, and a record in doubt reads
as absent. A write overtaken in between (by a void, a put, a block) is never settled; nor is
one whose I/O failed or was cancelled, however late it lands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ..core.deadline import Deadline
from ..errors import BackendError, BackendTimeout
from ..protocols import Grant, Item, Nonces, Reading, Slot
from .holds import Creation, Record, Table
from .one_by_one import OneByOne

__all__ = ["LocalSlots", "PlainStore", "Table"]

T = TypeVar("T")

KEY_BYTES = 230


class PlainStore(Protocol):
    """What :class:`LocalSlots` needs of a store."""

    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]: ...

    async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None: ...

    async def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None: ...


class LocalSlots(OneByOne):
    """``Slots`` over any store with ``get_many``, ``set_many`` and ``delete_many``.

    Within one process the whole contract holds, for threads and tasks alike, if every store
    of one backend gets the same ``table``. Now and then a race costs an entry (a miss), and
    while a write is under way its key may read as absent or taken.

    Across processes sharing the data it promises *less*: an invalidation removes the entry,
    but a load that began earlier in another process can put the old value back; leases and
    blocks are not seen there; two processes may create a tag's nonce twice (a miss). Use a
    backend with slots of its own where that matters.

    Its records lie beside the store's plain ones, under ``~slot:``, ``~tag:`` and ``~space``:
    no plain key may begin so. A name longer than 230 bytes ends in a hash.
    """

    def __init__(
        self, store: PlainStore, *, table: Table | None = None, name: str = "local slots"
    ) -> None:
        self._store = store
        self._table = Table() if table is None else table
        self._name = name

    async def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        def see(records: list[Record | None]) -> Reading:
            slots = [self._slot(key, record) for key, record in zip(keys, records, strict=False)]
            found = [None if record is None else record.stamp for record in records[len(keys) :]]
            blocks = self._table.tag_blocks
            nonces = [None if blocks.of(n) else f for n, f in zip(tagged, found[1:], strict=True)]
            return Reading(slots, found[:1] * len(keys), nonces)

        tagged = [_name("tag", tag) for tag in tags]
        names = [*(_name("slot", key) for key in keys), _SPACE, *tagged]
        return await self._look(names, deadline, see)

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
        holds = self._table.holds

        def decide(records: list[Record | None]) -> Grant:
            slot = self._slot(key, records[0])
            granted = holds.may_acquire(slot, over, keep)
            if granted:
                holds.grant(key, token, lease)
            return Grant(granted, slot)

        name = _name("slot", key)
        grant = await self._look([name], deadline, decide)
        if grant.granted and grant.slot.data is not None and not keep:
            await self._store.delete_many([name], deadline)
        return grant

    async def renew(self, key: str, token: bytes, lease: float, deadline: Deadline) -> bool:
        self._check(deadline, "renew", key)
        with self._table.lock:
            return self._table.holds.renew(key, token, lease)

    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        self._check(deadline, "fill", key)
        holds = self._table.holds
        with self._table.lock:
            if not holds.is_mine(key, token):
                return False
        return await self._write_entry(
            key, token, data, ttl, deadline, lambda: holds.is_mine(key, token)
        )

    async def release(self, key: str, token: bytes, deadline: Deadline) -> None:
        self._check(deadline, "release", key)
        with self._table.lock:
            self._table.holds.release(key, token)

    async def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        self._check(deadline, "put", key)
        holds = self._table.holds
        with self._table.lock:
            if holds.contest(key):
                return False
            # The put stands as a token meanwhile: whatever overtakes it removes that.
            holds.grant(key, stamp, deadline.left() + 1.0)
        try:
            await self._write_entry(
                key, stamp, data, ttl, deadline, lambda: holds.is_mine(key, stamp)
            )
        finally:
            with self._table.lock:
                holds.release(key, stamp)
        return True  # overtaken is stored and then replaced

    async def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        self._check(deadline, "void")
        with self._table.lock:
            doomed = [key for key in keys if not self._table.holds.contest(key)]
        await self._delete("slot", doomed, deadline)

    async def seize(
        self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        self._check(deadline, "seize")
        with self._table.lock:
            for key in keys:
                self._table.holds.seize(key, writer, lease)
        await self._delete("slot", keys, deadline)

    async def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        self._check(deadline, "commit", key)
        holds = self._table.holds
        with self._table.lock:
            alone = holds.is_alone(key, writer)
            # In the same step: a seize right after this must not be ended by it.
            doomed = [key] if not alone and not holds.end(key, writer) else []
        if not alone:
            await self._delete("slot", doomed, deadline)
            return False
        if await self._write_entry(
            key, writer, data, ttl, deadline, lambda: holds.is_alone(key, writer)
        ):
            return True
        await self.end([key], writer, deadline)
        return False

    async def end(self, keys: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        self._check(deadline, "end")
        with self._table.lock:
            doomed = [key for key in keys if not self._table.holds.end(key, writer)]
        await self._delete("slot", doomed, deadline)

    async def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        space = [await self._nonce(_SPACE, fresh, None, deadline)] if keys else []
        found = [await self._nonce(_name("tag", tag), fresh, ttl, deadline) for tag in tags]
        return Nonces([*space * len(keys)], [*found])

    async def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        await self._drop([_name("tag", tag) for tag in tags], deadline)

    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        self._check(deadline, "seize_tags")
        names = [_name("tag", tag) for tag in tags]
        with self._table.lock:
            for name in names:
                self._table.tag_blocks.seize(name, writer, lease)
        await self._drop(names, deadline)

    async def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        # The nonces first: where deleting them fails, the blocks stay and hide them.
        names = [_name("tag", tag) for tag in tags]
        await self._drop(names, deadline)
        with self._table.lock:
            for name in names:
                self._table.tag_blocks.end(name, writer)

    async def drop_space(self, deadline: Deadline) -> None:
        await self._drop([_SPACE], deadline)

    def _slot(self, key: str, record: Record | None) -> Slot:
        stamp, data = (None, None) if record is None else record
        return self._table.holds.slot(key, stamp, data)

    async def _look(
        self, names: Sequence[str], deadline: Deadline, decide: Callable[[list[Record | None]], T]
    ) -> T:
        """Read the records and decide on them, locked, as if both were one step."""
        table = self._table
        while True:
            self._check(deadline, "read")
            before = table.moves(names)
            raw = await self._store.get_many(names, deadline)
            with table.lock:
                # A write settled meanwhile: what was read may be older than the holds.
                if table.moves(names) == before:
                    return decide([table.unpack(record) for record in raw])

    async def _write_entry(
        self,
        key: str,
        stamp: bytes,
        data: bytes,
        ttl: float | None,
        deadline: Deadline,
        stands: Callable[[], bool],
    ) -> bool:
        """Store the entry; it replaces the hold if that still ``stands`` afterwards."""
        name = _name("slot", key)
        sequence = await self._write(name, stamp, data, ttl, deadline)
        with self._table.lock:
            if stands():
                self._table.holds.drop(key)
                self._table.settle(name, sequence)
                return True
        await self._undo(name, sequence, deadline)
        return False

    async def _write(
        self, name: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> int:
        sequence = self._table.begin()
        record = self._table.pack(sequence, stamp, data)
        await self._store.set_many([Item(name, record, ttl)], deadline)
        return sequence

    async def _undo(self, name: str, sequence: int, deadline: Deadline) -> None:
        try:
            await self._store.delete_many([name], deadline)
        except BackendError:
            return  # it stays in doubt, and so unreadable
        self._table.settle(name, sequence)

    async def _delete(self, kind: str, keys: Sequence[str], deadline: Deadline) -> None:
        if keys:
            await self._store.delete_many([_name(kind, key) for key in keys], deadline)

    async def _nonce(
        self, name: str, fresh: Callable[[], bytes], ttl: float | None, deadline: Deadline
    ) -> bytes | None:
        table = self._table

        def find_or_join(records: list[Record | None]) -> bytes | Creation | None:
            if table.tag_blocks.of(name):
                return None
            if records[0] is not None:
                return records[0].stamp
            creation = table.creations.get(name)
            if creation is None:
                creation = table.creations[name] = Creation(fresh())
            creation.users += 1
            return creation

        while True:
            found = await self._look([name], deadline, find_or_join)
            if not isinstance(found, Creation):
                return found
            try:
                sequence = await self._write(name, found.nonce, b"", ttl, deadline)
                with table.lock:
                    if table.creations.get(name) is found:
                        table.settle(name, sequence)
                        return found.nonce
                await self._undo(name, sequence, deadline)  # dropped meanwhile
            finally:
                with table.lock:
                    found.users -= 1
                    if not found.users and table.creations.get(name) is found:
                        del table.creations[name]

    async def _drop(self, names: Sequence[str], deadline: Deadline) -> None:
        self._check(deadline, "drop")
        with self._table.lock:
            for name in names:
                self._table.creations.pop(name, None)
        if names:
            await self._store.delete_many(names, deadline)

    def _check(self, deadline: Deadline, operation: str, key: str | None = None) -> None:
        if deadline.passed():
            raise BackendTimeout(
                f"{self._name}: the deadline passed before {operation}",
                backend=self._name,
                operation=operation,
                key=key,
            )


_SPACE = "~space"


def _name(kind: str, key: str) -> str:
    if len(name := f"~{kind}:{key}") <= KEY_BYTES:
        return name
    return f"~{kind}#{hashlib.blake2b(key.encode(), digest_size=32).hexdigest()}"
