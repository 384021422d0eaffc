"""A critical section that notices when it is entered again by its own thread.

Finalisers, ``__eq__`` of a user's key and signal handlers can run while a lock is held and call
the cache. They must not find a half-changed structure, nor wait for a lock of their own thread.

An exception out of a signal handler can also come between taking the lock and the ``with`` body,
and then nothing lets the lock go. So who finds it held by its own thread looks whether the one who
took it is still at work, further up the stack; if not, it is let go first.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any


class Section:
    """``with section as free``: the lock is held; ``free`` is False when this thread was inside
    already: then change nothing, but :meth:`defer` what must not be lost. ``garbage`` keeps
    values alive until the lock is let go: what their finalisers do, they do outside. Deferred
    calls run just after."""

    __slots__ = ("_busy", "_deferred", "_frame", "_lock", "_nested", "garbage")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._busy = False
        self._frame: FrameType | None = None  # whose ``with`` it is
        self._nested = 0
        self._deferred: list[Callable[[], None]] = []
        self.garbage: list[Any] = []

    def __enter__(self) -> bool:
        lock = self._lock
        if lock._is_owned() and not self._at_work():  # type: ignore[attr-defined]  # of both kinds
            self._let_go()
        lock.acquire()
        if self._busy:
            self._nested += 1
            return False
        self._frame = sys._getframe(1)
        self._busy = True
        return True

    def mend(self) -> bool:
        """Whether this thread is at work inside: then it must not wait for a lock whose holder
        may wait for this one. What it holds without being at work is let go."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            return False
        if self._at_work():
            return True
        self._let_go()
        return False

    def _at_work(self) -> bool:
        """Whether the one who is inside, or about to enter or leave, is on this thread's stack."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if self._busy and frame is self._frame:
                return True
            if frame.f_code in _DOORS and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def _let_go(self) -> None:
        """What an interrupted entry, or exit, has left behind."""
        self._busy, self._frame, self._nested = False, None, 0
        with suppress(RuntimeError):  # when it is not held any more
            while True:
                self._lock.release()

    def __exit__(self, *_: object) -> None:
        if self._nested:
            self._nested -= 1
            self._lock.release()
            return
        garbage, self.garbage = self.garbage, []
        self._busy, self._frame = False, None
        self._lock.release()
        del garbage
        while self._deferred:
            todo, self._deferred = self._deferred, []
            for work in todo:
                work()

    def defer(self, work: Callable[[], None]) -> None:
        """Have ``work`` done once the section is left."""
        self._deferred.append(work)

    @property
    def idle(self) -> bool:
        return not self._busy and not self._deferred


_DOORS = (Section.__enter__.__code__, Section.__exit__.__code__)
