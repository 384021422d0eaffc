"""Where things lie in Redis: the names of the keys and the bytes of a slot.

Names (``ns`` percent-encoded, ``p`` = crc32(key) mod P, so that one partition is one cluster
slot):

====================  ====================================================================
``{ns}:partitions``   P, recorded by whoever came first and read by everybody
``{ns}:bus``          no key: the channel of the invalidations
``{ns:p}:key``        the slot of a key
``{ns:p}!``           the nonce of partition p of the namespace
``{ns:p}=key``        a plain record
``{ns:#tag}``         the nonce of a tag, or a block of writers in its place
====================  ====================================================================

The value of a slot. The first byte is the kind, the second the version of this format; every
field before ``data`` has a fixed width, so that a script can compare it by ``string.sub``:

====  ==================================================================================
T     kind, 1; token (16). Its ttl is the lease.
E     kind, 1; stamp (16); data
R     kind, 1; stamp (16); refresh token (16); end of its lease (14 characters: the
      milliseconds of the slot's own ttl that will be left then, maybe negative); data.
      A token of 16 zero bytes, its lease over at once, means that it was given back.
B     kind, 1; contested (``0`` or ``1``); writer ids (16 each). Its ttl is the longest lease.
====  ==================================================================================

Anything else under a slot's name is somebody else's and reads as nothing. A nonce is 32 bytes:
the run that stored it (the first 16 characters of the server's ``run_id``, or 16 zero bytes where
the user may not ask), then the nonce itself; a block may stand in place of a tag's. Read from
another run it is missing: a server that comes back with older memory, or a replica promoted
before it knew everything, brings back entries and nonces, but none that counts. Every entry is
bound to its namespace nonce, so that no other value needs the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from urllib.parse import quote
from zlib import crc32

from ...errors import ConfigurationError
from ...protocols import NOTHING, TOKEN_BYTES, Slot, SlotState

TOKEN = b"T\x01"
ENTRY = b"E\x01"
REFRESHING = b"R\x01"
BLOCK = b"B\x01"
GIVEN_BACK = bytes(TOKEN_BYTES)

ENTRY_HEAD = 2 + TOKEN_BYTES
LEASE_DIGITS = 14
REFRESHING_HEAD = ENTRY_HEAD + TOKEN_BYTES + LEASE_DIGITS
BLOCK_HEAD = 3
RUN_BYTES = 16
NONCE_BYTES = RUN_BYTES + TOKEN_BYTES

# The states as plain names: looking one up in its enum costs as much as comparing the kind.
_IS_ENTRY = SlotState.ENTRY
_IS_REFRESHING = SlotState.REFRESHING
_A_TOKEN = Slot(SlotState.TOKEN)
_A_BLOCK = Slot(SlotState.BLOCK)
_new = tuple.__new__  # half the price of the NamedTuple's own constructor

MAX_NAMESPACE = 200
MAX_PARTITIONS = 16384
LONGEST_MS = 50 * 366 * 86_400_000  # half of what marks "no expiry" in the scripts


def encode_namespace(namespace: str) -> str:
    """The namespace as it stands in key names: no brace, colon or blank survives."""
    encoded = quote(namespace, safe="-._~", errors="surrogatepass")
    if len(encoded) > MAX_NAMESPACE:
        raise ConfigurationError(
            f"the namespace takes {len(encoded)} bytes percent-encoded; keep it under "
            f"{MAX_NAMESPACE + 1}"
        )
    return encoded


def partitions_key(encoded: str) -> bytes:
    return f"{{{encoded}}}:partitions".encode()


def bus_channel(encoded: str) -> bytes:
    return f"{{{encoded}}}:bus".encode()


class Layout:
    """Names of the keys of one namespace split into ``partitions``."""

    __slots__ = ("_heads", "_tag_head", "partitions", "spaces")

    def __init__(self, encoded: str, partitions: int) -> None:
        self.partitions = partitions
        self._heads = [f"{{{encoded}:{p}}}".encode() for p in range(partitions)]
        self._tag_head = f"{{{encoded}:#".encode()
        self.spaces = [head + b"!" for head in self._heads]

    def slot(self, key: str) -> bytes:
        raw = key.encode()
        return self._heads[crc32(raw) % self.partitions] + b":" + raw

    def record(self, key: str) -> bytes:
        raw = key.encode()
        return self._heads[crc32(raw) % self.partitions] + b"=" + raw

    def partition(self, key: str) -> int:
        return crc32(key.encode()) % self.partitions

    def place(self, key: str) -> list[bytes]:
        """The slot's name, and that of its namespace nonce."""
        raw = key.encode()
        p = crc32(raw) % self.partitions
        return [self._heads[p] + b":" + raw, self.spaces[p]]

    def locate(self, keys: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """The slots' names and the partitions of the keys."""
        heads, count = self._heads, self.partitions
        names, partitions = [], []
        for key in keys:
            raw = key.encode()
            p = crc32(raw) % count
            names.append(heads[p] + b":" + raw)
            partitions.append(p)
        return names, partitions

    def tag(self, tag: str) -> bytes:
        return self._tag_head + tag.encode() + b"}"


def parse_slot(value: object) -> Slot:
    """What a value under a slot's name means; NOTHING for anything this format does not know."""
    if not isinstance(value, bytes):
        return NOTHING
    kind, size = value[:2], len(value)
    if kind == ENTRY and size >= ENTRY_HEAD:
        return _new(Slot, (_IS_ENTRY, value[2:18], value[18:]))  # ENTRY_HEAD, in the hot place
    if kind == TOKEN and size == ENTRY_HEAD:
        return _A_TOKEN
    if kind == REFRESHING and size >= REFRESHING_HEAD:
        given_back = value[ENTRY_HEAD : ENTRY_HEAD + TOKEN_BYTES] == GIVEN_BACK
        state = _IS_ENTRY if given_back else _IS_REFRESHING
        return Slot(state, value[2:ENTRY_HEAD], value[REFRESHING_HEAD:])
    if kind == BLOCK and size >= BLOCK_HEAD + TOKEN_BYTES:
        return _A_BLOCK
    return NOTHING


def lease_end(value: bytes) -> int:
    """Of an R: the remaining ttl (milliseconds) at which its lease is over."""
    field = value[ENTRY_HEAD + TOKEN_BYTES : REFRESHING_HEAD]
    try:
        return int(field)
    except ValueError:
        return 0


def parse_nonce(value: object, run: bytes) -> bytes | None:
    """A nonce that ``run`` stored; an empty ``run`` takes any. None for a block."""
    if isinstance(value, bytes) and len(value) == NONCE_BYTES and value.startswith(run):
        return value[RUN_BYTES:]
    return None


def nonces_of(
    values: Sequence[object], runs: bytes | Sequence[bytes], first: int
) -> list[bytes | None]:
    """The nonces among values from ``first`` on. ``runs``: who answered, for all or for each."""
    if isinstance(runs, bytes):
        return [parse_nonce(value, runs) for value in values[first:]]
    return [parse_nonce(v, r) for v, r in zip(values[first:], runs[first:], strict=True)]


def milliseconds(seconds: float) -> int:
    """A ttl for PX: rounded up, at least 1."""
    return min(max(1, math.ceil(seconds * 1000)), LONGEST_MS)


def expiry(ttl: float | None) -> bytes:
    """A ttl as the scripts take it: milliseconds, ``0`` for none."""
    return b"0" if ttl is None else b"%d" % milliseconds(ttl)
