"""What actors do: reads, writes, invalidations, each reporting to the oracle what it promised."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from oracle import Demand, Read
from world import step, wait

from cachekit import CacheAside, ReadThrough, RefreshAhead, WriteAround, WriteThrough
from cachekit.core.entry import MISSING
from cachekit.errors import BackendError, InvalidationFailed

WRITE_LEASE = 16.0
LEASE = 4.0
TTL = 64.0

READERS = (ReadThrough, WriteThrough, CacheAside, RefreshAhead)
WRITERS = (WriteThrough, WriteThrough, WriteAround, CacheAside, ReadThrough)


class SourceDown(Exception):
    """The source could not be read."""


class Refused(Exception):
    """The source said no: nothing was written."""


class Event:
    """A domain event: these tags are outdated."""

    def __init__(self, tags: list[str]) -> None:
        self.tags = tags


class Write:
    """One write on its way to the source: it lands, or never does."""

    __slots__ = ("key", "landed", "save", "value", "version")

    def __init__(self, save: Save, key: str, value: Any) -> None:
        self.save = save
        self.key = key
        self.value = value
        self.landed = False
        self.version = -1


class Save:
    """One call of a write. ``guarded``: nothing took away the block it has put."""

    def __init__(self, play: Any, process: Any, actor: Any, kind: str, keys: list[str]) -> None:
        self.play = play
        self.process = process
        self.actor = actor
        self.kind = kind
        self.keys = keys
        self.began = play.oracle.next()
        self.until = play.scheduler.now + WRITE_LEASE
        self.before = {key: register.version for key, register in play.registers.items()}
        self.writes: list[Write] = []
        self.guarded = True
        self.faults: set[str] = set()
        self.end: str | None = None  # "done", "unknown", "refused", "crashed"

    @property
    def told(self) -> bool:
        """Whether the far tier acknowledged the block, as far as its calls tell."""
        return not {"seize", "seize_tags"} & self.faults

    def stands(self) -> bool:
        """Whether this write's block still guards what lands now."""
        return self.guarded and self.told and self.play.scheduler.now < self.until

    def finish(self, how: str, *, pending: bool = False) -> None:
        self.end = how
        self.faults = set(self.actor.faults)
        for write in self.writes:
            if write.landed:
                self.claim(write, pending=pending)

    def claim(self, write: Write, *, pending: bool = False, late: bool = False) -> None:
        """What may no longer be read now that this write has landed and its call has ended."""
        play, demand = self.play, None
        if self.end == "done":
            demand = Demand(
                f"{self.kind} by {self.process.name} returned",
                write.version,
                process=self.process,
                owed=self.process if pending else None,
                since=self.began,
            )
        # A block that was never put guards nothing that lands late; what landed before the call
        # ended is owed all the same.
        elif (self.end == "unknown" and (self.stands() or not (late or self.told))) or (
            self.end == "crashed" and self.kind in ("around", "intent") and self.stands()
        ):
            demand = Demand(
                f"{self.kind} by {self.process.name} landed{' late' if late else ''}, "
                f"its outcome {self.end}",
                write.version,
                owed=self.process if self.end == "unknown" else None,
                after=play.oracle.reading,
                since=self.began,
            )
        if demand is not None:
            play.oracle.demand(write.key, demand)


class Source:
    """The system of record: registers, with suspensions where a network would be."""

    def __init__(self, play: Any) -> None:
        self.play = play

    def key(self, id: str) -> str:
        return f"k:'{id}'"  # as the template "k:{id}" writes a text

    async def load(self, id: str) -> Any:
        play = self.play
        await step(f"source asked {id}")
        value = play.registers[self.key(id)].value
        await step(f"source answers {value}")
        if play.rng.random() < play.load_fails:
            raise SourceDown(id)
        return value

    async def load_many(self, ids: list[str]) -> dict[str, Any]:
        return {id: await self.load(id) for id in ids}

    async def store(self, id: str, value: Any) -> None:
        play = self.play
        await step(f"source write {id} {value}")
        fate = play.rng.random()
        if fate < play.write_refused:
            raise Refused(id)
        save = play.scheduler.current.play
        write = Write(save, self.key(id), value)
        save.writes.append(write)
        play.landings.append(write)
        if fate < play.write_refused + play.write_silent:
            await step("source silent")
            raise TimeoutError("source silent")
        await wait("source write", lambda: write.landed)

    async def delete(self, id: str) -> None:
        await self.store(id, None)


