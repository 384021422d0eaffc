"""Access traces from files: text or binary integers; plain, gzip or xz."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from ..errors import ConfigurationError

FORMATS = {"text": "", "int32be": ">i", "int32le": "<i", "int64be": ">q"}

_CHUNK = 1 << 16  # a multiple of every item's size
_LONGEST_LINE = 4096
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"


def accesses(path: Path, form: str = "text") -> Iterator[str | int]:
    """The keys of a trace in order, read as a stream.

    ``form`` is one of ``FORMATS``. Text has one key a line; blank lines are skipped. The
    compression is told by the first bytes, not by the name. Raises ConfigurationError, at the
    point where it is met, for a file that can not be read, is cut, damaged or empty, or does not
    fit the format."""
    if form not in FORMATS:
        raise ConfigurationError(
            f"unknown trace format {form!r}; choose one of {', '.join(FORMATS)}"
        )
    found = False
    try:
        with _open(path) as stream:
            for key in _lines(stream, path) if form == "text" else _items(stream, path, form):
                found = True
                yield key
    except EOFError as error:
        raise ConfigurationError(f"trace {path} is cut short: {error}") from error
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ConfigurationError(f"trace {path} is damaged: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"trace {path} can not be read: {reason}") from error
    if not found:
        raise ConfigurationError(f"trace {path} is empty: it has no access in it")


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        magic = stream.read(len(_XZ))
    if magic.startswith(_GZIP):
        return cast(IO[bytes], gzip.open(path, "rb"))
    if magic == _XZ:
        return cast(IO[bytes], lzma.open(path, "rb"))
    return path.open("rb")


def _lines(stream: IO[bytes], path: Path) -> Iterator[str]:
    number = 0
    while line := stream.readline(_LONGEST_LINE):
        number += 1
        key = line.strip()
        if b"\0" in key or (len(line) == _LONGEST_LINE and not line.endswith(b"\n")):
            raise ConfigurationError(
                f"trace {path} is not text with one key a line (line {number}); "
                "give --trace-format int32be, int32le or int64be"
            )
        if key:
            yield key.decode("utf-8", "backslashreplace")


def _items(stream: IO[bytes], path: Path, form: str) -> Iterator[int]:
    item = struct.Struct(FORMATS[form])
    rest = b""
    while chunk := stream.read(_CHUNK):
        chunk = rest + chunk
        whole = len(chunk) - len(chunk) % item.size
        for (key,) in item.iter_unpack(memoryview(chunk)[:whole]):
            yield key
        rest = chunk[whole:]
    if rest:
        raise ConfigurationError(
            f"trace {path} is not {form}: {len(rest)} bytes are left over at its end "
            f"(cut short, or another format)"
        )
