"""Partitions of a log, and their leases: prolonged while a batch of theirs is with the sink.

A source that is slow for longer than a lease must not make two workers take the same batch from
each other for ever. A process that dies or is paused renews nothing; a sink's call that hangs is
waited for six leases long, then others may take over.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Protocol

from ..core.buffer import Buffer
from ..core.eventcount import Flag
from ..core.ops import Op
from ..core.threads import begin
from ..protocols import Record

LEASES = 6.0


class Owed:
    """What the log has to be told of a lane, and was not yet: it could not be reached."""

    __slots__ = ("done", "parked", "unreadable")

    def __init__(self) -> None:
        self.done: list[Op] = []  # the source has them
        self.parked: list[tuple[Op, str, int]] = []  # with the error, after so many attempts
        self.unreadable: list[tuple[Record, str]] = []

    def __bool__(self) -> bool:
        return bool(self.done or self.parked or self.unreadable)

    @property
    def ops(self) -> list[Op]:
        """Those that went to the sink."""
        return [*self.done, *(op for op, _, _ in self.parked)]


class Lane:
    """A partition as this process sees it."""

    __slots__ = (
        "away_until",
        "behind",
        "buffer",
        "cursor",
        "deliveries",
        "epoch",
        "limit",
        "mean",
        "name",
        "next_try",
        "over_at",
        "owed",
        "part",
        "renew_at",
    )

    def __init__(self, name: str, part: int, limit: int) -> None:
        self.name = name
        self.part = part
        self.limit = limit  # operations that one read asks for
        self.mean = 0.0  # bytes of an operation, of those that were read last
        self.epoch: int | None = None  # None: not its owner
        self.buffer = Buffer(name)
        self.owed = Owed()
        self.cursor = 0  # everything up to here is in the buffer, owed, or settled
        self.behind = True  # nothing is delivered before all that was there at the claim was read
        self.deliveries = 0
        self.renew_at = 0.0
        self.over_at = 0.0  # after which another may own it
        self.next_try = 0.0  # to own it
        self.away_until = 0.0  # not asked before; 0: it answered the last time

    def claimed(self, epoch: int) -> None:
        self.epoch, self.cursor, self.behind, self.deliveries = epoch, 0, True, 0
        self.buffer, self.owed = Buffer(self.name), Owed()

    def lost(self) -> None:
        self.epoch = None
        self.buffer, self.owed = Buffer(self.name), Owed()

    def leased(self, now: float, lease: float) -> None:
        """``now``: from before the log was asked, to have it no longer than the log says."""
        self.renew_at, self.over_at = now + lease / 3, now + lease


def answering_first(lanes: Iterable[Lane]) -> list[Lane]:
    """Those that answered the last time before those that did not: one whose server is away must
    not hold up the others."""
    return sorted(lanes, key=lambda lane: lane.away_until)


class Owner(Protocol):
    """Who owns partitions."""

    def prolong(self) -> bool:
        """Renew what is due; False: there is nothing to renew any more."""


class LaneLeases:
    """One thread, from the first claim until the partitions are given back."""

    def __init__(self, clock: Callable[[], float], lease: float) -> None:
        self._clock = clock
        self._lease = lease
        self._end: float | None = None  # until when what goes on is waited for
        self._stop = Flag()  # the running thread's
        self._thread: threading.Thread | None = None

    @property
    def due(self) -> bool:
        """Whether something goes on that is still waited for."""
        return self._end is not None and self._clock() < self._end

    def out(self, owner: Owner, seconds: float = 0.0) -> None:
        """A batch goes to the sink, or waits ``seconds`` for its next try; or the log is asked."""
        self._end = self._clock() + seconds + LEASES * self._lease
        if self._thread is not None and self._thread.is_alive():
            return
        self._stop = Flag()
        thread = threading.Thread(
            target=_renew,
            args=(weakref.ref(owner), self._stop, self._lease / 3),
            name="cachekit-lanes",
            daemon=True,
        )
        if begin(thread):
            self._thread = thread

    def back(self) -> None:
        """It has answered."""
        self._end = None

    def stop(self) -> None:
        self._stop.set()
        self._thread = None


def _renew(held: weakref.ref[Owner], stop: Flag, pause: float) -> None:
    while not stop.wait(pause):
        owner = held()
        if owner is None or not owner.prolong():
            return
        del owner
