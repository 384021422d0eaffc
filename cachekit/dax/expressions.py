"""Request parameters that are understood here: projections, key conditions, pages of a query.

Nothing is judged valid: an answer is only ever given for a form that DynamoDB has accepted before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

from .values import Key, Wire, number, to_wire

_PATH: Final = re.compile(r"(#?[A-Za-z_][\w-]*)(\.#?[A-Za-z_][\w-]*)*", re.ASCII)
_EQUAL: Final = re.compile(r"[\s(]*(#?[\w-]+)\s*=\s*(:[\w-]+)[\s)]*", re.ASCII)
_AND: Final = re.compile(r"\s+AND\s+", re.IGNORECASE)
_ARN: Final = re.compile(r"arn:[^:]*:dynamodb:[^:]*:[^:]*:table/([A-Za-z0-9_.-]+)")

Projection = tuple[tuple[str, ...], ...]  # paths of attribute names


class NotUnderstood(ValueError):
    """A parameter whose meaning is not certain here: the request passes by."""


def table_name(table: Any) -> tuple[str, bool]:
    """The name in a ``TableName`` and whether it was an ARN. Raises :class:`NotUnderstood`."""
    if type(table) is not str or not table:
        raise NotUnderstood("TableName")
    if ":" not in table:
        return table, False
    found = _ARN.fullmatch(table)
    if found is None:
        raise NotUnderstood("TableName")
    return found[1], True


def names_of(params: Mapping[str, Any]) -> dict[str, str]:
    names = params.get("ExpressionAttributeNames") or {}
    if not isinstance(names, dict) or not all(
        type(k) is str and type(v) is str for k, v in names.items()
    ):
        raise NotUnderstood("ExpressionAttributeNames")
    return names


def projection_of(params: Mapping[str, Any]) -> Projection | None:
    """The paths that a read asks for; None: the whole item. Raises :class:`NotUnderstood` for
    list elements and for what is no path."""
    legacy, text = params.get("AttributesToGet"), params.get("ProjectionExpression")
    if legacy is not None:
        raise NotUnderstood("AttributesToGet")
    if text is None:
        if params.get("ExpressionAttributeNames"):
            raise NotUnderstood("ExpressionAttributeNames")
        return None
    if type(text) is not str:
        raise NotUnderstood("ProjectionExpression")
    names = names_of(params)
    paths = []
    for path in text.split(","):
        if not _PATH.fullmatch(path.strip()):
            raise NotUnderstood("ProjectionExpression")
        try:
            paths.append(tuple(names[p] if p[0] == "#" else p for p in path.strip().split(".")))
        except KeyError:
            raise NotUnderstood("ProjectionExpression") from None
    return tuple(sorted(paths))


def project(item: Wire, paths: Projection) -> Wire:
    """The attributes at these paths. ``item`` is the caller's to take apart."""
    found: Wire = {}
    for path in paths:
        source: Any = item
        into: Any = found
        for at, name in enumerate(path):
            value = source.get(name)
            if value is None:
                break
            if at == len(path) - 1:
                into[name] = value
            elif "M" not in value or not _reaches(value["M"], path[at + 1 :]):
                break
            else:
                into = into.setdefault(name, {"M": {}})["M"]
                source = value["M"]
    return found


def _reaches(source: Any, path: tuple[str, ...]) -> bool:
    for at, name in enumerate(path):
        value = source.get(name)
        if value is None:
            return False
        if at < len(path) - 1:
            if "M" not in value:
                return False
            source = value["M"]
    return True


# -- query and scan ------------------------------------------------------------------------

_PAGE: Final = {
    "TableName": str, "IndexName": str, "Select": str, "Limit": int, "ConsistentRead": bool,
    "ScanIndexForward": bool, "ProjectionExpression": str, "ConditionalOperator": str,
    "ReturnConsumedCapacity": str, "TotalSegments": int, "Segment": int,
}  # fmt: skip
_CONDITIONS: Final = ("KeyConditionExpression", "FilterExpression")
_VALUES: Final = ("ExclusiveStartKey", "ExpressionAttributeValues")
_LEGACY: Final = ("KeyConditions", "QueryFilter", "ScanFilter")
_ASIDE: Final = frozenset({"TableName", "ConsistentRead", "ReturnConsumedCapacity"})


