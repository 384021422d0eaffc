"""Codecs around a codec: signed, encrypted, compressed.

Wrap from the inside out as ``Signed(Compressed(codec))``: what was not signed is then never
decompressed. The algorithms come from the settings; the bytes choose none of them.
"""

from __future__ import annotations

import copy
import os
import threading
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Self

from ..errors import CodecError, ConfigurationError, MissingDependencyError
from ..protocols import Codec
from .sealing import ENCRYPTED, SIGNED, ZLIB, ZSTD, Seal, Secrets, combined, secrets_of

GCM_NONCE_BYTES = 12
MEGABYTE = 1 << 20

_STORED = b"\x00"
_COMPRESSED = b"\x01"


class _Around:
    codec: Codec

    def with_types(self, types: Iterable[Any]) -> Self:
        """The same around a codec that knows these classes; itself where that changes nothing."""
        learn = getattr(self.codec, "with_types", None)
        inner = self.codec if learn is None else learn(types)
        if inner is self.codec:
            return self
        other = copy.copy(self)
        other.codec = inner
        return other


class Signed(_Around):
    """A codec whose bytes only holders of the secret can write: HMAC-SHA256.

    ``secret`` is at least 16 random bytes, or a list [new, old]: the first signs, any verifies.
    """

    safe = True
    signs = True

    def __init__(self, codec: Codec, secret: Secrets) -> None:
        self.codec = codec
        self.mark = combined(codec.mark, SIGNED, "signed")
        self._seal = Seal(secret, self.mark)

    def __repr__(self) -> str:
        return f"Signed({self.codec!r})"

    def encode(self, value: Any, context: bytes = b"") -> bytes:
        return self._seal.close(self.codec.encode(value, context), context)

    def decode(self, data: bytes, context: bytes = b"") -> Any:
        return self.codec.decode(self._seal.open(data, context), context)


class Encrypted(_Around):
    """A codec whose bytes only holders of the key can read or write: AES-GCM.

    ``key`` has 16, 24 or 32 random bytes, or is a list [new, old]: the first encrypts, any
    decrypts. Each value gets a random 96-bit nonce: rotate a key before 2**32 writes
    (NIST SP 800-38D, section 8.3). Key, times, tags and length stay readable.
    """

    safe = True
    signs = True

    def __init__(
        self, codec: Codec, key: Secrets, *, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise MissingDependencyError(
                "Encrypted needs cryptography: pip install 'cachekit-strategies[crypto]'"
            ) from None
        keys = secrets_of(key, "key")
        if any(len(one) not in (16, 24, 32) for one in keys):
            raise ConfigurationError("key must have 16, 24 or 32 bytes: secrets.token_bytes(32)")
        self.codec = codec
        self.mark = combined(codec.mark, ENCRYPTED, "encrypted")
        self._ciphers = [AESGCM(one) for one in keys]
        self._random = random

    def __repr__(self) -> str:
        return f"Encrypted({self.codec!r})"

    def encode(self, value: Any, context: bytes = b"") -> bytes:
        data = self.codec.encode(value, context)
        nonce = self._random(GCM_NONCE_BYTES)
        try:
            return nonce + self._ciphers[0].encrypt(nonce, data, self._bound(context))
        except Exception as error:  # over 2**31 bytes
            failure = type(error).__name__
        raise CodecError(f"can not encrypt the value: {failure}")

    def decode(self, data: bytes, context: bytes = b"") -> Any:
        nonce, data = data[:GCM_NONCE_BYTES], data[GCM_NONCE_BYTES:]
        for cipher in self._ciphers:
            try:
                clear = cipher.decrypt(nonce, data, self._bound(context))
            except Exception:  # InvalidTag, or too short to be ours
                continue
            return self.codec.decode(clear, context)
        raise CodecError("no key decrypts the bytes: damaged, moved or encrypted by another")

    def _bound(self, context: bytes) -> bytes:
        return bytes((self.mark,)) + context


class Compressed(_Around):
    """A codec whose longer results are compressed by ``algorithm``: "zlib" or "zstd".

    ``threshold`` is the size in bytes below which nothing is compressed; ``max_size`` bounds
    the uncompressed bytes, at encode and while decompressing.
    """

    def __init__(
        self,
        codec: Codec,
        algorithm: str = "zlib",
        *,
        threshold: int = 1024,
        max_size: int = 64 * MEGABYTE,
    ) -> None:
        if algorithm not in ("zlib", "zstd"):
            raise ConfigurationError(f"unknown compression {algorithm!r}: use 'zlib' or 'zstd'")
        if threshold < 0 or max_size < 1:
            raise ConfigurationError("threshold must not be negative and max_size at least 1 byte")
        self.codec = codec
        self.algorithm = algorithm
        self.threshold = threshold
        self.max_size = max_size
        self.mark = combined(codec.mark, ZLIB if algorithm == "zlib" else ZSTD, "compressed")
        self.safe = codec.safe
        self.signs = getattr(codec, "signs", True)
        self._algorithm: _Zlib | _Zstd = _Zlib() if algorithm == "zlib" else _Zstd()

    def __repr__(self) -> str:
        return f"Compressed({self.codec!r}, {self.algorithm!r})"

    def encode(self, value: Any, context: bytes = b"") -> bytes:
        data = self.codec.encode(value, context)
        if len(data) > self.max_size:
            raise CodecError(f"the value has {len(data)} bytes, over max_size={self.max_size}")
        if len(data) >= self.threshold:
            small = self._algorithm.compress(data)
            if len(small) < len(data):
                return _COMPRESSED + small
        return _STORED + data

    def decode(self, data: bytes, context: bytes = b"") -> Any:
        return self.codec.decode(self._expand(data), context)

    def _expand(self, data: bytes) -> bytes:
        form = data[:1]
        if form == _STORED and len(data) - 1 <= self.max_size:
            return data[1:]
        failure = "not written by this codec"
        if form == _COMPRESSED:
            try:
                whole = self._algorithm.decompress(data[1:], self.max_size)
                if whole is not None:
                    return whole
                failure = "damaged, or over max_size"
            except Exception as error:
                failure = type(error).__name__
        raise CodecError(f"can not decompress the bytes: {failure}")


class _Zlib:
    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data)

    def decompress(self, data: bytes, max_size: int) -> bytes | None:
        stream = zlib.decompressobj()
        whole = stream.decompress(data, max_size + 1)
        if len(whole) > max_size or not stream.eof or stream.unused_data:
            return None
        return whole


class _Zstd:
    """Contexts are per thread: they are costly to make and not to be shared."""

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingDependencyError(
                "zstd needs zstandard: pip install 'cachekit-strategies[zstd]'"
            ) from None
        self._zstandard = zstandard
        self._local = threading.local()

    def compress(self, data: bytes) -> bytes:
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = self._zstandard.ZstdCompressor()
        small: bytes = compressor.compress(data)
        return small

    def decompress(self, data: bytes, max_size: int) -> bytes | None:
        # The frame says its size; the decompressor holds it to that word.
        size = self._zstandard.frame_content_size(data)
        if not 0 < size <= max_size:
            return None
        decompressor = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = self._local.decompressor = self._zstandard.ZstdDecompressor()
        whole: bytes = decompressor.decompress(data, allow_extra_data=False)
        return whole if len(whole) == size else None
