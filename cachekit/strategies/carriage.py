"""One batch on its way to the sink: tries, halves, and rows that are put aside.

An error that says nothing about the rows (connection lost, timeout) is waited out, however long;
any other halves the batch until the row that causes it stands alone. Such rows are put aside, so
that the rest of the batch does not wait for them, and are then tried again together, row by row,
``attempts`` times in all; what the source refuses still is parked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tenacity import RetryCallState
from tenacity.wait import wait_base

from ..core.ops import Op
from ..errors import FencedOut
from ..runtime import AnyWorld
from .answers import attempted, is_outage, refused
from .flush import writing

if TYPE_CHECKING:
    from .flusher import Flusher


class _Tries:
    """Failed tries of the same, in tenacity's words."""

    def __init__(self, flusher: Flusher) -> None:
        self._flusher = flusher
        self._began = flusher.runtime.clock()
        self._idle = 0.0
        self.number = 0
        self.state: RetryCallState

    def failed(self, error: BaseException) -> None:
        self.number += 1
        flusher = self._flusher
        try:
            self.state = self._after(error, flusher.wait)
        except Exception as fault:  # of an object that was given
            flusher.complain("wait_between", fault)
            self.state = self._after(error, flusher.default_wait)
        self._idle += self.pause

    def _after(self, error: BaseException, wait: wait_base) -> RetryCallState:
        seconds = self._flusher.runtime.clock() - self._began
        return attempted(self.number, error, seconds=seconds, idle=self._idle, wait=wait)

    @property
    def over(self) -> bool:
        """Whether it is not to be tried again."""
        flusher = self._flusher
        try:
            return bool(flusher.stop(self.state))
        except Exception as fault:
            flusher.complain("stop", fault)
            return bool(flusher.default_stop(self.state))

    @property
    def pause(self) -> float:
        """Seconds until the next one."""
        return float(self.state.upcoming_sleep)


class Carriage:
    """Applies a batch completely: every operation ends applied or parked."""

    def __init__(self, flusher: Flusher, world: AnyWorld, batch: Sequence[Op]) -> None:
        self._flusher = flusher
        self._queue = flusher.queue
        self._world = world
        self._batch = batch
        self._aside: list[tuple[Op, _Tries]] = []

    async def run(self) -> bool:
        """False: the flusher is ending and the source does not answer, or refuses; what is left of
        the batch is back in the log, and the worker must not take it again. Raises Lost."""
        whole = await self._deliver(self._batch)
        while self._aside:
            again, self._aside = self._aside, []
            ops = [op for op, _ in again]
            if not await self._pause(ops, max(tries.pause for _, tries in again)):
                return False
            for place, (op, tries) in enumerate(again):
                if not await self._deliver([op], tries):
                    rest = ops[place + 1 :] + [op for op, _ in self._aside]
                    if rest:
                        await self._queue.nack(self._world, rest)
                    return False
        return whole

    async def _deliver(self, ops: Sequence[Op], tries: _Tries | None = None) -> bool:
        """``tries``: those of a single row that was put aside. False: as :meth:`run`."""
        flusher, outages = self._flusher, _Tries(self._flusher)
        while True:
            if not await flusher.pace(self._world, ops):
                return False
            error, left = await self._try(ops)
            if not left:
                return True
            if error is None:  # these alone: what else it has is written
                return all([await self._deliver([op]) for op in left])
            flusher.meter.count("batch_failures")
            # At the interpreter's end whatever needs a thread fails: no row's fault.
            if flusher.exiting or is_outage(error):
                flusher.away(error)
                outages.failed(error)
                if not await self._pause(ops, outages.pause):
                    return False
                continue
            if len(ops) > 1:
                half = len(ops) // 2
                return all([await self._deliver(part) for part in (ops[:half], ops[half:])])
            tries = tries or _Tries(flusher)
            tries.failed(error)
            if tries.over:
                await flusher.park(self._world, ops[0], error, ops[0].attempts + tries.number)
            else:
                self._aside.append((ops[0], tries))
            return True

    async def _try(self, ops: Sequence[Op]) -> tuple[BaseException | None, Sequence[Op]]:
        """What was not written, and why; no error where they are some of several."""
        flusher, world = self._flusher, self._world
        delivery = await self._queue.delivery(world, ops)
        before = writing.get()
        writing.set(flusher)
        try:
            outcome = await flusher.apply(world, delivery)
        finally:
            writing.set(before)  # no token: a coroutine may be closed in another context
            self._queue.back()
        if isinstance(outcome.error, FencedOut):
            await flusher.fenced(world, ops)
        if outcome.error is not None:
            return outcome.error, ops
        failed = refused(ops, outcome.value)
        if isinstance(failed, BaseException):
            return failed, ops
        if done := [op for op in ops if op.id not in failed] if failed else ops:
            await flusher.settle(world, done)
        if not failed:
            return None, ()
        left = [op for op in ops if op.id in failed]
        return (failed[left[0].id] if len(ops) == 1 else None), left

    async def _pause(self, ops: Sequence[Op], seconds: float) -> bool:
        """Wait until they are tried again; nobody else may begin with them meanwhile. False: the
        flusher ends, and they are back in the log."""
        flusher = self._flusher
        if not flusher.gives_up:
            flusher.meter.count("retries")
            self._queue.out(seconds)
            try:
                await flusher.pause(self._world, seconds)
            finally:
                self._queue.back()
            return True
        await self._queue.nack(self._world, ops)
        return False
