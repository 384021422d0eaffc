"""The write-back log in a SQLite file, shared by the processes of one host."""

from __future__ import annotations

import functools
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import quote

from ..core.deadline import Deadline
from ..errors import ConfigurationError
from ..protocols.bus import World
from ..protocols.log import Bounds, Letter, Look, Record, Standing
from . import sqlite_settling as settling
from . import sqlite_tables as tables
from .sqlite_commits import WouldWait, log_file

T = TypeVar("T")

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class SQLiteLog:
    """A queue in one file, in WAL mode; several queues and all processes of a host share it.

    ``level`` "process" (the default): an accepted operation survives kill -9 of every process
    (``synchronous=NORMAL``); "host": power loss too (``FULL``: each commit waits for the disk,
    and callers that wait together share one). Not for network file systems, whose locks and
    shared memory do not do what SQLite needs.

    A put costs about one SQLite insert, a look of one key some microseconds. A file that is
    deleted while in use is begun anew within a moment (50 ms), without what was in it, and what
    is put in that moment is lost too: never delete one of a running program. A damaged file is
    refused. Two processes that share the file must run on the same kernel: leases are measured
    with its clock since boot (elsewhere than on Linux: with the wall clock)."""

    parts = 1
    tells = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        queue: str,
        *,
        namespace: str = "",
        level: str | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008  # a tuple: nobody changes it
    ) -> None:
        if level not in (None, "process", "host"):
            raise ConfigurationError(
                f"a SQLite log offers the levels 'process' and 'host', not {level!r}"
            )
        if not queue:
            raise ConfigurationError("a write-back queue needs a name")
        self.level = level or "process"
        self.name = f"{queue} (sqlite)"
        # Queues of one name in two namespaces are two queues.
        self._space = quote(namespace, safe="", errors="surrogatepass") + "/"
        self._queue = self._space + queue
        self.bounds = bounds
        # Made absolute now: a later chdir must not lead to another file.
        self._file = log_file(os.path.abspath(path), self.level == "host")

    def __repr__(self) -> str:
        return f"SQLiteLog({self._file.path!r}, {self._queue!r}, level={self.level!r})"

    async def append(
        self, world: World, records: Sequence[Record], deadline: Deadline
    ) -> list[int | None]:
        if not records:
            return []
        answer: list[int | None] = await world.run(
            self._file.append, self._queue, records, self.bounds, deadline
        )
        return answer

    def append_now(self, record: Record) -> int | None:
        """One append from a plain call, if it is as usual and nobody else is at it: its version.
        None: nothing was done. Waits for nothing but the disk."""
        return self._file.append_now(self._queue, record, self.bounds)

    async def look(self, world: World, keys: Sequence[str], since: int, deadline: Deadline) -> Look:
        """In place, in an event loop too: a reader of a WAL file waits for nobody."""
        try:
            return self._file.glance(deadline, self._queue, keys, since)
        except WouldWait:
            pass
        answer: Look = await world.run(self._file.look, deadline, self._queue, keys, since)
        return answer

    async def identity(self, world: World, deadline: Deadline) -> str:
        found = await self._read(world, "identity", deadline, tables.identity, self._queue)
        if found is not None:
            return found
        return await self._change(world, "identity", deadline, tables.made_identity, self._queue)

    # -- the owner

    async def claim(
        self,
        world: World,
        part: int,
        owner: bytes,
        lease: float,
        deadline: Deadline,
        *,
        beyond: int = 0,
    ) -> int | None:
        now, boot = lease_clock()
        taken = await self._read(
            world, "claim", deadline, settling.is_taken, self._queue, owner, now, boot
        )
        if taken:
            return None  # who polls for a free queue writes nothing
        return await self._change(
            world, "claim", deadline, _claim, self._queue, owner, lease, beyond
        )

    async def renew(
        self, world: World, part: int, owner: bytes, epoch: int, lease: float, deadline: Deadline
    ) -> bool:
        return await self._change(
            world, "renew", deadline, _renew, self._queue, owner, epoch, lease
        )

    async def release(
        self, world: World, part: int, owner: bytes, epoch: int, deadline: Deadline
    ) -> None:
        await self._change(world, "release", deadline, settling.release, self._queue, owner, epoch)

    async def read(
        self, world: World, part: int, after: int, limit: int, deadline: Deadline
    ) -> list[Record]:
        return await self._read(world, "read", deadline, tables.read, self._queue, after, limit)

    async def settle(
        self,
        world: World,
        part: int,
        epoch: int,
        done: Sequence[tuple[str, int]],
        letters: Sequence[Letter],
        deadline: Deadline,
    ) -> bool:
        answer: bool = await world.run(
            self._file.settle, deadline, self._queue, epoch, done, letters, time.time()
        )
        return answer

    # -- the whole queue

    async def standing(self, world: World, deadline: Deadline) -> Standing:
        return await self._read(world, "standing", deadline, tables.standing, self._queue)

    async def left(self, world: World, upto: Sequence[int], deadline: Deadline) -> int:
        return await self._read(world, "left", deadline, tables.left, self._queue, upto[0])

    async def queues(self, world: World, deadline: Deadline) -> list[str]:
        """Those of the namespace."""
        names = await self._read(world, "queues", deadline, tables.queues)
        return [n.removeprefix(self._space) for n in names if n.startswith(self._space)]

    # -- dead letters

    async def letters(
        self, world: World, after: int, limit: int, deadline: Deadline
    ) -> list[Letter]:
        return await self._read(
            world, "letters", deadline, settling.letters, self._queue, after, limit
        )

    async def revive(
        self, world: World, versions: Sequence[int], force: bool, deadline: Deadline
    ) -> list[int]:
        """Two letters of one key that are revived together are both accepted, in their order."""
        return await self._change(
            world, "revive", deadline, settling.revive, self._queue, versions, force, time.time()
        )

    async def outdate(self, world: World, keys: Sequence[str], deadline: Deadline) -> None:
        """Writes only where there is such a letter."""
        found = await self._read(
            world, "outdate", deadline, settling.letters_of, self._queue, list(keys)
        )
        if found:
            await self._change(world, "outdate", deadline, settling.outdate, self._queue, found)

    async def drop(self, world: World, versions: Sequence[int], deadline: Deadline) -> list[int]:
        return await self._change(world, "drop", deadline, settling.drop, self._queue, versions)

    async def close(self, world: World) -> None:
        """Close the file in this process; another log of it opens it again by itself. What is in
        use is closed by whoever uses it: nobody waits here."""
        await world.run(self._file.close)

    async def _read(
        self,
        world: World,
        operation: str,
        deadline: Deadline,
        step: Callable[..., T],
        *args: object,
    ) -> T:
        answer: T = await world.run(self._file.read, operation, deadline, step, *args)
        return answer

    async def _change(
        self,
        world: World,
        operation: str,
        deadline: Deadline,
        step: Callable[..., T],
        *args: object,
    ) -> T:
        answer: T = await world.run(self._file.change, operation, deadline, step, *args)
        return answer


@functools.cache
def _boot() -> str:
    """Names this run of the kernel; empty where none can be had."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def lease_clock() -> tuple[float, str]:
    """Seconds that all processes of this host count alike, and what they count from: the boot,
    which ends every lease, or nothing (the wall clock)."""
    boot = _boot()
    return (time.clock_gettime(time.CLOCK_BOOTTIME), boot) if boot else (time.time(), "")


def _claim(
    db: sqlite3.Connection, queue: str, owner: bytes, lease: float, beyond: int
) -> int | None:
    return settling.claim(db, queue, owner, lease, beyond, *lease_clock())


def _renew(db: sqlite3.Connection, queue: str, owner: bytes, epoch: int, lease: float) -> bool:
    now, boot = lease_clock()
    return settling.renew(db, queue, owner, epoch, now + lease, boot)
