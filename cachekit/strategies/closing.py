"""Flush and close of a whole cache: its write-back strategies side by side, and the rest of it,
within one time."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ..core.deadline import Deadline
from ..core.eventcount import Flag
from ..core.ops import Flushed
from ..core.threads import begin
from ..errors import BackendError
from ..observe import log
from ..runtime import Runtime, drive
from .endings import LEAST, aside, drain_async, hurry, loop_of, served, tell_left, waiting
from .parts import Parts

if TYPE_CHECKING:
    from .write_back import WriteBack

T = TypeVar("T")

# Seconds beyond its time that a strategy may take: for the batch under way, and to let go of its
# log.
GRACE = 0.8


class Plans(Protocol):
    """What a cache's planned invalidations answer to."""

    def close(self, timeout: float) -> None: ...


class _Call(Generic[T]):
    """A call of a strategy, in a thread of its own or here."""

    def __init__(self, fn: Callable[[], T]) -> None:
        self._fn = fn
        self._context = contextvars.copy_context()
        self._thread: threading.Thread | None = None
        self.landed: list[T] = []
        self.error: BaseException | None = None

    def start(self, name: str) -> bool:
        """False where no thread starts: the interpreter ends, or there are too many."""
        thread = threading.Thread(target=self.here, name=name, daemon=True)
        if begin(thread):
            self._thread = thread
        return self._thread is not None

    def here(self) -> None:
        try:
            self.landed.append(self._context.run(self._fn))
        except BaseException as error:  # belongs to whoever asked
            self.error = error

    def join(self, seconds: float | None) -> None:
        if self._thread is not None:
            self._thread.join(seconds)


def _side_by_side(
    strategies: Sequence[WriteBack],
    verb: Callable[[WriteBack, float | None], T],
    timeout: float | None,
    *,
    hasten: Callable[[WriteBack], None],
    alone_here: bool = False,
) -> list[T | None]:
    """What ``verb(strategy, seconds)`` gave; None of those that did not keep to their time, and go
    on in their threads. Raises the first error when all have ended.

    Where no thread starts they come one after another, each with what is left; their workers
    were told to ``hasten`` before. A worker's own thread does not wait for itself."""
    if not strategies:
        return []
    clock = strategies[0]._parts.runtime.clock
    until = None if timeout is None else Deadline(timeout, clock)
    over = None if timeout is None else Deadline(timeout + GRACE, clock)
    calls: list[_Call[T]] = []
    rest: list[_Call[T]] = []
    left = until.left if until is not None else lambda: None
    me = threading.current_thread()
    for strategy in strategies:
        call = _Call(partial(_now, verb, strategy, left))
        calls.append(call)
        mine = strategy._flusher.worker is me
        if (alone_here and len(strategies) == 1) or mine or not call.start("cachekit-end"):
            rest.append(call)
            if not mine and len(strategies) > 1:
                hasten(strategy)
    for call in rest:
        call.here()
    for call in calls:
        call.join(None if over is None else over.left())
    for call in calls:
        if call.error is not None:
            raise call.error
    return [call.landed[0] if call.landed else None for call in calls]


def _now(
    verb: Callable[[WriteBack, float | None], T],
    strategy: WriteBack,
    left: Callable[[], float | None],
) -> T:
    return verb(strategy, left())


def flush_all(parts: Parts, timeout: float | None) -> list[Flushed]:
    """Flush a cache's strategies side by side, at most ``timeout`` seconds for all together;
    None = however long that takes."""
    strategies: list[WriteBack] = list(parts.closers)
    if parts.near.section.mend():  # a handler amid the cache's own work: they say so at once
        return [strategy.flush(timeout) for strategy in strategies]
    told = _side_by_side(strategies, _flush, timeout, hasten=_hasten, alone_here=True)
    return [
        _late(strategy) if flushed is None else flushed
        for strategy, flushed in zip(strategies, told, strict=True)
    ]


async def flush_all_async(strategies: Sequence[WriteBack], timeout: float | None) -> list[Flushed]:
    """As :func:`flush_all`, in this event loop."""
    return await _gathered([strategy.aio.flush(timeout) for strategy in strategies])


async def close_all_async(strategies: Sequence[WriteBack], timeout: float) -> None:
    """Close them side by side, in the event loop that they belong to."""
    told = await _gathered([strategy.aio.close(timeout) for strategy in strategies])
    for strategy, flushed in zip(strategies, told, strict=True):
        tell_left(strategy, flushed.left, "closed", flushed.errors)


