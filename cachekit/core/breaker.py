"""A circuit breaker: closed, open, half-open (Nygard, Release It!, 2007).

Plain state under a lock; the clock is passed in. While open a call costs one comparison.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

PROBE_PATIENCE = 10.0


class BreakerState(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Opens after ``failures`` in a row, lets one probe through every ``reset`` seconds."""

    __slots__ = (
        "__weakref__",
        "_clock",
        "_count",
        "_lock",
        "_probe_until",
        "_probing",
        "_until",
        "failures",
        "opened",
        "reset",
        "state",
    )

    def __init__(self, clock: Callable[[], float], failures: int = 5, reset: float = 1.0) -> None:
        if failures < 1 or reset <= 0:
            raise ValueError("breaker: failures >= 1 and reset > 0")
        self._clock = clock
        self.failures = failures
        self.reset = reset
        self.state = BreakerState.CLOSED
        self.opened = 0
        self._count = 0
        self._until = 0.0
        self._probing = False
        self._probe_until = 0.0
        self._lock = threading.Lock()

    def allow(self) -> bool:
        """Whether a call may go out. True in the half-open state makes the caller the probe: it
        must end with :meth:`success`, :meth:`failure` or :meth:`abandon`."""
        if self.state is BreakerState.CLOSED:
            return True
        with self._lock:
            if self._closed():  # meanwhile
                return True
            now = self._clock()
            if now < self._until or (self._probing and now < self._probe_until):
                return False
            self.state = BreakerState.HALF_OPEN
            self._probing = True
            # A probe whose caller vanished with its loop must not keep the breaker open.
            self._probe_until = now + PROBE_PATIENCE * self.reset
            return True

    def _closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    def success(self) -> None:
        if self._count or self.state is not BreakerState.CLOSED:
            with self._lock:
                self._count = 0
                self._probing = False
                self.state = BreakerState.CLOSED

    def failure(self) -> None:
        with self._lock:
            self._count += 1
            if self.state is not BreakerState.CLOSED or self._count >= self.failures:
                if self.state is BreakerState.CLOSED:
                    self.opened += 1
                self.state = BreakerState.OPEN
                self._until = self._clock() + self.reset
            self._probing = False

    def reset_after_fork(self) -> None:
        """In a forked child: the parent's probe is the parent's."""
        self._lock = threading.Lock()
        self._probing = False

    def abandon(self) -> None:
        """The call ended without a verdict (cancelled): the next one may probe."""
        if self._probing:
            with self._lock:
                self._probing = False
