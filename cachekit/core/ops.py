"""Write-back operations and what became of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class OpKind(enum.Enum):
    PUT = "put"
    DELETE = "delete"


@dataclass(slots=True, eq=False)
class Op:
    """One write on its way to the source. Versions come from the log and only grow.

    ``key`` is the cache's key, ``id`` what the source's functions are given. ``lane`` names the
    log's partition, and ``epoch`` grows with every batch of a lane that is given to the sink,
    whoever gives it: what a source compares to refuse a writer that woke up too late."""

    key: Any
    kind: OpKind
    value: Any = None
    id: Any = None
    version: int = 0
    epoch: int = 0
    lane: str = ""
    attempts: int = 0
    since: int = 0  # version of the oldest unwritten operation this one stands for
    at: float = 0.0  # monotonic seconds of its acceptance


@dataclass(frozen=True, slots=True)
class Dead:
    """An operation the sink refused for good, with its error."""

    op: Op
    error: str


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush did: counts of operations that were waiting when it began (in memory: of keys
    with one). ``applied``: written, or superseded by a newer operation of their key."""

    applied: int = 0
    parked: int = 0
    left: int = 0
    complete: bool = True
    errors: list[str] = field(default_factory=list)
