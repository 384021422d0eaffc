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

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ..core.deadline import Deadline
from ..core.notes import Note, NoteKind
from ..core.ops import Dead, Flushed, Op, OpKind
from .bus import MOST_EVENT, Bus, Ears, Stream, World
from .log import (
    OWNER_BYTES,
    Bounds,
    FencingSink,
    Letter,
    Log,
    LogFactory,
    Look,
    Record,
    Sink,
    Standing,
)
from .slots import (
    NOTHING,
    TOKEN_BYTES,
    Asking,
    Filling,
    Grant,
    Nonces,
    Reading,
    Slot,
    Slots,
    SlotState,
)

__all__ = [
    "MOST_EVENT",
    "NOTHING",
    "OWNER_BYTES",
    "TOKEN_BYTES",
    "Asking",
    "AsyncLoader",
    "Backend",
    "BackendFactory",
    "Bounds",
    "Bus",
    "Codec",
    "Dead",
    "Ears",
    "FencingSink",
    "Filling",
    "Flushed",
    "Grant",
    "Item",
    "Letter",
    "Loader",
    "Log",
    "LogFactory",
    "Look",
    "Nonces",
    "Note",
    "NoteKind",
    "Observer",
    "Op",
    "OpKind",
    "Reading",
    "Record",
    "Sink",
    "Slot",
    "SlotState",
    "Slots",
    "Standing",
    "Store",
    "Stream",
    "World",
]

# -- stores and backends -----------------------------------------------------------------


class Item(NamedTuple):
    """One record to store: ``ttl`` in seconds > 0, or None for no expiry."""

    key: str
    data: bytes
    ttl: float | None


class Store(Protocol):
    """A backend as one world awaits it. Only these four verbs and ``slots`` are required.

    Where the backend has a bus, the store also has ``sender`` (8 random bytes of its own), which
    its notes carry, so that who opened it can tell its own echo."""

    slots: Slots

    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        """Plain records (not slots), in the order of the keys."""

    async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None: ...

    async def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None: ...

    async def close(self) -> None:
        """Release what this store opened. Twice is fine."""


class Backend(Protocol):
    """What a URL scheme's factory returns. Opening and construction do no I/O.

    ``name`` goes into errors and metrics and holds no secret. ``shared`` says that other
    processes see the same data. ``bus``, ``stream`` and ``log`` are capabilities: an object or
    None; ``stream`` may be absent.
    """

    name: str
    shared: bool
    bus: Bus | None
    log: LogFactory | None

    def open(self, world: World) -> Store:
        """The store for this world; raises ConfigurationError where it has no such face."""


class BackendFactory(Protocol):
    """Entry point ``cachekit.backends``: built from a URL.

    ``timeout`` is the call budget in seconds, for drivers that want it at connect."""

    def __call__(self, url: str, *, namespace: str, timeout: float) -> Backend: ...


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
