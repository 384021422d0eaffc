"""What the caches are told when the source has a batch, or will never have it."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from ..core.keys import physical
from ..core.ops import Op
from ..core.place import Place
from ..errors import BackendError
from ..protocols import Record
from ..runtime import AnyWorld
from .write_back_parts import texts

if TYPE_CHECKING:
    from .write_back import WriteBack


async def written(strategy: WriteBack, world: AnyWorld, ops: Sequence[Op]) -> None:
    """The source has them: whatever was loaded before is outdated."""
    parts, held, drops = strategy._parts, strategy._held, []
    if parts.far is not None or strategy._drops:
        places = [place for op in ops if (place := _place(strategy, op)) is not None]
        drops = [tag for op in ops for tag in _tags(strategy, op)]
        await parts.invalidator.tell(world, texts(places), drops, replay=True)
    # Before the log lets go: loads that began while the key was dirty saw the old row.
    idents = [op.key for op in ops] if held is not None else [physical(op.key) for op in ops]
    parts.invalidator.outdate(idents)
    if held is None:  # else near copies are what was written, or newer
        for ident in filter(parts.near.may_hold, idents):
            parts.near.kill_named(ident)
    if drops:
        parts.invalidator.detach((), drops)


async def refused(
    strategy: WriteBack, world: AnyWorld, ops: Sequence[Op], park: Callable[[], Awaitable[None]]
) -> None:
    """The source will never have them: ``park`` takes them out of the log, and no cache keeps
    them. Nobody may fill meanwhile: a load would still find them in the log."""
    places = [place for op in ops if (place := _place(strategy, op)) is not None]
    intent = strategy._parts.writer.intent(places, (), strategy.policy.write_lease)
    try:
        await intent.enter(world)
    except BackendError:
        pass  # told when that is back
    except BaseException:
        intent.leave_behind(world)
        raise
    try:
        await park()
        await intent.leave(world)
    except BaseException:
        intent.owe()
        raise


def _place(strategy: WriteBack, op: Op) -> Place | None:
    try:
        return strategy.place(op.id)
    except Exception as error:  # a key function that does not know what another version put
        _complain(strategy, error)
        return None


def _tags(strategy: WriteBack, op: Op) -> list[str]:
    try:
        return strategy._dropped(op.id, op.value)
    except Exception as error:  # the value of another version, say
        _complain(strategy, error)
        return []


def _complain(strategy: WriteBack, error: Exception) -> None:
    meter = strategy._parts.meter
    meter.event("tag_errors", function=strategy.name)
    meter.warn_once(
        f"tags {strategy.name}",
        "%s: its key or tags failed with %s for a row that was written: caches may be behind",
        strategy.name,
        type(error).__name__,
    )


async def unreadable(
    held: weakref.ref[WriteBack], world: AnyWorld, records: Sequence[Record]
) -> None:
    """Nobody can read them. The log's side does not keep its strategy."""
    strategy = held()
    if strategy is None:
        return
    invalidator = strategy._parts.invalidator
    await invalidator.tell(world, [record.key for record in records], (), replay=True)
    invalidator.forget_near()


async def left_late(
    held: weakref.ref[WriteBack], world: AnyWorld, records: Sequence[Record]
) -> None:
    """The log has let go of what the source refused some time ago: loads since then may have found
    it there."""
    strategy = held()
    if strategy is None:
        return
    parts = strategy._parts
    await parts.invalidator.tell(world, [record.key for record in records], (), replay=True)
    idents = [physical(record.key) for record in records]
    parts.invalidator.outdate(idents)
    for ident in idents:
        parts.near.kill_named(ident)
