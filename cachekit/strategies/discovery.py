"""Tags known only from the result: remembered beside the key, read first next time.

A far entry needs its tags' nonces from *before* the load. So a value whose tags were not known
then is returned uncached, its tags are remembered, and the next load reads their nonces first:
at most two loads on a cold key (protocols, section 2).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..core.deadline import Deadline
from ..errors import BackendError
from ..runtime import AnyWorld
from ..tiers import Far

MAX_TAGS = 256


class Discovery:
    """``tags_of(value)`` gives the tags of a result."""

    def __init__(self, tags_of: Callable[[Any], Sequence[str]]) -> None:
        self.tags_of = tags_of

    async def recall(
        self, world: AnyWorld, far: Far, key: str, deadline: Deadline, known: Sequence[str]
    ) -> tuple[str, ...]:
        """The remembered tags of a key that are not known anyway."""
        (tags,) = await self.recall_many(world, far, [(key, known)], deadline)
        return tags

    async def recall_many(
        self,
        world: AnyWorld,
        far: Far,
        asked: Sequence[tuple[str, Sequence[str]]],
        deadline: Deadline,
    ) -> list[tuple[str, ...]]:
        """The same for several (key, known tags), in one round trip."""
        found = await far.recall(world, [_name(key) for key, _ in asked], deadline)
        return [_read(data, known) for data, (_, known) in zip(found, asked, strict=True)]

    async def remember(
        self, world: AnyWorld, far: Far, key: str, tags: Sequence[str], ttl: float | None
    ) -> None:
        data = json.dumps(list(tags)[:MAX_TAGS]).encode()
        try:
            await far.remember(world, _name(key), data, ttl, far.deadline(world))
        except BackendError:
            return  # one more load next time


def _read(data: bytes | None, known: Sequence[str]) -> tuple[str, ...]:
    if data is None:
        return ()
    try:
        tags = json.loads(data)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(tags, list) or len(tags) > MAX_TAGS:
        return ()
    return tuple(t for t in tags if isinstance(t, str) and t and t not in known)


def _name(key: str) -> str:
    return f"tags-of {key}"
