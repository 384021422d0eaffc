"""MessagePack through msgspec: faster and smaller than JSON, for plain data or one known type."""

from __future__ import annotations

import dataclasses
import re
import struct
from typing import Any
from zlib import crc32

from ..errors import CodecError, ConfigurationError, MissingDependencyError

MAX_DEPTH = 200

_SHAPE_BYTES = 4
_ATOMS = frozenset({str, int, bool, float, bytes, type(None)})
_ABSENT = object()


class Msgpack:
    """MessagePack that is exact in value and type, or a refusal at encode.

    Without ``type``: None, bool, int of 64 bits, float, str, bytes, lists, and dicts with such
    keys. With ``type`` (an annotation: a Struct, a dataclass, ``list[tuple[int, str]]``):
    whatever msgspec gives back unchanged, which is checked by decoding once at encode.
    Entries of another ``type`` read as damaged. Immutable and thread-safe.
    """

    mark = 2
    safe = True
    signs = False

    def __init__(self, type: Any = None) -> None:
        try:
            import msgspec
        except ImportError:
            raise MissingDependencyError(
                "codec='msgpack' needs msgspec: pip install 'cachekit-strategies[msgspec]'"
            ) from None
        self.type = type
        self._encoder = msgspec.msgpack.Encoder()
        try:
            self._decoder: Any = msgspec.msgpack.Decoder(Any if type is None else type)
        except Exception as error:
            raise ConfigurationError(f"msgspec can not decode into {type!r}: {error}") from error
        self._shape = _shape(type)

    def __repr__(self) -> str:
        return "Msgpack()" if self.type is None else f"Msgpack(type={self.type!r})"

    def encode(self, value: Any, context: bytes = b"") -> bytes:
        """Raises CodecError for a value it can not give back in value and type."""
        try:
            if self.type is None:
                exact = _is_plain(value, MAX_DEPTH)
                data = self._encoder.encode(value) if exact else b""
            else:
                data = self._encoder.encode(value)
                exact = _is_same(value, self._decoder.decode(data))
            if exact:
                return self._shape + data
            failure = "it would come back as something else"
        except Exception as error:  # an int over 64 bits, a lone surrogate, an unknown type
            failure = error.__class__.__name__
        kind = value.__class__
        raise CodecError(
            f"a value of type {kind.__module__}.{kind.__qualname__} can not be kept exactly as "
            f"MessagePack ({failure}): give its annotation, Msgpack(type=...), or choose "
            f"codec='json' or codec=Pickle(secret=...)"
        )

    def decode(self, data: bytes, context: bytes = b"") -> Any:
        """Raises CodecError, and nothing else, for bytes it did not write."""
        failure = "not written for this type"
        if data[:_SHAPE_BYTES] == self._shape:
            try:
                return self._decoder.decode(memoryview(data)[_SHAPE_BYTES:])
            except Exception as error:
                failure = error.__class__.__name__
        raise CodecError(f"can not decode the bytes as MessagePack: {failure}")


def _shape(annotation: Any) -> bytes:
    """A digest of the type and of every field below it, so that a changed class is unknown."""
    if annotation is None:
        return bytes(_SHAPE_BYTES)
    import msgspec.inspect

    text = repr(msgspec.inspect.type_info(annotation))
    # An address in a default's repr would differ in every process.
    text = re.sub(r" at 0x[0-9A-Fa-f]+", "", text)
    return crc32(text.encode("utf-8", "replace")).to_bytes(_SHAPE_BYTES, "big")


def _is_plain(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return True
    if depth == 0:
        return False
    if kind is dict:
        for key in value:
            if type(key) not in _ATOMS:
                return False
        items = value.values()
    elif kind is list:
        items = value
    else:
        return False
    for item in items:  # noqa: SIM110 -- a generator takes twice the time
        if type(item) not in _ATOMS and not _is_plain(item, depth - 1):
            return False
    return True


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal in value and type at every depth, and dicts in order."""
    kind = type(one)
    if type(other) is not kind:
        return False
    if kind is float:
        return struct.pack("d", one) == struct.pack("d", other)
    if kind in _ATOMS:
        return bool(one == other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(_is_same, one.items(), other.items()))
    if isinstance(one, (set, frozenset)):
        found = {item: item for item in other}
        return len(one) == len(other) and all(_is_same(i, found.get(i, _ABSENT)) for i in one)
    names = _field_names(kind)
    if names is not None:
        return all(_is_same(getattr(one, name), getattr(other, name)) for name in names)
    # Decimals, times: equal ones may still differ, in exponent or in zone.
    return bool(one == other) and repr(one) == repr(other)


def _field_names(kind: Any) -> list[str] | None:
    if hasattr(kind, "__struct_fields__"):
        return list(kind.__struct_fields__)
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    if hasattr(kind, "__attrs_attrs__"):
        return [field.name for field in kind.__attrs_attrs__]
    return None
