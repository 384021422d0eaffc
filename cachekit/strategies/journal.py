"""Write-back in a durable log: values instead of bytes, and reads that see what waits there.

Together, log and source are one system of record: a put changes it the moment it is in the log,
and the worker's batches only move what is there. Two ways keep every cache right over it:

- A log that tells what was settled (SQLite) is looked into before every read, near copies
  included: what waits is served from there, and near copies of what has left it are dropped in
  the same look. A put is then nothing but the log's append.
- Another (Redis) is looked into by whoever loads, once it has the right to fill. So a put
  invalidates its key when it is in the log, as any write does, and what the tiers hold is never
  older than the log (the argument is that of protocols, section 1, with log and source as the
  source).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..codecs import resolve
from ..core.deadline import Deadline
from ..core.keys import physical
from ..core.notes import Note, NoteKind
from ..core.ops import Op, OpKind
from ..core.outcome import Outcome
from ..errors import (
    BackendError,
    CodecError,
    ConfigurationError,
    KeyEncodingError,
    QueueFull,
)
from ..protocols import Bounds, Codec, Log, Record, Standing
from ..runtime import AnyWorld, AsyncioWorld
from .drain import Drain
from .held import Item, Waiting, queue_full
from .parts import Parts
from .waiting import heard
from .writer import Written

SCHEMA = 1
MOST_SHORT = 1 << 62
MOST_APPEND = 5.0  # seconds for one append: room is waited for besides
NAP = 0.02  # seconds between two tries of a put that finds no room
_HEAD = struct.Struct(">BBI")
_unpack = _HEAD.unpack_from


class Payload:
    """Id and value <-> a record's bytes: schema 1, the codec's mark, the id's length, the id (exact
    JSON), the value (the strategy's codec; for a delete nothing, or None where the codec signs:
    then key, kind and id are authenticated with it)."""

    def __init__(self, codec: Codec, context: bytes) -> None:
        self._codec = codec
        self._ids = resolve("json")
        self._context = context
        self._signs = getattr(codec, "signs", True)

    def _about(self, key: str, kind: OpKind, name: bytes) -> bytes:
        """What a signing codec authenticates beside the value; nothing for one that does not."""
        if not self._signs:
            return b""
        text = key.encode("utf-8", "surrogatepass")
        return b"\0".join((self._context, text, kind.value.encode(), name))

    def encode(self, key: str, kind: OpKind, id: Any, value: Any) -> bytes:
        """Raises CodecError for what can not be given back exactly."""
        # What exact JSON makes of a short int, without the way there.
        short = type(id) is int and -MOST_SHORT < id < MOST_SHORT
        name = b" %d" % id if short else self._ids.encode(id, b"")
        bare = kind is OpKind.DELETE and not self._signs
        body = b"" if bare else self._codec.encode(value, self._about(key, kind, name))
        return _HEAD.pack(SCHEMA, self._codec.mark, len(name)) + name + body

    def decode(self, record: Record) -> tuple[Any, Any]:
        """(id, value). Raises CodecError, and nothing else."""
        key, kind, data, _, _ = record
        codec = self._codec
        try:
            schema, mark, length = _unpack(data)
            if schema != SCHEMA or mark != codec.mark:
                raise CodecError(
                    f"an operation of schema {schema}, codec {mark}: this process reads schema "
                    f"{SCHEMA}, codec {codec.mark}"
                )
            middle = _HEAD.size + length
            name = data[_HEAD.size : middle]
            id = int(name) if name[1:].isdigit() else self._ids.decode(name, b"")
            if not self._signs:
                return id, None if kind is OpKind.DELETE else codec.decode(data[middle:], b"")
            return id, codec.decode(data[middle:], self._about(key, kind, name))
        except struct.error:
            raise CodecError("an operation of a few bytes") from None
        except CodecError:
            raise
        except Exception as error:  # a third-party codec broke its word
            raise CodecError(f"its codec raised {type(error).__name__}") from error


class Journal:
    """The backlog of a durable log. ``budget``: seconds for one look; ``block``: for room."""

    def __init__(
        self,
        parts: Parts,
        log: Log,
        queue: Drain,
        payload: Payload,
        *,
        budget: float,
        block: float,
        lease: float,
        most: Bounds,
        away: str,
        start: Callable[[AnyWorld], None],
        closed: Callable[[], Exception | None],
    ) -> None:
        self.log = log
        self.queue = queue
        self.hits = self.places = not log.tells
        self._parts = parts
        self._payload = payload
        self._budget = budget
        self._append_budget = min(MOST_APPEND, max(4 * budget, block))
        self._lease = lease
        self._most = most
        self._away = away
        self._start = start
        self._closed = closed
        self._mark = 0
        self._append_now = _short_road(type(log))

    # -- writing --------------------------------------------------------------------------

    async def accept(
        self, world: AnyWorld, kind: OpKind, items: Sequence[Item], deadline: Deadline
    ) -> Outcome:
        try:
            records = [self._record(kind, item.key, item.id, item.value) for item in items]
        except (CodecError, KeyEncodingError, QueueFull) as error:
            return Outcome(error=error)

        async def append(world: AnyWorld) -> Outcome:
            return await self._append(world, items, records, deadline)

        if not self.hits:
            outcome = await append(world)
            return outcome if outcome.error is not None else Outcome(Written())
        places = [item.place for item in items if item.place is not None]
        return await self._parts.writer.then_void(world, places, append, lease=self._lease)

    def accept_now(self, key: str, id: Any, value: Any) -> bool:
        append = self._append_now
        if append is None or self.hits or self._closed() is not None:
            return False
        try:
            record = self._record(OpKind.PUT, key, id, value)
        except (CodecError, KeyEncodingError, QueueFull):
            return False  # told on the long road
        if append(self.log, record) is None:
            return False
        self.queue.told()
        return True

    def taken(self, ops: Sequence[Op]) -> None:
        """The log itself tells of them."""

    def _record(self, kind: OpKind, key: str, id: Any, value: Any) -> Record:
        try:
            key.encode()
        except UnicodeEncodeError:
            raise KeyEncodingError(f"{key!r}: half a surrogate pair: no log takes it") from None
        data = self._payload.encode(key, kind, id, value)
        if len(data) + len(key) > self._most.size:
            raise QueueFull(
                f"{key!r}: one operation of {len(data)} bytes, and max_bytes is {self._most.size}"
            )
        return Record(key, kind, data, at=self._parts.runtime.wall())

    async def _append(
        self,
        world: AnyWorld,
        items: Sequence[Item],
        records: Sequence[Record],
        deadline: Deadline,
    ) -> Outcome:
        left = list(range(len(records)))
        while True:
            if (error := self._closed()) is not None:
                return Outcome(error=error)
            try:
                asked = [records[i] for i in left]
                versions = await self.log.append(world, asked, world.deadline(self._append_budget))
            except BackendError as failed:
                return Outcome(error=failed)
            self.queue.told()
            left = [i for i, version in zip(left, versions, strict=True) if version is None]
            if not left:
                return Outcome()
            self._start(world)
            self.queue.make_room()
            if deadline.passed():
                waits = set(left)
                taken = [item for i, item in enumerate(items) if i not in waits]
                return Outcome(error=queue_full(self._most.operations, taken))
            await self._room(world, min(NAP, deadline.left()))

    async def _room(self, world: AnyWorld, seconds: float) -> None:
        """Another process may make room too: look again soon."""
        if not isinstance(world, AsyncioWorld):
            self.queue.wait_for_change(seconds)
            return
        async with heard(self.queue) as changed:
            await changed(seconds)

    async def went_past(self, world: AnyWorld, keys: Sequence[str]) -> None:
        try:
            await self.log.outdate(world, keys, world.deadline(self._append_budget))
        except BackendError as error:
            self._parts.meter.event("log_errors", lane=self.log.name, error=type(error).__name__)

    # -- reading --------------------------------------------------------------------------

    async def pending(self, world: AnyWorld, keys: Sequence[str]) -> Outcome:
        """An error where the log can not be asked, unless it was said that reads may then go
        to the source."""
        try:
            look = await self.log.look(world, keys, self._mark, world.deadline(self._budget))
        except BackendError as error:
            if self._away == "source":
                self._parts.meter.event("log_errors", lane=self.log.name)
                return Outcome(None)
            return Outcome(error=error)
        first = not self._mark and look.mark > 1  # copies of others may be from before it
        if look.settled is None or first:
            self._parts.invalidator.forget_near()
        elif look.settled:
            self._parts.invalidator.hear(
                [Note(NoteKind.KEY, physical(key)) for key in look.settled]
            )
        self._mark = max(self._mark, look.mark)  # after what it told of is gone
        found: list[Waiting | None] = []
        for record in look.pending:
            if record is None:
                found.append(None)
                continue
            try:
                found.append(Waiting(self._payload.decode(record)[1]))
            except CodecError as error:
                return Outcome(error=error)
        return Outcome(found)

    async def standing(self, world: AnyWorld) -> tuple[Standing, float | None]:
        standing = await self.log.standing(world, world.deadline(self._budget))
        if standing.oldest is None:
            return standing, None
        return standing, max(0.0, self._parts.runtime.wall() - standing.oldest)


def _short_road(cls: type) -> Callable[[Any, Record], int | None] | None:
    """``append_now`` of the class that has ``append``: another's ``append`` is not passed by, and
    what wraps a log may answer to any name."""
    home: Mapping[str, Any] = next((vars(one) for one in cls.__mro__ if "append" in vars(one)), {})
    return home.get("append_now")


def checked_codec(codec: Codec, log: Log) -> Codec:
    """Refuse a codec that runs code from bytes others can write."""
    if not codec.safe:
        raise ConfigurationError(
            f"{log.name}: an unsigned pickle must not be read from a log that others can write; "
            "give codec=cachekit.codecs.Pickle(secret=...), or keep the default codec"
        )
    return codec
