"""The end of the interpreter, for write-back strategies that were not closed.

One time for all of them together. The first strategy whose turn comes hurries every other one, so
that what hangs in one takes no time from the rest: their workers write meanwhile, each in its own
thread. What has no worker any more is written here, since no thread starts at an exit.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..core.deadline import Deadline
from ..core.threads import begin
from ..errors import BackendError, CacheKitError
from ..logs.queue import Marks
from ..observe import log
from ..runtime import AsyncioWorld, drive
from .aio import CLOSE_TIMEOUT

if TYPE_CHECKING:
    from .write_back import WriteBack

# Seconds that a strategy has at least, whatever the others took.
LEAST = 0.2
# Beyond every version, in as many partitions as a log can have.
EVERYTHING: Marks = (1 << 63,) * 64

_watches: dict[int, Watch] = {}
_exit: list[Deadline] = []  # of this process, once it ends


class Watch:
    """A strategy's turn at the interpreter's exit, until a close of it came to its end. It does not
    keep the strategy alive."""

    def __init__(self, strategy: WriteBack) -> None:
        self._strategy = weakref.ref(strategy, self._dropped)
        self.over = False
        self._drained = False
        _watches[id(self)] = self
        atexit.register(self)

    def _dropped(self, strategy: weakref.ref[WriteBack]) -> None:
        self.end()

    def end(self) -> None:
        self.over = True
        _watches.pop(id(self), None)
        atexit.unregister(self)

    def __call__(self) -> None:
        strategy = self._strategy()
        if strategy is None:
            return
        if not _exit:
            _exit.append(Deadline(CLOSE_TIMEOUT, time.monotonic))
        (until,) = _exit
        others = self._others()
        for one in (strategy, *others.values()):
            one._flusher.exiting = True
            hurry(one)
        _drain_threadless(list(others.values()), until)
        idle = [watch for watch, one in others.items() if one.is_async and not served(one)]
        idle = [watch for watch in idle if not watch._drained]
        for watch in idle:
            watch._drained = True
        _last_flush(strategy, until, [others[watch] for watch in idle])

    def _others(self) -> dict[Watch, WriteBack]:
        """Those whose turn is still to come."""
        found = {}
        for watch in list(_watches.values()):
            strategy = watch._strategy()
            if strategy is None:
                watch.end()
            elif watch is not self:
                found[watch] = strategy
        return found


def aside(close: Callable[[], object]) -> None:
    """Close in a thread of its own: whoever asks may hold what that waits for. Where no thread
    starts the interpreter ends, and the exit does it."""
    begin(threading.Thread(target=close, name="cachekit-end", daemon=True))


def last_flush(strategy: WriteBack) -> None:
    """Write what waits, at the interpreter's exit, and say what is lost or left."""
    _last_flush(strategy, Deadline(CLOSE_TIMEOUT, time.monotonic), [])


def hurry(strategy: WriteBack, marks: Marks = EVERYTHING) -> None:
    """Its worker writes at once what was accepted up to ``marks``; by default also what comes.
    Asks no log, and waits for nothing."""
    flusher = strategy._flusher
    if flusher.works:
        flusher.queue.hurry(marks)
        if not strategy.is_async and flusher.queue.here():
            flusher.start(strategy._parts.runtime.threads)


def served(strategy: WriteBack) -> bool:
    """Whether a worker of this process writes its batches."""
    flusher = strategy._flusher
    return flusher.works and flusher.advances()


def drain_async(strategies: Sequence[WriteBack], until: Deadline) -> None:
    """Write what waits for async sinks whose loops are gone, all in one new loop; not from inside
    of another one. What fails is still in the queue."""

    async def all_of_them() -> None:
        await asyncio.gather(*(_drain_in_loop(one, until) for one in strategies))

    asyncio.run(all_of_them())


def waiting(strategy: WriteBack) -> int:
    """How many operations are not written. Raises BackendError where the log can not be asked."""
    return strategy.log.here() if strategy._log is None else strategy.depth()


def tell_left(strategy: WriteBack, left: int, what: str, errors: Sequence[str] = ()) -> None:
    """``what``: how it ended; ``errors``: what kept it from being written, where that is known."""
    if left and strategy._log is None:
        log.error("%s: %s with %d writes lost", strategy.name, what, left)
    elif left and errors and errors[0].startswith("Backend"):  # how many there are is not known
        log.warning("%s: %s, and not all is written: %s", strategy.name, what, errors[0])
    elif left and strategy._flusher.works:
        log.warning("%s: %d writes are left in the log for the next start", strategy.name, left)


def _last_flush(strategy: WriteBack, until: Deadline, others: Sequence[WriteBack]) -> None:
    flusher, name = strategy._flusher, strategy.name
    flusher.exiting = True
    try:
        if strategy.is_async and not served(strategy):
            strategy._end(0.0)
            flusher.end(0.0)
            drain_async([strategy, *others], until)
        else:
            strategy.close(until.left())
            _drain_threadless([strategy], until)
        left = waiting(strategy)
    except CacheKitError as error:
        log.error("%s: the process ends, and its log can not be asked: %s", name, error)
        return
    except BaseException:  # Ctrl-C, or another SIGTERM
        tell_left(strategy, flusher.queue.here(), "the process ends")
        raise
    tell_left(strategy, left, "the process ends")


async def _drain_in_loop(strategy: WriteBack, until: Deadline) -> None:
    world = strategy._parts.runtime.asyncio()
    flusher, kept = strategy._flusher, strategy._log
    try:
        if not flusher.works or not (await strategy._backlog.standing(world))[0].depth:
            return
        seconds = max(LEAST, until.left())
        async with asyncio.timeout(seconds):  # a sink may hang
            await flusher.drain(world, seconds)
    except TimeoutError:
        await flusher.queue.release(world)
    except BackendError:
        return  # told when its own turn comes
    except Exception:
        log.exception("%s: its last batches failed", strategy.name)
    finally:
        if kept is not None:
            await kept.close(world)


def _drain_threadless(strategies: Sequence[WriteBack], until: Deadline) -> None:
    """Write what waits for plain sinks whose workers could not start any more: one after another,
    each with its share of the time. Nobody can end a sink that hangs here."""
    found = [one for one in strategies if one._flusher.threadless and one._flusher.works]
    for place, strategy in enumerate(found):
        runtime, flusher, kept = strategy._parts.runtime, strategy._flusher, strategy._log
        seconds = max(LEAST, until.left() / (len(found) - place))
        try:
            drive(flusher.drain(runtime.threads, seconds))
            if kept is not None:
                drive(kept.close(runtime.threads))
        except BackendError:
            continue  # told when its own turn comes
        except Exception:
            log.exception("%s: its last batches failed", strategy.name)


def loop_of(strategy: WriteBack) -> asyncio.AbstractEventLoop | None:
    """The loop that its worker was started in, if that is still open."""
    worker = strategy._flusher.worker
    loop = worker.loop() if isinstance(worker, AsyncioWorld) else None
    return None if loop is None or loop.is_closed() else loop
