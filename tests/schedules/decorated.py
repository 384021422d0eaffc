"""What applications decorate, by its own faces: functions, loaders of many, writers, repositories.

Their calls run in the world of the actor that makes them; so the generated wrapper and its hit
road are played as they are used.
"""

from __future__ import annotations

import asyncio
from typing import Any

import actors
from actors import Save, check_error, dropped, judge, refreshed
from world import step

from cachekit import WriteThrough
from cachekit.core.entry import MISSING


def discover(value: Any) -> list[str]:
    return [] if value is None else [f"d:{value[1]}"]


TAGS: dict[str, Any] = {"declared": ["all", "g:{id}"], "discovered": discover, "none": ()}


class Records:
    """A source that gives a new record its id only as it is saved."""

    def __init__(self, source: Any) -> None:
        self._source = source

    async def load(self, id: str) -> Any:
        return await self._source.load(id)

    async def load_many(self, ids: list[str]) -> Any:
        return await self._source.load_many(ids)

    async def save(self, record: dict[str, Any]) -> str:
        await self._source.store(record["unsaved"], record["value"])
        return str(record["unsaved"])


class Faces:
    """The decorated things of one process, for one kind of tags."""

    def __init__(self, process: Any, tagging: str, grace: bool, drops: bool) -> None:
        cache, source, tags = process.cache, process.stand.source, TAGS[tagging]
        kept: dict[str, Any] = {
            "ttl": actors.TTL,
            "grace": 32.0 if grace else 0.0,
            "lease": actors.LEASE,
            "wait": 0.5 if grace else 0.125,
            "early": 0.25,
        }
        drop = ["all"] if drops else []

        async def load(id: str) -> Any:
            return await source.load(id)

        async def load_many(ids: list[str]) -> Any:
            return await source.load_many(ids)

        async def change(id: str, value: Any) -> None:
            await source.store(id, value)

        self.call = cache.cached(key="k:{id}", tags=tags, **kept)(load)
        # Of many, no tags can be discovered: their entries would carry none.
        self.many = None
        if tagging != "discovered":
            self.many = cache.cached_many(key="k:{id}", tags=tags, **kept)(load_many)
        self.change = cache.invalidates(keys=["k:{id}"], tags=drop)(change)
        self.records = cache.repository(
            Records(source),
            strategy=WriteThrough,
            key="k:{id}",
            tags=tags,
            invalidates=drop,
            write_lease=actors.WRITE_LEASE,
            **kept,
        )


async def read(play: Any, process: Any, world: Any, how: str, ids: list[str]) -> None:
    oracle, actor = play.oracle, play.scheduler.current
    faces = process.faces(play.tagging, play.grace, play.drops)
    keys = [play.source.key(id) for id in ids]
    began = oracle.begin(process, actor, keys)
    before = play.registers[keys[0]].version
    answers: dict[str, Any] = {}
    try:
        if how == "call":
            answers[keys[0]] = await faces.call(ids[0])
        elif how == "call peek":
            answers[keys[0]] = await faces.call.peek(ids[0])
        elif how == "call refresh":
            answers[keys[0]] = await faces.call.refresh(ids[0])
        elif how == "call many" and faces.many is not None:
            answers = {play.source.key(id): v for id, v in (await faces.many(ids)).items()}
        else:
            found = await faces.records.get_many(ids)
            answers = {key: found.get(id) for id, key in zip(ids, keys, strict=True)}
    except Exception as error:
        check_error(play, process, actor, error)
        return
    finally:
        oracle.end(began)
    judge(play, began, {key: v for key, v in answers.items() if v is not MISSING})
    if how == "call refresh":
        refreshed(play, began, keys[0], before, answers)


async def invalidate(play: Any, process: Any, world: Any, how: str, ids: list[str]) -> None:
    oracle, actor = play.oracle, play.scheduler.current
    faces = process.faces(play.tagging, play.grace, play.drops)
    since = oracle.next()
    before = {id: play.registers[play.source.key(id)].version for id in ids}
    try:
        if how == "many invalidate" and faces.many is not None:
            await faces.many.invalidate(ids)
        elif how == "records invalidate":
            await faces.records.invalidate(*ids)
        else:
            before = {ids[0]: before[ids[0]]}
            await faces.call.invalidate(ids[0])
    except Exception as error:
        check_error(play, process, actor, error)
        return
    for id, version in before.items():
        demand = actors.Demand(
            f"{how} by {process.name} returned",
            version,
            process=process,
            owed=process if process.owes() else None,
            since=since,
        )
        oracle.demand(play.source.key(id), demand)


async def change(play: Any, process: Any, world: Any, how: str, ids: list[str]) -> None:
    """A write that is followed by its invalidation: by ``@invalidates``, or of a new record."""
    actor, new = play.scheduler.current, how == "save new"
    faces = process.faces(play.tagging, play.grace, play.drops)
    this = actor.play = Save(play, process, actor, how, [play.source.key(ids[0])])
    play.saves.append(this)
    # Of a new record that was cut short nobody knows the id: nothing can be told, or demanded.
    cut = "refused" if new else "unknown"
    await step(how)
    try:
        if new:
            await faces.records.save({"unsaved": ids[0], "value": play.fresh(ids[0])})
        else:
            await faces.change(ids[0], play.fresh(ids[0]))
    except asyncio.CancelledError:
        this.finish(cut)
        raise
    except Exception as error:
        check_error(play, process, actor, error)
        this.finish(cut if isinstance(error, TimeoutError) else "refused")
        return
    this.finish("done", pending=process.owes())
    dropped(play, this, process.owes())


PLAYS: actors.Plays = [
    (12, read, "call", 1),
    (3, read, "call peek", 1),
    (5, read, "call refresh", 1),
    (6, read, "call many", 2),
    (3, read, "records get", 2),
    (3, invalidate, "call invalidate", 1),
    (2, invalidate, "many invalidate", 2),
    (2, invalidate, "records invalidate", 1),
    (6, change, "invalidates", 1),
    (4, change, "save new", 1),
]
