"""No SQLite connection of this package crosses a fork.

SQLite keeps its locks in memory, per process and file. A child inherits that memory without the
locks themselves: its own connections would then take none, and the last one closed in the parent
would delete the journal under it. So before a fork the work in progress is let end, for at most
two seconds, and every connection is closed; both sides open anew. If the time is not enough, the
child refuses SQLite files.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from threading import get_ident
from types import TracebackType
from typing import Protocol

from ..core.deadline import Deadline
from ..core.eventcount import EventCount

DRAIN = 2.0


class Holder(Protocol):
    """Who keeps connections open between its calls."""

    def close_idle(self) -> None: ...


class _Gate:
    """Passed by every use of a connection: ``with gate: ...``. Not held while a user's code
    runs. Costs about half a microsecond."""

    def __init__(self) -> None:
        self.cut = False  # this process was forked while a file was in use
        self._lock = threading.RLock()
        self._changed = EventCount()
        self._inside: dict[int, int] = {}  # by thread
        self._forking = False
        self._holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    def enlist(self, holder: Holder) -> None:
        self._holders.add(holder)

    def __enter__(self) -> None:
        while True:
            seen = self._changed.now
            with self._lock:
                if not self._forking:
                    me = get_ident()
                    self._inside[me] = self._inside.get(me, 0) + 1
                    return
            self._changed.wait(seen, DRAIN)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            me = get_ident()
            left = self._inside.get(me, 0) - 1
            if left > 0:
                self._inside[me] = left
            else:
                self._inside.pop(me, None)
        if self._forking:
            self._changed.advance()

    def before_fork(self) -> None:
        with self._lock:
            self._forking = True
            # Who forks is not inside: an exception out of a signal handler kept it from leaving.
            self._inside.pop(get_ident(), None)
        until = Deadline(DRAIN, time.monotonic)
        seen = self._changed.now
        while self._inside and self._changed.wait(seen, until.left()):
            seen = self._changed.now
        busy = bool(self._inside)
        for holder in [] if busy else list(self._holders):
            holder.close_idle()

    def in_parent(self) -> None:
        with self._lock:
            self._forking = False
        self._changed.advance()

    def in_child(self) -> None:
        self.cut = self.cut or bool(self._inside)
        self._lock = threading.RLock()
        self._changed = EventCount()
        self._inside = {}
        self._forking = False


gate = _Gate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=gate.before_fork, after_in_parent=gate.in_parent, after_in_child=gate.in_child
    )