def settled(play: Any, process: Any, actor: Any, outcome: Any) -> Any:
    """The value of an outcome; None where what was injected came out; anything else fails."""
    error = outcome.error
    if error is None:
        return outcome.value
    check_error(play, process, actor, error)
    return error


def check_error(play: Any, process: Any, actor: Any, error: BaseException) -> None:
    if isinstance(error, (SourceDown, Refused)) or str(error) == "source silent":
        return
    if isinstance(error, asyncio.CancelledError) and actor.cancelled:
        return
    if isinstance(error, InvalidationFailed) and actor.faults:
        return
    if isinstance(error, BackendError) and play.stand.strict and process.fault_tick:
        return
    raise AssertionError(f"{actor.name} got an error nobody made: {error!r}") from error


# -- reads -------------------------------------------------------------------------------


async def read(play: Any, process: Any, world: Any, how: str, ids: list[str]) -> None:
    oracle, actor = play.oracle, play.scheduler.current
    keys = [play.source.key(id) for id in ids]
    strategy = process.strategy(play.reader, play.tagging, play.grace)
    began = oracle.begin(process, actor, keys)
    before = play.registers[keys[0]].version
    answers: dict[str, Any] = {}
    try:
        if how == "get":
            value = strategy._hit(ids[0])
            if value is MISSING:
                value = settled(play, process, actor, await strategy._get(world, ids[0]))
            answers[keys[0]] = value
        elif how == "get_many":
            found = settled(play, process, actor, await strategy._get_many(world, ids))
            if not isinstance(found, Exception):
                answers = {key: found.get(id) for id, key in zip(ids, keys, strict=True)}
        elif how == "peek":
            try:
                answers = await process.direct.get_many(world, keys)
            except BackendError as error:
                check_error(play, process, actor, error)
        elif how == "refresh":
            outcome = await strategy._parts.reader.refresh(world, strategy._job(ids[0]))
            answers[keys[0]] = settled(play, process, actor, outcome)
        elif how == "get_or_set":
            outcome = await process.direct.get_or_set(
                world,
                keys[0],
                lambda: play.source.load(ids[0]),
                strategy.policy,
                play.tags(ids[0]),
            )
            answers[keys[0]] = settled(play, process, actor, outcome)
        else:
            try:
                await process.direct.touch(world, keys[0], TTL)
            except BackendError as error:
                check_error(play, process, actor, error)
    finally:
        oracle.end(began)
    judge(play, began, answers)
    if how == "refresh":
        refreshed(play, began, keys[0], before, answers)


def judge(play: Any, began: Read, answers: dict[str, Any]) -> None:
    actor = began.actor
    for key, value in answers.items():
        if not isinstance(value, Exception):
            play.oracle.check(began, key, value, lambda demand: play.excuses(demand, began, actor))


def refreshed(play: Any, began: Read, key: str, before: int, answers: dict[str, Any]) -> None:
    """A forced refresh is an invalidation and a load: nothing older than it is read after it."""
    process = began.process
    if key in answers and not isinstance(answers[key], Exception):
        demand = Demand(
            f"refresh by {process.name} returned",
            before,
            process=process,
            owed=process if process.owes() else None,
            since=began.began,
        )
        play.oracle.demand(key, demand)


# -- writes ------------------------------------------------------------------------------


async def save(play: Any, process: Any, world: Any, how: str, ids: list[str]) -> None:
    actor, kind = play.scheduler.current, play.rng.choice(WRITERS)
    strategy = process.strategy(kind, play.tagging, play.grace, drops=play.drops)
    keys = [play.source.key(id) for id in ids]
    aside = kind is CacheAside
    this = actor.play = Save(play, process, actor, "aside" if aside else "around", keys)
    play.saves.append(this)
    try:
        if how == "delete":
            outcome = await strategy._delete_many(world, ids)
        else:
            outcome = await strategy._put_many(world, {id: play.fresh(id) for id in ids})
    except asyncio.CancelledError:
        this.finish("unknown")
        raise
    answer = settled(play, process, actor, outcome)
    if isinstance(answer, Exception):
        this.finish("unknown" if isinstance(answer, TimeoutError) else "refused")
        return
    this.finish("done", pending=answer.pending)
    dropped(play, this, answer.pending)


