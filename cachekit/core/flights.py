"""Single flight: one load of a key shared by all its concurrent callers in one world.

A flight is registered with ``dict.setdefault`` (atomic, no lock). An invalidation *detaches*
it: it leaves the table, so that whoever arrives later starts anew, and it loses the right to
fill. Nothing here waits; the world that owns the callers does (``runtime``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from contextvars import ContextVar
from typing import Any


class Flight:
    """One load in progress. ``landed`` turns true once, with ``value`` or ``error`` set, or with
    ``handed`` set: then nobody has a result and a waiter must lead a new flight."""

    __slots__ = (
        "_wake",
        "behind",
        "certain",
        "detached",
        "error",
        "handed",
        "ident",
        "joined",
        "landed",
        "loading",
        "tags",
        "value",
        "waits_for",
        "watch",
    )

    def __init__(self, ident: Hashable, *, watch: bool = False, behind: bool = False) -> None:
        self.ident = ident
        self.watch = watch  # loads nothing: there to be detached, not to be joined
        self.behind = behind  # renews a value that is still served
        self.value: Any = None
        self.error: BaseException | None = None
        self.certain = True  # False: only for callers that joined before the load began
        self.loading = False
        self.landed = False
        self.handed = False
        self.detached = False
        self.joined = 0
        self.tags: tuple[str, ...] | None = None  # None: not known before the load ends
        self.waits_for: list[Flight] = []  # what this one's leader and its children wait for now
        self._wake: list[Callable[[], None]] = []

    def on_landing(self, wake: Callable[[], None]) -> bool:
        """Have ``wake`` called once landed; True when it already has (then it may be called
        or not). Appending before looking makes a lost wake-up impossible."""
        self._wake.append(wake)
        return self.landed

    def land(
        self, value: Any = None, error: BaseException | None = None, *, certain: bool = True
    ) -> None:
        """Give the result to all who joined; not ``certain``: an invalidation elsewhere may
        have passed the load by, so only to those who came before it began."""
        self.value = value
        self.error = error
        self.certain = certain
        self._land()

    def hand_on(self) -> None:
        """The leader gave up (cancelled, refused): waiters start a new flight."""
        self.handed = True
        self._land()

    def end(self) -> None:
        """Whatever became of it: nobody waits for it any more, and what it brings is not kept."""
        if not self.landed:
            self.detached = True
            self.handed = True
        self._land()

    def _land(self) -> None:
        self.landed = True
        # Not popped before they are called: a signal handler may raise in between, and then
        # ``end`` calls the rest. Twice is fine.
        for wake in tuple(self._wake):
            wake()
        self._wake.clear()


class FlightTable:
    """The flights of one world, by key identity (text, or a tuple where a key has no text)."""

    __slots__ = ("_flights", "_lock")

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight] = {}
        # Guards every removal: between "is it still mine" and "pop" nobody may board anew.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, ident: Hashable) -> bool:
        return ident in self._flights

    def board(self, mine: Flight) -> Flight:
        """The flight of a key: ``mine``, which the caller leads then, or another's. One that only
        watches gives way to one that loads: else a stream of looks would keep all loads from
        being shared.

        ``mine`` must come to its :meth:`end` whatever happens, so this is called inside a ``try``:
        a signal handler may raise before the answer is back."""
        while True:
            flight = self._flights.setdefault(mine.ident, mine)
            if flight is mine or not flight.watch or mine.watch:
                return flight
            flight.detached = True
            self.leave(flight)

    def end(self, flight: Flight) -> None:
        """The flight is over, landed or not. One that never boarded may be ended too, and twice
        is fine: who leads one ends it in two ``finally``, one around the other, since a signal
        handler may raise at the door of either."""
        self.leave(flight)
        flight.end()

    def leave(self, flight: Flight) -> None:
        """Take a flight out of the table, if it is still the one there."""
        with self._lock:
            if self._flights.get(flight.ident) is flight:
                self._flights.pop(flight.ident, None)  # a signal handler may have been here

    def detach(self, ident: Hashable, but: Flight | None = None) -> None:
        """Take the flight of a key out: it will keep nothing. ``but``: not if it is this one."""
        with self._lock:
            flight = self._flights.get(ident)
            if flight is None or flight is but:
                return
            self._flights.pop(ident, None)
            flight.detached = True

    def detach_tagged(self, tags: Iterable[str]) -> None:
        """Detach flights that carry one of the tags, and those whose tags are not yet known."""
        wanted = frozenset(tags)
        for flight in list(self._flights.values()):
            if flight.tags is None or not wanted.isdisjoint(flight.tags):
                flight.detached = True
                self.leave(flight)

    def detach_all(self) -> None:
        for flight in list(self._flights.values()):
            flight.detached = True
            self.leave(flight)


# Flights the current context leads, innermost last; child tasks inherit it.
led: ContextVar[tuple[Flight, ...]] = ContextVar("cachekit_led", default=())


def leads(ident: Hashable, table: FlightTable) -> bool:
    """Whether this context is loading that very key (waiting for it would never end)."""
    return any(f.ident == ident and not f.landed for f in led.get())


def closes_circle(flight: Flight) -> bool:
    """Whether waiting for ``flight`` would wait for a flight this context leads.

    Walks flight -> what its leader (and tasks it started) wait for; each flight once."""
    mine = led.get()
    seen: set[int] = set()
    ahead = [flight]
    while ahead:
        at = ahead.pop()
        if any(at is f for f in mine):
            return True
        if id(at) not in seen:
            seen.add(id(at))
            ahead.extend(list(at.waits_for))
    return False
