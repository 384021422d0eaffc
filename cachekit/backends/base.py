"""The base for blocking drivers: one driver of plain methods serves both worlds.

A driver has the verbs of :class:`~cachekit.protocols.Store` (and of ``Slots``) as plain methods
with the same arguments. It keeps to the deadline it is given and raises only children of
``BackendError``. Here its verbs become coroutine functions: in the thread world they run in
place and never suspend; in an event loop they run in the runtime's bounded pool of threads, and
the caller is let go at its deadline even while every thread of that pool is stuck.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ..core.deadline import Deadline
from ..errors import BackendError, BackendTimeout, BackendUnavailable
from ..protocols import Bus, Grant, Item, LogFactory, Nonces, Reading, Slots, Store, World
from .local_slots import LocalSlots, Table
from .one_by_one import OneByOne

T = TypeVar("T")


# -- drivers -----------------------------------------------------------------------------


class RecordDriver(Protocol):
    """A blocking store of plain records."""

    name: str

    def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]: ...
    def set_many(self, items: Sequence[Item], deadline: Deadline) -> None: ...
    def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None: ...
    def close(self) -> None: ...


class Driver(RecordDriver, Protocol):
    """A blocking store that has the atomic steps of ``protocols.Slots`` too."""

    def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading: ...
    def acquire(
        self, key: str, token: bytes, lease: float, deadline: Deadline, *, over: bytes, keep: bool
    ) -> Grant: ...
    def renew(self, key: str, token: bytes, lease: float, deadline: Deadline) -> bool: ...
    def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool: ...
    def release(self, key: str, token: bytes, deadline: Deadline) -> None: ...
    def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool: ...
    def void(self, keys: Sequence[str], deadline: Deadline) -> None: ...
    def seize(
        self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None: ...
    def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool: ...
    def end(self, keys: Sequence[str], writer: bytes, deadline: Deadline) -> None: ...
    def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces: ...
    def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None: ...
    def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None: ...
    def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None: ...
    def drop_space(self, deadline: Deadline) -> None: ...


# -- stores ------------------------------------------------------------------------------


class BlockingRecords:
    """The four verbs of a store over a blocking driver; ``slots`` is the caller's to set."""

    slots: Slots

    def __init__(self, world: World, driver: RecordDriver) -> None:
        self.world = world
        self._records = driver
        self._in_place = world.name == "threads"

    @property
    def sender(self) -> bytes:
        """Where the backend has a bus: who its notes are from. Another one after a fork."""
        return getattr(self._records, "sender", b"")

    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        return await self._hop("get_many", deadline, self._records.get_many, keys, deadline)

    async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
        await self._hop("set_many", deadline, self._records.set_many, items, deadline)

    async def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None:
        await self._hop("delete_many", deadline, self._records.delete_many, keys, deadline)

    async def close(self) -> None:
        # In place in both worlds: closing sockets and files does not wait, and the pool of
        # threads may be the thing that is stuck or already gone.
        self._records.close()

    async def _hop(
        self, operation: str, deadline: Deadline, verb: Callable[..., T], *args: Any
    ) -> T:
        if deadline.passed():
            raise self._late(operation)
        if self._in_place:
            return await self.world.run(verb, *args)  # type: ignore[no-any-return]  # World.run is Any
        try:
            # A verb still queued when the time is up is cancelled and never runs; one that runs
            # ends at its own deadline, and nobody hears its answer.
            async with asyncio.timeout(deadline.left()):
                return await self.world.run(verb, *args)  # type: ignore[no-any-return]  # as above
        except BackendError:
            raise
        except TimeoutError as late:
            raise self._late(operation) from late
        except RuntimeError as gone:  # the pool refuses work: closed, or the interpreter is ending
            raise BackendUnavailable(
                f"{self._records.name}: no thread to run {operation} in ({gone})",
                backend=self._records.name,
                operation=operation,
            ) from gone

    def _late(self, operation: str) -> BackendTimeout:
        return BackendTimeout(
            f"{self._records.name}: {operation} did not end within its deadline",
            backend=self._records.name,
            operation=operation,
        )


