"""The write-back queue in Redis: streams, one per partition, and scripts around them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ...core.deadline import Deadline
from ...errors import BackendRefused
from ...protocols import Letter, Look, Record, Standing, World
from . import log_scripts as scripts
from .layout import milliseconds
from .log_letters import LogLetters, head_of, letter_args, raw_of, record_of, text_of
from .log_scripts import (
    PLACE_DIGITS,
    id_after,
    mark_of,
    part_of,
    place_of,
    queue_of,
    version_of,
    version_of_id,
)
from .log_speaker import ALL, FACTS, LIVE, MOST_AT_ONCE, Step
from .routes import Call, checked
from .verb import NAME, Verb
from .wire import ErrorReply, remaining

MOST_REMOVED = 5000  # operations that one script takes out: a few tens of milliseconds


class RedisLog(LogLetters):
    """A :class:`~cachekit.protocols.Log`. Needs Redis 6, alone, behind Sentinel or as a Cluster.

    ``level``: "process": accepted operations are on the server (the default; what a crash of the
    server itself leaves is a matter of its persistence). "host": on its disk; needs ``appendonly
    yes`` and either ``appendfsync always`` or WAITAOF (Redis 7.2). "replicated": one replica has
    them too, or ``append`` is a BackendTimeout. ``parts`` (1 to 64) counts only for the first
    process that ever writes to the queue; ``self.parts`` is right after the first verb.

    One round trip per verb; ``append`` and ``settle`` take one per 500 operations, the first verb
    one more. The first ``append`` to a run of a server, and a claim, look whether it may evict the
    log and keeps the level.

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
            keys = [raw_of(record.key) for record in records]
            now = time.time()  # for those that do not tell their own
            marked = [
                (mark_of(k), head_of(r, now), r.data) for k, r in zip(keys, records, strict=True)
            ]
            todo: dict[int, list[int]] = {}
            for i, key in enumerate(keys):
                todo.setdefault(part_of(key, self.parts), []).append(i)
            await self._meet_new(world, todo, verb.until)
            while todo:
                await self._append_once(world, todo, marked, versions, verb.until)
            return versions

    async def _append_once(
        self,
        world: World,
        todo: dict[int, list[int]],
        marked: Sequence[tuple[bytes, bytes, bytes]],
        versions: list[int | None],
        until: float,
    ) -> None:
        """One pipeline: the next operations of each partition. Leaves what is still to do."""
        memory, steps = self._memory, []
        names = {part: memory.name(part) for part in todo}
        runs = {part: memory.runs.get(part) for part in todo}
        writer, number, dead = self._writer.attempt()
        for part, waiting in todo.items():
            newest = memory.newest.get(part, b"")
            args: list[Any] = [*self._bounds, newest, self.of, names[part], writer, number, dead]
            for i in waiting[:MOST_AT_ONCE]:
                args += marked[i]
            steps.append((scripts.APPEND, self._names.of(part, *LIVE, b"fences"), args))
        try:
            replies = await self._accept(world, steps, until)
        except BaseException:  # it may still be on its way
            self._writer.failed(number)
            raise
        strange: dict[int, bytes] = {}
        for n, (part, places) in enumerate(zip(list(todo), replies, strict=True)):
            if places == -1:
                strange[part] = b""
            elif places != -2 and replies.run_of(n) != runs[part]:
                strange[part] = places[0] or b"0" * PLACE_DIGITS
        if strange:  # nothing is acknowledged before the level is sure
            await self._meet(world, strange, until)
            names |= {part: memory.name(part) for part in strange}
        for part, places in zip(list(todo), replies, strict=True):
            if places == -1 or places == -2:
                continue
            waiting, given = todo[part], places[1:]
            for i, place in zip(waiting, given, strict=False):
                versions[i] = version_of(place, part)
            if given:
                memory.saw(part, names[part], given[-1])
            todo[part] = waiting[MOST_AT_ONCE:]
            if not todo[part] or len(given) < MOST_AT_ONCE:
                del todo[part]

    async def look(self, world: World, keys: Sequence[str], since: int, deadline: Deadline) -> Look:
        pending: list[Record | None] = [None] * len(keys)
        with Verb("look", deadline, keys) as verb:
            route = self._route(world)
            if not keys or not await self._learn(route, verb.until):
                return Look(pending, (), since)
            places: dict[int, list[int]] = {}
            raw = [raw_of(key) for key in keys]
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
                        pending[i] = record_of(keys[i], head, data, version)
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
            runs = await self._check(route, [self._within(part)], verb.until)
            epoch, asked = self._epochs.get(part, 0), self._memory.known(part)
            names = self._names.of(part, b"own", b"state")
            args = (owner, milliseconds(lease), b"%d" % max(beyond, epoch))
            meeting = self._meeting(part, runs[part], b"", b"")
            steps = [meeting, (scripts.CLAIM, names, args)]
            replies = await self._eval(route, steps, verb.until)
            kept = self._memory.witness(part, asked, replies[0], self.of, runs[part])
            if replies[1] is None:
                return None
            granted, before = replies[1]
            if kept and int(before) < epoch:
                self._alarm(part)
            self._epochs[part] = int(granted)
            self._runs[part] = replies.run_of(1)
            self._memory.runs[part] = runs[part]
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
                    record = record_of(text_of(key), head, data, version_of_id(id, part))
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
            groups = [letter_args(letter, part) for letter in in_order]
            groups += [(b"d", mark_of(raw_of(k)), place_of(v, part)) for k, v in done]
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
            asked = [self._memory.known(part) for part in range(self.parts)]
            found = await self._every(route, scripts.STANDING, ALL, verb.until)
            for p, each in enumerate(found):
                self._memory.witness(p, asked[p], each[4], self.of, found.run_of(p))
            places = [each[4][0] for each in found]
            newest = [version_of(place, p) if place else 0 for p, place in enumerate(places)]
            return Standing(
                depth=sum(each[0] for each in found),
                size=sum(each[1] for each in found),
                oldest=min((float(each[2]) for each in found if each[2]), default=None),
                newest=tuple(newest),
                dead=sum(each[3] for each in found),
            )

    async def left(self, world: World, upto: Sequence[int], deadline: Deadline) -> int:
        """Raises BackendRefused where nothing of it is left, but not all of it was settled: the
        server has lost operations. So until something newer is waited for."""
        with Verb("left", deadline) as verb:
            route = self._route(world)
            if not await self._learn(route, verb.until):
                return 0
            calls: list[Call] = []
            marks = [(p, place_of(version, p)) for p, version in enumerate(upto[: self.parts])]
            asked = [self._memory.known(part) for part, _ in marks]
            for part, place in marks:
                index, state = self._names.of(part, b"index", b"state")
                calls.append((index, (b"ZLEXCOUNT", index, b"[i", b"[i" + place)))
                calls.append((state, (b"HMGET", state, *FACTS)))
            if not calls:
                return 0
            replies = checked(await route.send(calls, verb.until))
            for part, _ in marks:
                n = 2 * part + 1
                run = replies.run_of(n)
                self._memory.witness(part, asked[part], replies[n], self.of, run)
            count = sum(replies[::2])
            if not count and self._memory.owes(marks):
                raise BackendRefused(
                    f"{self.name}: the server has lost operations that were accepted (it was "
                    "flushed, came back with older data, or a replica took over that lagged): "
                    "what was lost must be written again",
                    backend=NAME,
                    operation="left",
                )
            return count

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
