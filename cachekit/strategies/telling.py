"""What the caches are told when the source has a batch, or will never have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.ops import Op
from ..protocols import Record
from ..runtime import AnyWorld
from .write_back_parts import texts

if TYPE_CHECKING:
    from .write_back import WriteBack


async def written(strategy: WriteBack, world: AnyWorld, ops: Sequence[Op]) -> None:
    """The source has them: whatever was loaded before is outdated."""
    parts, held = strategy._parts, strategy._held
    if parts.far is None and not strategy._backlog.hits and not strategy._drops:
        return  # the log itself tells every process, this one too
    places = [strategy.place(op.id) for op in ops]
    drops = [t for op in ops for t in strategy._dropped(op.id, op.value)]
    await parts.invalidator.tell(world, texts(places), drops, replay=True)
    # Before the log lets go: loads that began while the key was dirty saw the old row.
    if held is None:
        parts.invalidator.detach(places, ())
    else:  # near copies are what was written, or newer
        parts.invalidator.detach_flights(places, ())
    if drops:
        parts.invalidator.detach((), drops)


async def refused(strategy: WriteBack, world: AnyWorld, ops: Sequence[Op]) -> None:
    """The source will never have them: this process must not show them either."""
    invalidator, places = strategy._parts.invalidator, [strategy.place(op.id) for op in ops]
    await invalidator.tell(world, texts(places), (), replay=True)
    invalidator.detach(places, ())


async def unreadable(strategy: WriteBack, world: AnyWorld, records: Sequence[Record]) -> None:
    """Nobody can read them."""
    invalidator = strategy._parts.invalidator
    await invalidator.tell(world, [record.key for record in records], (), replay=True)
    invalidator.forget_near()
