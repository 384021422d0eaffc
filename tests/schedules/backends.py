"""A real backend whose every step can be delayed, lost, or answered to nobody."""

from __future__ import annotations

import time
from typing import Any

from grounds import Ground
from world import Scheduler, step

from cachekit.core.deadline import Deadline
from cachekit.errors import BackendError, BackendTimeout, BackendUnavailable
from cachekit.protocols import Asking, Filling, Reading

BUDGET = 20.0  # real seconds of one real step: the schedule's own clock says what is late


class Faults:
    """What befalls the calls of one process. ``lost``: how often a request or reply is lost."""

    def __init__(self) -> None:
        self.lost = 0.0
        self.away = False
        self.over = False  # the schedule is judged: what still runs must end


class SteppedBackend:
    """One process's view of a ground's backend."""

    def __init__(self, ground: Ground, process: Any) -> None:
        self._ground = ground
        self._inner = ground.backend()
        self._process = process
        self.name = self._inner.name
        self.shared = self._inner.shared
        self.bus = self._inner.bus
        self.log = None

    def open(self, world: Any) -> SteppedStore:
        store = self._inner.open(world)
        self._ground.adjust(store)
        return SteppedStore(store, self._process, self._ground)


class SteppedStore:
    def __init__(self, inner: Any, process: Any, ground: Ground) -> None:
        self._inner = inner
        self._gate = Gate(process, ground)
        self.sender = getattr(inner, "sender", b"")
        self.slots = process.stand.slots_class(inner.slots, self._gate)

    async def get_many(self, keys: Any, deadline: Any) -> Any:
        return await self._gate.through("get_many", self._inner.get_many, (keys, deadline), keys)

    async def set_many(self, items: Any, deadline: Any) -> None:
        self._gate.process.counts["tags remembered"] += 1
        keys = [item.key for item in items]
        await self._gate.through("set_many", self._inner.set_many, (items, deadline), keys)

    async def delete_many(self, keys: Any, deadline: Any) -> None:
        await self._gate.through("delete_many", self._inner.delete_many, (keys, deadline), keys)

    async def close(self) -> None:
        await self._inner.close()


class Gate:
    """Where each call of a store waits to be let through, before and after its effect."""

    def __init__(self, process: Any, ground: Ground) -> None:
        self.process = process
        self.scheduler: Scheduler = process.scheduler
        self.faults: Faults = process.faults
        self.note = getattr(ground, "note", None)

    async def through(
        self,
        name: str,
        verb: Any,
        args: tuple[Any, ...],
        keys: Any = (),
        tags: Any = (),
        **options: Any,
    ) -> Any:
        scheduler, faults = self.scheduler, self.faults
        if faults.over:
            raise BackendUnavailable("the schedule is over", backend="over", operation=name)
        alone = scheduler.alone
        if not alone:
            await step(f"{name} {','.join([*keys, *tags])}")
        actor = scheduler.current
        if faults.away:
            self._failed(actor, name, "away")
            raise BackendUnavailable("away", backend="away", operation=name)
        draw = scheduler.rng.random() if faults.lost else 1.0
        if draw < faults.lost / 2:
            self._failed(actor, name, "request lost")
            raise BackendTimeout("request lost", backend="lost", operation=name)
        if self.note is not None:
            self.note(keys, tags)
        *given, deadline = args
        if not deadline.passed():
            deadline = Deadline(BUDGET, time.monotonic)
        try:
            answer = await verb(*given, deadline, **options)
        except BackendError:
            self._failed(actor, name, "refused or late")
            raise
        if faults.over or alone:
            return answer
        await step(f"{name} done")
        if draw < faults.lost:
            self._failed(scheduler.current, name, "reply lost")
            raise BackendTimeout("reply lost", backend="lost", operation=name)
        return answer

    def _failed(self, actor: Any, name: str, how: str) -> None:
        self.process.counts[how] += 1
        self.process.fault_tick = self.process.stand.oracle.next()
        if actor is not None:
            actor.faults.append(name)


