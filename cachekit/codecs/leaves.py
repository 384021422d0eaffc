"""How the standard library's value types become JSON atoms and come back exactly."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import ipaddress
import pathlib
import struct
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import CodecError


class Leaf(NamedTuple):
    """One exact type: ``write`` gives a list of JSON atoms, which ``read`` takes as arguments."""

    name: str
    write: Callable[[Any], list[Any]]
    read: Callable[..., Any]


def _write_base64(value: bytes | bytearray) -> list[Any]:
    return [base64.b64encode(value).decode("ascii")]


def _read_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _read_bytearray(text: str) -> bytearray:
    return bytearray(_read_bytes(text))


def _read_float(bits: str) -> float:
    number: float = struct.unpack(">d", bytes.fromhex(bits))[0]
    return number


def _write_complex(value: complex) -> list[Any]:
    return [struct.pack(">dd", value.real, value.imag).hex()]


def _read_complex(bits: str) -> complex:
    return complex(*struct.unpack(">dd", bytes.fromhex(bits)))


def _as_text(value: Any) -> list[Any]:
    return [str(value)]


def _write_timedelta(value: dt.timedelta) -> list[Any]:
    return [value.days, value.seconds, value.microseconds]


def _write_zone(zone: dt.tzinfo | None) -> list[Any]:
    if zone is None:
        return []
    if type(zone) is dt.timezone:
        # The name is the second argument, and absent where none was given.
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # the pickle protocol
        return ["offset", *_write_timedelta(offset), *name]
    if type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        try:
            zone.__reduce__()
        except Exception:
            raise CodecError("a ZoneInfo read from a file has no key to find it again") from None
        return ["zone", zone.key]
    kind = type(zone)
    raise CodecError(
        f"a time with a {kind.__module__}.{kind.__qualname__} can not be kept exactly as JSON: "
        f"use datetime.timezone or zoneinfo.ZoneInfo, or choose codec=Pickle(secret=...)"
    )


def _read_zone(kind: str | None = None, *rest: Any) -> dt.tzinfo | None:
    if kind is None:
        return None
    if kind == "zone":
        (key,) = rest
        return zoneinfo.ZoneInfo(key)
    if kind != "offset":
        raise ValueError("unknown kind of time zone")
    days, seconds, microseconds, *name = rest
    return dt.timezone(dt.timedelta(days, seconds, microseconds), *name)


def _write_moment(value: dt.datetime | dt.time) -> list[Any]:
    naive = value.replace(tzinfo=None, fold=0)
    return [naive.isoformat(), value.fold, *_write_zone(value.tzinfo)]


def _read_datetime(text: str, fold: int, *zone: Any) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(fold=fold, tzinfo=_read_zone(*zone))


def _read_time(text: str, fold: int, *zone: Any) -> dt.time:
    return dt.time.fromisoformat(text).replace(fold=fold, tzinfo=_read_zone(*zone))


def _text_leaf(kind: Callable[[str], Any], name: str) -> Leaf:
    def read(text: Any) -> Any:
        if type(text) is not str:
            raise ValueError("not a text")
        return kind(text)

    return Leaf(name, _as_text, read)


LEAVES: dict[type, Leaf] = {
    bytes: Leaf("bytes", _write_base64, _read_bytes),
    bytearray: Leaf("bytearray", _write_base64, _read_bytearray),
    complex: Leaf("complex", _write_complex, _read_complex),
    dt.date: Leaf("date", lambda value: [value.isoformat()], dt.date.fromisoformat),
    dt.time: Leaf("time", _write_moment, _read_time),
    dt.datetime: Leaf("datetime", _write_moment, _read_datetime),
    dt.timedelta: Leaf("timedelta", _write_timedelta, dt.timedelta),
    **{
        kind: _text_leaf(kind, kind.__name__)
        for kind in (
            decimal.Decimal,
            uuid.UUID,
            pathlib.PosixPath,
            pathlib.WindowsPath,
            pathlib.PurePosixPath,
            pathlib.PureWindowsPath,
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            ipaddress.IPv4Network,
            ipaddress.IPv6Network,
            ipaddress.IPv4Interface,
            ipaddress.IPv6Interface,
        )
    },
}

READERS: dict[str, Callable[..., Any]] = {
    "float": _read_float,
    **{leaf.name: leaf.read for leaf in LEAVES.values()},
}
