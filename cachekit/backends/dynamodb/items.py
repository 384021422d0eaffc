"""What lies under a name: its attributes, their times, and what of them counts now."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from ...protocols import NOTHING, TOKEN_BYTES, Slot, SlotState

KEY = "k"
TTL = "t"
"""The table's partition key (a string), and the attribute of its time to live (seconds)."""

SPACES = 32
MAX_ITEM = 400 * 1024
OVERHEAD = 200
"""Bytes of an item beside its name and data, at most: DynamoDB counts attribute names too."""
MAX_WRITERS = 64
_CROWD = bytes(TOKEN_BYTES)
VERSION_BYTES = 8
MAX_SPACE = 255
HOLD_KEPT = 86400
"""Seconds for which the table keeps a block or token after its lease: far more than clocks differ,
since what deletes it goes by the server's."""

_SPACE_SAFE = "!$&'()*+,;=@/?-._~"

Attributes = dict[str, Any]


# -- names -------------------------------------------------------------------------------


class Names:
    """Partition keys of one namespace: its prefix, one letter for the kind, the key.

    The namespace's nonce lies in ``SPACES`` items, one for each share of the keys, because
    DynamoDB answers at most 3000 strong reads of one item in a second."""

    def __init__(self, namespace: str) -> None:
        text = quote(namespace, safe=_SPACE_SAFE, errors="surrogatepass")
        if len(text) > MAX_SPACE:
            digest = hashlib.blake2b(namespace.encode("utf-8", "surrogatepass"), digest_size=24)
            text = "#" + digest.hexdigest()
        self._prefix = text
        self.spaces = [f"{text}:n:{number}" for number in range(SPACES)]

    def slot(self, key: str) -> str:
        return f"{self._prefix}:k:{key}"

    def record(self, key: str) -> str:
        return f"{self._prefix}:d:{key}"

    def tag(self, tag: str) -> str:
        return f"{self._prefix}:t:{tag}"

    def space(self, key: str) -> str:
        """Where the namespace's nonce for this key lies."""
        return self.spaces[zlib.crc32(key.encode("utf-8", "surrogatepass")) % SPACES]


# -- rows --------------------------------------------------------------------------------


class Row(NamedTuple):
    """An item. Times are Unix milliseconds of whoever wrote it, ``lease`` is milliseconds.

    ``version`` is new with every change but that of ``contested``."""

    version: bytes = b""
    stamp: bytes = b""  # of the entry; or a tag's or namespace's nonce
    data: bytes | None = None
    expires: int | None = None
    holder: bytes = b""  # the token, or the entry's refresh token
    writers: bytes = b""  # a block: their ids, one after the other
    contested: bool = False
    lease: int = 0
    until: int = 0

    @classmethod
    def of(cls, item: Attributes | None) -> Row:
        """The row of an item as DynamoDB tells it; what is no item of ours is nothing, and can be
        replaced."""
        if not item:
            return EMPTY
        try:
            return cls(
                bytes(item["v"]["B"]),
                bytes(item["n"]["B"]) if "n" in item else b"",
                bytes(item["d"]["B"]) if "d" in item else None,
                int(item["e"]["N"]) if "e" in item else None,
                bytes(item["h"]["B"]) if "h" in item else b"",
                bytes(item["w"]["B"]) if "w" in item else b"",
                "c" in item,
                int(item["l"]["N"]) if "l" in item else 0,
                int(item["u"]["N"]) if "u" in item else 0,
            )
        except (KeyError, TypeError, ValueError):
            return STRANGE if "v" not in item else cls(bytes(item["v"].get("B", b"?")))

    @property
    def held(self) -> bool:
        return bool(self.holder or self.writers)

    @property
    def nonce(self) -> bytes | None:
        """Of a tag or namespace: where a block stands there is none."""
        return self.stamp if len(self.stamp) == TOKEN_BYTES and not self.writers else None

    def slot(self) -> Slot:
        if self.writers:
            return Slot(SlotState.BLOCK)
        if self.data is not None:
            state = SlotState.REFRESHING if self.holder else SlotState.ENTRY
            return Slot(state, self.stamp, self.data)
        return Slot(SlotState.TOKEN) if self.holder else NOTHING

    def has(self, writer: bytes) -> bool:
        return writer in _apart(self.writers)

    def without(self, writer: bytes) -> bytes:
        return b"".join(w for w in _apart(self.writers) if w != writer)

    def joined(self, writer: bytes) -> bytes:
        writers = [*(w for w in _apart(self.writers) if w != writer), writer]
        if len(writers) > MAX_WRITERS:
            # Ids of writers that never ended pile up only while others keep the block alive.
            # Those left out are stood for by an id nobody ends: then only time ends the block.
            writers = [_CROWD, *writers[-MAX_WRITERS + 1 :]]
        return b"".join(writers)


EMPTY = Row()
STRANGE = Row(version=b"?")  # an item without a version


def _apart(ids: bytes) -> list[bytes]:
    return [ids[i : i + TOKEN_BYTES] for i in range(0, len(ids), TOKEN_BYTES)]


# -- attributes --------------------------------------------------------------------------


def entry(name: str, stamp: bytes, data: bytes, ttl: float | None, now: int) -> Attributes:
    return {
        KEY: {"S": name},
        "v": {"B": version()},
        "n": {"B": stamp},
        "d": {"B": data},
        **expiry(ttl, now),
    }


def record(name: str, data: bytes, ttl: float | None, now: int) -> Attributes:
    return {KEY: {"S": name}, "v": {"B": b"="}, "d": {"B": data}, **expiry(ttl, now)}


def nonce(name: str, fresh: bytes, ttl: float | None, now: int) -> Attributes:
    return {KEY: {"S": name}, "v": {"B": version()}, "n": {"B": fresh}, **expiry(ttl, now)}


def token(name: str, holder: bytes, lease: float, now: int) -> Attributes:
    until = now + millis(lease)
    return {
        KEY: {"S": name},
        "v": {"B": version()},
        "h": {"B": holder},
        **lease_of(millis(lease), until),
        TTL: number(until // 1000 + HOLD_KEPT),
    }


def block(name: str, writers: bytes, *, contested: bool, lease: int, until: int) -> Attributes:
    """``lease`` and ``until`` in milliseconds."""
    made = {
        KEY: {"S": name},
        "v": {"B": version()},
        "w": {"B": writers},
        **lease_of(lease, until),
        TTL: number(until // 1000 + HOLD_KEPT),
    }
    return {**made, "c": {"BOOL": True}} if contested else made


def lease_of(lease: int, until: int) -> Attributes:
    return {"l": number(lease), "u": number(until)}


def expiry(ttl: float | None, now: int) -> Attributes:
    """Exact to the millisecond, never early; the table's own deletion comes a second later or
    more."""
    if ttl is None:
        return {}
    until = now + millis(ttl)
    return {"e": number(until), TTL: number(until // 1000 + 2)}


def millis(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def number(value: int) -> Attributes:
    return {"N": str(value)}


def version() -> bytes:
    return os.urandom(VERSION_BYTES)


def fits(name: str, data: bytes) -> bool:
    """Whether DynamoDB takes an item of this name with this data."""
    return len(name.encode("utf-8", "surrogatepass")) + len(data) + OVERHEAD <= MAX_ITEM


def unique(names: Sequence[str]) -> list[str]:
    """DynamoDB refuses a request that names an item twice."""
    return list(dict.fromkeys(names))
