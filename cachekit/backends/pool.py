"""A bounded pool of connections for blocking drivers, safe for threads and across fork."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from ..core.deadline import Deadline
from ..core.eventcount import EventCount

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")


class Right:
    """To open one connection."""

    __slots__ = ("__weakref__",)


class Pool(Generic[C]):
    """At most ``limit`` connections of one kind, each used by one thread at a time.

    A connection whose use raised anything at all is thrown away, never given out again. Before
    an idle one is used, ``ready`` says whether it still is. After fork the child starts empty:
    it ``abandon``s the parent's idle connections (default: close them).

    Those that live are counted, by weak references, not those that came and went: one that an
    exception out of a signal handler lets fall takes no place for ever.
    """

    def __init__(
        self,
        connect: Callable[[Deadline], C],
        close: Callable[[C], None],
        *,
        limit: int,
        ready: Callable[[C, Deadline], bool],
        abandon: Callable[[C], None] | None = None,
    ) -> None:
        self._connect = connect
        self._close = close
        self._limit = limit
        self._ready = ready
        self._abandon = abandon or close
        self._lock = threading.RLock()  # a finaliser may come back here
        self._free = EventCount()
        self._idle: list[C] = []
        self._alive: weakref.WeakSet[C | Right] = weakref.WeakSet()
        self._waiting = 0
        self._turn = 0  # moved by close: connections of an earlier turn do not come back
        self._closed = False
        _pools.add(self)

    def use(
        self,
        deadline: Deadline,
        step: Callable[Concatenate[C, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """What ``step`` answers. Raises TimeoutError when no connection became free in time."""
        turn = self._turn
        try:
            # list.pop and list.append are atomic: the usual way takes no lock.
            connection = self._idle.pop()
        except IndexError:
            connection, turn = self._other(deadline)
        else:
            if not self._ready(connection, deadline):
                self._drop(connection)
                connection, turn = self._other(deadline)
        try:
            answer = step(connection, *args, **kwargs)
        except BaseException:
            self._drop(connection)
            raise
        self._give(connection, turn)
        return answer

    def close_idle(self) -> None:
        """Close the connections that are not in use; the next call opens one anew."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self._close(connection)
            self._alive.discard(connection)
        self._free.advance()

    def close(self) -> None:
        """Close the idle connections now and those in use when they come back.

        A call that comes later still works, with a connection for itself alone."""
        with self._lock:
            self._closed = True
            self._turn += 1
            idle, self._idle = self._idle, []
            self._alive = weakref.WeakSet()
        self._free.advance()
        for connection in idle:
            self._close(connection)

    def _other(self, deadline: Deadline) -> tuple[C, int]:
        """A ready connection by the slow way: a new one, or the next that comes free."""
        while True:
            seen = self._free.now
            with self._lock:
                turn, alive, connection = self._turn, self._alive, None
                with contextlib.suppress(IndexError):  # the usual way takes no lock
                    connection = self._idle.pop()
                if connection is None and len(alive) < self._limit:
                    right = Right()
                    alive.add(right)
                    break
            if connection is None:
                self._wait(seen, deadline)
                continue
            if self._ready(connection, deadline):
                return connection, turn
            self._drop(connection)
        try:
            connection = self._connect(deadline)
            with self._lock:  # nobody counts both
                alive.add(connection)
                alive.discard(right)
        except BaseException:
            alive.discard(right)
            self._free.advance_one()
            raise
        return connection, turn

    def _wait(self, seen: object, deadline: Deadline) -> None:
        with self._lock:
            self._waiting += 1
        try:
            # A connection given back before the line above told nobody.
            if not self._idle and not self._free.wait(seen, deadline.left()):
                raise TimeoutError("every connection is in use")
        except BaseException:
            self._free.advance_one()  # it may have been this one's turn
            raise
        finally:
            with self._lock:
                self._waiting -= 1

    def _give(self, connection: C, turn: int) -> None:
        if turn != self._turn or self._closed:
            self._drop(connection)
            return
        idle = self._idle
        idle.append(connection)
        if turn != self._turn:
            # Closed in this very moment: who gets it out of the list closes it.
            with contextlib.suppress(ValueError):
                idle.remove(connection)
                self._drop(connection)
        elif self._waiting:
            self._free.advance_one()

    def _drop(self, connection: C) -> None:
        try:
            self._close(connection)
        finally:
            self._alive.discard(connection)
            self._free.advance_one()

    def _after_fork(self) -> None:
        self._lock = threading.RLock()  # the parent may have held it
        self._free = EventCount()
        inherited, self._idle = self._idle, []
        self._alive, self._waiting = weakref.WeakSet(), 0
        self._turn += 1
        for connection in inherited:
            self._abandon(connection)


_pools: weakref.WeakSet[Pool[Any]] = weakref.WeakSet()


def _child() -> None:
    for pool in list(_pools):
        pool._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_child)
