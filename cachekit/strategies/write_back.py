"""Write-back (write-behind): a put returns once it is logged; batches go to the source later."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from ..core.ops import Dead, Flushed, Op, OpKind
from ..core.outcome import Outcome
from ..core.place import Place
from ..core.policy import Batching, Retrying, seconds
from ..errors import ConfigurationError, WriteBackClosed
from ..logs.memory import MemoryLog
from ..observe import log
from ..runtime import AnyWorld, AsyncioWorld, drive
from .aio import CLOSE_TIMEOUT
from .base import Strategy
from .flusher import Flusher, heard, refused
from .parts import Parts
from .source import call
from .writer import Written

# How long close waits for a batch under way when its own time is over, in seconds.
LAST_BATCH = 0.2


class WriteBack(Strategy):
    """Fast writes: ``put`` and ``delete`` return when the operation is in the log; a worker
    writes batches of ``batch`` operations, or what has waited ``delay``, newest per key only.

    ``log="memory"`` is the only level so far: what is not yet written dies with the process, so it
    must be asked for. Reads of this process see the unwritten value at once; other processes see
    it when it is in the source. At most ``max_pending`` keys wait: then a put blocks up to
    ``block`` and raises QueueFull; nothing is ever dropped. ``store_many`` may return
    {id: exception} for rows it refused. ``wait``/``stop`` are tenacity objects. ``flush`` and
    ``close`` tell what was applied, parked and left."""

    description = "a write is logged, and reaches the source in batches"

    def _own_options(self, options: dict[str, Any]) -> dict[str, Any]:
        self._log_name = options.pop("log", None)
        self._sink = options.pop("sink", None)
        self._batching = Batching(
            size=options.pop("batch", 100),
            delay=seconds(options.pop("delay", 0.2), "delay"),
            max_pending=options.pop("max_pending", 10_000),
            block=seconds(options.pop("block", 5.0), "block"),
            rate=options.pop("rate", None),
        )
        retry = options.pop("retry", None)
        if retry is not None and not isinstance(retry, Retrying):
            raise ConfigurationError("retry: give a cachekit.Retrying, or wait_between= and stop=")
        self._retrying = retry or Retrying()
        self._tenacity = {
            "wait": options.pop("wait_between", None),
            "stop": options.pop("stop", None),
        }
        if self._log_name != "memory":
            raise ConfigurationError(
                f'WriteBack(log={self._log_name!r}): no such log; say log="memory" for the one in '
                "this process's memory (unwritten operations are lost if the process dies)"
            )
        return options

    def _bind(self, parts: Parts) -> None:
        super()._bind(parts)
        self._closed = False
        self._order = threading.RLock()
        self._start_over()
        parts.closers.append(self)
        parts.reader.filler.dirty.append(lambda ident: self.log.knows(ident))
        parts.runtime.on_fork(self._start_over)
        mine = weakref.ref(self)

        def at_exit() -> None:
            strategy = mine()
            if strategy is not None:
                strategy._last_flush()

        self._at_exit = at_exit
        atexit.register(at_exit)

    def _start_over(self) -> None:
        # Also in a forked child: it flushes nothing of the parent's.
        runtime = self._parts.runtime
        self._order = threading.RLock()
        self.log = MemoryLog(runtime.clock, self._batching.max_pending)
        self._flusher = Flusher(
            self.name,
            runtime,
            self._parts.meter,
            self.log,
            self._apply,
            self._written,
            self._refused,
            batching=self._batching,
            retrying=self._retrying,
            is_async=self.is_async,
            **self._tenacity,
        )

    # -- writing --------------------------------------------------------------------------

    async def _put_many(self, world: AnyWorld, values: Mapping[Any, Any]) -> Outcome:
        return await self._accept(world, OpKind.PUT, list(values.items()))

    async def _delete_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        return await self._accept(world, OpKind.DELETE, [(id, None) for id in ids])

    async def _accept(
        self, world: AnyWorld, kind: OpKind, pairs: Sequence[tuple[Any, Any]]
    ) -> Outcome:
        lacking = None if self._sink is not None else self.source.lacks(kind)
        if lacking is not None:
            return lacking
        deadline = world.deadline(self._batching.block)
        places = [self.place(id) for id, _ in pairs]
        # Tags that can not be made fail the call here, not the worker later.
        tags = [self._tags(id, value) for id, value in pairs]
        for id, value in pairs:
            self._dropped(id, value)
        for (id, value), place, labels in zip(pairs, places, tags, strict=True):
            while True:
                # One lock over log and near tier: both see racing puts in one order.
                with self._order:
                    if self._closed:
                        return Outcome(
                            error=WriteBackClosed(f"{self.name} is closed; {id!r} was not accepted")
                        )
                    op = self.log.append_now(kind, place.ident, value, id)
                    if op is not None:
                        self._show(kind, place, value, labels)
                        break
                self._flusher.start(world)
                if deadline.passed():
                    return Outcome(error=self.log.full())
                await self._room(world, deadline.left())
        self._flusher.start(world)
        return Outcome(Written())

    async def _room(self, world: AnyWorld, seconds: float) -> None:
        """Wait until something leaves the log, in no thread that the worker could need."""
        if not isinstance(world, AsyncioWorld):
            self.log.wait_for_room(seconds)
            return
        async with heard(self.log) as changed:
            if not self.log.has_room():
                await changed(seconds)

    def _show(self, kind: OpKind, place: Place, value: Any, tags: tuple[str, ...]) -> None:
        """Let reads of this process see the operation."""
        parts = self._parts
        self._detach([place.ident])
        filler = parts.reader.filler
        span = filler.span(self.policy, value, 0.0, self.name) if kind is OpKind.PUT else None
        near_span = None
        if span is not None and not parts.off:
            near_span = parts.coherence.span(span, 0.0, parts.runtime.clock())
        if near_span is None or not parts.near.store(
            place, value, near_span, tags=tags, seq=parts.near.seq
        ):
            parts.near.kill([place])

    def _detach(self, idents: Iterable[Hashable]) -> None:
        for world in self._parts.runtime.worlds():
            for ident in idents:
                world.flights.detach(ident)

    # -- reading: the overlay first -------------------------------------------------------

    async def _get(self, world: AnyWorld, id: Any) -> Outcome:
        op = self.log.pending(self.place(id).ident)
        if op is not None:
            return Outcome(op.value)
        return await super()._get(world, id)

    async def _get_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        waiting = {id: self.log.pending(self.place(id).ident) for id in ids}
        dirty = {id: op for id, op in waiting.items() if op is not None}
        clean = [id for id in ids if id not in dirty]
        outcome = await super()._get_many(world, clean) if clean else Outcome({})
        if outcome.error is not None or not dirty:
            return outcome
        written = {id: op.value for id, op in dirty.items() if op.value is not None}
        return Outcome({**outcome.value, **written})

    # -- the worker's side ----------------------------------------------------------------

    async def _apply(self, world: AnyWorld, ops: Sequence[Op]) -> Outcome:
        if self._sink is not None:
            return await call(world, self._sink.write_many, list(ops))
        failed: dict[Any, BaseException] = {}
        for part in _distinct(ops):
            puts = {op.id: op.value for op in part if op.kind is OpKind.PUT}
            deletes = [op.id for op in part if op.kind is OpKind.DELETE]
            if puts:
                outcome = await self.source.stored_many(world, puts)
                if outcome.error is not None:
                    return outcome
                failed.update(refused(outcome.value))
            if deletes:
                outcome = await self.source.deleted_many(world, deletes)
                if outcome.error is not None:
                    return outcome
                failed.update(refused(outcome.value))
        return Outcome(failed)

    async def _written(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """The source has them: whatever other processes loaded before is outdated."""
        texts = [str(op.key) for op in ops]
        drops = [t for op in ops for t in self._dropped(op.id, op.value)]
        invalidator = self._parts.invalidator
        await invalidator.tell(world, texts, drops, replay=True)
        # Before the log lets go: loads that began while the key was dirty saw the old row.
        self._detach([op.key for op in ops])
        if drops:
            invalidator.detach((), drops)

    async def _refused(self, world: AnyWorld, ops: Sequence[Op]) -> None:
        """The source will never have them: this process must not show them either."""
        invalidator = self._parts.invalidator
        await invalidator.tell(world, [str(op.key) for op in ops], (), replay=True)
        invalidator.detach([self.place(op.id) for op in ops], ())

    # -- draining -------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> Flushed:
        self._parts_()
        return self._flusher.flush(timeout)

    async def _flush_async(self, timeout: float | None) -> Flushed:
        return await self._flusher.flush_async(self._parts.runtime.asyncio(), timeout)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> Flushed:
        self._shut()
        deadline = self._parts.runtime.threads.deadline(timeout)
        flushed = self._flusher.flush(timeout)
        self._flusher.end(max(LAST_BATCH, deadline.left()))
        atexit.unregister(self._at_exit)
        return flushed

    async def _close_async(self, timeout: float) -> Flushed:
        self._shut()
        flushed = await self._flush_async(timeout)
        await self._parts.runtime.asyncio().aside(self._flusher.end, LAST_BATCH)
        atexit.unregister(self._at_exit)
        return flushed

    def _last_flush(self) -> None:
        """At the end of the interpreter: worker and loop may be gone, and no thread starts."""
        self.close()
        runtime = self._parts.runtime
        if self.log.depth() and self.source.is_async:

            async def drain() -> None:
                await self._flusher.drain(runtime.asyncio(), CLOSE_TIMEOUT)

            asyncio.run(drain())
        elif self.log.depth() and self._flusher.threadless:
            drive(self._flusher.drain(runtime.threads, CLOSE_TIMEOUT))
        if left := self.log.depth():
            log.error("%s: the process ends with %d writes lost", self.name, left)

    def _shut(self) -> None:
        with self._order:  # whoever was accepted before is in the flush that follows
            self._closed = True

    def depth(self) -> int:
        """How many keys have an unwritten operation."""
        return self.log.depth()

    def dead(self) -> list[Dead]:
        """What the source refused for good, with its errors."""
        return self.log.dead()


def _distinct(ops: Sequence[Op]) -> list[list[Op]]:
    """The batch in parts without equal ids: 1, True and 1.0 are three keys here, yet one to a
    mapping, and the last accepted must be written last."""
    if len({op.id for op in ops}) == len(ops):
        return [list(ops)]
    parts: list[list[Op]] = []
    seen: set[Any] = set()
    for op in sorted(ops, key=lambda op: op.version):
        if not parts or op.id in seen:
            parts.append([])
            seen = set()
        parts[-1].append(op)
        seen.add(op.id)
    return parts
