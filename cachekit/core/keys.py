"""From arguments to keys: equal arguments of equal types share one, nothing else does.

A key has two forms. The *raw* form (the argument itself, or a tuple of them) is what the hit
road looks up. The *text* form is readable, injective and made on the miss only; it names the
entry in shared backends, in ``invalidate(keys=...)`` and in flights.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Hashable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from ..errors import KeyEncodingError

PRIMITIVES: Final = frozenset({int, str, float, bool, bytes, type(None)})
MAX_KEY: Final = 200
_INF: Final = float("inf")
_TUPLE_EQ: Final[Any] = tuple.__eq__

REMEDY: Final = (
    'give key="...{param.id}..." or ignore=("param",), or define __cache_key__() on its class'
)


class NotANumberKey(KeyEncodingError):
    """NaN equals nothing, itself included: such a call is never cached."""


def _float(value: float) -> str:
    if value != value:
        raise NotANumberKey("NaN can not be part of a key")
    if value in (_INF, -_INF):
        return "1e999" if value > 0 else "-1e999"  # can be read back, unlike inf
    return repr(value + 0.0)  # -0.0 and 0.0 are equal and share


def _int(value: int) -> str:
    # repr of more than 4300 digits is refused by the interpreter; hex is not.
    return repr(value) if value.bit_length() < 13_000 else hex(value)


def _tuple(value: tuple[Any, ...]) -> str:
    return "(" + "".join(literal(item) + "," for item in value) + ")"


def _frozenset(value: frozenset[Any]) -> str:
    return "frozenset{" + ",".join(sorted(literal(item) for item in value)) + "}"


def _decimal(value: Decimal) -> str:
    if value.is_nan():
        raise NotANumberKey("NaN can not be part of a key")
    sign, digits, exponent = value.as_tuple()
    if isinstance(exponent, int):
        text = "".join(map(str, digits))
        kept = text.rstrip("0")
        if not kept:
            return "Decimal(0)"
        exponent += len(text) - len(kept)
        return f"Decimal({'-' if sign else ''}{kept.lstrip('0')}e{exponent})"
    return f"Decimal({value})"


def _datetime(value: datetime) -> str:
    if value.tzinfo is None:
        return f"datetime({value.isoformat()})"
    return f"datetime({value.astimezone(UTC).isoformat()})"


_LITERALS: Final[dict[type, Callable[[Any], str]]] = {
    type(None): repr,
    bool: repr,
    int: _int,
    float: _float,
    str: ascii,
    bytes: repr,
    tuple: _tuple,
    frozenset: _frozenset,
    Decimal: _decimal,
    UUID: lambda v: f"UUID({v})",
    datetime: _datetime,
    date: lambda v: f"date({v.isoformat()})",
    time: lambda v: f"time({v.isoformat()})",
    timedelta: lambda v: f"timedelta({v.days},{v.seconds},{v.microseconds})",
    complex: lambda v: f"complex({_float(v.real)},{_float(v.imag)})",
}


def class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class(cls: type) -> str:
    """The name of a class that is found under it; two local classes can share one."""
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not cls:
        raise KeyEncodingError(f"{class_name(cls)} can not be found by its name")
    return ascii(class_name(cls))[1:-1]


def _enum(value: Enum) -> str:
    # A flag of unnamed bits has no name.
    name = ascii(value.name)[1:-1] if value.name is not None else f"<{literal(value.value)}>"
    return f"enum({_class(type(value))}.{name})"


def literal(value: Any) -> str:
    """The text of one argument: ASCII, injective over equal-and-equally-typed values.

    Raises KeyEncodingError for a value without a stable text."""
    make = _LITERALS.get(type(value))
    if make is not None:
        return make(value)
    if isinstance(value, Enum):
        return _enum(value)
    own = getattr(value, "__cache_key__", None)
    if own is not None and not isinstance(value, type):
        return f"{_class(type(value))}<{literal(own())}>"
    if isinstance(value, PurePath):
        return f"{type(value).__name__}({str(value)!a})"
    if isinstance(value, type):
        return f"class({_class(value)})"
    raise KeyEncodingError(f"a {class_name(type(value))} has no stable text form")


_BARE: Final = re.compile(r"[A-Za-z0-9_@.+-]+\Z")
_TYPED: Final = re.compile(r"(?:[+-]?[0-9.].*|[+-]?(?:inf|nan)|None|True|False)\Z", re.S)


def bare(value: Any) -> str:
    """Like :func:`literal`, but a string that nothing else could be written as stands without
    quotes: ``user:bob``, ``user:7``, yet ``user:'7'`` for the string."""
    if type(value) is str and _BARE.match(value) and not _TYPED.match(value):
        return value
    return literal(value)


def typed(value: Any) -> Hashable:
    """A hashable stand-in for one argument that keeps types apart, through tuple and frozenset.

    Raises KeyEncodingError for unhashable values and NaN."""
    kind = type(value)
    if kind is tuple:
        return (tuple, tuple([typed(item) for item in value]))
    if kind is frozenset:
        return (frozenset, frozenset([typed(item) for item in value]))
    if kind in PRIMITIVES:
        if value != value:
            raise NotANumberKey("NaN can not be part of a key")
        return (kind, value)
    own = getattr(value, "__cache_key__", None)
    if own is not None and not isinstance(value, type):
        return (kind, typed(own()))
    if kind.__eq__ is _TUPLE_EQ:  # a named tuple compares its items as a tuple does
        return (kind, tuple([typed(item) for item in value]))
    if kind is datetime and value.tzinfo is not None:
        # In one zone == looks at the wall clock alone: an hour that comes twice would be one.
        return (kind, value.astimezone(UTC))
    if kind is Decimal and value.is_nan():  # a signalling one can not even be compared
        raise NotANumberKey("NaN can not be part of a key")
    try:
        hash(value)
    except TypeError:
        raise KeyEncodingError(f"a {class_name(kind)} is not hashable") from None
    if value != value:
        raise NotANumberKey("NaN can not be part of a key")
    return (kind, value)


def named(
    encode: Callable[[Any], Any], values: Sequence[Any], names: Sequence[str], owner: str
) -> list[Any]:
    """``encode`` every value; an error names the parameter, the function and the remedy."""
    result = []
    for value, name in zip(values, names, strict=True):
        try:
            result.append(encode(value))
        except NotANumberKey:
            raise
        except KeyEncodingError as error:
            raise KeyEncodingError(
                f"{owner}: parameter {name!r} can not be part of a key ({error}); "
                + REMEDY.replace("param", name.split(".")[0].split("[")[0])
            ) from None
        except RecursionError:
            raise KeyEncodingError(
                f"{owner}: parameter {name!r} is nested too deeply for a key"
            ) from None
    return result


_SAFE: Final = re.compile(rf"[!-$&-}}]{{1,{MAX_KEY}}}\Z")  # printable ASCII but % and ~
_ESCAPED: Final = {b: f"%{b:02X}" for b in range(128) if not 0x21 <= b <= 0x7D or b == 0x25}


def physical(text: str) -> str:
    """The name a backend gets: printable ASCII without blanks, at most 200 characters.

    Injective up to the 160-bit hash of what is too long: ``%`` and ``~`` are always escaped, so
    no caller can write a key that looks like another's escaped or hashed form."""
    if _SAFE.match(text):
        return text
    if not text:
        return "%"
    if text.isascii() and len(text) <= MAX_KEY and len(safe := text.translate(_ESCAPED)) <= MAX_KEY:
        return safe
    raw = text.encode("utf-8", "surrogatepass")
    safe = "".join(
        chr(b) if 0x21 <= b <= 0x7D and b != 0x25 else f"%{b:02X}" for b in raw[: MAX_KEY + 1]
    )
    if len(raw) <= MAX_KEY and len(safe) <= MAX_KEY:
        return safe
    digest = hashlib.blake2b(raw, digest_size=20).hexdigest()
    return safe[: MAX_KEY - 41].rstrip("%") + "~" + digest


def check_text(value: Any, what: str) -> str:
    """Refuse what is not a non-empty string, before anything else happens."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{what} must not be empty")
    return value if type(value) is str else str(value)


def tag_name(text: Any) -> str:
    """The name of a tag everywhere inside: as :func:`physical`. Done once, where a tag is made."""
    return physical(check_text(text, "a tag"))
