"""The coarse clock: the time as an attribute, for hits that call nothing."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from .core.eventcount import Flag
from .core.threads import begin
from .runtime import Runtime


class Ticker:
    """A clock as an attribute: ``now`` is at most about 5 ms behind (more while other threads
    hold the interpreter). Reading it costs no call. A daemon thread turns it from the first
    :meth:`start` on; before that, and in a forked child, ``now`` is +inf: every look is a miss."""

    __slots__ = ("__weakref__", "_running", "_runtime", "_stop", "now")

    PERIOD = 0.005

    def __init__(self, runtime: Runtime) -> None:
        self.now = float("inf")
        self._runtime = runtime
        self._stop = Flag()
        self._running = False
        runtime.on_fork(self._reset)

    def start(self) -> None:
        """Make it run; called on every miss, so cheap when it runs already."""
        if self._running:
            return
        self._running = True
        self.now = self._runtime.clock()
        thread = threading.Thread(
            target=_turn,
            args=(weakref.ref(self), self._stop, self._runtime.clock),
            name="cachekit-ticker",
            daemon=True,
        )
        begin(thread, self._not_begun)

    def _not_begun(self) -> None:
        self._stop.set()
        self._reset()

    def stop(self) -> None:
        self._stop.set()

    def _reset(self) -> None:
        self.now = float("inf")
        self._stop = Flag()
        self._running = False


def _turn(ticker: weakref.ref[Ticker], stop: Flag, clock: Callable[[], float]) -> None:
    """The ticker's thread, which does not keep it."""
    while not stop.wait(Ticker.PERIOD):
        held = ticker()
        if held is None:
            return
        held.now = clock()
    held = ticker()
    if held is not None and stop is held._stop:
        held._reset()
