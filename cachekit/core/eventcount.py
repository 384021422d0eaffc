"""Waiting for other threads so that an exception out of a signal handler does no harm.

The wait of :class:`threading.Condition`, and so that of an Event, lets go of a lock and takes it
again. An exception out of a signal handler (Ctrl-C, an orderly end, a time limit by SIGALRM) that
comes between the two leaves it let go, and then the caller's ``with`` says "cannot release
un-acquired lock" in place of the exception; one that comes at the beginning of its ``with`` leaves
it held for ever. Here nothing is held while a thread waits.
"""

from __future__ import annotations

import threading
from _thread import LockType, allocate_lock


class EventCount:
    """Where threads wait for the next change of what they look at themselves (an eventcount: Reed
    and Kanodia, "Synchronization with Eventcounts and Sequencers", 1979)::

        seen = changed.now               # first this
        if not there():                  # then the look
            changed.wait(seen, seconds)  # then the wait, holding no lock

    and whoever changes it says :meth:`advance` afterwards. No change after ``seen`` is missed."""

    __slots__ = ("_waiting", "now")

    def __init__(self) -> None:
        self.now = object()
        self._waiting: dict[LockType, bool] = {}  # a step on one door is atomic

    def wait(self, seen: object, seconds: float | None = None) -> bool:
        """Block until there was an advance after ``seen``; False: ``seconds`` went by without."""
        if self.now is not seen:
            return True
        door = allocate_lock()
        door.acquire()
        try:
            self._waiting[door] = True
            if self.now is seen:
                door.acquire(True, -1 if seconds is None else _bounded(seconds))
            self._waiting.pop(door, None)
        except BaseException:
            if not self._waiting.pop(door, False):
                self.advance_one()  # it was this one's turn, perhaps
            raise
        return self.now is not seen

    def advance(self) -> None:
        """Wake all."""
        self.now = object()
        try:
            for door in self._doors():
                self._open(door)
        except BaseException:  # out of a signal handler: the others must not wait on
            self.advance()
            raise

    def advance_one(self) -> None:
        """Wake the one that waits longest; for changes that only one can make use of."""
        self.now = object()
        try:
            for door in self._doors():
                if self._open(door):
                    return
        except BaseException:  # who knows whether it was woken
            self.advance()
            raise

    def _doors(self) -> list[LockType]:
        while True:
            try:
                return list(self._waiting)
            except RuntimeError:  # the list's room was made by a collection, whose finalisers ran
                continue

    def _open(self, door: LockType) -> bool:
        """False: it went by itself, or another thread was first."""
        try:
            return self._waiting.pop(door, False)
        finally:
            try:  # no step before it: one that is not listed any more must be open
                door.release()
            except RuntimeError:  # it was
                pass


class Flag:
    """Not set, then set: an Event without ``clear``."""

    __slots__ = ("_changed", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._changed = EventCount()

    def set(self) -> None:
        self.is_set = True
        self._changed.advance()

    def wait(self, seconds: float | None = None) -> bool:
        """Block until it is set; False: ``seconds`` went by first."""
        seen = self._changed.now
        return self.is_set or self._changed.wait(seen, seconds) or self.is_set


def _bounded(seconds: float) -> float:
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)
