"""What lies under a key: the states of a slot as bytes, and times as the server counts them.

A value's first byte is its kind. Anything else (another application's bytes, an older layout,
the empty value of a removed item) reads as nothing and may be replaced.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ...protocols import NOTHING, TOKEN_BYTES, Slot, SlotState

_TOKEN, _ENTRY, _BLOCK, _REFRESH = b"T", b"E", b"B", b"R"
_HEAD = 1 + TOKEN_BYTES

RELATIVE_LIMIT = 30 * 24 * 3600
LAST_SECOND = 2**31 - 1
REMOVE = -1
"""Expiry that removes an item; with ``cas`` a compare-and-delete."""

MAX_WRITERS = 64
_CROWD = bytes(TOKEN_BYTES)


# -- values ------------------------------------------------------------------------------


def token_value(token: bytes) -> bytes:
    return _TOKEN + token


def entry_value(stamp: bytes, data: bytes) -> bytes:
    return b"".join((_ENTRY, stamp, data))


class Refresh(NamedTuple):
    """The side key of a slot: ``token`` may replace the entry that carries ``stamp``."""

    token: bytes
    stamp: bytes

    def value(self) -> bytes:
        return _REFRESH + self.token + self.stamp

    @classmethod
    def parse(cls, value: bytes | None) -> Refresh | None:
        if value is None or len(value) != _HEAD + TOKEN_BYTES or value[:1] != _REFRESH:
            return None
        return cls(value[1:_HEAD], value[_HEAD:])


class Block(NamedTuple):
    """Writers in flight. ``lease`` is the longest any of them asked for.

    Classic commands do not tell an item's remaining life, so each change of a block starts its
    lease anew: it can only stand longer than asked, at most once for the first contest and once
    for each writer that joins or leaves."""

    lease: int  # as ``expiry`` gave it
    contested: bool
    writers: tuple[bytes, ...]

    def value(self) -> bytes:
        head = b"!" if self.contested else b"."
        return b"".join((_BLOCK, head, self.lease.to_bytes(4, "big"), *self.writers))

    @classmethod
    def parse(cls, value: bytes) -> Block | None:
        if value[:1] != _BLOCK or len(value) < 6 or (len(value) - 6) % TOKEN_BYTES:
            return None
        ids = tuple(value[i : i + TOKEN_BYTES] for i in range(6, len(value), TOKEN_BYTES))
        return cls(int.from_bytes(value[2:6], "big"), value[1:2] == b"!", ids)

    def alone(self, writer: bytes) -> bool:
        return self.writers == (writer,) and not self.contested

    def joined(self, writer: bytes, lease: int) -> Block:
        writers = (*(w for w in self.writers if w != writer), writer)
        if len(writers) > MAX_WRITERS:
            # Ids of writers that never ended pile up only while others keep the block alive.
            # Those left out are stood for by an id nobody ends: then only time ends the block.
            writers = (_CROWD, *writers[-MAX_WRITERS + 1 :])
        return Block(max(self.lease, lease), True, writers)

    def without(self, writer: bytes) -> Block | None:
        """The block that is left when ``writer`` ended; None when it was the last."""
        writers = tuple(w for w in self.writers if w != writer)
        return Block(self.lease, True, writers) if writers else None


def read_slot(value: bytes | None, side: bytes | None) -> Slot:
    """The slot that the values of a key and of its side key make together."""
    if not value:
        return NOTHING
    kind = value[:1]
    if kind == _ENTRY and len(value) >= _HEAD:
        stamp = value[1:_HEAD]
        refresh = Refresh.parse(side) if side is not None else None
        kept = refresh is not None and refresh.stamp == stamp
        return Slot(SlotState.REFRESHING if kept else SlotState.ENTRY, stamp, value[_HEAD:])
    if kind == _TOKEN and len(value) == _HEAD:
        return Slot(SlotState.TOKEN)
    if Block.parse(value) is not None:
        return Slot(SlotState.BLOCK)
    return NOTHING


# -- times -------------------------------------------------------------------------------


def expiry(ttl: float | None, wall: float) -> int:
    """A ttl or lease as the server wants it: whole seconds, 0 for no expiry.

    The server's clock ticks once a second, so an item of n seconds lives between n - 1 and n:
    rounded up and one second more, nothing ends early. Above 30 days the server reads a number
    as Unix time, so that is what it gets; beyond 2038, where its counter ends, it gets the last
    second it can count."""
    if ttl is None:
        return 0
    seconds = min(math.ceil(ttl), LAST_SECOND) + 1
    if seconds <= RELATIVE_LIMIT:
        return seconds
    return min(math.ceil(wall) + seconds, LAST_SECOND)
