"""A critical section that notices when it is entered again by its own thread.

Finalisers, ``__eq__`` of a user's key and signal handlers can run while a lock is held and call
the cache. They must not find a half-changed structure, nor wait for a lock of their own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Section:
    """``with section as free``: the lock is held; ``free`` is False when this thread was inside
    already: then change nothing, but :meth:`defer` what must not be lost. ``garbage`` keeps
    values alive until the lock is let go: what their finalisers do, they do outside. Deferred
    calls run just after."""

    __slots__ = ("_busy", "_deferred", "_lock", "_nested", "garbage")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._busy = False
        self._nested = 0
        self._deferred: list[Callable[[], None]] = []
        self.garbage: list[Any] = []

    def __enter__(self) -> bool:
        self._lock.acquire()
        if self._busy:
            self._nested += 1
            return False
        self._busy = True
        return True

    def __exit__(self, *_: object) -> None:
        if self._nested:
            self._nested -= 1
            self._lock.release()
            return
        garbage, self.garbage = self.garbage, []
        self._busy = False
        self._lock.release()
        del garbage
        while self._deferred:
            try:
                work = self._deferred.pop(0)
            except IndexError:  # another thread took the last one
                return
            work()

    def defer(self, work: Callable[[], None]) -> None:
        """Have ``work`` done once the section is left."""
        self._deferred.append(work)

    @property
    def idle(self) -> bool:
        return not self._busy and not self._deferred
