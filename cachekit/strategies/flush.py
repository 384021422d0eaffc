"""One flush of a write-back queue: what it waits for, and what it tells at its end."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ..core.ops import Flushed
from ..errors import BackendError
from ..logs.queue import Marks
from ..runtime import AnyWorld, AsyncioWorld, drive
from .answers import told
from .drain import PATIENCE

if TYPE_CHECKING:
    from .flusher import Flusher

LOOK = 0.02  # seconds between looks at a log that other processes drain too

# Set while a batch is at its sink: a flush from in there can not wait for it.
writing: ContextVar[Flusher | None] = ContextVar("cachekit-writing", default=None)


class Flush:
    """Waits until what was accepted before is applied or parked, at most ``timeout`` seconds; None
    = however long. From inside the sink it waits for nothing. Not ``others``: what other
    processes have to write is not waited for.

    What was parked is told exactly for letters of this process; where others parked some
    meanwhile, they count up to the number of operations that left."""

    def __init__(self, flusher: Flusher, timeout: float | None, *, others: bool = True) -> None:
        self._flusher = flusher
        self._queue = flusher.queue
        self._clock = flusher.runtime.clock
        self._end = None if timeout is None else self._clock() + timeout
        self._others = others
        worker = flusher.worker
        self._inside = writing.get() is flusher or worker is threading.current_thread()
        self._marks: Marks = ()
        self._letters = 0  # in all, when it began
        self._seen: set[tuple[str, int]] = set()  # those of this process
        self._before = 0
        self._left = 0

    def in_thread(self) -> Flushed:
        """Not from inside the loop of an async sink: use the async face there."""
        threads = self._flusher.runtime.threads
        try:
            drive(self._begin(threads))
            most = LOOK if self._queue.durable else 0.5
            while drive(self._goes_on(threads)):
                rest = most if self._end is None else self._end - self._clock()
                if rest <= 0:
                    break
                self._queue.wait_until_done(self._marks, min(rest, most))
            return drive(self._report(threads))
        except BackendError as error:
            return self._unsure(threads, error)

    async def in_loop(self, world: AsyncioWorld) -> Flushed:
        try:
            await self._begin(world)
            pause = LOOK if self._queue.durable else 0.005
            while await self._goes_on(world):
                if self._end is not None and self._clock() >= self._end:
                    break
                await world.sleep(pause)
            return await self._report(world)
        except BackendError as error:
            return self._unsure(world, error)

    async def _begin(self, world: AnyWorld) -> None:
        self._seen = {(letter.op.lane, letter.op.version) for letter in self._queue.dead()}
        self._marks, self._letters = await self._queue.state(world, self._step())
        self._before = await self._look(world)
        if self._before:
            self._flusher.start(world)
            self._queue.hurry(self._marks)

    async def _goes_on(self, world: AnyWorld) -> bool:
        """Whether anything is left, and there is anybody to wait for."""
        if not await self._look(world) or self._inside:
            return False
        self._flusher.start(world)
        return self._others if self._queue.elsewhere else self._flusher.advances()

    async def _look(self, world: AnyWorld) -> int:
        self._left = await self._queue.undone(world, self._marks, self._step())
        return self._left

    async def _report(self, world: AnyWorld) -> Flushed:
        _, letters = await self._queue.state(world, self._step())
        return self._told(letters - self._letters)

    def _told(self, letters: int, trouble: str = "") -> Flushed:
        """``letters``: how many there are more than at the beginning."""
        fresh = [
            letter
            for letter in self._queue.dead()
            if (letter.op.lane, letter.op.version) not in self._seen
        ]
        mine = [letter for letter in fresh if self._queue.reaches(letter.op, self._marks)]
        others = min(letters - len(fresh), self._before - self._left - len(mine))
        parked = len(mine) + max(0, others)
        errors = [letter.error for letter in mine]
        source = self._flusher.trouble
        if source and self._left:
            errors.insert(0, source)
        if self._left and not (self._queue.elsewhere or self._inside or self._flusher.advances()):
            errors.insert(0, "the event loop of its worker does not run")
        if trouble:
            errors.insert(0, trouble)
        return Flushed(
            applied=max(0, self._before - self._left - parked),
            parked=parked,
            left=self._left,
            complete=self._left == 0 and not trouble,
            errors=errors[:10],
        )

    def _unsure(self, world: AnyWorld, error: BackendError) -> Flushed:
        """The log does not answer: as much as was known, and the reason. Some parts of it may."""
        self._flusher.start(world)
        self._left = max(1, self._left)
        return self._told(0, told(error))

    def _step(self) -> float:
        """Seconds for one question to the log."""
        return PATIENCE if self._end is None else min(PATIENCE, max(0.1, self._end - self._clock()))
