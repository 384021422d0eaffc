"""Partitions of a log, and their leases: prolonged while a batch of theirs is with the sink.

A source that is slow for longer than a lease must not make two workers take the same batch from
each other for ever. A process that dies or is paused renews nothing; a sink's call that hangs is
waited for six leases long, then others may take over.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from ..core.buffer import Buffer

LEASES = 6.0


class Lane:
    """A partition as this process sees it."""

    __slots__ = (
        "buffer",
        "cursor",
        "deliveries",
        "epoch",
        "name",
        "next_try",
        "over_at",
        "part",
        "renew_at",
        "until",
    )

    def __init__(self, name: str, part: int) -> None:
        self.name = name
        self.part = part
        self.epoch: int | None = None  # None: not its owner
        self.buffer = Buffer(name)
        self.cursor = 0
        self.until = 0  # nothing is delivered before everything up to here was read
        self.deliveries = 0
        self.renew_at = 0.0
        self.over_at = 0.0  # after which another may own it
        self.next_try = 0.0


class Owner(Protocol):
    """Who owns partitions."""

    def prolong(self) -> bool:
        """Renew what is due; False: there is nothing to renew any more."""


class LaneLeases:
    """One thread, from the first batch until the partitions are given back."""

    def __init__(self, clock: Callable[[], float], lease: float) -> None:
        self._clock = clock
        self._lease = lease
        self._end: float | None = None  # until when the batch that is out is waited for
        self._stop = threading.Event()  # the running thread's
        self._thread: threading.Thread | None = None

    @property
    def due(self) -> bool:
        """Whether a batch is out that is still waited for."""
        return self._end is not None and self._clock() < self._end

    def out(self, owner: Owner) -> None:
        """A batch goes to the sink."""
        self._end = self._clock() + LEASES * self._lease
        if self._thread is not None and self._thread.is_alive():
            return
        self._stop = threading.Event()
        thread = threading.Thread(
            target=_renew,
            args=(weakref.ref(owner), self._stop, self._lease / 3),
            name="cachekit-lanes",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:  # interpreter shutdown: no new thread can start
            return
        self._thread = thread

    def back(self) -> None:
        """The sink has answered."""
        self._end = None

    def stop(self) -> None:
        self._stop.set()
        self._thread = None


def _renew(held: weakref.ref[Owner], stop: threading.Event, pause: float) -> None:
    while not stop.wait(pause):
        owner = held()
        if owner is None or not owner.prolong():
            return
        del owner
