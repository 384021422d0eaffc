"""The worker of a write-back strategy: batches from the log to the sink.

Back-off is in tenacity's words: ``wait`` and ``stop`` objects, by default exponential with full
jitter.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from tenacity.stop import stop_after_attempt, stop_base
from tenacity.wait import wait_base, wait_random_exponential

from ..core.eventcount import Flag
from ..core.ops import Flushed, Op
from ..core.outcome import Outcome
from ..core.policy import Batching, Retrying
from ..core.threads import begin
from ..errors import BackendError
from ..logs.queue import Queue
from ..observe import Meter, log
from ..runtime import AnyWorld, AsyncioWorld, Runtime, drive
from .answers import told
from .carriage import Carriage
from .drain import Lost
from .flush import Flush
from .serving import END, serve
from .waiting import heard

# Applies a batch: the outcome's value is {id: error} of what failed (or None).
Apply = Callable[[AnyWorld, Sequence[Op]], Awaitable[Outcome]]
# Called with what was applied, before the log lets go of it.
Settled = Callable[[AnyWorld, Sequence[Op]], Awaitable[None]]
# Called with what is to be parked, and how.
Refused = Callable[[AnyWorld, Sequence[Op], Callable[[], Awaitable[None]]], Awaitable[None]]


LEAST_LOOK = 0.1  # seconds


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
        refused: Refused,
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
        self.apply = apply
        self._written = written
        self._refused = refused
        self._is_async = is_async
        self._taken = taken
        self.works = works  # else another process writes the batches
        self.default_wait = wait_random_exponential(multiplier=retrying.base, max=retrying.cap)
        self.default_stop = stop_after_attempt(retrying.attempts)
        self.wait = wait or self.default_wait
        self.stop = stop or self.default_stop
        self._lock = threading.RLock()  # a signal handler may put while its thread starts a worker
        self._starting = False
        self._looks = False  # whether a loop will look after the worker of another
        self.worker: object | None = None  # a thread, or the world of a loop
        self.token: object = None  # of the one worker that may work
        self._ending = Flag()
        self._next_batch = 0.0
        self.trouble = ""  # why the source takes nothing now
        self.exiting = False  # the interpreter is ending: nothing is parked any more
        self.threadless = False  # the interpreter is ending: no worker can start
        # Dropped: its worker ends.
        weakref.finalize(self, _hurry, weakref.ref(queue), os.getpid()).atexit = False

    # -- starting and ending --------------------------------------------------------------

    def start(self, world: AnyWorld) -> None:
        """Start the worker, unless it runs or is not to run here."""
        if not self.works:
            return
        if self._alive(world):
            if self._is_async and isinstance(world, AsyncioWorld) and world is not self.worker:
                self._look_again(world)
            return
        with self._lock:
            if self._alive(world) or self._starting:
                return
            self._starting = True
            try:
                self._begin_work(world)
            finally:
                self._starting = False

    def _begin_work(self, world: AnyWorld) -> None:
        held, token = weakref.ref(self), object()
        self.token = token
        if self.worker is not None:
            self.queue.recall()  # its loop was closed under it: what it had out comes back
        if self._is_async and isinstance(world, AsyncioWorld):
            self.worker = world
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
        self.worker = thread
        if not begin(thread):  # written by ``drain`` instead
            self.worker = None
            self.threadless = True

    def _alive(self, world: AnyWorld | None = None) -> bool:
        """Whether the worker works. One whose loop stands still between two batches does not, for
        a ``world`` that could have it."""
        worker = self.worker
        if self._is_async and isinstance(worker, AsyncioWorld):
            loop = worker.loop()
            if loop is None or loop.is_closed():
                return False
            able = isinstance(world, AsyncioWorld) and world is not worker
            return not able or loop.is_running() or self.queue.busy
        return isinstance(worker, threading.Thread) and worker.is_alive()

    def looked(self, world: AnyWorld) -> None:
        self._looks = False
        if not self.ended and (self.queue.here() or not self._alive(world)):
            self.start(world)

    def _look_again(self, world: AsyncioWorld) -> None:
        """Another loop has the worker. Nothing tells when that one is closed, or stands still, so
        this one looks when what was put here should have been written."""
        if self._looks:
            return
        self._looks = True
        seconds = 1.5 * self.batching.delay + LEAST_LOOK
        asyncio.get_running_loop().call_later(seconds, _look, weakref.ref(self), world)

    def hand_over(self, ended: AnyWorld) -> None:
        """The loop of the worker ends: let another that turns have it, if there is one."""
        for world in self.runtime.worlds() if self.works and not self.ended else ():
            if not isinstance(world, AsyncioWorld) or world is ended:
                continue
            loop = world.loop()
            if loop is not None and loop.is_running():
                with suppress(RuntimeError):  # it has closed meanwhile
                    loop.call_soon_threadsafe(_start_there, weakref.ref(self), world)
                    return

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
        """See :class:`Flush`."""
        return Flush(self, timeout, others=others).in_thread()

    async def flush_async(
        self, world: AsyncioWorld, timeout: float | None, *, others: bool = True
    ) -> Flushed:
        return await Flush(self, timeout, others=others).in_loop(world)

    def advances(self) -> bool:
        """Whether there is anybody to wait for: nobody blocks for a loop that does not turn."""
        if not self.works:
            return True
        loop = self.worker.loop() if isinstance(self.worker, AsyncioWorld) else None
        return self._alive() and (loop is None or loop.is_running())

    def end(self, timeout: float) -> None:
        """Let the worker finish the batch it has and stop; wait for that at most ``timeout``."""
        self._ending.set()
        self.queue.hurry_all()
        with self._lock:  # one that is about to start has started then
            worker = self.worker
        if isinstance(worker, threading.Thread) and worker is not threading.current_thread():
            with suppress(RuntimeError):  # but where its start was interrupted
                worker.join(timeout)

    async def end_async(self, world: AsyncioWorld, timeout: float) -> None:
        """As :meth:`end`, of a worker in this loop."""
        self.end(0.0) if self._is_async else await world.aside(self.end, timeout)
        end = self.runtime.clock() + timeout
        while self.worker is world and self.runtime.clock() < end:
            await world.sleep(0.005)

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
            return await Carriage(self, world, batch).run()
        except Lost:
            self.meter.count("batches_lost")
            return True
        except BaseException:  # cancelled, the log away, or a fault of ours
            await self.queue.nack(world, batch)
            raise

    @property
    def ended(self) -> bool:
        return self._ending.is_set

    async def pause(self, world: AnyWorld, seconds: float) -> None:
        """Wait, but not beyond the order to end."""
        if not isinstance(world, AsyncioWorld):
            self._ending.wait(seconds)
            return
        end = self.runtime.clock() + seconds
        while not self.ended and (left := end - self.runtime.clock()) > 0:
            async with heard(self.queue) as changed:
                if not self.ended:
                    await changed(left)

    async def pace(self, world: AnyWorld, ops: Sequence[Op]) -> bool:
        """Wait for the next delivery's turn. False: the flusher ends, and they are back in the
        log."""
        rate = self.batching.rate
        if rate is None:
            return True
        wait = self._next_batch - self.runtime.clock()
        if wait > 0:
            self.queue.out(wait)
            try:
                await self.pause(world, wait)
            finally:
                self.queue.back()
            if self.ended:
                await self.queue.nack(world, ops)
                return False
        self._next_batch = max(self.runtime.clock(), self._next_batch) + 1.0 / rate
        return True

    @property
    def gives_up(self) -> bool:
        """Whether the end has come, and nothing is tried twice any more."""
        return self.ended or (self.exiting and self.queue.durable)

    def complain(self, what: str, fault: Exception) -> None:
        self.meter.event("worker_errors", strategy=self.name)
        self.meter.warn_once(
            f"{what} {self.name}",
            "%s: %s= raised %s: the default takes its place",
            self.name,
            what,
            type(fault).__name__,
        )

    def away(self, error: BaseException) -> None:
        self.trouble = told(error)
        self.meter.event("source_outages", strategy=self.name)
        self.meter.warn_once(
            f"source {self.name}",
            "%s: the source takes no batches now (%s); they wait, and are tried again",
            self.name,
            self.trouble,
        )

    async def settle(self, world: AnyWorld, done: Sequence[Op]) -> None:
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
                await self.pause(world, 0.2)
        self.trouble = ""
        self.meter.count("writes_applied", len(done))

    async def fenced(self, world: AnyWorld, batch: Sequence[Op]) -> None:
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

    async def park(self, world: AnyWorld, op: Op, error: BaseException, attempts: int) -> None:
        # Hidden first: once it has left the log, a flush may return and reads must be right.
        await self._refused(world, [op], lambda: self.queue.park(world, op, told(error), attempts))
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
            await self.pause(world, 0.1)
        self.worker = None  # the next put or flush starts another
        if failed and not self.ended:
            self.start(world)


def _look(held: weakref.ref[Flusher], world: AnyWorld) -> None:
    flusher = held()
    if flusher is not None:
        flusher.looked(world)


def _start_there(held: weakref.ref[Flusher], world: AnyWorld) -> None:
    flusher = held()
    if flusher is not None:
        flusher.start(world)


def _hurry(queue: weakref.ref[Queue], process: int) -> None:
    found = queue()
    if found is not None and os.getpid() == process:  # a fork may have copied its lock as held
        found.hurry_all()
