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
import weakref
from types import TracebackType
from typing import Protocol

DRAIN = 2.0


class Holder(Protocol):
    """Who keeps connections open between its calls."""

    def close_idle(self) -> None: ...


class _Gate:
    """Passed by every use of a connection: ``with gate: ...``. Not held while a user's code
    runs. Costs about half a microsecond."""

    def __init__(self) -> None:
        self.cut = False  # this process was forked while a file was in use
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._forking = False
        self._holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    def enlist(self, holder: Holder) -> None:
        self._holders.add(holder)

    def __enter__(self) -> None:
        with self._changed:
            while self._forking:
                self._changed.wait(DRAIN)
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._inside -= 1
            if self._forking:
                self._changed.notify_all()

    def before_fork(self) -> None:
        with self._changed:
            self._forking = True
            self._changed.wait_for(lambda: not self._inside, DRAIN)
            busy = self._inside
        for holder in [] if busy else list(self._holders):
            holder.close_idle()

    def in_parent(self) -> None:
        with self._changed:
            self._forking = False
            self._changed.notify_all()

    def in_child(self) -> None:
        self.cut = self.cut or self._inside > 0
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._forking = False


gate = _Gate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=gate.before_fork, after_in_parent=gate.in_parent, after_in_child=gate.in_child
    )
