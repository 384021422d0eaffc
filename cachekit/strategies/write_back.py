"""Write-back (write-behind): a put returns once it is logged; batches go to the source later."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from ..core.entry import MISSING
from ..core.ops import Dead, Flushed, OpKind
from ..core.outcome import Outcome
from ..core.policy import Batching, Retrying
from ..errors import BackendError, ConfigurationError, QueueFull, WriteBackClosed
from ..logs.queue import Queue
from ..protocols import Log, Standing
from ..runtime import AnyWorld, drive
from .aio import CLOSE_TIMEOUT
from .base import Strategy
from .endings import Watch, aside
from .flusher import Flusher
from .held import Backlog, Held, Item
from .parts import Parts
from .source import is_async
from .telling import left_late, refused, unreadable, written
from .write_back_parts import Delivery, Options, journal_for, options_from, present, texts
from .writer import Written

# How long close waits for a batch under way when its own time is over, in seconds.
LAST_BATCH = 0.2

_WRITTEN = Written()


class WriteBack(Strategy):
    """Fast writes: ``put`` and ``delete`` return when the operation is in the log; a worker
    writes batches of ``batch`` operations, or what has waited ``delay``, newest per key only.

    ``log``: where an accepted operation waits. ``sqlite:///orders.log``, one file for all
    processes of the host; ``redis://...``, for many hosts; a :class:`~cachekit.protocols.Log`;
    ``"memory"``, which dies with the process and so must be asked for. None: the log of the cache's
    own backend, where it has one. ``level``: what it survives: "process" (kill -9; the default),
    "host" (power loss), "replicated" (Redis). Reads see an unwritten value at once, in every
    process that shares the log; what a read does while the log can not be asked is
    ``log_away``: "raise" (the default), or "source", which may then be older.

    At most ``max_pending`` operations of ``max_bytes`` in all wait: then a put blocks up to
    ``block`` and raises QueueFull, or with ``full="write_through"`` writes the source itself;
    nothing is ever dropped. ``sink``: an object with ``write_many(ops)``, or a function of the
    operations, in place of ``store_many`` and ``delete_many``; these may return {id: exception}
    for rows they refused. ``wait_between``/``stop`` are tenacity objects. ``worker=False``: another
    process (``cachekit worker``) writes the batches. ``lease``: seconds for which a worker that
    hangs keeps others from taking over. ``flush`` and ``close`` tell what was applied, parked and
    left."""

    description = "a write is logged, and reaches the source in batches"
    _direct = False  # whether a single put may take the short road

    def _own_options(self, options: dict[str, Any]) -> dict[str, Any]:
        self._asked: Options = options_from(options)
        self._batching: Batching = self._asked.batching
        self._retrying: Retrying = self._asked.retrying
        sink = self._asked.sink
        if sink is not None and is_async(sink.write_many):
            self.is_async = True
        return options

    def _bind(self, parts: Parts) -> None:
        super()._bind(parts)
        self._closed = False
        self._stood: tuple[Standing, float | None] = (Standing(), None)
        if self._asked.full == "write_through" and self.source.lacks(OpKind.PUT) is not None:
            raise ConfigurationError(f'{self.name}: full="write_through" needs a store= function')
        named = self._key is not None or bool(self._options["name"])
        self._log: Log | None = self._asked.log_for(parts, self.name, named)
        if self._asked.full == "write_through" and self._log and self._log.tells and not parts.far:
            raise ConfigurationError(
                f'{self.name}: full="write_through" needs a shared cache: an embedded one can not '
                "tell other processes what went past the log"
            )
        for other in parts.closers if self._log else ():
            same = (other.name, other._asked.log) == (self.name, self._asked.log)
            if same and other._options["key"] != self._options["key"]:
                raise ConfigurationError(f"{self.name}: two strategies, one name, one queue")
            if other.name != self.name and self._log is other._log:
                raise ConfigurationError(
                    f"{self.name}: its log is that of {other.name}: each would write the other's "
                    "rows; make one for each"
                )
        # Nobody would tell this process of what others write: no copies, and no shared loads.
        self._keeps_none = self._log is not None and not self._log.tells and parts.far is None
        self._delivery = Delivery(self.source, self._asked.sink, copies=self._copies)
        self._start_over()
        parts.closers.append(self)
        mine = weakref.ref(self)
        parts.runtime.on_fork(self._start_over)
        parts.reader.filler.dirty.append(lambda ident: _knows(mine, ident))
        self._watch = Watch(self)

    def _start_over(self) -> None:
        # Also in a forked child: it flushes nothing of the parent's.
        parts, runtime = self._parts, self._parts.runtime
        if self._log is None:
            most = self._batching.max_pending
            held = Held(self, parts, self.policy, self.name, most, self._start, self._shut)
            self._backlog: Backlog = held
            self._held: Held | None = held
            self._order: AbstractContextManager[Any] = held.order
        else:
            self._held, self._order = None, nullcontext()
            self._backlog = journal_for(
                parts,
                self._log,
                self.name,
                self.recipe.codec,
                self._asked,
                self._delivery.last_epoch,
                start=self._start,
                closed=self._shut,
                unreadable=partial(unreadable, weakref.ref(self)),
                left_late=partial(left_late, weakref.ref(self)),
                lease=self.policy.write_lease,
            )
        # Nothing has to be made of id and value but a key: no tags, no copies, no user's code.
        self._direct = not (
            self._around is None
            or self.is_async
            or self._tagged
            or self._drops
            or self._copies
            or (self._asked.sink is None and self.source.lacks(OpKind.PUT) is not None)
        )
        self._flusher = Flusher(
            self.name,
            runtime,
            parts.meter,
            self._backlog.queue,
            self._delivery.apply,
            partial(written, self),
            partial(refused, self),
            batching=self._batching,
            retrying=self._retrying,
            is_async=self.is_async,
            works=self._asked.works,
            taken=self._backlog.taken if self._direct else None,
            wait=self._asked.wait,
            stop=self._asked.stop,
        )

    @property
    def log(self) -> Queue:
        """This process's queue before the sink."""
        return self._backlog.queue

    def _start(self, world: AnyWorld) -> None:
        self._flusher.start(world)

    def _shut(self) -> Exception | None:
        return WriteBackClosed(f"{self.name} is closed") if self._closed else None

    # -- writing --------------------------------------------------------------------------

    def put(self, id: Any, value: Any) -> Written:
        if self._direct and (type(id) is int or type(id) is str):  # short(id), without a call
            backlog = self._backlog
            if backlog.accept_now(self.key(id), id, value):
                if not backlog.queue.attended:
                    self._start(self._parts.runtime.threads)
                return _WRITTEN
        return super().put(id, value)

    async def _put_many(self, world: AnyWorld, values: Mapping[Any, Any]) -> Outcome:
        return await self._accept(world, OpKind.PUT, list(values.items()))

    async def _delete_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        return await self._accept(world, OpKind.DELETE, [(id, None) for id in ids])

    async def _accept(
        self, world: AnyWorld, kind: OpKind, pairs: Sequence[tuple[Any, Any]]
    ) -> Outcome:
        lacking = None if self._asked.sink is not None else self.source.lacks(kind)
        if lacking is not None:
            return lacking
        # Tags that can not be made fail the call here, not the worker later.
        place = self.place if self._backlog.places else lambda id: None
        items = [
            Item(self.key(id), place(id), id, value, self._tags(id, value)) for id, value in pairs
        ]
        for id, value in pairs if self._drops else ():
            self._dropped(id, value)
        through = self._asked.full == "write_through"
        deadline = world.deadline(0.0 if through else self._batching.block)
        outcome = await self._backlog.accept(world, kind, items, deadline)
        if through and isinstance(outcome.error, QueueFull):
            outcome = await self._through(world, kind, items, outcome.error)
        self._start(world)
        return outcome

    async def _through(
        self, world: AnyWorld, kind: OpKind, items: Sequence[Item], full: QueueFull
    ) -> Outcome:
        """Write what found no room to the source, unless an older write of its key waits: that
        one must come first, so this one waits for room."""
        rest = [item for item in items if item.key not in full.keys]
        outcome = await self._backlog.pending(world, [item.key for item in rest])
        if outcome.error is not None:
            return outcome
        held: list[Item] = []
        unknown = [True] * len(rest)  # the log can not be asked: each waits for its room
        for item, waiting in zip(rest, outcome.value or unknown, strict=True):
            if waiting is not None or self.source.lacks(kind) is not None:
                held.append(item)
                continue
            if kind is OpKind.PUT:
                outcome = await self._write_around(world, {item.id: item.value}, fill=False)
            else:
                outcome = await self._delete_around(world, [item.id])
            if outcome.error is not None:
                return outcome
            await self._backlog.went_past(world, [item.key])
        if not held:
            return Outcome(Written())
        deadline = world.deadline(self._batching.block)
        return await self._backlog.accept(world, kind, held, deadline)

    # -- reading --------------------------------------------------------------------------

    def _hit(self, id: Any) -> Any:
        return super()._hit(id) if self._backlog.hits else MISSING

    async def _get(self, world: AnyWorld, id: Any) -> Outcome:
        if self._keeps_none:
            return await self._load(world, id)
        if self._looks_first:
            outcome = await self._backlog.pending(world, [self.key(id)])
            if outcome.error is not None:
                return outcome
            (waiting,) = outcome.value or (None,)
            if waiting is not None:
                return Outcome(waiting.value)
        return await super()._get(world, id)

    async def _get_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        if self._keeps_none:
            return present(await self._load_many(world, ids))
        if not self._looks_first:
            return await super()._get_many(world, ids)
        return await self._merged(world, ids, super()._get_many)

    @property
    def _looks_first(self) -> bool:
        """Whether reads look into the backlog before they look anywhere else."""
        return self._held is not None or not self._backlog.hits

    async def _load(self, world: AnyWorld, id: Any) -> Outcome:
        if not self._looks_first:
            outcome = await self._backlog.pending(world, [self.key(id)])
            if outcome.error is not None:
                return outcome
            if outcome.value is None:
                return await self._blind(world, [id], super()._load(world, id))
            if outcome.value[0] is not None:
                return Outcome(outcome.value[0].value)
        return await super()._load(world, id)

    async def _blind(self, world: AnyWorld, ids: Sequence[Any], load: Any) -> Outcome:
        """Load while nobody knows what waits: a value for its caller, which no tier keeps."""
        outcome: Outcome = await load
        places = [self.place(id) for id in ids]
        await self._parts.invalidator.tell(world, texts(places), (), replay=True)
        self._parts.invalidator.detach(places, ())
        return outcome

    async def _load_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        if self._looks_first:
            return await super()._load_many(world, ids)
        return await self._merged(world, ids, super()._load_many)

    async def _merged(self, world: AnyWorld, ids: Sequence[Any], clean: Any) -> Outcome:
        """What waits, and the rest from ``clean``."""
        outcome = await self._backlog.pending(world, [self.key(id) for id in ids])
        if outcome.error is not None:
            return outcome
        if outcome.value is None:
            rest = clean(world, ids)
            return await (rest if self._looks_first else self._blind(world, ids, rest))
        waiting = {id: found for id, found in zip(ids, outcome.value, strict=True) if found}
        rest = [id for id in ids if id not in waiting]
        outcome = await clean(world, rest) if rest else Outcome({})
        if outcome.error is not None or not waiting:
            return outcome
        dirty = {id: found.value for id, found in waiting.items() if found.value is not None}
        return Outcome({**outcome.value, **dirty})

    # -- draining -------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> Flushed:
        if self._parts_().near.section.mend():
            return self._cut_off()
        return self._flusher.flush(timeout)

    async def _flush_async(self, timeout: float | None) -> Flushed:
        return await self._flusher.flush_async(self._parts.runtime.asyncio(), timeout)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> Flushed:
        timeout = self._end(timeout)
        if self._parts.near.section.mend():  # who holds the queue's lock may wait for this thread
            self._parts.near.section.defer(partial(aside, partial(self.close, timeout)))
            return self._cut_off()
        runtime = self._parts.runtime
        deadline = runtime.threads.deadline(timeout)
        rest = LAST_BATCH  # where it is broken off
        try:
            flushed = self._flusher.flush(timeout, others=False)
            rest = max(LAST_BATCH, deadline.left())
        finally:
            self._flusher.end(rest)
            if self._log is not None:
                drive(self._log.close(runtime.threads))
        self._watch.end()  # not where it was broken off: then the exit writes the rest
        return flushed

    async def _close_async(self, timeout: float) -> Flushed:
        timeout = self._end(timeout)
        world = self._parts.runtime.asyncio()
        try:
            flushed = await self._flusher.flush_async(world, timeout, others=False)
        finally:
            await self._flusher.end_async(world, LAST_BATCH)
            if self._log is not None:
                await self._log.close(world)
        self._watch.end()
        return flushed

    def _cut_off(self) -> Flushed:
        """The answer to a finaliser or handler that came in the middle of the near tier's work."""
        left = self._backlog.queue.here()
        return Flushed(left=left, complete=False, errors=["called from inside the cache"])

    def _end(self, timeout: float) -> float:
        """Accept no more. How long to wait for what was accepted, where anybody here writes it."""
        again = self._watch.over
        if self._parts.near.section.mend():
            self._closed = True
        else:
            with self._order:  # whoever was accepted before is in the flush that follows
                self._closed = True
        return timeout if self._flusher.works and not again else 0.0

    def work(self, world: AnyWorld) -> None:
        """Write batches from this process, also with ``worker=False``. An async sink needs a
        loop's world."""
        self._flusher.works = True
        self._flusher.start(world)

    def rest(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Let the worker finish the batch it has, and give the log to another process."""
        self._flusher.end(timeout)

    # -- looking --------------------------------------------------------------------------

    def standing(self) -> tuple[Standing, float | None]:
        """The queue as a whole, and the age of its oldest operation in seconds. Asks the log."""
        return drive(self._backlog.standing(self._parts_().runtime.threads))

    def last_standing(self) -> tuple[Standing, float | None]:
        """As :meth:`standing`; as it was last seen where the log can not be asked."""
        try:
            self._stood = self.standing()
        except BackendError:
            self._parts.meter.event("log_errors", lane=self.name)
        return self._stood

    def depth(self) -> int:
        """How many operations are not written yet (in memory: keys with one)."""
        return self.standing()[0].depth

    def dead(self) -> list[Dead]:
        """What the source refused for good, with its errors: with a durable log the last hundred
        that this process parked; all are listed by ``cachekit dlq``."""
        return self.log.dead()


def _knows(mine: weakref.ref[WriteBack], ident: Hashable) -> bool:
    strategy = mine()
    held = strategy._held if strategy is not None else None
    return held is not None and held.queue.knows(ident)
