"""The shape of every pluggable part. No behaviour here.

Backends store bytes by key. Each is opened once per *world* (threads, or one
asyncio event loop) and gives a :class:`Store`, whose verbs are coroutine
functions in both worlds: in the thread world they never suspend, so a plain
call finishes them with one ``send(None)`` (see ``runtime.drive``).

Keys that reach a store are printable ASCII without blanks, 1 to 230 bytes
(``core.keys`` encodes and hashes); tags likewise. ``ttl`` is seconds > 0 or None (no
expiry). Every verb gets the call's one :class:`~cachekit.core.deadline.Deadline`
and must have returned or raised a child of ``BackendError`` when it passes.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from .core.deadline import Deadline
from .core.ops import Dead, Flushed, Op, OpKind

__all__ = [
    "NOTHING",
    "TOKEN_BYTES",
    "Asking",
    "AsyncLoader",
    "Backend",
    "BackendFactory",
    "Bus",
    "Codec",
    "Dead",
    "Filling",
    "Flushed",
    "Grant",
    "Item",
    "Loader",
    "Log",
    "Nonces",
    "Observer",
    "Op",
    "OpKind",
    "Reading",
    "Sink",
    "Slot",
    "SlotState",
    "Slots",
    "Store",
    "World",
]

TOKEN_BYTES = 16


# -- slots -------------------------------------------------------------------------------


class SlotState(enum.Enum):
    """What stands under a key: protocols, section 1."""

    NOTHING = "nothing"
    TOKEN = "token"  # one loader may fill; the token's ttl is its lease
    ENTRY = "entry"
    REFRESHING = "entry + refresh token"  # readable; one loader may replace it
    BLOCK = "block"  # writers in flight


class Slot(NamedTuple):
    """One key's slot as read. ``stamp`` is the token its entry was filled under."""

    state: SlotState
    stamp: bytes = b""
    data: bytes | None = None  # the envelope, where there is an entry


NOTHING = Slot(SlotState.NOTHING)


class Reading(NamedTuple):
    """What one round trip of ``Slots.read`` saw."""

    slots: list[Slot]  # one per key
    spaces: list[bytes | None]  # per key: the present nonce of its namespace partition
    nonces: list[bytes | None]  # per tag: its present nonce


class Grant(NamedTuple):
    """The answer to ``acquire``; when refused, ``slot`` is what stands there instead."""

    granted: bool
    slot: Slot


class Asking(NamedTuple):
    """One key of ``acquire_many``; ``over`` as in ``acquire``."""

    key: str
    token: bytes
    over: bytes = b""


class Filling(NamedTuple):
    """One key of ``fill_many``."""

    key: str
    token: bytes
    data: bytes
    ttl: float | None


class Nonces(NamedTuple):
    """Present nonces after creating the missing ones; None = creation not acknowledged."""

    spaces: list[bytes | None]  # per key
    tags: list[bytes | None]  # per tag