class BlockingStore(BlockingRecords, OneByOne):
    """A whole store, slots included, over a blocking driver."""

    def __init__(self, world: World, driver: Driver) -> None:
        super().__init__(world, driver)
        self._driver = driver
        self.slots: Slots = self

    async def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        if self._in_place:  # the hot verb: what World.run would do there, without its price
            return self._driver.read(keys, tags, deadline)
        return await self._hop("read", deadline, self._driver.read, keys, tags, deadline)

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
        verb = functools.partial(self._driver.acquire, over=over, keep=keep)
        return await self._hop("acquire", deadline, verb, key, token, lease, deadline)

    async def renew(self, key: str, token: bytes, lease: float, deadline: Deadline) -> bool:
        return await self._hop("renew", deadline, self._driver.renew, key, token, lease, deadline)

    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        return await self._hop("fill", deadline, self._driver.fill, key, token, data, ttl, deadline)

    async def release(self, key: str, token: bytes, deadline: Deadline) -> None:
        await self._hop("release", deadline, self._driver.release, key, token, deadline)

    async def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        return await self._hop("put", deadline, self._driver.put, key, stamp, data, ttl, deadline)

    async def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        await self._hop("void", deadline, self._driver.void, keys, deadline)

    async def seize(
        self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        await self._hop("seize", deadline, self._driver.seize, keys, writer, lease, deadline)

    async def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        verb = self._driver.commit
        return await self._hop("commit", deadline, verb, key, writer, data, ttl, deadline)

    async def end(self, keys: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        await self._hop("end", deadline, self._driver.end, keys, writer, deadline)

    async def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        verb = self._driver.nonces
        return await self._hop("nonces", deadline, verb, keys, tags, fresh, ttl, deadline)

    async def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        await self._hop("drop_tags", deadline, self._driver.drop_tags, tags, deadline)

    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        verb = self._driver.seize_tags
        await self._hop("seize_tags", deadline, verb, tags, writer, lease, deadline)

    async def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        await self._hop("end_tags", deadline, self._driver.end_tags, tags, writer, deadline)

    async def drop_space(self, deadline: Deadline) -> None:
        await self._hop("drop_space", deadline, self._driver.drop_space, deadline)


# -- third-party stores ------------------------------------------------------------------


class PlainObject(Protocol):
    """What :class:`PlainBackend` adapts. ``get_many`` answers in the order of the keys."""

    def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]: ...
    def set_many(self, items: Sequence[Item]) -> None: ...
    def delete_many(self, keys: Sequence[str]) -> None: ...
    def close(self) -> None: ...


class PlainBackend:
    """A backend from any object with plain ``get_many, set_many, delete_many, close``.

    The object is closed with the last store that was opened on it.

    The object must be safe to call from several threads and bound its own waiting: a plain call
    can not be interrupted, only a caller in an event loop is let go at its deadline. It has no
    atomic steps, so leases and blocks live in this process (``LocalSlots``); set ``shared`` only
    if every process that writes to the object goes through one cache."""

    bus: Bus | None = None
    log: LogFactory | None = None

    def __init__(self, store: PlainObject, *, name: str, shared: bool = False) -> None:
        self.name = name
        self.shared = shared
        self._store = store
        self._table = Table()  # one for all worlds: a token must bind them all
        self._users = 0
        self._lock = threading.Lock()

    def open(self, world: World) -> Store:
        with self._lock:
            self._users += 1
        store = BlockingRecords(world, _PlainDriver(self._store, self.name, self._leave))
        store.slots = LocalSlots(store, table=self._table, name=self.name)
        return store

    def _leave(self) -> bool:
        """One store closed; whether it was the last, which closes the object."""
        with self._lock:
            self._users -= 1
            return not self._users


class _PlainDriver:
    """Drops the deadline argument and turns whatever the object raises into BackendError."""

    def __init__(self, store: PlainObject, name: str, leave: Callable[[], bool]) -> None:
        self._store = store
        self.name = name
        self._leave: Callable[[], bool] | None = leave

    def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        found = list(self._call("get_many", self._store.get_many, keys))
        if len(found) != len(keys):
            raise BackendError(
                f"{self.name}: get_many answered {len(found)} values for {len(keys)} keys; "
                "it must answer one per key, in their order",
                backend=self.name,
                operation="get_many",
            )
        return found

    def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
        self._call("set_many", self._store.set_many, items)

    def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None:
        self._call("delete_many", self._store.delete_many, keys)

    def close(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None and leave():
            self._call("close", self._store.close)

    def _call(self, operation: str, verb: Callable[..., T], *args: Any) -> T:
        try:
            return verb(*args)
        except BackendError:
            raise
        except TimeoutError as late:
            raise BackendTimeout(
                f"{self.name}: {operation} timed out", backend=self.name, operation=operation
            ) from late
        except Exception as error:
            raise BackendUnavailable(
                f"{self.name}: {operation} failed with {type(error).__name__}",
                backend=self.name,
                operation=operation,
            ) from error
