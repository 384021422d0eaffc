"""Attribute values: numbers and keys in their one form, items as bytes and as ready templates.

Items are kept in DynamoDB's own shape (``{"name": {"S": "x"}}``). An :class:`Image` holds it as
bytes (``marshal``: several times smaller than dictionaries, and never read from anywhere but this
process's memory) and, once it is read again, as a template that is copied in C where it can be.
"""

from __future__ import annotations

import marshal
import re
import sys
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, InvalidOperation
from importlib import import_module
from typing import Any, Final

Wire = dict[str, Any]  # name -> {type: value}
Key = tuple[Any, ...]  # name, type, value; with a sort key the two in order of their names

MOST_DIGITS: Final = 38
PROMOTE_AT: Final = 2  # the read that makes a template of the bytes
ENTRY_BYTES: Final = 700  # what an entry costs beside its image: key, entry, dictionary slots

_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_EXACT: Final = Context(prec=200, Emax=99999, Emin=-99999)
_SCALARS: Final = frozenset({"S", "N", "B", "BOOL", "NULL"})
_SETS: Final = frozenset({"SS", "NS", "BS"})


def number(text: str) -> str | None:
    """The one text of a number: 1.50 -> 1.5, 1E+2 -> 100, -0 -> 0; None where DynamoDB would
    refuse it. Beyond 38 places it stays in scientific notation (see :func:`is_plain`)."""
    if text.isdecimal() and text.isascii() and len(text) <= MOST_DIGITS:
        return text if text[0] != "0" else text.lstrip("0") or "0"
    if len(text) > 200 or not _NUMBER.fullmatch(text):
        return None
    try:
        value = _EXACT.create_decimal(text)
    except InvalidOperation:
        return None
    if not value:
        return "0"
    value = value.normalize(_EXACT)
    if len(value.as_tuple().digits) > MOST_DIGITS or not -130 <= value.adjusted() <= 125:
        return None
    plain = format(value, "f")
    return plain if len(plain) <= MOST_DIGITS else str(value)


def is_plain(text: str) -> bool:
    """Whether a number from :func:`number` is written as DynamoDB writes it for certain."""
    return "E" not in text


# -- keys ----------------------------------------------------------------------------------


def wire_atom(value: Any) -> tuple[str, Any] | None:
    """Type and canonical value of a key attribute in the client's form; None: not a key."""
    if type(value) is not dict or len(value) != 1:
        return None
    for tag, inner in value.items():
        if tag == "S":
            return ("S", inner) if type(inner) is str else None
        if tag == "N" and type(inner) is str:
            text = number(inner)
            return None if text is None else ("N", text)
        if tag == "B" and isinstance(inner, (bytes, bytearray)):
            return ("B", bytes(inner))
    return None


def plain_atom(value: Any) -> tuple[str, Any] | None:
    """The same of a value in the resource's form: text, number, or binary."""
    kind = type(value)
    if kind is str:
        return ("S", value)
    if kind is int or kind is Decimal:
        try:
            text = number(str(value))
        except ValueError:  # an int of more digits than Python prints
            return None
        return None if text is None else ("N", text)
    if kind is bytes or kind is bytearray:
        return ("B", bytes(value))
    if kind.__name__ == "Binary" and isinstance(getattr(value, "value", None), (bytes, bytearray)):
        return ("B", bytes(value.value))
    return None


def key_of(attributes: Any, atom: Callable[[Any], tuple[str, Any] | None]) -> Key | None:
    """The canonical key of a request's ``Key``; None for what can not be one."""
    if type(attributes) is not dict:
        return None
    if len(attributes) == 1:
        for name, value in attributes.items():
            found = atom(value)
            return None if found is None else (name, *found)
    if len(attributes) != 2:
        return None
    (one, first), (two, second) = attributes.items()
    left, right = atom(first), atom(second)
    if left is None or right is None:
        return None
    try:
        return (one, *left, two, *right) if one < two else (two, *right, one, *left)
    except TypeError:
        return None


