"""What writers asked for, as they wrote it down themselves: an intent before each call, an
acknowledgement after it, each with one unbuffered write.

A line is ``I number time kind key ...``, ``A number time``, ``E number error`` (the call raised) or
``X text`` (a read that was wrong). Times are of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Call(NamedTuple):
    """One put, put_many or delete. ``begin`` is from before it, ``end`` from after it was
    acknowledged; ``last`` is when it may have taken effect at the latest."""

    writer: str
    number: int
    kind: str
    keys: tuple[str, ...]
    begin: float
    end: float | None
    last: float

    @property
    def value(self) -> str:
        return f"{self.writer}:{self.number}"


class Trail:
    """The writing end, of one thread or task."""

    def __init__(self, folder: Path, writer: str) -> None:
        self.writer = writer
        self._file = os.open(folder / f"{writer}.trail", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._number = 0

    @property
    def next_value(self) -> str:
        return f"{self.writer}:{self._number + 1}"

    def intend(self, kind: str, keys: Sequence[str]) -> int:
        self._number += 1
        now = time.monotonic()
        self._write(f"I {self._number} {now!r} {kind} {' '.join(keys)}")
        return self._number

    def acknowledged(self, number: int) -> None:
        self._write(f"A {number} {time.monotonic()!r}")

    def raised(self, number: int, error: Exception) -> None:
        self._write(f"E {number} {type(error).__name__}")

    def wrong(self, text: str) -> None:
        self._write(f"X {text}")

    def _write(self, line: str) -> None:
        os.write(self._file, line.encode() + b"\n")


class Told(NamedTuple):
    """All that a folder of trails tells."""

    calls: list[Call]
    raised: int
    wrong: list[str]


def read_trails(folder: Path, ends: dict[str, float]) -> Told:
    """``ends``: per writer, when nothing of what it asked for could be accepted any more."""
    calls: list[Call] = []
    wrong: list[str] = []
    raised = 0
    for path in sorted(folder.glob("*.trail")):
        writer = path.stem
        last = ends[writer]
        intents: dict[int, tuple[str, tuple[str, ...], float]] = {}
        acknowledged: dict[int, float] = {}
        # What a kill cut off in the middle of a line never ended in a newline.
        for line in path.read_text().split("\n")[:-1]:
            mark, rest = line[0], line[2:]
            if mark == "I":
                number, at, kind, *keys = rest.split(" ")
                intents[int(number)] = (kind, tuple(keys), float(at))
            elif mark == "A":
                number, at = rest.split(" ")
                acknowledged[int(number)] = float(at)
            elif mark == "E":
                raised += 1
            else:
                wrong.append(f"{writer}: {rest}")
        for n, (kind, names, begin) in intents.items():
            end = acknowledged.get(n)
            calls.append(Call(writer, n, kind, names, begin, end, last if end is None else end))
    return Told(calls, raised, wrong)


def tell(path: Path, **facts: object) -> None:
    """Replace a small file of facts at once: readers see the old or the new one."""
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(facts))
    fresh.replace(path)
