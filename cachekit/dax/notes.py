"""What processes tell each other of: names that fit through any bus of a cache.

A bus carries names of keys (at most 200 printable characters), so what is told is written as one::

    "!dax1" + base64url(kind (1) | table (12) | mark (12) | key)

``table`` is a hash of endpoint or region and name, the same in every process, zeros for all
tables; ``mark`` tells writes apart, zeros where nobody waits for its end. ``key`` is empty for a
whole table. What is longer travels in pieces, which carry the hash of the whole. Pure: no input or
output.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Hashable, Iterable, Iterator
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from ..feeds.connecting import is_aws
from .values import Key

PREFIX: Final = "!dax1"
MARK: Final = 12
NONE: Final = bytes(MARK)
EVERYTHING: Final = bytes(MARK)
NO_ITEM: Final = b"no item here"  # as the mark of an image
MOST: Final = (200 - len(PREFIX)) // 4 * 3  # bytes in one name
PIECE: Final = MOST - 1 - MARK - 2
MOST_PIECES: Final = 64
MOST_PARTIAL: Final = 256  # messages of which only a part has come

# Kinds: a write begins; it ended (applied, refused, perhaps); what a stream told, with the hash
# of the new item as its mark; a stream's reader is up to date; a piece.
BEGIN, APPLIED, REFUSED, UNKNOWN, CHANGED, ALIVE = b"b", b"a", b"r", b"u", b"s", b"h"
_PIECE: Final = b"p"
_KINDS: Final = frozenset({BEGIN, APPLIED, REFUSED, UNKNOWN, CHANGED, ALIVE})


class Told(NamedTuple):
    """One thing told. ``key`` None: the whole table."""

    kind: bytes
    table: bytes
    key: Key | None = None
    mark: bytes = NONE


def place_name(place: Hashable) -> Hashable:
    """Endpoint and region as every process sees them: one region of AWS has many endpoints."""
    if not isinstance(place, tuple) or len(place) != 2:
        return place
    url, region = place
    if isinstance(url, str) and is_aws(url):
        return ("aws", region)
    return (url.lower().rstrip("/") if isinstance(url, str) else url, region)


def table_mark(place: Hashable, table: str) -> bytes:
    """The hash that stands for a table."""
    return digest(repr((place_name(place), table)).encode())


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=MARK).digest()


def image_mark(item: Any) -> bytes:
    """The hash of an item in its stored form: equal for equal items."""
    return digest(repr(_ordered(item)).encode("utf-8", "surrogatepass"))


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted(
            (n, sorted(each) if n in ("SS", "NS", "BS") else _ordered(each))
            for n, each in value.items()
        )
    return [_ordered(each) for each in value] if isinstance(value, list) else value


# -- to names and back ---------------------------------------------------------------------


def names_of(told: Iterable[Told]) -> list[str]:
    """The names that say it, in order."""
    return [name for each in told for name in _names(each)]


def _names(told: Told) -> Iterator[str]:
    data = b"".join((told.kind, told.table, told.mark, _packed(told.key)))
    if len(data) <= MOST:
        yield _text(data)
        return
    if len(data) > PIECE * MOST_PIECES:  # no key of DynamoDB's
        yield _text(told.kind + told.table + told.mark)
        return
    whole = digest(data)
    count = -(-len(data) // PIECE)
    for at in range(count):
        part = data[at * PIECE : (at + 1) * PIECE]
        yield _text(_PIECE + whole + bytes((at, count)) + part)


def _text(data: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def _packed(key: Key | None) -> bytes:
    """Names, types and values, each with its length."""
    if key is None:
        return b""
    parts = []
    for each in key:
        raw = each if isinstance(each, bytes) else str(each).encode("utf-8", "surrogatepass")
        parts.append(struct.pack(">H", len(raw)) + raw)
    return b"".join(parts)


def _unpacked(data: bytes) -> Key | None:
    """Raises ValueError or struct.error for what is no key."""
    if not data:
        return None
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from(">H", data, at)
        part = data[at + 2 : at + 2 + size]
        if len(part) != size:
            raise ValueError("cut off")
        parts.append(part)
        at += 2 + size
    if len(parts) not in (3, 6):
        raise ValueError("not one or two attributes")
    key: list[Any] = []
    for name, kind, value in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
        tag = kind.decode("ascii")
        if tag not in ("S", "N", "B"):
            raise ValueError("no type of a key")
        plain = value if tag == "B" else value.decode("utf-8", "surrogatepass")
        key += [name.decode("utf-8", "surrogatepass"), tag, plain]
    return tuple(key)


class Reader:
    """Names back to what was told. Serialized by its owner. ``missed()`` once it was true means
    that something may have been dropped: too many messages of which only a part has come."""

    def __init__(self) -> None:
        self._partial: dict[bytes, dict[int, bytes]] = {}
        self._dropped = False

    def missed(self) -> bool:
        dropped, self._dropped = self._dropped, False
        return dropped

    def read(self, name: str) -> Told | None:
        """What a name says; None: nothing (yet), or it is none of ours."""
        if not name.startswith(PREFIX):
            return None
        try:
            body = name[len(PREFIX) :]
            data = base64.b64decode(body + "=" * (-len(body) % 4), b"-_", validate=True)
            if data[:1] == _PIECE:
                joined = self._join(data)
                return None if joined is None else _told(joined)
            return _told(data)
        except (binascii.Error, ValueError, IndexError, struct.error):
            return None

    def _join(self, data: bytes) -> bytes | None:
        whole, at, count = data[1 : 1 + MARK], data[1 + MARK], data[2 + MARK]
        if not 0 < count <= MOST_PIECES or at >= count:
            raise ValueError("no piece")
        parts = self._partial.setdefault(whole, {})
        parts[at] = data[3 + MARK :]
        if len(parts) == count:
            del self._partial[whole]
            joined = b"".join(parts[each] for each in range(count))
            if digest(joined) != whole:
                raise ValueError("pieces of different messages")
            return joined
        if len(self._partial) > MOST_PARTIAL:
            self._partial.clear()
            self._dropped = True
        return None


def _told(data: bytes) -> Told:
    kind, table, mark = data[:1], data[1 : 1 + MARK], data[1 + MARK : 1 + 2 * MARK]
    if kind not in _KINDS or len(mark) != MARK:
        raise ValueError("not a kind")
    return Told(kind, table, _unpacked(data[1 + 2 * MARK :]), mark)


# -- how far behind a stream's reader is -----------------------------------------------------


def lag_mark(lag: float) -> bytes:
    """Seconds as a mark of ALIVE."""
    return struct.pack(">d", lag).ljust(MARK, b"\0")


def lag_of(mark: bytes) -> float:
    found: float = struct.unpack_from(">d", mark)[0]
    return found if found >= 0 else float("inf")  # NaN too