class Asked:
    """One Query or Scan in canonical form. ``ident``: equal for requests of equal meaning as far
    as their text tells; ``equal``: attribute -> value of the key condition's equalities."""

    __slots__ = ("equal", "ident", "index")

    def __init__(self, operation: str, params: Mapping[str, Any], *, plain: bool) -> None:
        """Raises :class:`NotUnderstood`."""
        parts: list[tuple[str, Any]] = []
        self.equal: dict[str, Any] = {}
        self.index: str | None = params.get("IndexName")
        for name, value in params.items():
            if name in _PAGE:
                if type(value) is not _PAGE[name]:
                    raise NotUnderstood(name)
                if name not in _ASIDE:
                    parts.append((name, value))
            elif name in _CONDITIONS:
                parts.append((name, self._condition(name, value, params, plain=plain)))
            elif name in _VALUES:
                parts.append((name, _frozen(_wire(value, plain))))
            elif name == "ExpressionAttributeNames":
                parts.append((name, tuple(sorted(names_of(params).items()))))
            elif name == "AttributesToGet" and isinstance(value, list):
                parts.append((name, _frozen(sorted(value))))
            elif name in _LEGACY and isinstance(value, dict):
                parts.append((name, self._legacy(name, value, plain=plain)))
            else:
                raise NotUnderstood(name)
        try:
            self.ident = repr((operation, sorted(parts)))
        except TypeError:
            raise NotUnderstood("values that have no order") from None

    def _condition(self, name: str, value: Any, params: Mapping[str, Any], *, plain: bool) -> Any:
        names: Mapping[str, str] = names_of(params)
        extra: tuple[Any, ...]
        if type(value) is str:
            values = _wire(params.get("ExpressionAttributeValues") or {}, plain)
            text, extra = value, ()
        else:
            conditions = import_module("boto3.dynamodb.conditions")
            try:
                built = conditions.ConditionExpressionBuilder().build_expression(
                    value, is_key_condition=name == "KeyConditionExpression"
                )
            except Exception:
                raise NotUnderstood(name) from None
            text = built.condition_expression
            names = built.attribute_name_placeholders
            values = _wire(built.attribute_value_placeholders, plain)
            extra = (tuple(sorted(names.items())), _frozen(values))
        if name == "KeyConditionExpression":
            for clause in _AND.split(text):
                found = _EQUAL.fullmatch(clause)
                if found is not None:
                    attribute = names.get(found[1], found[1])
                    self.equal[attribute] = values.get(found[2])
        return (text, *extra)

    def _legacy(self, name: str, value: dict[str, Any], *, plain: bool) -> Any:
        parts = []
        for attribute, condition in sorted(value.items()):
            operator = condition.get("ComparisonOperator")
            given = condition.get("AttributeValueList", [])
            if type(operator) is not str or not isinstance(given, list):
                raise NotUnderstood(name)
            if not set(condition) <= {"ComparisonOperator", "AttributeValueList"}:
                raise NotUnderstood(name)
            values = _wire({str(at): each for at, each in enumerate(given)}, plain)
            if name == "KeyConditions" and operator == "EQ" and len(values) == 1:
                self.equal[attribute] = values["0"]
            parts.append((attribute, operator, _frozen(values)))
        return tuple(parts)


def _wire(values: Any, plain: bool) -> Wire:
    if not isinstance(values, dict):
        raise NotUnderstood("values")
    if not plain:
        return values
    try:
        return to_wire(values)
    except Exception:
        raise NotUnderstood("values") from None


def _frozen(value: Any) -> Any:
    """Wire values with an order, numbers and sets in one form. Raises :class:`NotUnderstood`."""
    if isinstance(value, dict):
        if len(value) == 1:
            ((tag, inner),) = value.items()
            if tag == "N" and type(inner) is str:
                return ("N", number(inner) or inner)
            if tag in ("SS", "NS", "BS") and isinstance(inner, list):
                return (tag, tuple(sorted(map(_leaf, inner))))
        return ("M", tuple(sorted((_leaf(name), _frozen(each)) for name, each in value.items())))
    if isinstance(value, (list, tuple)):
        return ("L", tuple(_frozen(each) for each in value))
    return _leaf(value)


def _leaf(value: Any) -> str:
    if type(value) in (str, bool, bytes):
        return repr(value)
    if type(value) is bytearray:
        return repr(bytes(value))
    raise NotUnderstood(f"a value of type {type(value).__name__}")


def partition_of(
    asked: Asked, hash_name: str, atom: Callable[[Any], tuple[str, Any] | None]
) -> Key | None:
    """The one partition that a query reads: (type, value); None: not certain."""
    value = asked.equal.get(hash_name)
    return None if value is None else atom(value)
