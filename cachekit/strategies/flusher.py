"""The worker of a write-back strategy: batches from the log to the sink, with retry and bisection.

Back-off is in tenacity's words: ``wait`` and ``stop`` objects, by default exponential with full
jitter. An error that says nothing about the rows (connection lost, timeout) is tried again until
the source is back, however long; any other error halves the batch until the row that causes it
stands alone, which is then tried ``attempts`` times and parked as a dead letter.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tenacity import RetryCallState
from tenacity.stop import stop_after_attempt, stop_base
from tenacity.wait import wait_base, wait_random_exponential

from ..core.ops import Flushed, Op
from ..core.outcome import Outcome
from ..core.policy import Batching, Retrying
from ..logs.memory import MemoryLog
from ..observe import Meter, log
from ..runtime import AnyWorld, AsyncioWorld, Runtime, drive
from .intent import outcome_unknown

# Applies a batch: the outcome's value is {id: error} of what failed (or None).
Apply = Callable[[AnyWorld, Sequence[Op]], Awaitable[Outcome]]
# Called with what was applied or parked, before the log lets go of it.
Settled = Callable[[AnyWorld, Sequence[Op]], Awaitable[None]]


class Flusher:
    """One worker per strategy: a daemon thread, or a task of the loop that put first where the
    sink is async. Started by the first operation."""

    def __init__(
        self,
        name: str,
        runtime: Runtime,
        meter: Meter,
        queue: MemoryLog,
        apply: Apply,
        written: Settled,
        refused: Settled,
        *,
        batching: Batching,
        retrying: Retrying,
        is_async: bool,
        wait: wait_base | None = None,
        stop: stop_base | None = None,
    ) -> None:
        self.name = name
        self.runtime = runtime
        self.meter = meter
        self.queue = queue
        self.batching = batching
        self._apply = apply
        self._written = written
        self._refused = refused
        self._is_async = is_async
        self._wait = wait or wait_random_exponential(multiplier=retrying.base, max=retrying.cap)
        self._stop = stop or stop_after_attempt(retrying.attempts)
        self._lock = threading.Lock()
        self._worker: object | None = None
        self._hurry = 0  # flush everything up to this version without waiting for a full batch
        self._ending = threading.Event()
        self._next_batch = 0.0
        self.threadless = False  # the interpreter is ending: no worker can start

    # -- starting and ending --------------------------------------------------------------

    def start(self, world: AnyWorld) -> None:
        """Start the worker unless it runs."""
        if self._alive():
            return
        with self._lock:
            if self._alive():
                return
            if self._is_async and isinstance(world, AsyncioWorld):
                self._worker = world
                if not world.spawn(lambda: self._work(world), f"flush {self.name}"):
                    self._worker = None  # too many tasks; the next put or flush tries again
                return
            thread = threading.Thread(
                target=lambda: drive(self._work(self.runtime.threads)),
                name=f"cachekit-flush-{self.name}",
                daemon=True,
            )
            self._worker = thread
            try:
                thread.start()
            except RuntimeError:  # interpreter shutdown: written by ``drain`` instead
                self._worker = None
                self.threadless = True

    def _alive(self) -> bool:
        worker = self._worker
        if self._is_async and isinstance(worker, AsyncioWorld):
            loop = worker.loop()
            return loop is not None and not loop.is_closed()
        return worker is not None

    def _advances(self) -> bool:
        """Whether the worker's loop turns, if it has one: nobody blocks for one that does not."""
        worker = self._worker
        loop = worker.loop() if isinstance(worker, AsyncioWorld) else None
        return loop is None or loop.is_running()

    async def drain(self, world: AnyWorld, timeout: float) -> None:
        """Write what waits here and now, without a worker: for the end of the interpreter, when
        no thread starts any more. Tries nothing twice."""
        self._ending.set()
        end = self.runtime.clock() + timeout
        while self.runtime.clock() < end:
            batch = await self.queue.take(self.batching.size)
            if not batch or not await self._carry(world, batch):
                return

    def flush(self, timeout: float | None) -> Flushed:
        """Block until what was accepted before this call is applied or parked, or the time is
        over; says which. Not from inside the loop of an async sink: use the async face there."""
        mark, before = self._begin()
        end = None if timeout is None else self.runtime.clock() + timeout
        if before[0] and not self._is_async:
            self.start(self.runtime.threads)
        while self.queue.undone(mark) and self._alive() and self._advances():
            left = 0.5 if end is None else end - self.runtime.clock()
            if left <= 0:
                break
            self.queue.wait_for_change(min(left, 0.5))
        return self._report(mark, before)

    async def flush_async(self, world: AsyncioWorld, timeout: float | None) -> Flushed:
        mark, before = self._begin()
        end = None if timeout is None else self.runtime.clock() + timeout
        if before[0]:
            self.start(world)
        while self.queue.undone(mark) and self._alive():
            if end is not None and self.runtime.clock() >= end:
                break
            await world.sleep(0.005)
        return self._report(mark, before)

    def end(self, timeout: float) -> None:
        """Let the worker finish the batch it has and stop; wait for that at most ``timeout``."""
        self._ending.set()
        self.queue.wake()
        worker = self._worker
        if isinstance(worker, threading.Thread) and worker is not threading.current_thread():
            worker.join(timeout)

    def _begin(self) -> tuple[int, tuple[int, int]]:
        mark = self.queue.mark()
        before = (self.queue.undone(mark), len(self.queue.dead()))
        self._hurry = max(self._hurry, mark)
        self.queue.wake()
        return mark, before

    def _report(self, mark: int, before: tuple[int, int]) -> Flushed:
        left = self.queue.undone(mark)
        dead = self.queue.dead()[before[1] :]
        parked = sum(1 for letter in dead if letter.op.version <= mark)
        return Flushed(
            applied=max(0, before[0] - left - parked),
            parked=parked,
            left=left,
            complete=left == 0,
            errors=[letter.error for letter in dead][:10],
        )

    # -- working --------------------------------------------------------------------------

    def _due(self) -> bool:
        return self._ending.is_set() or (self._hurry > 0 and self.queue.undone(self._hurry) > 0)

    async def _work(self, world: AnyWorld) -> None:
        batching, mine = self.batching, self._worker
        try:
            while True:
                await self._until_due(world)
                batch = await self.queue.take(batching.size)
                if not batch:
                    if self._ending.is_set():
                        return
                    continue
                await self._pace(world)
                self.meter.time("batch_size", float(len(batch)))
                try:
                    if not await self._carry(world, batch):
                        return
                except BaseException:
                    # Cancelled, or a fault of ours: what is not settled waits again.
                    await self.queue.nack(batch)
                    raise
        except Exception:
            log.exception("%s: the write-back worker failed; it starts again", self.name)
            self.meter.event("worker_errors", strategy=self.name)
            await self._pause(world, 0.1)
            self._worker = None
            if not self._ending.is_set():
                self.start(world)
        finally:
            if self._worker is mine:
                self._worker = None  # ended, or its loop is ending: the next put starts another

    async def _until_due(self, world: AnyWorld) -> None:
        size, delay = self.batching.size, self.batching.delay
        if not isinstance(world, AsyncioWorld):
            self.queue.wait_for_work(size, delay, self._due)
            return
        while True:
            async with heard(self.queue) as changed:
                left = self.queue.due_in(size, delay, self._due)
                if left is not None and left <= 0:
                    return
                await changed(left)

    async def _pause(self, world: AnyWorld, seconds: float) -> None:
        """Wait, but not beyond the order to end."""
        if not isinstance(world, AsyncioWorld):
            self._ending.wait(seconds)
            return
        end = self.runtime.clock() + seconds
        while not self._ending.is_set() and (left := end - self.runtime.clock()) > 0:
            async with heard(self.queue) as changed:
                if not self._ending.is_set():
                    await changed(left)

    async def _pace(self, world: AnyWorld) -> None:
        rate = self.batching.rate
        if rate is None:
            return
        now = self.runtime.clock()
        if self._next_batch > now:
            await world.sleep(self._next_batch - now)
        self._next_batch = max(now, self._next_batch) + 1.0 / rate

    async def _carry(self, world: AnyWorld, batch: Sequence[Op]) -> bool:
        """Apply a batch completely: every operation ends applied or parked.

        False: the flusher is ending and the source does not answer; what is left of the batch
        is back in the log, and the worker must not take it again."""
        attempt = 0
        while True:
            attempt += 1
            outcome = await self._apply(world, batch)
            error = outcome.error
            if error is None:
                failed = refused(outcome.value)
                done = [op for op in batch if op.id not in failed]
                if done:
                    await self._written(world, done)
                    await self.queue.ack(done)
                    self.meter.count("writes_applied", len(done))
                rest = [op for op in batch if op.id in failed]
                if not rest:
                    return True
                if len(batch) > 1:
                    return all([await self._carry(world, [op]) for op in rest])
                error = failed[rest[0].id]
            self.meter.count("batch_failures")
            outage = outcome_unknown(error)
            if not outage and len(batch) > 1:
                half = len(batch) // 2
                halves = (batch[:half], batch[half:])
                return all([await self._carry(world, part) for part in halves])
            state = _state(attempt, error)
            if not outage and self._stop(state):
                await self._park(world, batch[0], error)
                return True
            if self._ending.is_set():
                await self.queue.nack(batch)
                return False
            self.meter.count("retries")
            await self._pause(world, self._wait(state))

    async def _park(self, world: AnyWorld, op: Op, error: BaseException) -> None:
        # Hidden first: once it has left the log, a flush may return and reads must be right.
        await self._refused(world, [op])
        await self.queue.park(op, f"{type(error).__name__}: {error}")
        self.meter.event("dead_letters", strategy=self.name)
        log.error(
            "%s: version %d of a key was refused by the sink and parked: %s",
            self.name,
            op.version,
            type(error).__name__,
        )


@asynccontextmanager
async def heard(queue: MemoryLog) -> AsyncIterator[Callable[[float | None], Awaitable[None]]]:
    """A wait (seconds at most, or None) for the log's next change, for an event loop: look at
    the log inside, then wait, and no change is missed."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(event.set)
        except RuntimeError:  # the loop closed
            return

    async def changed(seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return

    queue.listen(wake)
    try:
        yield changed
    finally:
        queue.unlisten(wake)


def _state(attempt: int, error: BaseException) -> RetryCallState:
    state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]  # only counted
    state.attempt_number = attempt
    return state


def refused(answer: Any) -> dict[Any, BaseException]:
    """What a sink's answer says was not written: {id: exception}; any other value is none."""
    if not isinstance(answer, Mapping):
        return {}
    return {id: error for id, error in answer.items() if isinstance(error, BaseException)}
