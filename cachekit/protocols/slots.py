"""The atomic steps on one key, and on one tag, that make invalidations final."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..core.deadline import Deadline

TOKEN_BYTES = 16


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
        nonces have no ttl; a tag's has ``ttl`` at its creation. A blocked tag has none."""

    async def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        """Invalidate tags: delete their nonces. One small command for any number of entries.
        A tag's block stays."""

    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        """Put a block {writer} in place of each tag's nonce; over a block: add the id, keep the
        longer ttl. While it stands the tag reads as None and ``nonces`` makes none for it, so
        that every entry with the tag is invalid and none can be stored."""

    async def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        """Remove my id from the tags' blocks; the last one deletes the block. Anything that is
        not a block is deleted (mine had run out); a block of others stays."""

    async def drop_space(self, deadline: Deadline) -> None:
        """Invalidate the whole namespace: delete its partition nonces."""