def key_from(
    item: Mapping[str, Any], names: tuple[str, ...], atom: Callable[[Any], tuple[str, Any] | None]
) -> Key | None:
    """The canonical key of an item whose table has these key attributes; None if one is absent."""
    try:
        return key_of({name: item[name] for name in names}, atom)
    except (KeyError, TypeError):
        return None


def part_of(key: Key, name: str) -> Key | None:
    """One attribute of a key: (type, value)."""
    for at in range(0, len(key), 3):
        if key[at] == name:
            return key[at + 1 : at + 3]
    return None


# -- items ---------------------------------------------------------------------------------


class Uncertain(ValueError):
    """What DynamoDB will store can not be told from what was sent."""


def stored(item: Any) -> Wire:
    """A sent item (client form) as DynamoDB will store it. Raises :class:`Uncertain`."""
    if not isinstance(item, dict):
        raise Uncertain("not a map of attributes")
    return {_name(name): _stored(value) for name, value in item.items()}


def _name(name: Any) -> str:
    if type(name) is not str:
        raise Uncertain("an attribute name is not text")
    return name


def _stored(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        raise Uncertain("not one type and one value")
    ((tag, inner),) = value.items()
    if tag in ("S", "N", "B"):
        return {tag: _scalar(tag, inner)}
    if tag in ("BOOL", "NULL") and type(inner) is bool:
        return {tag: inner}
    if tag == "M":
        return {"M": stored(inner)}
    if tag == "L" and isinstance(inner, (list, tuple)):
        return {"L": [_stored(each) for each in inner]}
    if tag in _SETS and isinstance(inner, (list, tuple)):
        return {tag: [_scalar(tag[0], each) for each in inner]}
    raise Uncertain(f"type {tag}")


def _scalar(tag: str, value: Any) -> str | bytes:
    if tag == "B":
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
    elif type(value) is str:
        if tag == "S":
            return value
        text = number(value)
        if text is not None and is_plain(text):
            return text
    raise Uncertain(f"a value of type {tag}")


def to_wire(item: Mapping[str, Any]) -> Wire:
    """An item in the resource's form in the client's. Raises TypeError for foreign values."""
    serialize = import_module("boto3.dynamodb.types").TypeSerializer().serialize
    return {name: serialize(value) for name, value in item.items()}


def to_plain(item: Wire) -> dict[str, Any]:
    """The other way."""
    deserialize = import_module("boto3.dynamodb.types").TypeDeserializer().deserialize
    return {name: deserialize(value) for name, value in item.items()}


_Named = list[tuple[str, Any]]


class Image:
    """One whole item, never handed out itself: every read makes fresh containers.

    ``reads`` counts reads from bytes; at :data:`PROMOTE_AT` the owner calls :meth:`promote`."""

    __slots__ = ("_client", "_table", "packed", "reads")

    def __init__(self, item: Wire) -> None:
        """Takes plain types only (``marshal`` raises ValueError for others)."""
        self.packed = marshal.dumps(item, 2)
        self.reads = 0
        # Scalars; maps and lists of scalars, copied as they are; anything deeper as bytes.
        self._client: tuple[Wire, _Named, _Named, list[tuple[str, bytes]]] | None = None
        self._table: tuple[dict[str, Any], list[tuple[str, Any]]] | None = None

    def wire(self) -> Wire:
        """In the client's form."""
        ready = self._client
        if ready is None:
            self.reads += 1
            return marshal.loads(self.packed)  # type: ignore[no-any-return]  # what was packed
        flat, maps, lists, deep = ready
        item = {name: value.copy() for name, value in flat.items()}
        for name, inner in maps:
            item[name] = {"M": {n: value.copy() for n, value in inner.items()}}
        for name, inner in lists:
            item[name] = {"L": [value.copy() for value in inner]}
        for name, packed in deep:
            item[name] = marshal.loads(packed)
        return item

    def plain(self) -> dict[str, Any]:
        """In the resource's form."""
        ready = self._table
        if ready is None:
            self.reads += 1
            return to_plain(marshal.loads(self.packed))
        flat, deep = ready
        item = flat.copy()
        for name, value in deep:
            item[name] = fresh(value)
        return item

    def read(self, plain: bool) -> dict[str, Any]:
        return self.plain() if plain else self.wire()

    def wants_promotion(self, plain: bool) -> bool:
        return self.reads >= PROMOTE_AT and (self._table if plain else self._client) is None

    def promote(self, plain: bool) -> None:
        """Make the template of one form."""
        item: Wire = marshal.loads(self.packed)
        if plain:
            values = to_plain(item)
            deep = [(name, value) for name, value in values.items() if not _is_flat(value)]
            self._table = ({**values, **dict.fromkeys(dict(deep))}, deep)
        else:
            flat, maps, lists, deep = dict(item), [], [], []
            for name, value in item.items():
                ((tag, inner),) = value.items()
                if tag in _SCALARS:
                    continue
                flat[name] = {}  # keeps its place
                if tag == "M" and all(_SCALARS.issuperset(each) for each in inner.values()):
                    maps.append((name, inner))
                elif tag == "L" and all(_SCALARS.issuperset(each) for each in inner):
                    lists.append((name, inner))
                else:
                    deep.append((name, marshal.dumps(value, 2)))
            self._client = (flat, maps, lists, deep)

    def weight(self) -> int:
        """Bytes of memory, about."""
        ready = [part for part in (self._client, self._table) if part is not None]
        return len(self.packed) + 120 + sum(map(footprint, ready))


_FLAT: Final = frozenset({str, int, bool, bytes, type(None), Decimal})


def _is_flat(value: Any) -> bool:
    return type(value) in _FLAT


def fresh(value: Any) -> Any:
    """A copy of a value in the resource's form that shares no container with it."""
    kind = type(value)
    if kind in _FLAT:
        return value
    if kind is dict:
        return {name: fresh(each) for name, each in value.items()}
    if kind is list:
        return [fresh(each) for each in value]
    if kind is set:
        return {fresh(each) for each in value}
    return kind(value.value)  # Binary


def footprint(value: Any) -> int:
    """Bytes of a template, containers included; shared constants are counted each time."""
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(map(footprint, value)) + sum(map(footprint, value.values()))
    if isinstance(value, (list, tuple, set)):
        return size + sum(map(footprint, value))
    return size if type(value) in _FLAT else size + 100


class Page:
    """What one Query or Scan request answered."""

    __slots__ = ("items", "last", "rest")

    def __init__(self, items: list[Wire] | None, last: Wire | None, rest: dict[str, Any]) -> None:
        self.items = None if items is None else tuple([Image(item) for item in items])
        self.last = None if last is None else Image(last)
        self.rest = rest  # Count and ScannedCount

    def read(self, plain: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        if self.items is not None:
            answer["Items"] = [image.read(plain) for image in self.items]
        answer.update(self.rest)
        if self.last is not None:
            answer["LastEvaluatedKey"] = self.last.read(plain)
        return answer

    def _images(self) -> list[Image]:
        return [*(self.items or ()), *([self.last] if self.last is not None else [])]

    def wants_promotion(self, plain: bool) -> bool:
        return any(image.wants_promotion(plain) for image in self._images())

    def promote(self, plain: bool) -> None:
        for image in self._images():
            image.promote(plain)

    def weight(self) -> int:
        return 300 + sum(image.weight() for image in self._images())


class Absent:
    """The item that is known not to exist."""

    __slots__ = ()

    def wants_promotion(self, plain: bool) -> bool:
        return False

    def weight(self) -> int:
        return 0


ABSENT: Final = Absent()
Kept = Image | Page | Absent


def weigh(kept: Kept) -> float:
    """What an entry is charged, in bytes of memory, about."""
    return kept.weight() + ENTRY_BYTES
