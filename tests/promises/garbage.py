"""What may lie where an entry was: garbage, other formats, hostile fields and payloads."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import struct
import zlib
from collections.abc import Callable

from cachekit.core import envelope as wire

ORIGINAL = {"price": 12, "of": "the store"}


def changed(data: bytes, offset: int, code: str, value: int) -> bytes:
    """The entry with one field changed and the checksum right again."""
    body = bytearray(data[:-4])
    struct.pack_into(">" + code, body, offset, value)
    seed = zlib.crc32(b"k")
    return bytes(body) + zlib.crc32(bytes(body), seed).to_bytes(4, "little")


def _payload(data: bytes, payload: bytes) -> bytes:
    entry = wire.unpack(data, "k")
    assert entry is not None
    return wire.pack(entry._replace(payload=payload), "k")


# From the entry as it was stored to what lies there instead. Those in NEWER have a checksum
# that fits: only their content tells.
GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "one byte": lambda data: b"\xc5",
    "zeros": lambda data: bytes(len(data)),
    "ones": lambda data: b"\xff" * len(data),
    "random": lambda data: random.Random(7).randbytes(len(data)),
    "text": lambda data: "grüße".encode(),
    "json": lambda data: json.dumps(ORIGINAL).encode(),
    "pickle": lambda data: pickle.dumps(ORIGINAL),
    "gzip": lambda data: gzip.compress(data),
    "html": lambda data: b"<html><body>502 Bad Gateway</body></html>",
    "half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-1],
    "without its begin": lambda data: data[1:],
    "twice": lambda data: data + data,
    "one byte more": lambda data: data + b"\0",
    "of another key": lambda data: wire.pack(wire.unpack(data, "k") or _none(), "other"),
    "large": lambda data: b"\xc5ck\x01" + bytes(900_000),
}
NEWER: dict[str, Callable[[bytes], bytes]] = {
    "an older version": lambda data: changed(data, 3, "B", 0),
    "a newer version": lambda data: changed(data, 3, "B", 2),
    "another codec": lambda data: changed(data, 4, "B", 2),
    "no codec": lambda data: changed(data, 4, "B", 0),
    "an unknown flag": lambda data: changed(data, 5, "B", 0x80),
    "65535 tags": lambda data: changed(data, 6, "H", 0xFFFF),
    "65535 remembered": lambda data: changed(data, 8, "H", 0xFFFF),
    "a section of 4 GB": lambda data: changed(data, 10, "I", 0xFFFFFFFF),
    "fresh of -2": lambda data: changed(data, 22, "q", -2),
    "ttl of -2^63": lambda data: changed(data, 30, "q", -(2**63)),
    "no payload": lambda data: _payload(data, b""),
    "nested lists": lambda data: _payload(data, b" " + b"[" * 200_000),
    "a nested tree": lambda data: _payload(data, b'\n["list",' * 100_000),
    "an int of a million digits": lambda data: _payload(data, b" " + b"9" * 900_000),
    "not utf-8": lambda data: _payload(data, b' "\xff\xfe"'),
    "an unknown class": lambda data: _payload(data, b'\n["class","os.system#0","id"]'),
    "another form": lambda data: _payload(data, b"\t1"),
}


def _none() -> wire.Envelope:
    raise AssertionError("the entry as stored can not be read")
