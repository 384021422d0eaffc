"""What a write-back strategy is put together from: its options, its journal, its deliveries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from tenacity.stop import stop_base
from tenacity.wait import wait_base

from ..core.ops import Op, OpKind
from ..core.outcome import Outcome
from ..core.place import Place
from ..core.policy import Batching, Retrying, seconds
from ..errors import ConfigurationError
from ..logs import open_log
from ..protocols import Bounds, Codec, Log, Sink
from ..runtime import AnyWorld, AsyncioWorld
from .answers import refused
from .drain import LEASE, Drain, Gone, LastEpoch
from .journal import Journal, Payload, checked_codec
from .parts import Parts
from .source import Source, call


class FunctionSink:
    """A function of the operations as a sink. It does not fence: an owner that was paused for
    longer than its lease can let an old value overwrite a newer one."""

    fences = False

    def __init__(self, write_many: Callable[[Sequence[Op]], Any]) -> None:
        self.write_many = write_many


@dataclass(frozen=True, slots=True)
class Options:
    """What was typed, checked."""

    log: str | Log | None = field(repr=False)  # its URL may hold a password
    level: str | None
    sink: Any
    batching: Batching
    bounds: Bounds
    retrying: Retrying
    wait: wait_base | None
    stop: stop_base | None
    full: str
    works: bool
    lease: float
    away: str
    bounds_given: dict[str, bool]

    def log_for(self, parts: Parts, name: str, named: bool) -> Log | None:
        """The durable log of a strategy; None for the one in memory."""
        spec = self.log
        if spec == "memory":
            if self.level not in (None, "memory"):
                raise ConfigurationError(f"{name}: a log in memory has no level {self.level!r}")
            return None
        if not named:
            raise ConfigurationError(
                f"{name}: a durable log needs a name for its queue, the same in every process: "
                'give name="orders", or key= as a template'
            )
        if spec is None:
            backend = parts.far.backend if parts.far is not None else None
            factory = getattr(backend, "log", None)
            if factory is None:
                raise ConfigurationError(
                    f"{name}: WriteBack needs a log, and "
                    f"{'an embedded cache' if backend is None else backend.name} has none; give "
                    'log="sqlite:///orders.log", log="redis://...", or log="memory" (what is not '
                    "yet written is then lost if the process dies)"
                )
            made: Log = factory(name, level=self.level, bounds=self.bounds)
            return made
        if isinstance(spec, str):
            namespace = parts.namespace
            return open_log(spec, name, namespace=namespace, level=self.level, bounds=self.bounds)
        given = {"level": self.level is not None, **self.bounds_given}
        if wrong := [option for option, is_given in given.items() if is_given]:
            raise ConfigurationError(
                f"{name}: {wrong[0]}= has no effect on a log that is made already; give it where "
                "that is made"
            )
        return spec


def options_from(options: dict[str, Any]) -> Options:
    """Take write-back's own options out of what was typed."""
    bounds_given = {name: name in options for name in ("max_pending", "max_bytes")}
    retry = options.pop("retry", None)
    if retry is not None and not isinstance(retry, Retrying):
        raise ConfigurationError("retry: give a cachekit.Retrying, or wait_between= and stop=")
    batching = Batching(
        size=options.pop("batch", 100),
        delay=seconds(options.pop("delay", 0.2), "delay"),
        max_pending=options.pop("max_pending", 10_000),
        block=seconds(options.pop("block", 5.0), "block"),
        rate=options.pop("rate", None),
    )
    spec = options.pop("log", None)
    if spec is not None and not isinstance(spec, str) and not hasattr(spec, "append"):
        raise ConfigurationError(
            f'log: expected a URL, "memory" or a log, got a {type(spec).__name__}'
        )
    if isinstance(spec, str) and spec != "memory" and "://" not in spec:
        raise ConfigurationError(
            'log: this is neither "memory" nor a URL; write log="sqlite:///orders.log", '
            'log="redis://...", or log="memory" (what is not written dies with the process)'
        )
    made = Options(
        log=spec,
        level=options.pop("level", None),
        sink=_sink(options.pop("sink", None)),
        batching=batching,
        bounds=Bounds(batching.max_pending, options.pop("max_bytes", Bounds().size)),
        retrying=retry or Retrying(),
        wait=options.pop("wait_between", None),
        stop=options.pop("stop", None),
        full=options.pop("full", "block"),
        works=_switch(options.pop("worker", True)),
        lease=seconds(options.pop("lease", LEASE), "lease"),
        away=options.pop("log_away", "raise"),
        bounds_given=bounds_given,
    )
    if made.full not in ("block", "write_through"):
        raise ConfigurationError(f'full: expected "block" or "write_through", got {made.full!r}')
    if made.away not in ("raise", "source"):
        raise ConfigurationError(f'log_away: expected "raise" or "source", got {made.away!r}')
    bounds = made.bounds.size
    if not isinstance(bounds, int) or isinstance(bounds, bool) or bounds <= 0:
        raise ConfigurationError(f"max_bytes: expected a number of bytes, got {bounds!r}")
    if made.wait is not None and not isinstance(made.wait, wait_base):
        raise ConfigurationError("wait_between: expected a wait object of tenacity")
    if made.stop is not None and not isinstance(made.stop, stop_base):
        raise ConfigurationError("stop: expected a stop object of tenacity")
    if made.lease <= 0:
        raise ConfigurationError("lease: must be more than 0")
    if made.log == "memory" and not made.works:
        raise ConfigurationError("worker=False: no other process can write a log in memory")
    return made


