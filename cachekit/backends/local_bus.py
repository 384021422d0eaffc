"""A bus within one process, and what any bus owes its listeners' mistakes."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..core.notes import Note, NoteKind
from ..protocols import Ears

log = logging.getLogger("cachekit")


class SafeEars:
    """A listener whose mistakes end here: what it raises is logged once and goes no further.

    Notes it failed to take count as missed: it is ``lost`` and ``joined`` anew. Once
    ``stopped`` it is told nothing."""

    def __init__(self, ears: Ears, name: str) -> None:
        self.stopped = False
        self._ears = ears
        self._name = name
        self._logged = False

    def joined(self) -> None:
        self._call(self._ears.joined)

    def heard(self, notes: Sequence[Note]) -> None:
        if not self._call(self._ears.heard, notes):
            self.lost()
            self.joined()

    def lost(self) -> None:
        self._call(self._ears.lost)

    def lag(self, seconds: float) -> None:
        self._call(self._ears.lag, seconds)

    def foreign(self, count: int) -> None:
        self._call(self._ears.foreign, count)

    def _call(self, ear: Callable[..., None], *args: Any) -> bool:
        if self.stopped:
            return True
        try:
            ear(*args)
        except Exception:
            if not self._logged:
                self._logged = True
                log.exception("a listener of the bus of %s failed; logged once", self._name)
            return False
        return True


class LocalBus:
    """A bus for stores of one process: a note has arrived when the step that made it returns.

    The owner of the data calls ``post`` under the lock that orders its steps, and ``deliver``
    once it has let go of that lock. Delivery is in the order of posting, one thread at a time,
    so a listener must not wait for a thread that may be inside a step. Without listeners a
    step pays for one look at a list. A forked child's listeners go on listening."""

    bound = 0.0
    coarse = False

    def __init__(self, name: str = "local") -> None:
        self._name = name
        self._ears: list[SafeEars] = []
        self._posted: deque[list[Note]] = deque()
        self._telling = False
        self._renew()
        _buses.add(self)

    def listen(self, ears: Ears) -> Callable[[], None]:
        safe = SafeEars(ears, self._name)
        with self._turn:
            self._tell()  # what came before is for those who were there
            with self._change:
                # On the list first: what is posted from now on waits for the turn that we hold.
                self._ears = [*(each for each in self._ears if not each.stopped), safe]
            safe.joined()
            safe.lag(0.0)

        def stop() -> None:
            # Without the turn: a listener that is slow must not keep another from leaving.
            safe.stopped = True
            with self._change:
                self._ears = [each for each in self._ears if not each.stopped]

        return stop

    def post(self, kind: NoteKind, names: Sequence[str], sender: bytes) -> None:
        """Note what the step of the moment invalidates. Call ``deliver`` after its lock."""
        if self._ears and names:
            now = time.monotonic()
            self._posted.append([Note(kind, name, sender, now) for name in names])

    def deliver(self) -> None:
        """Tell all that is posted; returns when the listeners have heard it.

        Within a listener it returns at once: who called the listener goes on telling."""
        if self._ears:
            with self._turn:
                self._tell()

    def _tell(self) -> None:
        if self._telling:
            return
        self._telling = True
        try:
            while self._posted:
                notes = self._posted[0]
                for ears in self._ears:
                    ears.heard(notes)
                    ears.lag(0.0)
                del self._posted[0]  # only now: an interrupt in between must not lose them
        finally:
            self._telling = False

    def _renew(self) -> None:
        self._turn = threading.RLock()
        self._change = threading.RLock()  # a finaliser that stops a listener may run inside
        self._telling = False


_buses: weakref.WeakSet[LocalBus] = weakref.WeakSet()


def _child() -> None:
    for bus in list(_buses):
        bus._renew()  # another thread of the parent may have held its locks


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_child)
