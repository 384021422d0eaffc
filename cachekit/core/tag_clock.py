"""Which tags were invalidated when: a sequence in place of a clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from .writers import Writers

MAX_TAGS_REMEMBERED = 65_536


class TagClock:
    """``seq`` counts invalidations; a load remembers it from before it began. Bounded: forgotten
    tags raise a floor, below which everything tagged counts as invalidated (a miss, never more).
    A tag can also be blocked by writers: then it counts as invalidated at every moment.

    Changed under the near tier's lock, asked without it. ``clock`` is monotonic seconds."""

    __slots__ = ("_blocks", "_clock", "_floor", "_last", "seq")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seq = 0
        self._clock = clock
        self._floor = 0
        self._last: OrderedDict[str, int] = OrderedDict()  # the latest last
        self._blocks = Writers(clock)

    def moved(self, tags: Iterable[str], seq: int) -> bool:
        """Whether one of the tags was invalidated after ``seq``, or is blocked."""
        if self.blocked(tags):
            return True
        # The floor rises before a tag is forgotten, so it is read last.
        return any(self._last.get(tag, 0) > seq for tag in tags) or seq < self._floor

    def blocked(self, tags: Iterable[str] | None) -> bool:
        """Whether one of the tags is blocked now; any at all, where they are not known yet."""
        if not len(self._blocks):
            return False
        return self._blocks.any() if tags is None else any(map(self._blocks.blocked, tags))

    def seize(self, tags: Iterable[str], writer: object, lease: float) -> None:
        """Block the tags for at most ``lease`` seconds."""
        self._blocks.seize(tags, writer, lease)

    def end(self, tags: Iterable[str], writer: object) -> None:
        for tag in tags:
            self._blocks.end(tag, writer)

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

    def reset_after_fork(self) -> None:
        """Writers of the parent do not end in the child."""
        self._blocks = Writers(self._clock)
