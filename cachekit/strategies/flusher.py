"""The worker of a write-back strategy: batches from the log to the sink, with retry and bisection.

Back-off is in tenacity's words: ``wait`` and ``stop`` objects, by default exponential with full
jitter. An error that says nothing about the rows (connection lost, timeout) is tried again until
the source is back, however long; any other error halves the batch until the row that causes it
stands alone, which is then tried ``attempts`` times and parked as a dead letter.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence

from tenacity.stop import stop_after_attempt, stop_base
from tenacity.wait import wait_base, wait_random_exponential

from ..core.ops import Flushed, Op
from ..core.outcome import Outcome
from ..core.policy import Batching, Retrying
from ..errors import BackendError, FencedOut
from ..logs.queue import Queue
from ..observe import Meter, log
from ..runtime import AnyWorld, AsyncioWorld, Runtime, drive
from .answers import attempted, is_outage, refused, told
from .drain import PATIENCE, Lost
from .serving import END, serve
from .waiting import Known, heard

# Applies a batch: the outcome's value is {id: error} of what failed (or None).
Apply = Callable[[AnyWorld, Sequence[Op]], Awaitable[Outcome]]
# Called with what was applied or parked, before the log lets go of it.
Settled = Callable[[AnyWorld, Sequence[Op]], Awaitable[None]]

LOOK = 0.02  # seconds between looks at a log that other processes drain too


class Flusher:
    """One worker per strategy: a daemon thread, or a task of the loop that put first where the
    sink is async. Started by the first operation."""

    def __init__(
        self,
        name: str,
        runtime: Runtime,
        meter: Meter,
        queue: Queue,
        apply: Apply,
        written: Settled,
        refused: Settled,
        *,
        batching: Batching,
        retrying: Retrying,
        is_async: bool,
        works: bool = True,
        taken: Callable[[Sequence[Op]], None] | None = None,
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
        self._taken = taken
        self.works = works  # else another process writes the batches
        self._wait = wait or wait_random_exponential(multiplier=retrying.base, max=retrying.cap)
        self._stop = stop or stop_after_attempt(retrying.attempts)
        self._lock = threading.Lock()
        self._worker: object | None = None
        self.token: object = None  # of the one worker that may work
        self._ending = threading.Event()
        self._next_batch = 0.0
        self._trouble = ""  # why the source takes nothing now
        self.exiting = False  # the interpreter is ending: nothing is parked any more
        self.threadless = False  # the interpreter is ending: no worker can start
        # Dropped: its worker ends.
        weakref.finalize(self, _hurry, weakref.ref(queue), os.getpid()).atexit = False

    # -- starting and ending --------------------------------------------------------------

    def start(self, world: AnyWorld) -> None:
        """Start the worker, unless it runs or is not to run here."""
        if self._alive() or not self.works:
            return
        with self._lock:
            if self._alive():
                return
            held, token = weakref.ref(self), object()
            self.token = token
            if self._worker is not None:
                self.queue.recall()  # its loop was closed under it: what it had out comes back
            if self._is_async and isinstance(world, AsyncioWorld):
                self._worker = world
                world.spawn(lambda: serve(held, world, token), f"flush {self.name}", bounded=False)
                return
            if self._is_async:
                return  # no loop to run it in
            threads = self.runtime.threads
            thread = threading.Thread(
                target=lambda: drive(serve(held, threads, token)),
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
        return isinstance(worker, threading.Thread) and worker.is_alive()

    def _advances(self) -> bool:
        """Whether the worker's loop turns, if it has one: nobody blocks for one that does not."""
        worker = self._worker
        loop = worker.loop() if isinstance(worker, AsyncioWorld) else None
        return loop is None or loop.is_running()

    async def drain(self, world: AnyWorld, timeout: float) -> None:
        """Write what waits here and now, without a worker: for the end of the interpreter, when
        no thread starts any more. Tries nothing twice."""
        self._ending.set()
        self.queue.recall()  # from a worker that went with its loop
        end = self.runtime.clock() + timeout
        while self.runtime.clock() < end:
            await self.queue.feed(world)
            batch = self.queue.take(self.batching.size)
            if not batch or not await self._carried(world, batch):
                break
        await self.queue.release(world)

    def flush(self, timeout: float | None, *, others: bool = True) -> Flushed:
        """Block until what was accepted before this call is applied or parked, or the time is
        over; says which. Not from inside the loop of an async sink: use the async face there.
        Not ``others``: what other processes have to write is not waited for."""
        threads, end = self.runtime.threads, self._end_of(timeout)
        known, mine = Known(), self._worker is threading.current_thread()
        try:
            drive(self._begin(threads, known, end))
            most = LOOK if self.queue.durable else 0.5
            while drive(self._look(threads, known, end)) and not mine:
                self.start(threads)
                if not self._waits(others):
                    break
                left = most if end is None else end - self.runtime.clock()
                if left <= 0:
                    break
                self.queue.wait_until_done(known.marks, min(left, most))
            return drive(self._report(threads, known, end))
        except BackendError as error:
            return self._unsure(known, error)

    async def flush_async(
        self, world: AsyncioWorld, timeout: float | None, *, others: bool = True
    ) -> Flushed:
        end, known = self._end_of(timeout), Known()
        try:
            await self._begin(world, known, end)
            pause = LOOK if self.queue.durable else 0.005
            while await self._look(world, known, end):
                self.start(world)
                if not self._waits(others):
                    break
                if end is not None and self.runtime.clock() >= end:
                    break
                await world.sleep(pause)
            return await self._report(world, known, end)
        except BackendError as error:
            return self._unsure(known, error)

    def _waits(self, others: bool) -> bool:
        """Whether there is anybody to wait for."""
        if self.queue.elsewhere:
            return others
        return not self.works or (self._alive() and self._advances())

    def end(self, timeout: float) -> None:
        """Let the worker finish the batch it has and stop; wait for that at most ``timeout``."""
        self._ending.set()
        self.queue.hurry_all()
        worker = self._worker
        if isinstance(worker, threading.Thread) and worker is not threading.current_thread():
            worker.join(timeout)

    def _end_of(self, timeout: float | None) -> float | None:
        return None if timeout is None else self.runtime.clock() + timeout

    def _step(self, end: float | None) -> float:
        """Seconds for one question to the log, within a flush that ends at ``end``."""
        return PATIENCE if end is None else min(PATIENCE, max(0.1, end - self.runtime.clock()))

    async def end_async(self, world: AsyncioWorld, timeout: float) -> None:
        """As :meth:`end`, of a worker in this loop."""
        self.end(0.0) if self._is_async else await world.aside(self.end, timeout)
        end = self.runtime.clock() + timeout
        while self._worker is world and self.runtime.clock() < end:
            await world.sleep(0.005)

    async def _begin(self, world: AnyWorld, known: Known, end: float | None) -> None:
        known.marks, known.dead = await self.queue.state(world, self._step(end))
        known.before = await self._look(world, known, end)
        if known.before:
            self.start(world)
            self.queue.hurry(known.marks)

    async def _look(self, world: AnyWorld, known: Known, end: float | None) -> int:
        known.left = await self.queue.undone(world, known.marks, self._step(end))
        return known.left

    async def _report(self, world: AnyWorld, known: Known, end: float | None) -> Flushed:
        _, dead = await self.queue.state(world, self._step(end))
        known.parked = max(0, dead - known.dead)
        return known.told(self.queue.dead(), self._trouble)

    def _unsure(self, known: Known, error: BackendError) -> Flushed:
        """The log does not answer: as much as was known, and the reason."""
        known.sure = False
        known.left = max(1, known.left)
        return known.told(self.queue.dead(), told(error))

    # -- working --------------------------------------------------------------------------

    async def turn(self, world: AnyWorld) -> float | None:
        """At most one batch. Seconds until there may be something to do, None = when told; END
        when the worker's work is over."""
        ending, queue = self.ended, self.queue
        if ending and queue.durable:
            return END  # what is left is not lost
        pause = await queue.feed(world)
        due = queue.due_in(self.batching.size, self.batching.delay)
        if due is None or due > 0:
            return END if ending else pause
        await self._pace(world)
        batch = queue.take(self.batching.size)
        if not batch:
            return END if ending else pause
        if self._taken is not None:
            self._taken(batch)
        self.meter.time("batch_size", float(len(batch)))
        return 0.0 if await self._carried(world, batch) else END

    async def _carried(self, world: AnyWorld, batch: Sequence[Op]) -> bool:
        """Carry a batch; whatever happens, what is not settled waits again."""
        try:
            return await self._carry(world, batch)
        except Lost:
            self.meter.count("batches_lost")
            return True
        except BaseException:  # cancelled, the log away, or a fault of ours
            await self.queue.nack(world, batch)
            raise

    @property
    def ended(self) -> bool:
        return self._ending.is_set()

    async def _pause(self, world: AnyWorld, seconds: float) -> None:
        """Wait, but not beyond the order to end."""
        if not isinstance(world, AsyncioWorld):
            self._ending.wait(seconds)
            return
        end = self.runtime.clock() + seconds
        while not self.ended and (left := end - self.runtime.clock()) > 0:
            async with heard(self.queue) as changed:
                if not self.ended:
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
        is back in the log, and the worker must not take it again. Raises Lost."""
        attempt = 0
        while True:
            attempt += 1
            delivery = await self.queue.delivery(world, batch)
            try:
                outcome = await self._apply(world, delivery)
            finally:
                self.queue.back()
            error = outcome.error
            if isinstance(error, FencedOut):
                await self._fenced(world, batch)
            failed = refused(batch, outcome.value) if error is None else {}
            if isinstance(failed, BaseException):
                error = failed
            elif error is None:
                done = [op for op in batch if op.id not in failed] if failed else batch
                if done:
                    await self._settle(world, done)
                rest = [op for op in batch if op.id in failed] if failed else ()
                if not rest:
                    return True
                if len(batch) > 1:
                    return all([await self._carry(world, [op]) for op in rest])
                error = failed[rest[0].id]
            self.meter.count("batch_failures")
            # At the interpreter's end whatever needs a thread fails: no row's fault.
            outage = self.exiting or is_outage(error)
            if outage:
                self._away(error)
            if not outage and len(batch) > 1:
                half = len(batch) // 2
                halves = (batch[:half], batch[half:])
                return all([await self._carry(world, part) for part in halves])
            state = attempted(attempt)
            if not outage and self._stop(state):
                await self._park(world, batch[0], error, batch[0].attempts + attempt)
                return True
            if self.ended or (self.exiting and self.queue.durable):
                await self.queue.nack(world, batch)
                return False
            self.meter.count("retries")
            await self._pause(world, self._wait(state))

    def _away(self, error: BaseException) -> None:
        self._trouble = told(error)
        self.meter.event("source_outages", strategy=self.name)
        self.meter.warn_once(
            f"source {self.name}",
            "%s: the source takes no batches now (%s); they wait, and are tried again",
            self.name,
            self._trouble,
        )

    async def _settle(self, world: AnyWorld, done: Sequence[Op]) -> None:
        """The source has them: tell the caches, then the log, however long that takes."""
        await self._written(world, done)
        while True:
            try:
                await self.queue.ack(world, done)
                break
            except BackendError as error:
                self.meter.event("log_errors", lane=self.name, error=type(error).__name__)
                if self.ended:
                    raise
                await self._pause(world, 0.2)
        self._trouble = ""
        self.meter.count("writes_applied", len(done))

    async def _fenced(self, world: AnyWorld, batch: Sequence[Op]) -> None:
        """A newer owner has written: nothing of this batch was applied. Raises Lost."""
        self.meter.count("fenced_writes", len(batch))
        self.meter.event("batches_fenced", lane=batch[0].lane)
        log.error(
            "%s: the source refused %d writes of an owner that is not the newest: they are "
            "read from the log again by whoever owns it",
            self.name,
            len(batch),
        )
        await self.queue.fenced(world, batch)
        raise Lost(self.name)

    async def _park(self, world: AnyWorld, op: Op, error: BaseException, attempts: int) -> None:
        # Hidden first: once it has left the log, a flush may return and reads must be right.
        await self._refused(world, [op])
        await self.queue.park(world, op, told(error), attempts)
        self.meter.event("dead_letters", strategy=self.name)
        log.error(
            "%s: version %d of a key was refused by the sink and parked: %s",
            self.name,
            op.version,
            type(error).__name__,
        )

    async def stopped(self, world: AnyWorld, *, failed: bool) -> None:
        """The worker ended: where it failed, another takes its place."""
        if failed:
            self.meter.event("worker_errors", strategy=self.name)
            await self._pause(world, 0.1)
        self._worker = None  # the next put or flush starts another
        if failed and not self.ended:
            self.start(world)


def _hurry(queue: weakref.ref[Queue], process: int) -> None:
    found = queue()
    if found is not None and os.getpid() == process:  # a fork may have copied its lock as held
        found.hurry_all()