def _switch(given: Any) -> bool:
    if not isinstance(given, bool):
        raise ConfigurationError(f"worker: expected True or False, got {given!r}")
    return given


def _sink(given: Any) -> Sink | None:
    if given is None or hasattr(given, "write_many"):
        return given  # type: ignore[no-any-return]  # a sink by its shape
    if callable(given):
        return FunctionSink(given)
    raise ConfigurationError("sink: give an object with write_many(ops), or a function of the ops")


def journal_for(
    parts: Parts,
    log: Log,
    name: str,
    codec: Codec,
    options: Options,
    last_epoch: LastEpoch | None,
    *,
    start: Callable[[AnyWorld], None],
    closed: Callable[[], Exception | None],
    unreadable: Gone,
    left_late: Gone,
    lease: float,
) -> Journal:
    """The backlog over a durable log."""
    context = b"log\0" + parts.namespace.encode("utf-8", "surrogatepass") + b"\0"
    payload = Payload(checked_codec(codec, log), context)
    own = getattr(log, "bounds", None)  # what wraps a log may answer to any name
    most = own if isinstance(own, Bounds) else options.bounds
    queue = Drain(
        parts.runtime,
        parts.meter,
        log,
        name=f"{parts.namespace}/{name}" if parts.namespace else name,
        batch=options.batching.size,
        delay=options.batching.delay,
        lease=options.lease,
        decode=payload.decode,
        last_epoch=last_epoch,
        unreadable=unreadable,
        left_late=left_late,
        most=most,
    )
    return Journal(
        parts,
        log,
        queue,
        payload,
        budget=parts.timeout,
        block=options.batching.block,
        lease=lease,
        most=most,
        away=options.away,
        start=start,
        closed=closed,
    )


class Delivery:
    """Batches to the sink, or to the source's own functions; ``copies``: deep copies of values, so
    that what a sink does to them is not in the next try."""

    def __init__(self, source: Source, sink: Any, *, copies: bool = False) -> None:
        self._copies = copies
        self._source = source
        self._sink = sink
        fences = getattr(sink, "fences", False) and hasattr(sink, "last_epoch")
        self.last_epoch: LastEpoch | None = self._last_epoch if fences else None

    async def _last_epoch(self, world: AnyWorld, lane: str) -> int:
        outcome = await call(world, self._sink.last_epoch, lane)
        return int(outcome.settle() or 0)

    async def apply(self, world: AnyWorld, ops: Sequence[Op]) -> Outcome:
        """The outcome's value says what failed."""
        if self._copies:
            try:
                ops = [replace(op, value=deepcopy(op.value)) for op in ops]
            except Exception as error:
                return Outcome(error=error)
        try:
            return await self._apply(world, ops)
        except asyncio.CancelledError:
            task = asyncio.current_task() if isinstance(world, AsyncioWorld) else None
            if task is None or task.cancelling():
                raise
            return Outcome(error=ConnectionError("the sink's own work was cancelled"))

    async def _apply(self, world: AnyWorld, ops: Sequence[Op]) -> Outcome:
        if self._sink is not None:
            return await call(world, self._sink.write_many, ops)
        failed: dict[Any, BaseException] = {}
        source = self._source
        for part in distinct(ops):
            puts = {op.id: op.value for op in part if op.kind is OpKind.PUT}
            deletes = [op.id for op in part if op.kind is OpKind.DELETE]
            for given, write in ((puts, source.stored_many), (deletes, source.deleted_many)):
                if not given:
                    continue
                outcome = await write(world, given)  # type: ignore[arg-type]  # each its own
                if outcome.error is not None:
                    return outcome
                answer = refused(part, outcome.value)
                if isinstance(answer, BaseException):
                    return Outcome(error=answer)
                failed.update(answer)
        return Outcome(failed)


def distinct(ops: Sequence[Op]) -> list[list[Op]]:
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


def texts(places: Sequence[Place]) -> list[str]:
    """The text keys of places that have one."""
    return [place.text for place in places if place.text is not None]


def present(outcome: Outcome) -> Outcome:
    """{id: value} without those that are known to be absent."""
    if outcome.error is not None:
        return outcome
    return Outcome({id: value for id, value in outcome.value.items() if value is not None})
