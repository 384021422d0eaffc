"""What makes a cached row 1 outdated, each in its own way; after it the source holds "new"
(or nothing, after a delete)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from stage import Rows, Stage

from cachekit import Strategy

Step = Callable[[Stage, Strategy, Rows], Awaitable[Any]]


async def _put(stage: Stage, strategy: Strategy, rows: Rows) -> None:
    await stage.face(strategy).put(1, "new")
    await stage.face(strategy).flush(5)


async def _put_many(stage: Stage, strategy: Strategy, rows: Rows) -> None:
    await stage.face(strategy).put_many({1: "new", 2: "two"})
    await stage.face(strategy).flush(5)


async def _delete(stage: Stage, strategy: Strategy, rows: Rows) -> None:
    await stage.face(strategy).delete(1)
    await stage.face(strategy).flush(5)


async def _invalidate(stage: Stage, strategy: Strategy, rows: Rows) -> None:
    rows.rows[1] = "new"
    await stage.face(strategy).invalidate(1)


async def _invalidate_key(stage: Stage, strategy: Strategy, rows: Rows) -> None:
    rows.rows[1] = "new"
    await stage.face(strategy._cache).invalidate(keys=[strategy.key(1)])


async def _invalidate_tag(stage: Stage, strategy: Strategy, rows: Rows) -> None:
    rows.rows[1] = "new"
    await stage.face(strategy._cache).invalidate(tags=["row:1"])


async def _invalidate_late_tag(stage: Stage, strategy: Strategy, rows: Rows) -> None:
    rows.rows[1] = "new"
    await stage.face(strategy._cache).invalidate(tags=["is:old"])


async def _clear(stage: Stage, strategy: Strategy, rows: Rows) -> None:
    rows.rows[1] = "new"
    await stage.face(strategy._cache).clear()


STEPS: dict[str, Step] = {
    "put": _put,
    "put_many": _put_many,
    "delete": _delete,
    "invalidate": _invalidate,
    "invalidate-key": _invalidate_key,
    "invalidate-tag": _invalidate_tag,
    "invalidate-discovered-tag": _invalidate_late_tag,
    "clear": _clear,
}