class Slots(Protocol):
    """The atomic steps on one key that make invalidations final (protocols, sections 1-2).

    Every step on a key is atomic. Tokens, stamps and writer ids are 16 random
    bytes, never reused. "Void" removes entry and tokens; a block stays and
    becomes *contested*.
    """

    async def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        """Slots of the keys, their namespace nonces and the tags' nonces: one round trip.

        Creates nothing. A strongly consistent read where the backend has a choice."""

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
        """Ask for the right to fill.

        NOTHING -> granted: the token stands for ``lease`` seconds.
        ENTRY whose stamp is ``over`` (the caller judged it unusable or stale): granted;
        with ``keep`` the entry stays readable and the token becomes its refresh token,
        else the token replaces it. REFRESHING with stamp ``over``: refused while the
        other refresh token's lease runs, unless ``keep`` is false (then granted: nobody
        may use that entry). Anything else: refused, with the slot."""

    async def renew(self, key: str, token: bytes, lease: float, deadline: Deadline) -> bool:
        """Prolong my token or refresh token; False: it is gone."""

    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        """Store the entry (stamp = token) iff my token or refresh token still stands."""

    async def acquire_many(
        self, asked: Sequence[Asking], lease: float, deadline: Deadline
    ) -> list[Grant]:
        """``acquire`` without ``keep`` for several keys, each atomic by itself."""

    async def fill_many(self, fills: Sequence[Filling], deadline: Deadline) -> list[bool]:
        """``fill`` for several keys, each atomic by itself."""

    async def release(self, key: str, token: bytes, deadline: Deadline) -> None:
        """Give my token back without a value; a kept entry stays as it is."""

    async def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        """Store unconditionally, voiding any token, unless a block stands: then the block
        becomes contested, nothing is stored and the answer is False."""

    async def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        """Invalidate: entry and tokens go; a block stays and becomes contested."""

    async def seize(
        self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        """Put a block {writer}; over a block: add the id, mark contested, keep the longer ttl."""

    async def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        """FILL by a writer: store (stamp = writer) iff the block is exactly {writer} and not
        contested. When it answers False the slot is as ``end`` leaves it."""

    async def end(self, keys: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        """Remove my id; the last one deletes the block; a block of others only becomes
        contested; anything that is not a block is deleted."""

    async def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        """Read the nonces of the keys' namespace partitions and of the tags, creating missing
        ones by set-if-absent from ``fresh()`` (16 bytes). Never overwrites one. Namespace
        nonces have no ttl; a tag's has ``ttl`` at its creation."""

    async def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        """Invalidate tags: delete their nonces. One small command for any number of entries."""

    async def drop_space(self, deadline: Deadline) -> None:
        """Invalidate the whole namespace: delete its partition nonces."""


# -- stores and backends -----------------------------------------------------------------


class Item(NamedTuple):
    """One record to store: ``ttl`` in seconds > 0, or None for no expiry."""

    key: str
    data: bytes
    ttl: float | None


class Store(Protocol):
    """A backend as one world awaits it. Only these four verbs and ``slots`` are required."""

    slots: Slots

    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        """Plain records (not slots), in the order of the keys."""

    async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None: ...

    async def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None: ...

    async def close(self) -> None:
        """Release what this store opened. Twice is fine."""


class World(Protocol):
    """Threads, or one running event loop (``runtime``)."""

    name: str

    def deadline(self, seconds: float) -> Deadline: ...

    async def sleep(self, seconds: float) -> None: ...

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a blocking driver function: in place, or in a bounded pool of threads."""


class Backend(Protocol):
    """What a URL scheme's factory returns. Opening and construction do no I/O.

    ``name`` goes into errors and metrics and holds no secret. ``shared`` says that other
    processes see the same data. ``bus`` and ``log`` are capabilities: an object or None.
    """

    name: str
    shared: bool
    bus: Bus | None
    log: Callable[[World], Log] | None

    def open(self, world: World) -> Store:
        """The store for this world; raises ConfigurationError where it has no such face."""


class BackendFactory(Protocol):
    """Entry point ``cachekit.backends``: built from a URL.

    ``timeout`` is the call budget in seconds, for drivers that want it at connect."""

    def __call__(self, url: str, *, namespace: str, timeout: float) -> Backend: ...


# -- bus ---------------------------------------------------------------------------------


class Bus(Protocol):
    """Carries invalidations between processes; messages hold keys and tags, never values."""

    def subscribe(
        self, receive: Callable[[bytes], None], lost: Callable[[], None]
    ) -> Callable[[], None]:
        """Deliver every message to ``receive``; call ``lost`` after a gap. Returns the stop."""

    async def publish(
        self, world: World, messages: Sequence[bytes], deadline: Deadline
    ) -> None: ...


# -- write-back --------------------------------------------------------------------------


class Log(Protocol):
    """The queue between put and source. ``level``: memory, process, host or replicated.

    At most one batch per key is out at a time; per key versions leave in order."""

    level: str

    async def append(
        self, kind: OpKind, key: Any, value: Any, deadline: Deadline, id: Any = None
    ) -> Op:
        """Accept one operation: it is kept when this returns. Raises QueueFull at the bound."""

    def pending(self, key: Any) -> Op | None:
        """The newest unwritten operation of a key: the overlay."""

    async def take(self, limit: int) -> list[Op]:
        """The next batch, coalesced: one operation per key, none of a key already out."""

    async def ack(self, ops: Sequence[Op]) -> None: ...

    async def nack(self, ops: Sequence[Op]) -> None: ...

    async def park(self, op: Op, error: str) -> None: ...

    def depth(self) -> int: ...

    def oldest(self) -> float | None:
        """When the oldest unwritten operation was accepted (monotonic seconds)."""

    def dead(self) -> list[Dead]: ...


class Sink(Protocol):
    """Writes a batch to the source. Raises to fail the whole batch; or answers a mapping
    {id: exception} of what failed, everything else being applied."""

    def write_many(self, ops: Sequence[Op]) -> Any: ...


# -- codecs ------------------------------------------------------------------------------


class Codec(Protocol):
    """Value <-> bytes. ``mark`` (one byte) names the format; it is checked, never obeyed.

    ``context`` (key and namespace) is authenticated where the codec signs."""

    mark: int
    safe: bool  # decoding hostile bytes can run no code

    def encode(self, value: Any, context: bytes) -> bytes:
        """Raises CodecError for a value it can not give back in value and type."""

    def decode(self, data: bytes, context: bytes) -> Any:
        """Raises CodecError, and nothing else, for bytes it did not write."""


# -- observers ---------------------------------------------------------------------------


class Observer(Protocol):
    """Sees events off the hit road. Must not block; what it raises is counted and dropped."""

    def __call__(self, event: str, fields: dict[str, Any]) -> None: ...


Loader = Callable[..., Any]
AsyncLoader = Callable[..., Awaitable[Any]]
