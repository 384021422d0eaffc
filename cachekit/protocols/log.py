"""Write-back: the durable queue between put and source, and the writer at its end.

A log keeps the operations of one *queue* (one write-back strategy; several share a file or a
server under different names) in ``parts`` partitions. A key is always in the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from ..core.deadline import Deadline
from ..core.ops import Op, OpKind
from .bus import World

OWNER_BYTES = 16


class Record(NamedTuple):
    """One operation as a log keeps it. ``version`` is given by the log: per partition it only
    grows, in the order of acceptance. ``at`` (Unix seconds) tells ages and orders nothing."""

    key: str  # the cache's text key
    kind: OpKind
    data: bytes  # id and value, encoded by the strategy
    version: int = 0
    at: float = 0.0


class Letter(NamedTuple):
    """A dead letter: an operation that the sink refused for good, or that nobody could read.

    ``outdated``: a newer operation of its key has been applied, or parked, since; to replay it
    would undo that."""

    record: Record
    error: str
    attempts: int = 0
    parked: float = 0.0  # Unix seconds
    outdated: bool = False


class Look(NamedTuple):
    """What one look at a log saw, at one instant.

    ``settled``: keys that left the log (applied, parked or dropped) since the look that gave
    ``mark``, or None: too many to tell. A log that can not tell leaves both as they were asked."""

    pending: list[Record | None]  # per key: its newest operation in the log
    settled: Sequence[str] | None = ()
    mark: int = 0


class Standing(NamedTuple):
    """A queue as a whole, over all its partitions."""

    depth: int = 0  # operations
    size: int = 0  # bytes of keys and data
    oldest: float | None = None  # Unix seconds: when the oldest operation was accepted
    newest: tuple[int, ...] = ()  # per partition: the newest version ever given, 0 = none
    dead: int = 0


class Bounds(NamedTuple):
    """How much one partition's share of a queue may hold before ``append`` finds no room. An
    operation counts until it is settled, also where a newer one of its key waits behind it."""

    operations: int = 10_000
    size: int = 64 * 1024 * 1024  # bytes of keys and data


class Log(Protocol):
    """The durable queue of one strategy, shared by all processes that open it.

    ``level``: what an accepted operation survives: "process" (kill -9 of any client), "host"
    (power loss) or "replicated". ``tells``: whether :meth:`look` says what was settled.

    Every verb is one atomic step per partition, in whatever world it is called from, and raises a
    child of BackendError within its deadline. A class that has ``append`` may have
    ``append_now(record)`` beside it, a plain method: one append if that needs no waiting, and its
    version; None if nothing was done. After an error of ``append`` the operation may be
    kept all the same: it was not acknowledged, and may still reach the source."""

    name: str  # for messages and metrics: queue and kind, no secret
    level: str
    parts: int
    tells: bool

    async def append(
        self, world: World, records: Sequence[Record], deadline: Deadline
    ) -> list[int | None]:
        """Accept operations in this order: each is kept, at ``level``, when this returns.

        The version of each; None where the bound leaves no room for it (then nothing later of
        the same partition in this call is accepted either). Raises BackendRefused where the log
        refuses to write (disk full, read-only, out of memory)."""

    async def look(self, world: World, keys: Sequence[str], since: int, deadline: Deadline) -> Look:
        """The newest waiting operation of each key, and what was settled since ``since`` (a mark
        of an earlier look; 0 = all that is still known). A strongly consistent read."""

    async def identity(self, world: World, deadline: Deadline) -> str:
        """16 hexadecimal digits drawn when the queue was first used, and the same for all who
        open it: two logs that write to one source must not fence each other out."""

    # -- the owner of a partition ---------------------------------------------------------

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
        """Become the owner for ``lease`` seconds: the new epoch, greater than any before and than
        ``beyond``; None while another's lease runs. One's own claim is taken over anew.
        Raises ConfigurationError where the server could lose the log."""

    async def renew(
        self, world: World, part: int, owner: bytes, epoch: int, lease: float, deadline: Deadline
    ) -> bool:
        """Prolong my lease, also one that ran out, as long as nobody else has claimed since;
        False: somebody has."""

    async def release(
        self, world: World, part: int, owner: bytes, epoch: int, deadline: Deadline
    ) -> None:
        """Give the ownership back, if it is still mine; the epoch stays on record."""

    async def read(
        self, world: World, part: int, after: int, limit: int, deadline: Deadline
    ) -> list[Record]:
        """At most ``limit`` operations with versions above ``after``, in order of version; fewer
        only where there are no more just then, or where the next one can not be given (it raises
        when it comes first)."""

    async def settle(
        self,
        world: World,
        part: int,
        epoch: int,
        done: Sequence[tuple[str, int]],
        letters: Sequence[Letter],
        deadline: Deadline,
    ) -> bool:
        """``done``: (key, version) of what the source has: every operation of the key up to that
        version leaves the log. ``letters`` go to the dead letters in the same step, and every
        operation of their keys up to their versions leaves the log. Older dead letters of any of
        these keys become outdated. False, and nothing is changed, if ``epoch`` is not the present
        one. Doing it twice is fine."""

    # -- the whole queue ------------------------------------------------------------------

    async def standing(self, world: World, deadline: Deadline) -> Standing: ...

    async def left(self, world: World, upto: Sequence[int], deadline: Deadline) -> int:
        """How many operations with versions up to ``upto`` (one per partition) are in the log."""

    # -- dead letters ---------------------------------------------------------------------

    async def letters(
        self, world: World, after: int, limit: int, deadline: Deadline
    ) -> list[Letter]:
        """Dead letters with versions above ``after``, by version (over all partitions)."""

    async def revive(
        self, world: World, versions: Sequence[int], force: bool, deadline: Deadline
    ) -> list[int]:
        """Accept dead letters again, as new operations (with new versions, beyond the bound too);
        they are dead no more. Not one that is outdated, or whose key has an operation in the log,
        unless ``force``. The versions (as given) that were revived."""

    async def outdate(self, world: World, keys: Sequence[str], deadline: Deadline) -> None:
        """Newer values of these keys went to the source past the log: their dead letters become
        outdated. Nothing else changes, and what is parked later is not concerned."""

    async def drop(self, world: World, versions: Sequence[int], deadline: Deadline) -> list[int]:
        """Forget dead letters for good; the versions that were there."""

    async def queues(self, world: World, deadline: Deadline) -> list[str]:
        """The names of all queues kept in the same place, this one or not."""

    async def close(self, world: World) -> None:
        """Release what was opened in this world. Twice is fine; the log may be used again."""


class LogFactory(Protocol):
    """Opens a queue of a place where logs are kept. Does no I/O. ``level`` None: the least that
    the place offers."""

    def __call__(self, queue: str, *, level: str | None = None, bounds: Bounds = ...) -> Log: ...


class Sink(Protocol):
    """Writes batches to the source, in order.

    ``write_many`` (plain, or a coroutine function) gets operations of distinct keys. It raises to
    fail the whole batch, or answers {id: exception} of what failed, everything else being applied;
    any other answer means that all were.

    ``fences``: whether the source itself refuses a batch that is older than one it has seen, for
    puts and deletes alike: ``Op.lane`` names the queue's partition, and ``Op.epoch`` grows with
    every delivery of a lane and with every change of its owner, so a batch whose epoch is not
    above the last one seen is refused by raising FencedOut. A sink without it may, after a worker
    was paused for longer than its lease, let an old value overwrite a newer one."""

    fences: bool

    def write_many(self, ops: Sequence[Op]) -> Any: ...


class FencingSink(Sink, Protocol):
    """A sink whose source remembers epochs."""

    def last_epoch(self, lane: str) -> Any:
        """The highest epoch the source has seen of a lane (0 = none); plain or a coroutine. A new
        owner begins above it, even where the log has lost its own count."""
