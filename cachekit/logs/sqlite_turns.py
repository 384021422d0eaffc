"""Whose turn it is to write, and who may ride along: leader and followers of a group commit."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from threading import get_ident
from types import CodeType

from ..core.deadline import Deadline
from ..protocols.log import Bounds, Record

LOOK = 0.05  # seconds between looks at whether the holder is at work


class Ticket:
    """A caller that wants to write. Belongs to one thread."""

    __slots__ = ("chosen", "done", "gone", "thread", "wake")

    def __init__(self) -> None:
        self.thread = 0
        self.wake: threading.Lock | None = None  # held until the caller need not wait any more
        self.done = False  # a leader wrote it, or failed to
        self.chosen = False  # the turn was handed on to it
        self.gone = False  # nobody waits for it any more


class Append(Ticket):
    """Records that any leader may write along with its own."""

    __slots__ = ("bounds", "error", "queue", "records", "versions")

    def __init__(self, queue: str, records: Sequence[Record], bounds: Bounds) -> None:
        super().__init__()
        self.queue = queue
        self.records = records
        self.bounds = bounds
        self.versions: list[int | None] = []
        self.error: BaseException | None = None


class Turns:
    """One writer at a time, in order of arrival. Costs next to nothing where nobody waits.

    A thread that finds the turn its own already, in a signal handler say, goes on with it. An
    exception out of a handler can keep a thread from giving its turn back, wherever that is tried.
    So who waits looks now and then whether the holder is at work: whether one of ``takers``, the
    code that takes turns, is on its stack."""

    def __init__(self, takers: Collection[CodeType] = ()) -> None:
        self._takers = frozenset(takers)
        self._holder = 0  # the thread whose turn it is
        self._lock = threading.Lock()
        self._waiting: deque[Ticket] = deque()
        self.parting: Callable[[], None] | None = None  # done once, by whoever leaves next

    def enter_now(self) -> bool:
        """Take the turn if nobody has it, nor waits for it."""
        me = get_ident()
        with self._lock:
            if self._holder == me:
                return True
            if self._holder or self._waiting:
                return False
            self._holder = me
        return True

    def enter(self, ticket: Ticket, deadline: Deadline) -> bool:
        """Wait for the turn; False: a leader has done the work of this ticket meanwhile.

        Who was given it calls :meth:`leave`. Raises TimeoutError at the deadline; an Append may
        then be written all the same, if a leader had it in hand."""
        me = ticket.thread = get_ident()
        with self._lock:
            if self._holder == me or not (self._holder or self._waiting):
                self._holder = me
                return True
            wake = ticket.wake = threading.Lock()
            wake.acquire()
            self._waiting.append(ticket)
        try:
            woken = self._wait(wake, deadline)
        except BaseException:
            if self._give_up(ticket):
                self.leave()
            raise
        if woken:
            return not ticket.done
        if self._give_up(ticket):
            return True
        if ticket.done:
            return False
        raise TimeoutError("other writers of this process took too long")

    def _give_up(self, ticket: Ticket) -> bool:
        """Wait no longer; whether the ticket has been given the turn in this very moment."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            ticket.gone = not ticket.chosen
            return ticket.chosen

    def riders(self, most: int) -> list[Append]:
        """Appends that wait now: the caller, whose turn it is, writes them along."""
        if not self._waiting:
            return []
        with self._lock:
            riders = [one for one in self._waiting if isinstance(one, Append)][:most]
            for one in riders:
                self._waiting.remove(one)
        return riders

    def back(self, riders: Sequence[Append]) -> None:
        """Their leader could not write: they wait on, first in the line."""
        with self._lock:
            self._waiting.extendleft(one for one in reversed(riders) if not one.gone)

    def done(self, riders: Sequence[Append]) -> None:
        for one in riders:
            one.done = True
            if one.wake is not None:
                one.wake.release()

    def leave(self) -> None:
        """Give the turn on, if it is this thread's: belongs in a ``finally`` around the taking
        too, which an exception can come out of with the turn taken."""
        parting = self.parting
        try:
            if parting is not None and self._holder == get_ident():
                self.parting = None
                parting()
        finally:
            with self._lock:
                if self._holder == get_ident():
                    self._pass_on()

    def _pass_on(self) -> None:
        if not self._waiting:
            self._holder = 0
            return
        ticket = self._waiting.popleft()
        ticket.chosen = True
        self._holder = ticket.thread
        if ticket.wake is not None:
            ticket.wake.release()

    def _wait(self, wake: threading.Lock, deadline: Deadline) -> bool:
        while (left := deadline.left()) > LOOK:
            if wake.acquire(timeout=LOOK):
                return True
            self._take_from_the_idle()
        return wake.acquire(timeout=max(0.0, left))

    def _take_from_the_idle(self) -> None:
        holder = self._holder
        frame = sys._current_frames().get(holder)
        while frame is not None:
            if frame.f_code in self._takers:
                return
            frame = frame.f_back
        with self._lock:
            if self._takers and holder and self._holder == holder:
                self._pass_on()
