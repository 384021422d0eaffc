"""Pickle, signed or for this process alone; and bytes as they are."""

from __future__ import annotations

import pickle
from typing import Any

from ..errors import CodecError, ConfigurationError
from .sealing import SIGNED, Seal, Secrets


class Pickle:
    """Any picklable value, as pickle gives it back.

    Reading pickled bytes runs what they say: without a ``secret`` it is not ``safe``, and only
    for data no other process can write. ``secret`` is at least 16 random bytes, or a list
    [new, old]: the first signs, any verifies, before a byte is unpickled.
    """

    def __init__(self, secret: Secrets | None = None, protocol: int = 5) -> None:
        if not isinstance(protocol, int) or not 2 <= protocol <= pickle.HIGHEST_PROTOCOL:
            raise ConfigurationError(f"pickle protocol must be 2 to {pickle.HIGHEST_PROTOCOL}")
        self.protocol = protocol
        self.safe = self.signs = secret is not None
        self.mark = 3 if secret is None else 3 | SIGNED
        self._seal = None if secret is None else Seal(secret, self.mark)

    def __repr__(self) -> str:
        return f"Pickle(signed={self.safe}, protocol={self.protocol})"

    def encode(self, value: Any, context: bytes = b"") -> bytes:
        try:
            data = pickle.dumps(value, self.protocol)
        except Exception as error:
            failure = type(error).__name__
        else:
            return data if self._seal is None else self._seal.close(data, context)
        kind = type(value)
        raise CodecError(
            f"a value of type {kind.__module__}.{kind.__qualname__} can not be pickled "
            f"({failure}): return plain data, or do not cache this call"
        )

    def decode(self, data: bytes, context: bytes = b"") -> Any:
        if self._seal is not None:
            data = self._seal.open(data, context)
        try:
            return pickle.loads(data)
        except Exception as error:
            failure = type(error).__name__
        raise CodecError(f"can not decode the bytes as a pickle: {failure}")


class Raw:
    """Bytes, passed through. For callers who serialize themselves."""

    mark = 4
    safe = True
    signs = False

    def __repr__(self) -> str:
        return "Raw()"

    def encode(self, value: Any, context: bytes = b"") -> bytes:
        if type(value) is not bytes:
            kind = type(value)
            raise CodecError(
                f"codec='raw' takes bytes, not {kind.__module__}.{kind.__qualname__}: "
                f"serialize the value first or choose codec='json'"
            )
        return value

    def decode(self, data: bytes, context: bytes = b"") -> bytes:
        return data
