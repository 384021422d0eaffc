"""Records as the items of a DynamoDB table, and back; ids as keys."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Context, Decimal
from functools import cache
from importlib import import_module
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigurationError
from ..sinks.items import key_of, value_of

ToRecord = Callable[[dict[str, Any]], Any]
ToItem = Callable[[Any], Mapping[str, Any]]
Wire = dict[str, Any]  # one value, or one item, in DynamoDB's form

_DIGITS = 38
# What a field may say of itself that DynamoDB does not keep apart.
_KEPT = (float, Decimal, tuple, frozenset, bytearray)


class Shape:
    """How one table's records look. ``names``: the attributes of its key, one or two."""

    def __init__(
        self, table: str, names: tuple[str, ...], record: Any, to_item: ToItem | None
    ) -> None:
        for what, given in (("record", record), ("to_item", to_item)):
            if given is not None and not callable(given):
                raise ConfigurationError(f"{table}: {what} must be a class or a function")
        self.table = table
        self.names = names
        self._record = record
        whole = isinstance(record, type) and is_dataclass(record)
        self._fields = _conversions_of(record) if whole else None
        self._derived = {f.name for f in fields(record) if not f.init} if whole else set()
        self._to_item = to_item

    @property
    def returned(self) -> Any:
        """The class of the records, as far as is told; None where it is not."""
        record = self._record
        if record is None or isinstance(record, type):
            return record
        owner = getattr(record, "__self__", None)
        if isinstance(owner, type):  # a class method that makes one
            return owner
        try:
            return get_type_hints(record).get("return")
        except Exception:  # a name that only a type checker sees
            return None

    def id_of(self, record: Any) -> Any:
        """The id of a record: its key, or a tuple of both its parts; None where one is missing."""
        values = tuple(self._part_of(record, name) for name in self.names)
        if any(value is None for value in values):
            return None
        return values[0] if len(values) == 1 else values

    def key_of(self, id: Any) -> Wire:
        """An id as the key of an item. Raises TypeError or ValueError for what can not be one."""
        parts = id if len(self.names) > 1 else (id,)
        if not isinstance(parts, tuple) or len(parts) != len(self.names):
            raise TypeError(f"{self.table}: an id is a tuple ({', '.join(self.names)})")
        return {name: self._key_part(part) for name, part in zip(self.names, parts, strict=True)}

    def id_in(self, item: Wire) -> Any:
        """The id of an item in DynamoDB's form."""
        parts = tuple(python(item[name]) for name in self.names)
        return parts[0] if len(parts) == 1 else parts

    def item_of(self, record: Any) -> dict[str, Any]:
        """A record as plain attributes and values."""
        if self._to_item is not None:
            return dict(self._to_item(record))
        if isinstance(record, Mapping):
            return dict(record)
        kind = type(record)
        if not is_dataclass(kind):
            raise TypeError(
                f"{self.table}: a {kind.__name__} is no record: give a mapping or a dataclass, "
                "or pass to_item="
            )
        return {field.name: getattr(record, field.name) for field in fields(kind)}

    def wire(self, attributes: Mapping[str, Any]) -> Wire:
        """Plain attributes in DynamoDB's form, the key's as one."""
        names = self.names
        for name in names:
            if attributes.get(name) is None:
                raise ValueError(f"{self.table}: the record has no {name!r}")
        others = {name: value for name, value in attributes.items() if name not in names}
        key = {name: self._key_part(attributes[name]) for name in names}
        return key | self._wire(others)["M"]  # type: ignore[no-any-return]  # DynamoDB's form

    def record_of(self, item: Wire) -> Any:
        """The record that an item in DynamoDB's form is."""
        derived = self._derived
        attributes = {name: python(value) for name, value in item.items() if name not in derived}
        if self._record is None:
            return attributes
        if self._fields is None:
            return self._record(attributes)
        conversions = self._fields()
        for name, value in attributes.items():
            if name not in conversions:
                raise TypeError(
                    f"{self.table}: the item has {name!r}, which {self._record.__name__} has not, "
                    "and would lose at the next save: add the field, or pass record= and to_item="
                )
            kind = conversions[name]
            if kind is not None and value is not None and not isinstance(value, (kind, bool, str)):
                attributes[name] = kind(value)
        return self._record(**attributes)

    def _part_of(self, record: Any, name: str) -> Any:
        if isinstance(record, Mapping):
            return record.get(name)
        if hasattr(record, name):
            return getattr(record, name)
        return self.item_of(record).get(name)

    def _key_part(self, part: Any) -> Wire:
        kind = "S" if isinstance(part, str) else "B" if isinstance(part, bytes) else "N"
        wire = self._told(key_of, part, kind, _serialize())
        read = python(wire)
        if isinstance(read, Decimal):
            read = Context(_DIGITS).normalize(read)  # DynamoDB drops zeros at the end
        if kind == "N" and (type(read), str(read)) != (type(part), str(part)):
            # Equal, but another key of the cache: what is saved by one would be old by the other.
            raise TypeError(f"{self.table}: write the id {part!r} as {read!r}, as it is read back")
        return wire

    def _wire(self, value: Any) -> Wire:
        return self._told(value_of, value, _serialize())

    def _told(self, fn: Callable[..., Wire], *args: Any) -> Wire:
        """The sink's own rules for values, under this table's name."""
        try:
            return fn(*args)
        except (TypeError, ValueError) as error:
            text = str(error).removeprefix("sink: ")
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self.table}: {text}") from None


def python(value: Wire) -> Any:
    """A value in DynamoDB's form as Python's. Numbers: an int where integral and of at most 38
    digits, else a Decimal. Bytes are bytes, lists lists, sets sets."""
    ((kind, held),) = value.items()
    if kind == "N":
        return _number(held)
    if kind == "NULL":
        return None
    if kind == "L":
        return [python(part) for part in held]
    if kind == "M":
        return {name: python(part) for name, part in held.items()}
    if kind == "NS":
        return {_number(member) for member in held}
    if kind in ("SS", "BS"):
        return set(held)
    return held  # S, B, BOOL


def _number(text: str) -> int | Decimal:
    number = Decimal(text)
    if number == number.to_integral_value() and number.adjusted() < _DIGITS:
        return int(number)
    return number


@cache
def _serialize() -> Callable[[Any], Wire]:
    made: Any = import_module("boto3.dynamodb.types").TypeSerializer()
    return made.serialize  # type: ignore[no-any-return]  # boto3 has no types


def _conversions_of(record: Any) -> Callable[[], dict[str, type | None]]:
    """{field: what its values are made to}, found at the first record: the hints may name what is
    defined later."""

    @cache
    def found() -> dict[str, type | None]:
        try:
            hints = get_type_hints(record)
        except Exception:  # a name that only a type checker sees
            hints = {}
        return {field.name: _kept(hints.get(field.name)) for field in fields(record) if field.init}

    return found


def _kept(hint: Any) -> type | None:
    kind = get_origin(hint) or hint
    if kind in (Union, types.UnionType):
        kinds = [arg for arg in get_args(hint) if arg is not type(None)]
        return _kept(kinds[0]) if len(kinds) == 1 else None
    return kind if kind in _KEPT else None
