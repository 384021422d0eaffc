"""Words for a terminal: nothing that others wrote can move its cursor or hide a line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TextIO

from ..core.policy import Duration, seconds
from ..errors import ConfigurationError


def safe(text: str) -> str:
    """With control, format and surrogate characters escaped: one line, in reading order."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def short(text: str, most: int) -> str:
    """Safe, and at most ``most`` characters."""
    shown = safe(text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def utc(at: float) -> str:
    """Unix seconds as ISO 8601."""
    try:
        moment = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return "?"  # what is stored may be anything
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns under their heads; the last one is as wide as it likes."""
    wide = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip()
        for row in (heads, *rows)
    ]


def say(line: str, to: TextIO | None = None) -> None:
    """Print at once, also what the stream's encoding does not have."""
    stream = to or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def duration(text: str, option: str) -> float:
    """Seconds from an option's "90", "1.5s", "10m"."""
    try:
        value: Duration = float(text)
    except ValueError:
        value = text
    try:
        return seconds(value, option)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error)) from error
