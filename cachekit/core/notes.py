"""What the bus carries: which key, tag or namespace was invalidated; never a value.

A note's bytes::

    magic "ck" | version 1 | sender (8) | sent (8, big-endian double) | kind (1) | name

``name`` is the physical name of a key or tag (``core.keys.physical``: at most 230 printable
characters), empty for a namespace. ``sent`` is the sender's own monotonic clock: only the sender,
hearing its own echo, can do something with it.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

SENDER_BYTES = 8
MAX_NAME = 230

_MAGIC = b"ck\x01"
_HEAD = struct.Struct(f">3s{SENDER_BYTES}sdc")
MAX_NOTE = _HEAD.size + MAX_NAME


class NoteKind(enum.Enum):
    KEY = b"k"
    TAG = b"t"
    SPACE = b"s"


class Note(NamedTuple):
    """One invalidation. ``sender`` is the store that carried it out."""

    kind: NoteKind
    name: str
    sender: bytes = bytes(SENDER_BYTES)
    sent: float = 0.0


_KINDS = {kind.value: kind for kind in NoteKind}


def pack(note: Note) -> bytes:
    """Raises ValueError for a name that no key or tag can have."""
    name = note.name.encode("ascii")
    if len(name) > MAX_NAME:
        raise ValueError(f"a note's name of {len(name)} bytes")
    return _HEAD.pack(_MAGIC, note.sender, note.sent, note.kind.value) + name


def unpack(data: bytes) -> Note | None:
    """The note, or None for anything else, whatever it is."""
    if not isinstance(data, bytes) or not _HEAD.size <= len(data) <= MAX_NOTE:
        return None
    magic, sender, sent, kind = _HEAD.unpack_from(data)
    name = data[_HEAD.size :]
    known = _KINDS.get(kind)
    if magic != _MAGIC or known is None or not name.isascii():
        return None
    if (known is NoteKind.SPACE) != (not name) or any(b < 0x21 or b > 0x7E for b in name):
        return None
    return Note(known, name.decode("ascii"), sender, sent)
