"""How the write-back queue talks to Redis: what was recorded of it, its routes, its scripts."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...errors import ConfigurationError
from ...observe import log as logger
from ...protocols import Bounds, World
from .log_memory import WRITER, Memory
from .log_safety import LEVELS, Waiting, check, send_and_wait
from .log_scripts import MEET, MOST_PARTS, Names, place_of
from .routes import Call, Route, checked
from .scripts import Script
from .wire import ErrorReply, ProtocolViolation, Replies, Reply, remaining

MOST_AT_ONCE = 500  # operations or keys of one script
LIVE = (b"log", b"index", b"state")
ALL = (*LIVE, b"dead", b"graves", b"ages")
FACTS = (b"newest", b"of", b"run", b"memory", b"past")

Step = tuple[Script, tuple[bytes, ...], Sequence[Any]]  # its keys, its arguments


class LogSpeaker:
    """Speaks for one queue, in all worlds."""

    def __init__(
        self,
        encoded_namespace: str,
        queue: str,
        route: Callable[[World], Route],
        *,
        level: str | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008  # immutable
        parts: int = 1,
    ) -> None:
        self.level = level or LEVELS[0]
        if self.level not in LEVELS:
            raise ConfigurationError(
                f"redis keeps a log at one of the levels {', '.join(LEVELS)}, not {level!r}"
            )
        if not 1 <= parts <= MOST_PARTS:
            raise ConfigurationError(f"a queue has 1 to {MOST_PARTS} partitions")
        self.name, self.queue = f"redis:{queue}", queue
        self.parts = parts
        self.went_back = 0
        self._names = Names(encoded_namespace, queue)
        self._open = route
        self.bounds = bounds
        self._bounds = (b"%d" % bounds.operations, b"%d" % bounds.size)
        self._identity = b""  # empty: the queue is not known to be there
        self._waiting: Waiting = None
        self._routes: weakref.WeakKeyDictionary[World, dict[str, Route]]
        self._routes = weakref.WeakKeyDictionary()
        self._memory = Memory(self._alarm)
        self._writer = WRITER
        # per partition, as this process has seen them
        self._epochs: dict[int, int] = {}
        self._runs: dict[int, bytes] = {}  # of the claim

    def _route(self, world: World, use: str = "asking") -> Route:
        routes = self._routes.get(world)
        if routes is None:  # two threads may each make one: it opens nothing before its first call
            routes = self._routes.setdefault(world, {})
        route = routes.get(use)
        if route is None:
            route = routes.setdefault(use, self._open(world))
        return route

    async def _learn(
        self, route: Route, until: float, *, record: bool = False, anew: bool = False
    ) -> bool:
        """Whether the queue is there; with ``record`` it is so from now on."""
        remaining(until)
        if self._identity and not anew:
            return True
        name = self._names.about
        ask: Call = (name, (b"HMGET", name, b"parts", b"identity"))
        [about] = checked(await route.send([ask], until))
        if None in about:
            parts, found = await self._told_by_a_part(route, until)
            if not record and not found:
                return False
            drawn = found or self._identity or os.urandom(8).hex()
            replies = await route.send(
                [
                    (self._names.queues, (b"SADD", self._names.queues, self._names.encoded)),
                    (name, (b"HSETNX", name, b"parts", parts)),
                    (name, (b"HSETNX", name, b"identity", drawn)),
                    ask,
                ],
                until,
            )
            about = checked(replies)[-1]
        parts, identity = about
        if not (parts.isdigit() and 1 <= int(parts) <= MOST_PARTS):
            raise ProtocolViolation(f"the partitions recorded in {name.decode()!r} are damaged")
        if self._identity and int(parts) != self.parts:
            raise ConfigurationError(
                f"{self.name}: the queue was flushed and has {parts.decode()} partitions now, not "
                f"{self.parts}; start this process anew"
            )
        self.parts = int(parts)
        self._identity = identity
        return True

    @property
    def of(self) -> bytes:
        """The queue, as its partitions have it on record."""
        return b"%d:%b" % (self.parts, self._identity)

    async def _told_by_a_part(self, route: Route, until: float) -> tuple[int, bytes]:
        """The partitions and the identity by what the first partition knows, which may lie on
        another server; or as they are to be from now on."""
        (state,) = self._names.of(0, b"state")
        [of] = checked(await route.send([(state, (b"HGET", state, b"of"))], until))
        parts, _, identity = (of or b"").partition(b":")
        return (int(parts), identity) if parts.isdigit() and identity else (self.parts, b"")

    def _alarm(self, part: int) -> None:
        self.went_back += 1
        logger.error(
            "%s: the server has lost operations or owners of partition %d that were there before: "
            "it was flushed, came back with older data, or a replica took over that lagged",
            self.name,
            part,
        )

    async def _check(self, route: Route, parts: Iterable[int], until: float) -> dict[int, bytes]:
        """The runs of the servers of these partitions."""
        asked = list(parts)
        keys = [self._names.of(part, b"log")[0] for part in asked]
        waiting, runs = await check(route, keys, self.level, until)
        self._waiting = self._waiting or waiting  # other servers may need it
        return dict(zip(asked, runs, strict=True))

    async def _meet_new(self, world: World, parts: Iterable[int], until: float) -> None:
        """Meet those that were not met yet."""
        new = dict.fromkeys(part for part in parts if part not in self._memory.runs)
        if new:
            await self._meet(world, dict.fromkeys(new, b""), until)

    async def _meet(self, world: World, bases: Mapping[int, bytes], until: float) -> None:
        """Look whether the server of these partitions keeps what it accepts, let them know their
        queue, and see what there is of it. What this process has written there before is kept at
        the level then. ``bases``: by partition, the newest place before our first append in this
        run, or empty."""
        for part in bases:
            self._memory.runs.pop(part, None)
        route = self._route(world)
        await self._learn(route, until, record=True, anew=True)
        try:
            runs = await self._check(route, bases, until)
        except ConfigurationError:  # nothing more is sent before that is mended
            self._memory.runs.clear()
            raise
        steps = [self._meeting(part, runs[part], base, b"1") for part, base in bases.items()]
        asked = [self._memory.known(part) for part in bases]
        if any(bases.values()):
            replies = await self._accept(world, steps, until)
        else:
            replies = await self._eval(route, steps, until)
        for i, part in enumerate(bases):
            self._memory.witness(part, asked[i], replies[i], self.of, runs[part])
            self._memory.runs[part] = runs[part]

    def _meeting(self, part: int, run: bytes, base: bytes, write: bytes) -> Step:
        newest = self._memory.newest.get(part, b"")
        args = (self.of, run, os.urandom(4).hex(), newest, base, write)
        return MEET, self._names.of(part, b"state"), args

    async def _accept(self, world: World, steps: Sequence[Step], until: float) -> Replies:
        """As ``_eval``, kept at the level. Waiting holds up a connection: it has its own."""
        if self._waiting is None:
            return await self._eval(self._route(world), steps, until)
        return await self._eval(self._route(world, "waiting"), steps, until, self._waiting)

    async def _eval(
        self, route: Route, steps: Sequence[Step], until: float, waiting: Waiting = None
    ) -> Replies:
        """Every step, in one pipeline. A server that does not know a digest gets the source."""
        remaining(until)
        if not steps:
            return Replies()
        replies = await self._send(route, steps, until, waiting, by_digest=True)
        unknown = [
            i for i, r in enumerate(replies) if isinstance(r, ErrorReply) and r.code == "NOSCRIPT"
        ]
        if unknown:
            again = [steps[i] for i in unknown]
            sent = await self._send(route, again, until, waiting, by_digest=False)
            for i, reply in zip(unknown, sent, strict=True):
                replies[i] = reply
        return checked(replies)

    async def _send(
        self,
        route: Route,
        steps: Sequence[Step],
        until: float,
        waiting: Waiting,
        *,
        by_digest: bool,
    ) -> Replies:
        calls: list[Call] = []
        for script, names, args in steps:
            head = (b"EVALSHA", script.digest) if by_digest else (b"EVAL", script.source)
            calls.append((names[0], (*head, len(names), *names, *args)))
        if waiting is None:
            return await route.send(calls, until)
        states = [names[2 if len(names) > 2 else 0] for _, names, _ in steps]
        return await send_and_wait(route, calls, states, waiting, until)

    async def _every(
        self, route: Route, script: Script, names: Sequence[bytes], until: float
    ) -> Replies:
        steps = [(script, self._names.of(part, *names), ()) for part in range(self.parts)]
        return await self._eval(route, steps, until)

    async def _pick(
        self, world: World, script: Script, versions: Sequence[int], until: float, *flags: bytes
    ) -> list[tuple[int, Reply]]:
        """The script on dead letters: each of its answers with its partition. With ``flags`` it
        accepts operations, and they are kept at the level."""
        route = self._route(world)
        if not versions or not await self._learn(route, until):
            return []
        places: dict[int, list[bytes]] = {}
        for version in versions:
            part = version % MOST_PARTS
            if version > 0 and part < self.parts:
                places.setdefault(part, []).append(place_of(version, part))
        found: list[tuple[int, Reply]] = []
        for part, asked in places.items():
            names = self._names.of(part, *ALL)
            first = (*flags, self._memory.newest.get(part, b"")) if flags else ()
            for i in range(0, len(asked), MOST_AT_ONCE):
                steps = [(script, names, (*first, *asked[i : i + MOST_AT_ONCE]))]
                if flags:
                    [reply] = await self._accept(world, steps, until)
                else:
                    [reply] = await self._eval(route, steps, until)
                found += [(part, each) for each in reply]
        return found

    def _within(self, part: int) -> int:
        if not 0 <= part < self.parts:
            raise ConfigurationError(f"{self.name} has no partition {part}")
        return part
