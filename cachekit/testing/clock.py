"""A clock that stands still until it is moved."""

from __future__ import annotations

import threading


class ManualClock:
    """Monotonic seconds, moved only by :meth:`advance`. Pass it wherever a ``clock`` is asked."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("a monotonic clock can not go back")
        with self._lock:
            self._now += seconds
