"""Secrets, the message authentication code, and how the marks of wrapped codecs combine."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from ..errors import CodecError, ConfigurationError

SIGNED = 0x10
ENCRYPTED = 0x20
ZLIB = 0x40
ZSTD = 0x80

TAG_BYTES = 32
SHORTEST_SECRET = 16

Secrets = bytes | Sequence[bytes]


def secrets_of(secret: Secrets, what: str) -> list[bytes]:
    """The secrets, newest first; raises ConfigurationError for anything but bytes."""
    found = [secret] if isinstance(secret, (bytes, bytearray)) else secret
    if isinstance(found, str) or not isinstance(found, Sequence) or not found:
        raise ConfigurationError(f"{what} must be bytes, or a list [new, old] of bytes")
    if not all(isinstance(one, (bytes, bytearray)) for one in found):
        raise ConfigurationError(f"{what} must be bytes, or a list [new, old] of bytes")
    return [bytes(one) for one in found]


def combined(inner: int, bit: int, what: str) -> int:
    """The mark of a codec wrapped once more; raises ConfigurationError for the same twice."""
    if not 0 < inner < 256:
        raise ConfigurationError(f"the mark of a codec must be 1 to 255, not {inner}")
    taken = ZLIB | ZSTD if bit & (ZLIB | ZSTD) else bit
    if inner & taken:
        raise ConfigurationError(f"the codec is {what} already (mark {inner:#04x})")
    return inner | bit


class Seal:
    """HMAC-SHA256 over mark, context and data; the first secret signs, any verifies.

    Holds keyed hash states, never the secrets themselves."""

    def __init__(self, secret: Secrets, mark: int) -> None:
        secrets = secrets_of(secret, "secret")
        if min(map(len, secrets)) < SHORTEST_SECRET:
            raise ConfigurationError(
                f"secret must have at least {SHORTEST_SECRET} bytes: secrets.token_bytes(32)"
            )
        self._keyed = [hmac.new(one, bytes((mark,)), hashlib.sha256) for one in secrets]

    def close(self, data: bytes, context: bytes) -> bytes:
        return _tag(self._keyed[0], data, context) + data

    def open(self, data: bytes, context: bytes) -> bytes:
        """The data; raises CodecError unless one of the secrets signed it in this context."""
        tag, data = data[:TAG_BYTES], data[TAG_BYTES:]
        good = False
        for keyed in self._keyed:
            good |= hmac.compare_digest(tag, _tag(keyed, data, context))
        if not good:
            raise CodecError("the signature does not fit: damaged, moved or signed by another")
        return data


def _tag(keyed: hmac.HMAC, data: bytes, context: bytes) -> bytes:
    code = keyed.copy()
    # With its length in front, no byte can pass from the context to the data.
    code.update(len(context).to_bytes(4, "big") + context)
    code.update(data)
    return code.digest()
