"""The far tier as everything above sees it: values instead of bytes, verdicts instead of slots.

:class:`Far` puts codec, envelope, tag nonces, breaker and the call's budget around a backend's
slots. Every method raises a child of ``BackendError`` when the backend can not be used, and
nothing else; damaged, foreign or newer bytes are a counted miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from .core import envelope as wire
from .core.breaker import Breaker
from .core.deadline import Deadline
from .core.entry import INF
from .core.keys import physical
from .core.policy import Span
from .errors import BackendError, PartUnavailable
from .guard import Guard
from .observe import Meter
from .packing import Found, Packer, Right
from .protocols import Asking, Backend, Codec, Filling, Item, Reading, SlotState, Stream
from .runtime import AnyWorld, Runtime

NONCE_TTL = 30 * 86400.0
NONCE_LOOK = 86400.0
MAX_SEEN = 65_536
GIVE_BACK_PAUSES = (0.05, 0.2, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0, 2.0, 0.0)  # as long as a lease


class Far(Guard):
    """One shared backend's entries. A value above ``max_value`` encoded bytes is not stored."""

    def __init__(
        self,
        backend: Backend,
        runtime: Runtime,
        meter: Meter,
        *,
        timeout: float,
        breaker: Breaker,
        max_value: int = 64 * 1024 * 1024,
        namespace: str = "",
    ) -> None:
        super().__init__(backend, runtime, meter, timeout=timeout, breaker=breaker)
        self.packer = Packer(runtime, meter, max_value, namespace)
        self._seen: dict[tuple[str, bool], float] = {}

    # -- reading --------------------------------------------------------------------------

    async def read(
        self,
        world: AnyWorld,
        keys: Sequence[str],
        tags: Sequence[Sequence[str]],
        codec: Codec,
        deadline: Deadline,
    ) -> list[Found]:
        """Entries of the keys, judged, with the nonces of each key's declared tags: one round
        trip (a second one only where a stored entry has tags that were not asked for)."""
        found, lost = await self.read_parts(world, keys, tags, codec, deadline)
        if lost is not None:
            raise lost
        return [f for f in found if f is not None]

    async def read_parts(
        self,
        world: AnyWorld,
        keys: Sequence[str],
        tags: Sequence[Sequence[str]],
        codec: Codec,
        deadline: Deadline,
    ) -> tuple[list[Found | None], BackendError | None]:
        """The same, with None for keys of which, or of whose tags, the part of the backend can
        not be reached, and why; raises where no other part can be either."""
        began = self.runtime.clock()
        names = [physical(key) for key in keys]
        asked = list(dict.fromkeys(chain.from_iterable(tags)))
        reading, lost = await self._slots(world, names, asked, deadline)
        away = set() if lost is None else set(lost.tags)
        nonces = dict(zip(asked, reading.nonces, strict=True))
        opened = [
            wire.unpack(slot.data, name) if slot.data is not None else None
            for slot, name in zip(reading.slots, names, strict=True)
        ]
        more = [t for e in opened if e is not None for t, _ in e.tags if t not in nonces]
        why: BackendError | None = lost
        if more:
            more = list(dict.fromkeys(more))
            try:
                second, also = await self._slots(world, [], more, deadline)
            except BackendError as error:
                why = error
                away.update(more)
            else:
                nonces.update(zip(more, second.nonces, strict=True))
                why = why or also
                away.update(() if also is None else also.tags)
        found: list[Found | None] = []
        for i, (slot, entry) in enumerate(zip(reading.slots, opened, strict=True)):
            if why is not None and (
                (lost is not None and names[i] in lost.keys)
                or not away.isdisjoint(tags[i])
                or (entry is not None and not away.isdisjoint([tag for tag, _ in entry.tags]))
            ):
                found.append(None)
                continue
            space = reading.spaces[i]
            judged = self.packer.judge(
                slot.state, slot.stamp, slot.data, entry, names[i], space, nonces, codec
            )
            found.append(judged._replace(asked=began) if judged.readable else judged)
        if why is not None and not any(found):
            raise why
        return found, why

    async def _slots(
        self, world: AnyWorld, names: Sequence[str], tags: Sequence[str], deadline: Deadline
    ) -> tuple[Reading, PartUnavailable | None]:
        """What could be read; and if that is not all, why."""
        try:
            return await self._use(
                world, "read", deadline, lambda s: s.slots.read(names, tags, deadline)
            ), None
        except PartUnavailable as error:
            if error.part is None:
                raise
            return error.part, error

    # -- filling --------------------------------------------------------------------------

    async def acquire(
        self,
        world: AnyWorld,
        key: str,
        found: Found,
        tags: Sequence[str],
        lease: float,
        keep: bool,
        ttl: float | None,
        deadline: Deadline,
    ) -> Right | SlotState:
        """The right to fill ``key`` with these tags, or the state that stands in the way."""
        token = self.runtime.token()
        name = physical(key)
        try:
            grant = await self._use(
                world,
                "acquire",
                deadline,
                lambda s: s.slots.acquire(
                    name, token, lease, deadline, over=found.stamp, keep=keep
                ),
            )
            if not grant.granted:
                return grant.slot.state
            right = await self.nonces(world, key, tags, token, ttl, deadline, found)
        except BaseException:
            # Its reply may be lost and the token stand: nobody should wait for its lease to end.
            self.give_back_behind(world, [(key, token)])
            raise
        if right is None:
            await self.release(world, key, token, deadline)
            return SlotState.BLOCK  # a writer holds one of the tags
        return right

    async def acquire_many(
        self,
        world: AnyWorld,
        asked: Sequence[tuple[str, Found, Sequence[str]]],
        lease: float,
        ttl: float | None,
        deadline: Deadline,
    ) -> list[Right | SlotState]:
        """Like :meth:`acquire` for several (key, found, tags), in one or two round trips."""
        tokens = [self.runtime.token() for _ in asked]
        asks = [
            Asking(physical(key), token, found.stamp)
            for (key, found, _), token in zip(asked, tokens, strict=True)
        ]
        answers: list[Right | SlotState] = []
        lost: list[tuple[str, bytes]] = []
        try:
            grants = await self._use(
                world, "acquire", deadline, lambda s: s.slots.acquire_many(asks, lease, deadline)
            )
            for (key, found, tags), token, grant in zip(asked, tokens, grants, strict=True):
                if not grant.granted:
                    answers.append(grant.slot.state)
                    continue
                right = await self.nonces(world, key, tags, token, ttl, deadline, found)
                if right is None:
                    lost.append((key, token))
                answers.append(right if right is not None else SlotState.BLOCK)
        except BaseException:
            given = [(key, token) for (key, _, _), token in zip(asked, tokens, strict=True)]
            self.give_back_behind(world, given)
            raise
        if lost:
            self.give_back_behind(world, lost)
        return answers

    async def nonces(
        self,
        world: AnyWorld,
        key: str,
        tags: Sequence[str],
        token: bytes,
        ttl: float | None,
        deadline: Deadline,
        found: Found | None = None,
    ) -> Right | None:
        """The right under ``token`` with nonces read or created now, before the load or write;
        None if a creation was not acknowledged. ``found``: nonces already read for this call."""
        # Prolonged when less than half is left: never shorter than any entry stored meanwhile.
        life = None if ttl is None or ttl > NONCE_TTL / 2 - NONCE_LOOK else NONCE_TTL
        if found is not None and found.space is not None:
            known = {tag: found.nonces.get(tag) for tag in tags}
            if all(known.values()) and self._lasting(tags, life):
                return Right(token, found.space, known, found.row)  # type: ignore[arg-type]  # no None left
        names = list(tags)
        answer = await self._use(
            world,
            "nonces",
            deadline,
            lambda s: s.slots.nonces([physical(key)], names, self.runtime.token, life, deadline),
        )
        space = answer.spaces[0]
        present = {t: n for t, n in zip(tags, answer.tags, strict=True) if n is not None}
        if space is None or len(present) < len(set(tags)):
            return None
        self._looked(tags, life)
        return Right(token, space, present, found.row if found is not None else None)

    def _lasting(self, tags: Sequence[str], life: float | None) -> bool:
        """Whether the nonces were prolonged, where due, less than a day ago by this process."""
        since, seen = self.runtime.clock() - NONCE_LOOK, self._seen
        return all(seen.get((tag, life is None), -INF) > since for tag in tags)

    def _looked(self, tags: Sequence[str], life: float | None) -> None:
        if len(self._seen) > MAX_SEEN:
            self._seen.clear()
        now = self.runtime.clock()
        for tag in tags:
            self._seen[tag, life is None] = now

    async def renew(
        self, world: AnyWorld, key: str, token: bytes, lease: float, deadline: Deadline
    ) -> bool:
        """Prolong a lease; False: it is gone."""
        name = physical(key)
        return await self._use(
            world, "renew", deadline, lambda s: s.slots.renew(name, token, lease, deadline)
        )

    async def fill(
        self, world: AnyWorld, key: str, right: Right, data: bytes, span: Span, deadline: Deadline
    ) -> bool:
        """Store under the right; False when it was voided meanwhile."""
        name, ttl = physical(key), _ttl(span)
        return await self._use(
            world, "fill", deadline, lambda s: s.slots.fill(name, right.token, data, ttl, deadline)
        )

    async def fill_many(
        self,
        world: AnyWorld,
        fills: Sequence[tuple[str, Right, bytes, Span]],
        deadline: Deadline,
    ) -> list[bool]:
        """Like :meth:`fill` for several (key, right, data, span)."""
        named = [
            Filling(physical(key), right.token, data, _ttl(span))
            for key, right, data, span in fills
        ]
        return await self._use(
            world, "fill", deadline, lambda s: s.slots.fill_many(named, deadline)
        )

    async def holds(self, world: AnyWorld, key: str, right: Right, deadline: Deadline) -> bool:
        """Whether the nonces of a right are still the present ones."""
        tags = list(right.nonces)
        reading = await self._use(
            world,
            "read",
            deadline,
            lambda s: s.slots.read([physical(key)], tags, deadline),
        )
        return reading.spaces[0] == right.space and reading.nonces == [
            right.nonces[t] for t in tags
        ]

    async def release(self, world: AnyWorld, key: str, token: bytes, deadline: Deadline) -> None:
        name = physical(key)
        await self._use(
            world, "release", deadline, lambda s: s.slots.release(name, token, deadline)
        )

    def give_back_behind(self, world: AnyWorld, held: Sequence[tuple[str, bytes]]) -> None:
        """Release (key, token) pairs in the background, trying until the far tier answers or the
        leases are over anyway: for callers that were cancelled or got no reply."""
        if held:
            world.spawn(lambda: self._give_back(world, held), "give back leases")

    async def _give_back(self, world: AnyWorld, held: Sequence[tuple[str, bytes]]) -> None:
        for key, token in held:
            for pause in GIVE_BACK_PAUSES:
                try:
                    await self.release(world, key, token, self.deadline(world))
                    break
                except BackendError:
                    await world.sleep(pause)

    # -- invalidating and writing ---------------------------------------------------------

    async def void(self, world: AnyWorld, keys: Sequence[str], deadline: Deadline) -> None:
        names = [physical(key) for key in keys]
        await self._use(world, "void", deadline, lambda s: s.slots.void(names, deadline))

    async def drop_tags(self, world: AnyWorld, tags: Sequence[str], deadline: Deadline) -> None:
        names = list(tags)
        await self._use(world, "drop_tags", deadline, lambda s: s.slots.drop_tags(names, deadline))

    async def seize_tags(
        self, world: AnyWorld, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        names = list(tags)
        await self._use(
            world,
            "seize_tags",
            deadline,
            lambda s: s.slots.seize_tags(names, writer, lease, deadline),
        )

    async def end_tags(
        self, world: AnyWorld, tags: Sequence[str], writer: bytes, deadline: Deadline
    ) -> None:
        names = list(tags)
        await self._use(
            world, "end_tags", deadline, lambda s: s.slots.end_tags(names, writer, deadline)
        )

    async def drop_space(self, world: AnyWorld, deadline: Deadline) -> None:
        await self._use(world, "drop_space", deadline, lambda s: s.slots.drop_space(deadline))

    async def seize(
        self, world: AnyWorld, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        names = [physical(key) for key in keys]
        await self._use(
            world, "seize", deadline, lambda s: s.slots.seize(names, writer, lease, deadline)
        )

    async def commit(
        self, world: AnyWorld, key: str, right: Right, data: bytes, span: Span, deadline: Deadline
    ) -> bool:
        name, ttl = physical(key), _ttl(span)
        return await self._use(
            world,
            "commit",
            deadline,
            lambda s: s.slots.commit(name, right.token, data, ttl, deadline),
        )

    async def end(
        self, world: AnyWorld, keys: Sequence[str], writer: bytes, deadline: Deadline
    ) -> None:
        names = [physical(key) for key in keys]
        await self._use(world, "end", deadline, lambda s: s.slots.end(names, writer, deadline))

    async def append(
        self, world: AnyWorld, stream: Stream, payload: bytes, deadline: Deadline
    ) -> None:
        """An event for other processes."""
        await self._use(
            world, "append", deadline, lambda _: stream.append(world, payload, deadline)
        )

    # -- plain records: what is remembered beside a key -----------------------------------

    async def recall(
        self, world: AnyWorld, names: Sequence[str], deadline: Deadline
    ) -> list[bytes | None]:
        return await self._use(
            world,
            "get_many",
            deadline,
            lambda s: s.get_many([physical(name) for name in names], deadline),
        )

    async def remember(
        self, world: AnyWorld, name: str, data: bytes, ttl: float | None, deadline: Deadline
    ) -> None:
        item = Item(physical(name), data, ttl)
        await self._use(world, "set_many", deadline, lambda s: s.set_many([item], deadline))


def _ttl(span: Span) -> float | None:
    return None if span.kept == INF else span.kept