async def _gathered(verbs: Sequence[Any]) -> list[Any]:
    """What they gave; the first error when all have ended. A single one is awaited as it is."""
    if len(verbs) == 1:
        return [await verbs[0]]
    found = await asyncio.gather(*verbs, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


def _flush(strategy: WriteBack, seconds: float | None) -> Flushed:
    return strategy.flush(seconds)


def _hasten(strategy: WriteBack) -> None:
    """What waits in memory; a durable log is asked when its turn comes."""
    if strategy._log is None:
        marks, _ = drive(strategy.log.state(strategy._parts.runtime.threads, 0.0))
        hurry(strategy, marks)


def _late(strategy: WriteBack) -> Flushed:
    left = max(1, strategy.log.here())
    return Flushed(left=left, complete=False, errors=["TimeoutError: it still goes on"])


class Closing:
    """The end of a cache. Whoever asks for it while another thread is at it waits for that; who is
    broken off (Ctrl-C) may ask again."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._runtime: Runtime = parts.runtime
        self.begun = self.over = False
        self._begin_anew()
        parts.runtime.on_fork(self._begin_anew)

    def _begin_anew(self) -> None:
        self._lock = threading.RLock()  # a signal handler may close too
        self._closer: int | None = None
        self._done = Flag()

    def close(self, timeout: float, plans: Plans | None) -> None:
        self.begun = True
        section = self._parts.near.section
        if section.mend():  # a finaliser or handler amid the cache's own work
            section.defer(partial(aside, partial(self.close, timeout, plans)))
            return
        until = Deadline(timeout, self._runtime.clock)
        while not self._mine():
            if self.over or self._closer == threading.get_ident() or self._inside():
                return
            if not self._done.wait(until.left() + GRACE):
                return  # the other one's time is longer
        try:
            self._close(until, plans)
            self.over = True
        finally:
            self._closer = None
            self._done.set()

    def _mine(self) -> bool:
        with self._lock:
            if self.over or self._closer is not None:
                return False
            self._closer = threading.get_ident()
            self._done = Flag()
            return True

    def _inside(self) -> bool:
        """Whether this is a worker's thread or loop: whoever closes waits for that."""
        me, loop = threading.current_thread(), _running_loop()
        return any(
            s._flusher.worker is me or (loop is not None and loop_of(s) is loop)
            for s in self._parts.closers
        )

    def _close(self, until: Deadline, plans: Plans | None) -> None:
        """Each part has its turn, whatever the others raise, and :data:`LEAST` seconds at least."""
        parts, runtime = self._parts, self._runtime

        def rest(most: float) -> float:
            return max(LEAST, min(most, until.left()))

        with ExitStack() as last_first:
            if parts.far is not None:
                far = parts.far
                last_first.callback(lambda: drive(far.close(runtime.threads)))
            if parts.coarse:
                last_first.callback(parts.clock.stop)
            last_first.callback(lambda: _within(runtime.close, rest(until.left())))
            last_first.callback(parts.coherence.close)
            if parts.reader.keeper is not None:
                last_first.callback(parts.reader.keeper.close)
            last_first.callback(parts.events.close)
            last_first.callback(lambda: parts.invalidator.close(until.left()))
            if plans is not None:
                last_first.callback(lambda: plans.close(rest(2.0)))
            self._close_strategies(until.left())

    def _close_strategies(self, timeout: float) -> None:
        loop = _running_loop()
        strategies: list[WriteBack] = list(self._parts.closers)
        inside = [s for s in strategies if loop is not None and loop_of(s) is loop]
        for strategy in inside:
            _close_inside(strategy)
        others = [s for s in strategies if s not in inside]
        ended = _side_by_side(others, _close_one, timeout, hasten=hurry)
        for strategy, known in zip(others, ended, strict=True):
            if known is None:
                log.warning("%s: not closed in its time; that goes on", strategy.name)


def _close_inside(strategy: WriteBack) -> None:
    """From inside of its worker's loop, which can not turn meanwhile: the worker writes what waits
    as soon as the loop turns again, or else the interpreter's exit does."""
    strategy._end(0.0)
    strategy._flusher.end(0.0)


def _close_one(strategy: WriteBack, seconds: float | None) -> bool:
    timeout = 0.0 if seconds is None else seconds
    rested = strategy._flusher.ended  # its log was given to another process on purpose
    if strategy.is_async and not rested and not served(strategy) and _has_work(strategy):
        _close_loopless(strategy, timeout)
        return True
    flushed = strategy.close(timeout)
    if strategy._log is None or not rested:
        tell_left(strategy, flushed.left, "closed", flushed.errors)
    return True


def _has_work(strategy: WriteBack) -> bool:
    try:
        return strategy._flusher.works and not strategy._watch.over and waiting(strategy) > 0
    except BackendError:
        return False  # close says so


def _close_loopless(strategy: WriteBack, timeout: float) -> None:
    """Its loop has ended, or stands still: written in a new one."""
    if _running_loop() is not None or (loop_of(strategy) and strategy.log.busy):
        _close_inside(strategy)  # its batch may go on where it stopped
        return
    until = Deadline(timeout, strategy._parts.runtime.clock)
    strategy._end(timeout)
    strategy._flusher.end(0.0)
    drain_async([strategy], until)
    try:
        tell_left(strategy, waiting(strategy), "closed")
    except BackendError as error:
        log.error("%s: closed, and its log can not be asked: %s", strategy.name, error)
    strategy._watch.end()
    if strategy._log is not None:
        drive(strategy._log.close(strategy._parts.runtime.threads))


def _within(fn: Callable[[], None], seconds: float) -> None:
    """Call what may take longer, and wait no longer than that."""
    call = _Call(fn)
    if not call.start("cachekit-end"):
        call.here()
    call.join(seconds)
    if call.error is not None:
        raise call.error


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


__all__ = ["Closing", "close_all_async", "flush_all", "flush_all_async"]
