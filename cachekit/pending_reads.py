"""Reads of the far tier while invalidations wait to be told there (protocols, section 3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from .core.deadline import Deadline
from .core.entry import Verdict
from .errors import BackendError
from .invalidation import Invalidator
from .packing import Found
from .pending import Pending
from .protocols import SlotState
from .runtime import AnyWorld

LOOKS = 3  # reads of an entry whose key or tags are being told of meanwhile
_BLOCKED: Final = Found(Verdict.MISS, SlotState.BLOCK)


async def read(
    invalidator: Invalidator,
    world: AnyWorld,
    keys: Sequence[str],
    tags: Sequence[Sequence[str]],
    ask: Callable[[Sequence[int]], Awaitable[Sequence[Found | None]]],
    deadline: Deadline,
    *,
    whole: bool = False,
) -> Sequence[Found | None]:
    """What ``ask`` finds in the far tier (for positions in ``keys``), once all that is pending
    for these keys and tags has been told. None where that can not be done now, or ``ask``
    gives None; raises BackendError where it is so of all, or of one that must be ``whole``.
    Where new ones come faster than they are told, a key is as good as blocked by a writer.

    An entry may carry tags that the reader did not know: it counts only if none of them was
    pending when it was asked for."""
    pending = invalidator.pending
    if not invalidator.due():
        return await ask(range(len(keys)))
    found: list[Found | None] = [None] * len(keys)
    needs, left = [tuple(own) for own in tags], list(range(len(keys)))
    why: BackendError | None = None
    for _ in range(LOOKS):
        wanted = {tag for i in left for tag in needs[i]}
        # What hangs where these are told leaves time to ask for the others.
        within = deadline if len(keys) == 1 else world.deadline(deadline.left() / 2)
        try:
            await invalidator.settle(world, within, keys=[keys[i] for i in left], tags=wanted)
        except BackendError as error:
            why = error
        mark = pending.settled
        owed: list[int] = []
        asked: list[int] = []
        for i in left:
            (owed if pending.owed([keys[i]], needs[i]) else asked).append(i)
        left = owed if why is None else []
        try:
            answers = await ask(asked) if asked else ()
        except BackendError as error:
            why = error
            break
        for i, answer in zip(asked, answers, strict=True):
            if answer is None or not _overtaken(pending, answer, mark):
                found[i] = answer
            else:
                needs[i] = (*tags[i], *answer.tags)
                left.append(i)
        if not left:
            break
    if why is None:
        for i in left:
            found[i] = _BLOCKED
        return found
    missing = found.count(None)
    if missing and (whole or missing == len(found)):
        raise why
    return found


def _overtaken(pending: Pending, found: Found, mark: int) -> bool:
    """Whether a tag of an entry may have been pending when ``settled`` was at ``mark``."""
    tags = found.tags
    return bool(tags) and (bool(pending.owed((), tags)) or pending.settled != mark)
