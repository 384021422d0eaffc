"""Leases prolonged while their load runs, so that one slow load is not joined by others.

A process that dies or is paused renews nothing: its lease ends. A load that hangs is renewed to
its ``load_timeout``, or where there is none six leases long; then others may load.
"""

from __future__ import annotations

import threading
import weakref

from ..core.eventcount import EventCount
from ..core.policy import Policy
from ..core.threads import begin
from ..errors import BackendError
from ..observe import Meter
from ..packing import Right
from ..runtime import Runtime, drive
from ..tiers import Far

LEASES = 6.0
LONGEST_PAUSE = 2.5  # seconds between two looks at what is held
IDLE_ROUNDS = 8  # then the thread ends


class _Held:
    __slots__ = ("due", "end", "key", "lease", "token")

    def __init__(self, key: str, token: bytes, lease: float, now: float, end: float) -> None:
        self.key = key
        self.token = token
        self.lease = lease
        self.due = now + lease / 2
        self.end = end


class Keeper:
    """The leases that loads of this process hold now. One thread, while any is held for long;
    holding one costs a dict entry."""

    def __init__(self, runtime: Runtime, far: Far, meter: Meter) -> None:
        self.runtime = runtime
        self.far = far
        self.meter = meter
        self._held: dict[bytes, _Held] = {}
        self._shortest = LONGEST_PAUSE * 4
        self._running = False
        self._idle = 0
        self.wake = EventCount()
        self._closed = False

    @property
    def pause(self) -> float:
        """Seconds to the next look."""
        return self._shortest / 4

    def hold(self, key: str, right: Right, policy: Policy) -> None:
        """Renew from now on, at half the lease each time, until :meth:`let_go`."""
        now = self.runtime.clock()
        end = now + (policy.load_timeout or LEASES * policy.lease)
        self._held[right.token] = _Held(key, right.token, policy.lease, now, end)
        if policy.lease < self._shortest:
            self._shortest = policy.lease
            self.wake.advance()  # the thread may be asleep for longer than this lease allows
        if not self._running and not self._closed:
            self._start()

    def let_go(self, right: Right) -> None:
        self._held.pop(right.token, None)

    def _start(self) -> None:
        with self.runtime.once:
            if self._running:
                return
            self._running = True
        thread = threading.Thread(
            target=_run, args=(weakref.ref(self),), name="cachekit-leases", daemon=True
        )
        begin(thread, self._not_begun)

    def _not_begun(self) -> None:
        self._running = False

    def renew(self) -> bool:
        """One look at what is held; False when the thread may end."""
        self._idle = 0 if self._held else self._idle + 1
        if self._closed or self._idle >= IDLE_ROUNDS:
            with self.runtime.once:
                self._running = False
                # In this order: who holds one from here on starts a thread, or is seen here.
                if self._closed or not self._held:
                    return False
                self._running = True
        now = self.runtime.clock()
        for held in [h for h in list(self._held.values()) if h.due <= now]:
            self._renew_one(held, now)
        return True

    def _renew_one(self, held: _Held, now: float) -> None:
        if now >= held.end:
            self._held.pop(held.token, None)
            return
        world, far = self.runtime.threads, self.far
        try:
            deadline = far.deadline(world)
            kept = drive(far.renew(world, held.key, held.token, held.lease, deadline))
        except BackendError:
            held.due = now + held.lease / 8
            return
        self.meter.count("leases_renewed")
        if kept:
            held.due = now + held.lease / 2
        else:
            self._held.pop(held.token, None)  # voided: the fill will be refused

    def close(self) -> None:
        self._closed = True
        self.wake.advance()

    def reset_after_fork(self) -> None:
        self._held = {}
        self._running = False
        self.wake = EventCount()


def _run(keeper: weakref.ref[Keeper]) -> None:
    """The thread. It holds the keeper only while it looks, so that a cache nobody uses any more
    can go."""
    while True:
        held = keeper()
        if held is None:
            return
        wake = held.wake
        seen = wake.now
        pause = held.pause
        del held
        wake.wait(seen, pause)
        held = keeper()
        if held is None or not held.renew():
            return
