"""A critical section that notices when it is entered again by its own thread.

Finalisers, ``__eq__`` of a user's key and signal handlers can run while a lock is held and call
the cache. They must not find a half-changed structure, nor wait for a lock of their own thread.

An exception out of a signal handler can also come between taking the lock and the ``with`` body,
or before the first step of leaving, and then nothing lets the lock go. So who finds it held by its
own thread looks whether the one who took it is still at work, further up the stack; if not, it is
let go first. And who has waited for it for long looks at the stacks of all threads: if nobody is
at work inside, the lock is given up for a new one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

PATIENCE = 0.5  # seconds of waiting, then it is looked whether anybody is inside


class Section:
    """``with section as free``: the lock is held; ``free`` is False when this thread was inside
    already: then change nothing, but :meth:`defer` what must not be lost. ``garbage`` keeps
    values alive until the lock is let go: what their finalisers do, they do outside. Deferred
    calls run just after."""

    __slots__ = (
        "_busy", "_deferred", "_entries", "_frame", "_giving_up", "_lock", "_nested", "garbage",
    )  # fmt: skip

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._busy = False
        self._entries = 0
        self._giving_up = threading.Lock()
        self._frame: FrameType | None = None  # whose ``with`` it is
        self._nested = 0
        self._deferred: list[Callable[[], None]] = []
        self.garbage: list[Any] = []

    def __enter__(self) -> bool:
        lock = self._lock
        if lock._is_owned():  # type: ignore[attr-defined]  # of both kinds
            if self._at_work():
                self._nested += 1
                return False
            self._let_go()
        try:
            while not self._take(lock):
                lock = self._wait(lock)
            self._frame = sys._getframe(1)
            self._busy = True
        except BaseException:  # out of a signal handler: the lock may be ours by now
            if lock._is_owned():  # type: ignore[attr-defined]
                self._let_go()
            raise
        return True

    def _take(self, lock: threading.RLock) -> bool:
        if not lock.acquire(False):
            return False
        # Counted first, then looked: whoever gives the lock up does it the other way round.
        self._entries += 1
        if lock is self._lock:
            return True
        lock.release()
        return False

    def _wait(self, lock: threading.RLock) -> threading.RLock:
        """Until the lock is free for a moment; the one to be taken. One that nobody can let go any
        more is given up."""
        while self._lock is lock:
            entries = self._entries
            if lock.acquire(timeout=PATIENCE):
                lock.release()
                break
            # Nobody came in all the while, and nobody is inside.
            if self._entries == entries and self._is_left():
                self._give_up(lock, entries)
        return self._lock

    def _give_up(self, lock: threading.RLock, entries: int) -> None:
        with self._giving_up:
            if self._lock is not lock or self._entries != entries:
                return
            fresh = threading.RLock()
            with fresh:  # nobody comes in before it is sure
                self._lock = fresh
                if self._entries == entries:
                    self._busy, self._frame, self._nested = False, None, 0
                else:
                    self._lock = lock

    def _is_left(self) -> bool:
        """Whether no thread is at work inside. Those that wait are not."""
        stacks = sys._current_frames().values()
        return not any(self._is_on(frame, waits=False) for frame in stacks)

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
        return self._is_on(sys._getframe(2), waits=True)

    def _is_on(self, stack: FrameType | None, *, waits: bool) -> bool:
        """``waits``: one that waits for the lock counts; it may have it for a moment."""
        frame, above = stack, None
        while frame is not None:
            if self._busy and frame is self._frame:
                return True
            counts = waits or above is None or above.f_code is not _WAIT
            if frame.f_code in _DOORS and counts and frame.f_locals.get("self") is self:
                return True
            frame, above = frame.f_back, frame
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
            return
        garbage, self.garbage = self.garbage, []
        self._busy, self._frame = False, None
        self._lock.release()
        del garbage
        while self._deferred:  # one by one: what one raises must not cost the others
            try:
                work = self._deferred.pop(0)
            except IndexError:  # another thread was here
                return
            work()

    def defer(self, work: Callable[[], None]) -> None:
        """Have ``work`` done once the section is left."""
        self._deferred.append(work)

    @property
    def idle(self) -> bool:
        return not self._busy and not self._deferred


_WAIT = Section._wait.__code__
_DOORS = (Section.__enter__.__code__, Section.__exit__.__code__)
