"""One value in the near tier, and how it is judged."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import Any, Final

INF: Final = float("inf")


class Verdict(enum.Enum):
    FRESH = "fresh"
    STALE = "stale"  # may be served while it is refreshed
    MISS = "miss"


class Missing(enum.Enum):
    """The type of :data:`MISSING`, so that type checkers can tell it from a value."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "cachekit.MISSING"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing.MISSING


class Entry:
    """A live value under one key of one shelf.

    ``deadline`` is when the hit road stops serving it (monotonic seconds, -inf once killed);
    ``uses`` counts hits since the last fold; ``types`` keeps 1, True and 1.0 apart; ``epoch`` is
    the shelf's epoch at which its tags were last found valid.
    """

    __slots__ = ("deadline", "epoch", "extra", "key", "shelf", "types", "uses", "value")

    def __init__(
        self, value: Any, deadline: float, key: Hashable, types: Any, shelf: Any, epoch: Any
    ) -> None:
        self.value = value
        self.deadline = deadline
        self.uses = 0.0  # a float: its addition allocates from a free list
        self.key = key
        self.types = types
        self.shelf = shelf
        self.epoch = epoch
        self.extra: Extra | None = None


class LooseEntry(Entry):
    """An entry of a user's mapping, which may drop it unseen: its hits count at once."""

    __slots__ = ()

    @property
    def uses(self) -> float:
        return 0.0

    @uses.setter
    def uses(self, more: float) -> None:
        if more:
            self.shelf.table.tally.hits += more


class Extra:
    """What only some entries have: grace, tags, weight, the name they are indexed by."""

    __slots__ = ("expires", "name", "seq", "tags", "weight")

    def __init__(
        self, expires: float, tags: tuple[str, ...], seq: int, weight: float, name: str | None
    ) -> None:
        self.expires = expires
        self.tags = tags
        self.seq = seq
        self.weight = weight
        self.name = name


def judge(entry: Entry, now: float) -> Verdict:
    """FRESH before the deadline; STALE until the end of grace; else MISS. Time only: tags are
    judged where the sequence of invalidations is (``near``)."""
    if now < entry.deadline:
        return Verdict.FRESH
    extra = entry.extra
    if extra is not None and now < extra.expires and entry.deadline != -INF:
        return Verdict.STALE
    return Verdict.MISS


def is_alive(entry: Entry) -> bool:
    return entry.deadline != -INF


def fold(entry: Entry, hits: float) -> None:
    """Count hits for an entry's function that the entry itself no longer carries."""
    entry.shelf.table.tally.hits += hits
