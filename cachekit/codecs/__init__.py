"""Values as bytes and back, exactly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ConfigurationError
from ..protocols import Codec
from .exact import ExactJson
from .msgpack import Msgpack
from .pickled import Pickle, Raw
from .shapes import registry_of
from .transforms import Compressed, Encrypted, Signed

__all__ = [
    "Compressed",
    "Encrypted",
    "ExactJson",
    "Msgpack",
    "Pickle",
    "Raw",
    "Signed",
    "registry_of",
    "resolve",
]

GROUP = "cachekit.codecs"

_BUILT_IN: dict[str, Callable[[], Codec]] = {
    "json": ExactJson,
    "msgpack": Msgpack,
    "pickle": Pickle,
    "raw": Raw,
}


def resolve(spec: str | Codec | None) -> Codec:
    """The codec a setting means: "json" (also None), "msgpack", "pickle", "raw", a name of the
    entry-point group ``cachekit.codecs`` (a codec, or a function that makes one), or a codec.

    Raises ConfigurationError for anything else; a name listed here is never looked up there."""
    if spec is None:
        return ExactJson()
    if not isinstance(spec, str):
        return _checked(spec, repr(type(spec).__name__))
    make = _BUILT_IN.get(spec)
    if make is not None:
        return make()
    from importlib.metadata import entry_points  # half of this package's import time

    installed = {point.name: point for point in entry_points(group=GROUP)}
    point = installed.get(spec)
    if point is None:
        names = ", ".join(repr(name) for name in [*_BUILT_IN, *sorted(installed)])
        raise ConfigurationError(f"unknown codec {spec!r}: use {names}, or a codec object")
    try:
        found = point.load()
        made = found if _is_codec(found) else found()
    except Exception as error:
        raise ConfigurationError(f"codec {spec!r} ({point.value}) can not be loaded") from error
    return _checked(made, repr(spec))


def _is_codec(found: Any) -> bool:
    if isinstance(found, type):
        return False
    return all(hasattr(found, name) for name in ("mark", "safe", "encode", "decode"))


def _checked(found: Any, name: str) -> Codec:
    if not _is_codec(found):
        hint = "; call it: a codec is an object" if isinstance(found, type) else ""
        raise ConfigurationError(
            f"{name} is not a codec: it needs mark, safe, encode and decode{hint}"
        )
    if not isinstance(found.mark, int) or not 0 < found.mark < 256:
        raise ConfigurationError(f"the mark of codec {name} must be an int from 1 to 255")
    codec: Codec = found
    return codec
