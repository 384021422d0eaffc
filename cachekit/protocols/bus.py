"""How processes hear of each other: invalidations on the bus, domain events on the stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..core.deadline import Deadline
from ..core.notes import Note

MOST_EVENT = 64 * 1024


class World(Protocol):
    """Threads, or one running event loop (``runtime``)."""

    name: str

    def deadline(self, seconds: float) -> Deadline: ...

    async def sleep(self, seconds: float) -> None: ...

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a blocking driver function: in place, or in a bounded pool of threads."""


class Ears(Protocol):
    """Who listens to a bus. Called from the bus's own thread; never blocks for long, never raises.

    The first call is ``joined``; after ``lost`` nothing counts until the next ``joined``."""

    def joined(self) -> None:
        """From now on every note arrives."""

    def heard(self, notes: Sequence[Note]) -> None:
        """Invalidations, in the order in which they took place, own ones included."""

    def lost(self) -> None:
        """Notes may have been missed, or would be."""

    def lag(self, seconds: float) -> None:
        """Measured: everything sent this long ago has arrived."""

    def foreign(self, count: int) -> None:
        """Messages that were none of ours: too long, malformed, forged. Nothing was done."""


class Bus(Protocol):
    """How near tiers of other processes hear of invalidations.

    Sending is no verb here: the stores' own steps send, in the same atomic step or after it and
    in order. ``void``, ``put``, ``seize`` name their keys, ``drop_tags`` and ``seize_tags`` their
    tags, ``drop_space`` the namespace; ``end``, ``commit`` and ``end_tags`` only where the
    caller's own block stood no longer, whatever stands now. A note names what was invalidated,
    never a value."""

    bound: float  # seconds within which a note arrives, or ``lost`` is called
    coarse: bool  # every note is of kind SPACE: something was invalidated

    def listen(self, ears: Ears) -> Callable[[], None]:
        """Listen from a daemon thread of its own (or in the sender's); returns at once, with the
        function that ends it. A bus that is cut joins again by itself. Nothing here waits for a
        listener: one that is too slow is ``lost``, not queued for."""


class Stream(Protocol):
    """Domain events between processes: at least once, in order, kept for a while.

    A payload is at most ``MOST_EVENT`` bytes. ``follow`` delivers what is appended after it
    returned, by any process, this one included; each process has its own position. Events that
    can not be had any more (trimmed, lost with the server) are a ``gap``."""

    async def append(self, world: World, payload: bytes, deadline: Deadline) -> None: ...

    def follow(
        self, receive: Callable[[bytes], None], gap: Callable[[], None]
    ) -> Callable[[], None]:
        """Call ``receive`` from a daemon thread; an event counts as delivered once it returned
        (what it raises is its own affair). Returns at once, with the function that ends it."""