class SteppedSlots:
    """Slots whose steps on several keys are several steps, as on any real server."""

    def __init__(self, inner: Any, gate: Gate) -> None:
        self.inner = inner
        self.gate = gate
        self.counts = gate.process.counts

    async def read(self, keys: Any, tags: Any, deadline: Any) -> Reading:
        # Keys and tags may lie on several nodes: either may be read first.
        through, read = self.gate.through, self.inner.read
        scheduler = self.gate.scheduler
        order = scheduler.rng.random() if keys and tags and not scheduler.alone else 1.0
        if order > 0.5:
            reading = await through("read", read, (keys, tags, deadline), keys, tags)
        elif order > 0.25:
            slots = await through("read", read, (keys, [], deadline), keys)
            nonces = await through("read", read, ([], tags, deadline), (), tags)
            reading = Reading(slots.slots, slots.spaces, nonces.nonces)
        else:
            nonces = await through("read", read, ([], tags, deadline), (), tags)
            slots = await through("read", read, (keys, [], deadline), keys)
            reading = Reading(slots.slots, slots.spaces, nonces.nonces)
        for slot in reading.slots:
            self.counts[f"met {slot.state.value}"] += 1
        if None in reading.nonces:
            self.counts["tag nonce missing"] += 1
        if None in reading.spaces:
            self.counts["namespace nonce missing"] += 1
        return reading

    async def acquire(
        self, key: str, token: bytes, lease: float, deadline: Any, **options: Any
    ) -> Any:
        args = (key, token, lease, deadline)
        grant = await self.gate.through("acquire", self.inner.acquire, args, (key,), **options)
        self.counts["lease granted" if grant.granted else "lease refused"] += 1
        return grant

    async def renew(self, key: str, token: bytes, lease: float, deadline: Any) -> Any:
        args = (key, token, lease, deadline)
        return await self.gate.through("renew", self.inner.renew, args, (key,))

    async def fill(self, key: str, token: bytes, data: bytes, ttl: Any, deadline: Any) -> Any:
        args = (key, token, data, ttl, deadline)
        kept = await self.gate.through("fill", self.inner.fill, args, (key,))
        self.counts["filled" if kept else "fill refused"] += 1
        return kept

    async def acquire_many(self, asked: Any, lease: float, deadline: Any) -> Any:
        return [
            await self.acquire(each.key, each.token, lease, deadline, over=each.over)
            for each in asked
            if isinstance(each, Asking)
        ]

    async def fill_many(self, fills: Any, deadline: Any) -> Any:
        return [
            await self.fill(each.key, each.token, each.data, each.ttl, deadline)
            for each in fills
            if isinstance(each, Filling)
        ]

    async def release(self, key: str, token: bytes, deadline: Any) -> None:
        await self.gate.through("release", self.inner.release, (key, token, deadline), (key,))

    async def put(self, key: str, stamp: bytes, data: bytes, ttl: Any, deadline: Any) -> Any:
        args = (key, stamp, data, ttl, deadline)
        kept = await self.gate.through("put", self.inner.put, args, (key,))
        self.counts["put" if kept else "put refused"] += 1
        return kept

    async def void(self, keys: Any, deadline: Any) -> None:
        for key in keys:
            await self.gate.through("void", self.inner.void, ([key], deadline), (key,))

    async def seize(self, keys: Any, writer: bytes, lease: float, deadline: Any) -> None:
        for key in keys:
            args = ([key], writer, lease, deadline)
            await self.gate.through("seize", self.inner.seize, args, (key,))

    async def commit(self, key: str, writer: bytes, data: bytes, ttl: Any, deadline: Any) -> Any:
        args = (key, writer, data, ttl, deadline)
        kept = await self.gate.through("commit", self.inner.commit, args, (key,))
        self.counts["committed" if kept else "commit contested"] += 1
        return kept

    async def end(self, keys: Any, writer: bytes, deadline: Any) -> None:
        for key in keys:
            await self.gate.through("end", self.inner.end, ([key], writer, deadline), (key,))

    async def nonces(self, keys: Any, tags: Any, fresh: Any, ttl: Any, deadline: Any) -> Any:
        args = (keys, tags, fresh, ttl, deadline)
        answer = await self.gate.through("nonces", self.inner.nonces, args, keys, tags)
        if None in answer.tags:
            self.counts["nonce refused"] += 1
        return answer

    async def drop_tags(self, tags: Any, deadline: Any) -> None:
        for tag in tags:
            await self.gate.through(
                "drop_tags", self.inner.drop_tags, ([tag], deadline), (), (tag,)
            )

    async def seize_tags(self, tags: Any, writer: bytes, lease: float, deadline: Any) -> None:
        for tag in tags:
            args = ([tag], writer, lease, deadline)
            await self.gate.through("seize_tags", self.inner.seize_tags, args, (), (tag,))

    async def end_tags(self, tags: Any, writer: bytes, deadline: Any) -> None:
        for tag in tags:
            args = ([tag], writer, deadline)
            await self.gate.through("end_tags", self.inner.end_tags, args, (), (tag,))

    async def drop_space(self, deadline: Any) -> None:
        await self.gate.through("drop_space", self.inner.drop_space, (deadline,))
