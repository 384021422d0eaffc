"""Rows as DynamoDB takes them: exact values, their size, and what fits into one transaction.

Sizes: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from decimal import Decimal
from math import isfinite
from typing import Any, NamedTuple

MOST_ROWS = 99  # of one transaction: it takes 100 items, and one is the fence's
MOST_SIZE = 4 * 1024 * 1024 - 64 * 1024  # bytes of one transaction, with room for the fence
LARGE = 400 * 1024  # bytes: one row of more may be refused, and then stands alone
KEY_BYTES = 2048
_NUMBER = 21  # bytes of one at most
_KINDS: dict[str, tuple[type, ...]] = {"S": (str,), "N": (int, Decimal), "B": (bytes,)}

Serialize = Callable[[Any], dict[str, Any]]


class Write(NamedTuple):
    """One row's part of a transaction. ``size``: bytes, rather too many than too few."""

    id: Any
    action: dict[str, Any]
    size: int


def key_of(id: Any, kind: str, serialize: Serialize) -> dict[str, Any]:
    """An id as the value of a key attribute; ``kind``: S, N or B."""
    if isinstance(id, bool) or not isinstance(id, _KINDS[kind]):
        raise TypeError(f"sink: a {type(id).__name__} can not be a key of type {kind}")
    key = value_of(id, serialize)
    if kind != "N" and not 0 < size_of(key) <= KEY_BYTES:
        raise ValueError(f"sink: a key must have 1 to {KEY_BYTES} bytes, not {size_of(key)}")
    return key


def value_of(value: Any, serialize: Serialize) -> dict[str, Any]:
    """A value in DynamoDB's form, or an error that does not show it."""
    try:
        return serialize(_exact(value))
    except ArithmeticError:
        raise ValueError("sink: a number has more than 38 digits, or is out of range") from None


def size_of(value: Mapping[str, Any]) -> int:
    """Bytes of a value in DynamoDB's form."""
    ((kind, held),) = value.items()
    if kind == "S":
        return len(held.encode())
    if kind == "B":
        return len(held)
    if kind == "N":
        return _NUMBER
    if kind == "SS":
        return 3 + sum(len(text.encode()) for text in held)
    if kind == "BS":
        return 3 + sum(map(len, held))
    if kind == "NS":
        return 3 + _NUMBER * len(held)
    if kind == "L":
        return 3 + sum(1 + size_of(part) for part in held)
    if kind == "M":
        return 3 + sum(1 + len(name.encode()) + size_of(part) for name, part in held.items())
    return 1


def delete(table: str, id: Any, key: dict[str, Any]) -> Write:
    return Write(id, {"Delete": {"TableName": table, "Key": key}}, size_of({"M": key}))


def put(table: str, id: Any, key: dict[str, Any], item: dict[str, Any]) -> Write:
    """The item becomes this one."""
    whole = key | item
    return Write(id, {"Put": {"TableName": table, "Item": whole}}, size_of({"M": whole}))


def update(table: str, id: Any, key: dict[str, Any], item: dict[str, Any]) -> Write:
    """The item is made where it is missing, and has these attributes among others."""
    changed = {
        "TableName": table,
        "Key": key,
        "UpdateExpression": "SET " + ", ".join(f"#{n} = :{n}" for n in range(len(item))),
        "ExpressionAttributeNames": {f"#{n}": name for n, name in enumerate(item)},
        "ExpressionAttributeValues": {f":{n}": value for n, value in enumerate(item.values())},
    }
    return Write(id, {"Update": changed}, size_of({"M": key | item}))


def parts(writes: Iterable[Write]) -> Iterator[list[Write]]:
    """What goes into one transaction each: distinct rows, not too many, not too large."""
    part: list[Write] = []
    ids: set[Any] = set()
    size = 0
    for write in writes:
        alone = write.size > LARGE or (bool(part) and part[0].size > LARGE)
        full = len(part) == MOST_ROWS or size + write.size > MOST_SIZE or write.id in ids
        if part and (alone or full):
            yield part
            part, ids, size = [], set(), 0
        part.append(write)
        ids.add(write.id)
        size += write.size
    if part:
        yield part


def _exact(value: Any) -> Any:
    """With floats as the shortest decimals that read back as the same floats."""
    if isinstance(value, (float, Decimal)):
        if not (isfinite(value) if isinstance(value, float) else value.is_finite()):
            raise ValueError("sink: DynamoDB has no infinity and no NaN")
        return Decimal(float.__repr__(value)) if isinstance(value, float) else value
    if value is None or isinstance(value, (str, bytes, bytearray, int)):
        return value
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or not name:
                raise TypeError(f"sink: {name!r} can not be the name of an attribute")
        return {name: _exact(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_exact(part) for part in value]
    if isinstance(value, Set):
        if not value or len({_kind(part) for part in value}) != 1:
            raise TypeError("sink: a set must have members, and of one kind")
        return {_exact(part) for part in value}
    raise TypeError(f"sink: DynamoDB can not hold a {type(value).__name__}")


def _kind(member: Any) -> str:
    for kind, types in (("N", (int, float, Decimal)), ("S", (str,)), ("B", (bytes,))):
        if isinstance(member, types) and not isinstance(member, bool):
            return kind
    raise TypeError(f"sink: a set in DynamoDB can not hold a {type(member).__name__}")
