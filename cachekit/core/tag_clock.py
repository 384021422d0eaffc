"""Which tags were invalidated when: a sequence in place of a clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

MAX_TAGS_REMEMBERED = 65_536


class TagClock:
    """``seq`` counts invalidations; a load remembers it from before it began. Bounded: forgotten
    tags raise a floor, below which everything tagged counts as invalidated (a miss, never more).

    Changed under the near tier's lock, asked without it."""

    __slots__ = ("_floor", "_last", "seq")

    def __init__(self) -> None:
        self.seq = 0
        self._floor = 0
        self._last: OrderedDict[str, int] = OrderedDict()  # the latest last

    def moved(self, tags: Iterable[str], seq: int) -> bool:
        """Whether one of the tags was invalidated after ``seq``."""
        # The floor rises before a tag is forgotten, so it is read last.
        return any(self._last.get(tag, 0) > seq for tag in tags) or seq < self._floor

    def invalidate(self, tags: Iterable[str]) -> None:
        self.seq += 1
        for tag in tags:
            self._last[tag] = self.seq
            self._last.move_to_end(tag)  # not by way of absence: someone may look now
        if len(self._last) > MAX_TAGS_REMEMBERED:
            oldest = list(self._last)[: MAX_TAGS_REMEMBERED // 2]
            self._floor = max(self._floor, self._last[oldest[-1]])
            for tag in oldest:
                del self._last[tag]

    def invalidate_all(self) -> None:
        self.seq += 1
        self._floor = self.seq
