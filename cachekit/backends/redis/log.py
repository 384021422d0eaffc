"""The write-back queue in Redis: streams, one per partition, and scripts around them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from ...core.deadline import Deadline
from ...core.ops import OpKind
from ...observe import log as logger
from ...protocols import Letter, Look, Record, Standing, World
from . import log_scripts as scripts
from .layout import milliseconds
from .log_scripts import (
    id_after,
    mark_of,
    part_of,
    place_of,
    queue_of,
    version_of,
    version_of_id,
)
from .log_speaker import ALL, LIVE, MOST_AT_ONCE, LogSpeaker, Step
from .routes import Call, checked
from .verb import Verb
from .wire import ErrorReply, remaining

MOST_REMOVED = 5000  # operations that one script takes out: a few tens of milliseconds
_HEADS = {OpKind.PUT: b"1p", OpKind.DELETE: b"1x"}
_KINDS = {head: kind for kind, head in _HEADS.items()}


class RedisLog(LogSpeaker):
    """A :class:`~cachekit.protocols.Log`. Needs Redis 6, alone, behind Sentinel or as a Cluster.

    ``level``: "process": accepted operations are on the server (the default; what a crash of the
    server itself leaves is a matter of its persistence). "host": on its disk; needs ``appendonly
    yes`` and either ``appendfsync always`` or WAITAOF (Redis 7.2). "replicated": one replica has
    them too, or ``append`` is a BackendTimeout. ``parts`` (1 to 64) counts only for the first
    process that ever writes to the queue; ``self.parts`` is right after the first verb.

    One round trip per verb; ``append`` and ``settle`` take one per 500 operations, the first verb
    one more, and the first ``append`` of a world looks whether the server may evict the log.

    ``went_back`` counts how often the server was found to have less than this process has seen: a
    failover that lost a tail, or a flush. Then, and after any restart or failover, ``renew`` is
    False, so that the owner claims anew and reads everything again."""

    tells = False

    # -- from put to the log -------------------------------------------------------------

    async def append(
        self, world: World, records: Sequence[Record], deadline: Deadline
    ) -> list[int | None]:
        versions: list[int | None] = [None] * len(records)
        if not records:
            return versions
        with Verb("append", deadline, [record.key for record in records]) as verb:
            route = self._route(world)
            await self._learn(route, verb.until, record=True)
            await self._check_once(world, verb.until)
            keys = [_raw(record.key) for record in records]
            now = time.time()  # for those that do not tell their own
            todo: dict[int, list[int]] = {}
            for i, key in enumerate(keys):
                todo.setdefault(part_of(key, self.parts), []).append(i)
            while todo:
                steps: list[Step] = []
                for part, waiting in todo.items():
                    args = [*self._bounds, self._newest.get(part, b""), self.of]
                    for i in waiting[:MOST_AT_ONCE]:
                        args += mark_of(keys[i]), _head(records[i], now), records[i].data
                    steps.append((scripts.APPEND, self._names.of(part, *LIVE), args))
                replies = await self._accept(world, steps, verb.until)
                for (part, waiting), places in zip(list(todo.items()), replies, strict=True):
                    if places == -1:  # new, or the server has lost what it had
                        await self._adopt(route, part, verb.until)
                        continue
                    for i, place in zip(waiting, places, strict=False):
                        versions[i] = version_of(place, part)
                    self._saw(part, places[-1] if places else b"")
                    todo[part] = waiting[MOST_AT_ONCE:]
                    if not todo[part] or len(places) < MOST_AT_ONCE:
                        del todo[part]
            return versions

    async def look(self, world: World, keys: Sequence[str], since: int, deadline: Deadline) -> Look:
        pending: list[Record | None] = [None] * len(keys)
        with Verb("look", deadline, keys) as verb:
            route = self._route(world)
            if not keys or not await self._learn(route, verb.until):
                return Look(pending, (), since)
            places: dict[int, list[int]] = {}
            raw = [_raw(key) for key in keys]
            for i, key in enumerate(raw):
                places.setdefault(part_of(key, self.parts), []).append(i)
            groups = [
                (part, asked[start : start + MOST_AT_ONCE])
                for part, asked in places.items()
                for start in range(0, len(asked), MOST_AT_ONCE)
            ]
            steps: list[Step] = []
            for part, asked in groups:
                names = self._names.of(part, b"log", b"index")
                steps.append((scripts.LOOK, names, [mark_of(raw[i]) for i in asked]))
            replies = await self._eval(route, steps, verb.until)
            for (part, asked), found in zip(groups, replies, strict=True):
                for i, operation in zip(asked, found, strict=True):
                    if operation is not None:
                        place, head, data = operation
                        version = version_of(place, part)
                        pending[i] = _record(keys[i], head, data, version)
            return Look(pending, (), since)

    async def identity(self, world: World, deadline: Deadline) -> str:
        with Verb("identity", deadline) as verb:
            await self._learn(self._route(world), verb.until, record=True)
            return self._identity.decode()

    # -- the owner of a partition --------------------------------------------------------

    async def claim(
        self,
        world: World,
        part: int,
        owner: bytes,
        lease: float,
        deadline: Deadline,
        *,
        beyond: int = 0,
    ) -> int | None:
        with Verb("claim", deadline) as verb:
            route = self._route(world)
            await self._learn(route, verb.until, record=True, anew=True)
            await self._check(route, verb.until)
            epoch, newest = self._epochs.get(part, 0), self._newest.get(part, b"")
            args = (owner, milliseconds(lease), b"%d" % max(beyond, epoch), newest)
            names = self._names.of(self._within(part), b"own", b"state")
            replies = await self._eval(route, [(scripts.CLAIM, names, args)], verb.until)
            if replies[0] is None:
                return None
            granted, before, found = replies[0]
            if int(before) < epoch or found < newest:
                self.went_back += 1
                logger.error(
                    "%s: the server has lost operations or owners of partition %d that were there "
                    "before: it was flushed, or a replica took over that had not heard of them",
                    self.name,
                    part,
                )
            self._epochs[part] = int(granted)
            self._runs[part] = replies.run_of(0)
            self._saw(part, found)
            return int(granted)

    async def renew(
        self, world: World, part: int, owner: bytes, epoch: int, lease: float, deadline: Deadline
    ) -> bool:
        with Verb("renew", deadline) as verb:
            route = self._route(world)
            if not await self._learn(route, verb.until):
                return False
            names = self._names.of(self._within(part), b"own", b"state")
            args = (owner, milliseconds(lease), b"%d" % epoch)
            replies = await self._eval(route, [(scripts.RENEW, names, args)], verb.until)
            # Another run may have brought back what was settled, behind the owner's cursor.
            same = self._runs.get(part) in (None, replies.run_of(0))
            return replies[0] == 1 and (same or self._epochs.get(part) != epoch)

    async def release(
        self, world: World, part: int, owner: bytes, epoch: int, deadline: Deadline
    ) -> None:
        with Verb("release", deadline) as verb:
            route = self._route(world)
            if await self._learn(route, verb.until):
                names = self._names.of(self._within(part), b"own", b"state")
                args = (owner, b"%d" % epoch)
                await self._eval(route, [(scripts.RELEASE, names, args)], verb.until)

    async def read(
        self, world: World, part: int, after: int, limit: int, deadline: Deadline
    ) -> list[Record]:
        """Raises BackendRefused where the next operation was written in a format that this
        version does not know: newer processes, or others, write to the same queue."""
        with Verb("read", deadline) as verb:
            route = self._route(world)
            if limit < 1 or not await self._learn(route, verb.until):
                return []
            (stream,) = self._names.of(self._within(part), b"log")
            first = id_after(after, part)
            call: Call = (stream, (b"XRANGE", stream, first, b"+", b"COUNT", limit))
            replies = checked(await route.send([call], verb.until))
            records: list[Record] = []
            for id, fields in replies[0]:
                try:
                    _, key, _, head, _, data = fields
                    record = _record(_text(key), head, data, version_of_id(id, part))
                except (ValueError, KeyError) as error:
                    if records:
                        break
                    raise ErrorReply(f"UNREADABLE operation {id.decode()} in {stream!r}") from error
                records.append(record)
            return records

    async def settle(
        self,
        world: World,
        part: int,
        epoch: int,
        done: Sequence[tuple[str, int]],
        letters: Sequence[Letter],
        deadline: Deadline,
    ) -> bool:
        """In several steps where it is much: then False means that another owner came between
        two of them."""
        with Verb("settle", deadline) as verb:
            route = self._route(world)
            if not await self._learn(route, verb.until):
                return False
            names = self._names.of(self._within(part), *ALL)
            head = (b"%d" % epoch, MOST_REMOVED)
            in_order = sorted(letters, key=lambda letter: letter.record.version)
            groups = [_letter_args(letter, part) for letter in in_order]
            groups += [(b"d", mark_of(_raw(k)), place_of(v, part)) for k, v in done]
            at = 0
            while True:
                args = [arg for group in groups[at : at + MOST_AT_ONCE] for arg in group]
                step = (scripts.SETTLE, names, (*head, *args))
                [count] = await self._eval(route, [step], verb.until)
                if count < 0:
                    return False
                while count > 0:
                    count -= len(groups[at])
                    at += 1
                if at == len(groups):
                    return True

    # -- the whole queue -----------------------------------------------------------------

    async def standing(self, world: World, deadline: Deadline) -> Standing:
        with Verb("standing", deadline) as verb:
            route = self._route(world)
            if not await self._learn(route, verb.until):
                return Standing(newest=(0,) * self.parts)
            found = await self._every(route, scripts.STANDING, ALL, verb.until)
            newest = [version_of(each[3], p) if each[3] else 0 for p, each in enumerate(found)]
            return Standing(
                depth=sum(each[0] for each in found),
                size=sum(each[1] for each in found),
                oldest=min((float(each[2]) for each in found if each[2]), default=None),
                newest=tuple(newest),
                dead=sum(each[4] for each in found),
            )

    async def left(self, world: World, upto: Sequence[int], deadline: Deadline) -> int:
        with Verb("left", deadline) as verb:
            route = self._route(world)
            if not await self._learn(route, verb.until):
                return 0
            calls: list[Call] = []
            for part, version in enumerate(upto[: self.parts]):
                (index,) = self._names.of(part, b"index")
                most = b"[i" + place_of(version, part)
                calls.append((index, (b"ZLEXCOUNT", index, b"[i", most)))
            return sum(checked(await route.send(calls, verb.until))) if calls else 0

    # -- dead letters --------------------------------------------------------------------

    async def letters(
        self, world: World, after: int, limit: int, deadline: Deadline
    ) -> list[Letter]:
        with Verb("letters", deadline) as verb:
            route = self._route(world)
            if limit < 1 or not await self._learn(route, verb.until):
                return []
            steps: list[Step] = []
            for part in range(self.parts):
                names = self._names.of(part, b"dead", b"graves")
                steps.append((scripts.LETTERS, names, (place_of(after, part), limit)))
            found = []
            for part, letters in enumerate(await self._eval(route, steps, verb.until)):
                found += [_letter(fields, part) for fields in letters]
            return sorted(found, key=lambda letter: letter.record.version)[:limit]

    async def revive(
        self, world: World, versions: Sequence[int], force: bool, deadline: Deadline
    ) -> list[int]:
        with Verb("revive", deadline) as verb:
            if versions and await self._learn(self._route(world), verb.until):
                await self._check_once(world, verb.until)
            forced = b"1" if force else b"0"
            found = await self._pick(world, scripts.REVIVE, versions, verb.until, forced)
            for part, (_, place) in found:
                self._saw(part, place)
            return _in_order(versions, {version_of(old, part) for part, (old, _) in found})

    async def drop(self, world: World, versions: Sequence[int], deadline: Deadline) -> list[int]:
        with Verb("drop", deadline) as verb:
            found = await self._pick(world, scripts.DROP, versions, verb.until)
            return _in_order(versions, {version_of(place, part) for part, place in found})

    async def queues(self, world: World, deadline: Deadline) -> list[str]:
        with Verb("queues", deadline) as verb:
            name = self._names.queues
            remaining(verb.until)
            calls: list[Call] = [(name, (b"SMEMBERS", name))]
            [members] = checked(await self._route(world).send(calls, verb.until))
            return sorted(queue_of(member) for member in members)

    async def close(self, world: World) -> None:
        for route in self._routes.pop(world, {}).values():
            await route.close()


def _raw(key: str) -> bytes:
    return key.encode(errors="surrogatepass")


def _text(key: bytes) -> str:
    return key.decode(errors="surrogatepass")


def _head(record: Record, now: float = 0.0) -> bytes:
    return _HEADS[record.kind] + repr(record.at or now).encode()


def _record(key: str, head: bytes, data: bytes, version: int) -> Record:
    return Record(key, _KINDS[head[:2]], data, version, float(head[2:]))


def _letter_args(letter: Letter, part: int) -> tuple[Any, ...]:
    record = letter.record
    error = json.dumps([letter.error, letter.attempts, letter.parked]).encode()
    mark, place = mark_of(_raw(record.key)), place_of(record.version, part)
    outdated = b"1" if letter.outdated else b"0"
    return (b"l", mark, place, _head(record), record.data, error, outdated)


def _letter(fields: Sequence[Any], part: int) -> Letter:
    place, mark, head, data, told, outdated = fields
    error, attempts, parked = json.loads(told)
    record = _record(_text(mark[9:]), head, data, version_of(place, part))
    return Letter(record, error, attempts, parked, outdated is not None)


def _in_order(versions: Sequence[int], found: set[int]) -> list[int]:
    return [version for version in dict.fromkeys(versions) if version in found]