def dropped(play: Any, this: Save, pending: bool) -> None:
    """The tag that the writes of this schedule make outdated."""
    if not (play.drops and play.tagging == "declared"):
        return
    for key, version in this.before.items():
        demand = Demand(
            f"{this.kind} by {this.process.name} dropped tag all",
            version,
            process=this.process,
            tag="all",
            owed=this.process if pending else None,
            since=this.began,
        )
        play.oracle.demand(key, demand)


async def bare(play: Any, process: Any, world: Any, how: str, ids: list[str]) -> None:
    """A write to the source that no cache knows of."""
    await step("bare write")
    play.registers[play.source.key(ids[0])].land(play.fresh(ids[0]))


async def tell(play: Any, process: Any, world: Any, how: str, ids: list[str]) -> None:
    """What an application does by hand: write the source, then invalidate."""
    await bare(play, process, world, how, ids)
    await invalidate(play, process, world, "tag" if how == "tell tag" else "key", ids)


async def intend(play: Any, process: Any, world: Any, how: str, ids: list[str]) -> None:
    """A bare write inside a write intent."""
    actor = play.scheduler.current
    keys = [play.source.key(id) for id in ids]
    this = actor.play = Save(play, process, actor, "intent", keys)
    play.saves.append(this)
    tags = play.tags(ids[0]) if play.rng.random() < 0.5 else []
    try:
        outcome = await process.intend(
            world, keys, tags, lambda: play.source.store(ids[0], play.fresh(ids[0]))
        )
    except asyncio.CancelledError:
        this.finish("unknown")
        raise
    answer = settled(play, process, actor, outcome)
    if isinstance(answer, Exception):
        this.finish("unknown" if isinstance(answer, TimeoutError) else "refused")
    else:
        this.finish("done", pending=answer.pending)


async def put_direct(play: Any, process: Any, world: Any, how: str, ids: list[str]) -> None:
    """An unconditional set of what the source holds at its beginning."""
    actor, key = play.scheduler.current, play.source.key(ids[0])
    value = play.registers[key].value
    record = [value, play.oracle.next(), None]
    play.oracle.sets[key].append(record)
    tags = play.tags(ids[0], value)
    try:
        await process.direct.set(world, key, value, TTL, tags)
    except BackendError as error:
        check_error(play, process, actor, error)
    record[2] = play.oracle.next()


# -- invalidations -----------------------------------------------------------------------


async def invalidate(play: Any, process: Any, world: Any, how: str, ids: list[str]) -> None:
    oracle, actor = play.oracle, play.scheduler.current
    since = oracle.next()
    before = {key: register.version for key, register in play.registers.items()}
    tag, keys = None, list(before)
    direct, invalidator = process.direct, process.cache.parts.invalidator
    try:
        if how == "key":
            keys = [play.source.key(id) for id in ids]
            if play.rng.random() < 0.5:
                await direct.invalidate(world, keys, ())
            else:
                strategy = process.strategy(play.reader, play.tagging, play.grace)
                await strategy._invalidate(world, ids)
        elif how == "clear":
            await invalidator.clear(world)
        else:
            tag = play.rng.choice(play.tags(ids[0]) or ["all"])
            if how == "emit":
                await direct.emit(world, Event([tag]))
            else:
                await direct.invalidate(world, (), [tag])
    except BackendError as error:
        check_error(play, process, actor, error)
        return
    for key in keys:
        demand = Demand(
            f"{how} {tag or ''} by {process.name} returned",
            before[key],
            process=process,
            tag=tag,
            owed=process if process.owes() else None,
            since=since,
        )
        oracle.demand(key, demand)


Plays = list[tuple[int, Callable[..., Any], str, int]]

PLAYS: Plays = [
    (30, read, "get", 1),
    (10, read, "get_many", 2),
    (6, read, "peek", 2),
    (5, read, "refresh", 1),
    (5, read, "get_or_set", 1),
    (2, read, "touch", 1),
    (20, save, "put", 1),
    (4, save, "put", 2),
    (3, save, "delete", 1),
    (8, bare, "bare", 1),
    (6, tell, "tell key", 1),
    (6, tell, "tell tag", 1),
    (7, intend, "intent", 1),
    (3, put_direct, "set", 1),
    (12, invalidate, "key", 1),
    (10, invalidate, "tag", 1),
    (2, invalidate, "emit", 1),
    (3, invalidate, "clear", 1),
]
