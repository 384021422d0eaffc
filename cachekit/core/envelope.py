"""The wire format of one far-tier entry; ``docs/wire-format.md`` is its specification.

No clock, no randomness, no I/O. Reading never raises: what was not written whole, by this
version of the format and for this very key, is None.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

MAGIC = b"\xc5ck"
VERSION = 1
NONCE_BYTES = 16

NEGATIVE = 0x01  # the source has nothing under this key
SPACE = 0x02  # the namespace nonce is present
ROW_VERSION = 0x04  # the row version is present
_KNOWN_FLAGS = NEGATIVE | SPACE | ROW_VERSION

_HEAD = struct.Struct(">4sBBHHIqqqqI16s")
_FIRST = MAGIC + bytes((VERSION,))
_FIXED = _HEAD.size
_CRC_BYTES = 4
_SHORTEST = _FIXED + _CRC_BYTES
_unpack_head = _HEAD.unpack_from
_new = tuple.__new__

# The CRC-32 of any bytes followed by their own CRC-32, whatever it was seeded with: one call over
# the whole entry checks it, without a slice.
_RESIDUE = 0x2144DF1C
_MAX_COST = 0xFFFFFFFF
_MAX_COUNT = 0xFFFF
_NO_SPACE = bytes(NONCE_BYTES)


class Envelope(NamedTuple):
    """One entry as the far tier keeps it. Times are whole milliseconds, the cost microseconds."""

    payload: bytes
    mark: int  # the codec's; compared with the reader's own, never looked up
    created: int  # Unix time
    fresh: int | None = None  # from ``created`` to the soft deadline
    ttl: int | None = None  # the whole life from ``created``, grace included
    negative: bool = False
    space: bytes | None = None  # the namespace nonce, 16 bytes
    tags: tuple[tuple[str, bytes], ...] = ()  # (tag, its nonce of 16 bytes)
    remembered: tuple[str, ...] = ()  # tags found in the result: the next load reads them first
    row_version: int | None = None  # int64
    cost: int = 0  # of the load; at most 2**32 - 1


def pack(envelope: Envelope, key: str) -> bytes:
    """The bytes to store under ``key``, and under no other.

    Raises ValueError for a field the format has no room for."""
    body = _head(envelope) + envelope.payload
    return body + crc32(body, crc32(key.encode())).to_bytes(4, "little")


def unpack(data: bytes, key: str) -> Envelope | None:
    """The entry; None for damaged, foreign, moved, truncated or newer bytes."""
    if data[:4] != _FIRST or crc32(data, crc32(key.encode())) != _RESIDUE:
        return None
    if len(data) < _SHORTEST:
        return None
    (
        _,
        mark,
        flags,
        tag_count,
        remembered_count,
        section,
        created,
        fresh,
        ttl,
        row_version,
        cost,
        space,
    ) = _unpack_head(data)
    if flags & ~_KNOWN_FLAGS or fresh < -1 or ttl < -1:
        return None
    tags: tuple[tuple[str, bytes], ...] = ()
    remembered: tuple[str, ...] = ()
    start = _FIXED
    if section or tag_count or remembered_count:
        start += section
        found = _read_section(data[_FIXED:start], tag_count, remembered_count)
        if found is None or start > len(data) - _CRC_BYTES:
            return None
        tags, remembered = found
    return _new(
        Envelope,
        (
            data[start:-4],
            mark,
            created,
            None if fresh < 0 else fresh,
            None if ttl < 0 else ttl,
            flags & NEGATIVE != 0,
            space if flags & SPACE else None,
            tags,
            remembered,
            row_version if flags & ROW_VERSION else None,
            cost,
        ),
    )


def context(envelope: Envelope, key: str) -> bytes:
    """What a signing codec authenticates beside the payload: every other field, and the key.

    The payload may still be empty: it is not part of it."""
    return _head(envelope) + key.encode()


def _head(envelope: Envelope) -> bytes:
    _, mark, created, fresh, ttl, negative, space, tags, remembered, row_version, cost = envelope
    section = _write_section(tags, remembered) if tags or remembered else b""
    flags = NEGATIVE if negative else 0
    if space is not None:
        if len(space) != NONCE_BYTES:
            raise ValueError(f"a namespace nonce has {NONCE_BYTES} bytes, not {len(space)}")
        flags |= SPACE
    if row_version is not None:
        flags |= ROW_VERSION
    if (fresh is not None and fresh < 0) or (ttl is not None and ttl < 0):
        raise ValueError("fresh and ttl are None or not negative")
    try:
        return (
            _HEAD.pack(
                _FIRST,
                mark,
                flags,
                len(tags),
                len(remembered),
                len(section),
                created,
                -1 if fresh is None else fresh,
                -1 if ttl is None else ttl,
                row_version or 0,
                min(cost, _MAX_COST),
                space or _NO_SPACE,
            )
            + section
        )
    except struct.error as error:
        raise ValueError(f"a field does not fit the wire format: {error}") from None


def _write_section(tags: Sequence[tuple[str, bytes]], remembered: Sequence[str]) -> bytes:
    if len(tags) > _MAX_COUNT or len(remembered) > _MAX_COUNT:
        raise ValueError(f"an entry has at most {_MAX_COUNT} tags")
    parts: list[bytes] = []
    for tag, nonce in tags:
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a tag's nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        parts += (_name(tag), nonce)
    parts += map(_name, remembered)
    return b"".join(parts)


def _name(tag: str) -> bytes:
    name = tag.encode("ascii")
    if not 0 < len(name) < 256:
        raise ValueError(f"a tag has 1 to 255 characters, not {len(name)}")
    return bytes((len(name),)) + name


def _read_section(
    section: bytes, tag_count: int, remembered_count: int
) -> tuple[tuple[tuple[str, bytes], ...], tuple[str, ...]] | None:
    """Names and nonces; None unless they fill the section exactly."""
    tags = []
    remembered = []
    at = 0
    # The counts are only as large as the section lets them be: running off its end is an
    # IndexError at the length byte.
    try:
        for _ in range(tag_count):
            stop = at + 1 + section[at]
            name = section[at + 1 : stop].decode("ascii")
            at = stop + NONCE_BYTES
            tags.append((name, section[stop:at]))
        for _ in range(remembered_count):
            stop = at + 1 + section[at]
            remembered.append(section[at + 1 : stop].decode("ascii"))
            at = stop
    except (IndexError, UnicodeDecodeError):
        return None
    if at != len(section):
        return None
    return tuple(tags), tuple(remembered)
