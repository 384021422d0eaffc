"""One budget of time for everything one call does in the cache."""

from __future__ import annotations

from collections.abc import Callable


class Deadline:
    """A point in monotonic time until which a call may spend time in a backend.

    The clock is passed in (``core`` owns none). ``left()`` is in seconds and never negative.
    """

    __slots__ = ("_clock", "at")

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.at = clock() + seconds

    def left(self) -> float:
        return max(0.0, self.at - self._clock())

    def passed(self) -> bool:
        return self._clock() >= self.at

    def __repr__(self) -> str:
        return f"Deadline(left={self.left():.3f})"
