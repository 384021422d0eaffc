"""The default codec: JSON text that gives back the very value, or a refusal at encode."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import CodecError, ConfigurationError
from .leaves import LEAVES, READERS
from .shapes import Shape, registry_of, shape_of

MAX_DEPTH = 200

# Both are JSON blanks, so that a payload is one JSON text for any reader.
_PLAIN = " "
_TAGGED = "\n"

_CONTAINERS: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_BUILDERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": lambda items: items,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
_ATOMS = frozenset({str, int, bool, float, type(None)})
_SIMPLE = _ATOMS - {float}
_BOXES = frozenset({list, dict})
_BUILT_IN = _ATOMS.union(_CONTAINERS, LEAVES, (dict,))

# Cycles end at MAX_DEPTH before the encoder sees them.
_dumps = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def _no_constant(_: str) -> Any:
    raise ValueError("NaN and Infinity are not JSON")


_loads = json.JSONDecoder(parse_constant=_no_constant).scan_once  # type: ignore[attr-defined]


class ExactJson:
    """JSON that is exact in value and type; what it can not give back it refuses.

    Exact: None, bool, int, float, complex, str (lone surrogates too), bytes, bytearray, list,
    tuple, set, frozenset, dict with any of these as keys, Decimal, UUID, date, time, datetime
    (naive, fixed offset, ZoneInfo by key; with fold), timedelta, paths, IP addresses, networks
    and interfaces, and the registered classes: Enum, NamedTuple, dataclass, attrs, pydantic.
    ``types`` are registered with the classes their fields mention. Subclasses are exact only
    when registered themselves. Objects that occur twice come back as two.

    Bytes never name a class to import, only an entry of this codec's own registry. A
    registered class is restored without calling its ``__init__`` or validators; one whose
    fields changed since reads as damaged. Plain JSON values cost a walk in Python at encode
    and one call into C at decode; all others a walk both ways. Immutable and thread-safe.
    """

    mark = 1
    safe = True
    signs = False

    def __init__(self, types: Iterable[Any] = ()) -> None:
        self.types: frozenset[type] = frozenset().union(*map(_registrable, types))
        self._shapes: dict[type, Shape] = {}
        self._names: dict[str, Shape] = {}
        for cls in self.types:
            shape = shape_of(cls)
            if shape is None:
                raise ConfigurationError(_not_registrable(cls))
            if shape.name in self._names:
                raise ConfigurationError(f"two registered classes are both {shape.name}")
            self._shapes[cls] = self._names[shape.name] = shape

    def with_types(self, types: Iterable[Any]) -> ExactJson:
        """A codec that knows these classes too; itself when it knows them already."""
        more = self.types.union(*map(_registrable, types))
        return self if more == self.types else ExactJson(more)

    def __repr__(self) -> str:
        return f"ExactJson(types=[{', '.join(sorted(cls.__qualname__ for cls in self.types))}])"

    def encode(self, value: Any, context: bytes = b"") -> bytes:
        """Raises CodecError for a value it can not give back in value and type."""
        try:
            if type(value) in _ATOMS or _is_plain(value, MAX_DEPTH):
                try:
                    return (_PLAIN + _dumps(value)).encode("utf-8", "surrogatepass")
                except ValueError:  # inf or nan, which are tagged; or an int with too many digits
                    pass
            text = _TAGGED + _dumps(self._write(value, MAX_DEPTH))
            return text.encode("utf-8", "surrogatepass")
        except CodecError:
            raise
        except RecursionError:
            failure = f"it is nested deeper than {MAX_DEPTH} levels or the stack is used up"
        except Exception as error:  # an overlong int, a property that raises, a dict that changes
            failure = type(error).__name__
        # Outside the except block: the cause's text may hold a part of the value.
        raise CodecError(
            f"a value of type {_called(type(value))} can not be kept exactly as JSON ({failure}): "
            f"choose codec=Pickle(secret=...), or return a plainer value"
        )

    def decode(self, data: bytes, context: bytes = b"") -> Any:
        """Raises CodecError, and nothing else, for bytes it did not write."""
        try:
            text = str(data, "utf-8", "surrogatepass")
            mode = text[0]
            value, end = _loads(text, 1)
            if end == len(text):
                if mode == _PLAIN:
                    return value
                if mode == _TAGGED:
                    return self._read(value)
            failure = "not written by this codec"
        except Exception as error:
            failure = type(error).__name__
        raise CodecError(f"can not decode the bytes as exact JSON: {failure}")

    def _write(self, value: Any, depth: int) -> Any:
        """The tagged tree: objects are dicts with str keys, every array begins with its tag."""
        kind = type(value)
        if kind in _ATOMS:
            if kind is float and not math.isfinite(value):
                return ["float", struct.pack(">d", value).hex()]
            return value
        leaf = LEAVES.get(kind)
        if leaf is not None:
            return [leaf.name, *leaf.write(value)]
        if depth == 0:
            raise CodecError(_too_deep())
        depth -= 1
        write = self._write
        if kind is dict:
            if all(type(key) is str for key in value):
                return {
                    key: item if type(item) in _SIMPLE else write(item, depth)
                    for key, item in value.items()
                }
            tagged: list[Any] = ["dict"]
            for key, item in value.items():
                tagged += (write(key, depth), write(item, depth))
            return tagged
        container = _CONTAINERS.get(kind)
        if container is not None:
            tagged = [item if type(item) in _SIMPLE else write(item, depth) for item in value]
            tagged.insert(0, container)
            return tagged
        shape = self._shapes.get(kind)
        if shape is not None:
            return ["class", shape.name, write(shape.write(value), depth)]
        raise CodecError(_refusal(kind))

    def _read(self, node: Any) -> Any:
        read = self._read
        if type(node) is dict:
            return {key: read(item) if type(item) in _BOXES else item for key, item in node.items()}
        if type(node) is not list:
            return node
        tag = node[0]
        reader = READERS.get(tag)
        if reader is not None:
            return reader(*node[1:])
        if tag == "class":
            _, name, state = node
            return self._names[name].read(read(state))
        items = [read(item) if type(item) in _BOXES else item for item in node[1:]]
        if tag == "dict":
            return dict(zip(items[::2], items[1::2], strict=True))
        return _BUILDERS[tag](items)


def _is_plain(box: Any, depth: int) -> bool:
    """Whether a container is lists, dicts with str keys and atoms all the way down."""
    kind = type(box)
    if kind is dict:
        for key in box:
            if type(key) is not str:
                return False
        items = box.values()
    elif kind is list:
        items = box
    else:
        return False
    if depth == 0:
        raise CodecError(_too_deep())
    for item in items:  # noqa: SIM110 -- a generator takes twice the time
        if type(item) not in _ATOMS and not _is_plain(item, depth - 1):
            return False
    return True


def _registrable(annotation: Any) -> frozenset[type]:
    found = registry_of(annotation)
    if isinstance(annotation, type) and annotation not in found and annotation not in _BUILT_IN:
        raise ConfigurationError(_not_registrable(annotation))
    return found


def _not_registrable(cls: type) -> str:
    return (
        f"{_called(cls)} can not be registered with ExactJson: only Enum, NamedTuple, dataclass, "
        f"attrs and pydantic classes can; choose codec='pickle' with a secret"
    )


def _too_deep() -> str:
    return f"the value is nested deeper than {MAX_DEPTH} levels, or contains itself"


def _refusal(kind: type) -> str:
    return (
        f"a value of type {_called(kind)} can not be kept exactly as JSON: annotate the "
        f"function's return type with it or register it with ExactJson(types=[...]) if it is an "
        f"Enum, NamedTuple, dataclass, attrs or pydantic class; else choose codec='msgpack' or "
        f"codec=Pickle(secret=...), or return a plain value"
    )


def _called(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
