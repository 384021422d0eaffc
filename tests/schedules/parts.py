"""Slots of which a process that is told to be *away* reaches one half: as in a cluster that has
lost a node, a call over both halves does the other half's part and says so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from zlib import crc32

from backends import Faults, Gate, SteppedSlots

from cachekit.errors import PartUnavailable
from cachekit.protocols import Reading, Slot, SlotState


class NodeLost(PartUnavailable):
    def __init__(self, name: str, keys: Iterable[str], tags: Iterable[str], part: Any = None):
        super().__init__("a part is away", backend="part", operation=name)
        self.keys, self.tags, self.part = frozenset(keys), frozenset(tags), part


class _Partly:
    """The faults of a process, but for being away."""

    away = False

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    @property
    def lost(self) -> float:
        return self.faults.lost

    @property
    def over(self) -> bool:
        return self.faults.over


class PartGate(Gate):
    """Lets through what concerns no lost key and no lost tag."""

    def __init__(self, gate: Gate) -> None:
        self.process, self.scheduler, self.note = gate.process, gate.scheduler, gate.note
        self.real = gate.faults
        self.faults = _Partly(gate.faults)  # type: ignore[assignment]

    def lost(self, names: Iterable[str]) -> list[str]:
        if not self.real.away or self.real.over:
            return []
        return [name for name in names if crc32(name.encode()) % 2]

    async def through(
        self,
        name: str,
        verb: Any,
        args: tuple[Any, ...],
        keys: Any = (),
        tags: Any = (),
        **options: Any,
    ) -> Any:
        if self.lost([*keys, *tags]) or (name == "drop_space" and self.real.away):
            self._failed(self.scheduler.current, name, "part away")
            raise PartUnavailable("a part is away", backend="part", operation=name)
        return await super().through(name, verb, args, keys, tags, **options)


class PartSlots(SteppedSlots):
    def __init__(self, inner: Any, gate: Gate) -> None:
        super().__init__(inner, PartGate(gate))

    async def read(self, keys: Any, tags: Any, deadline: Any) -> Reading:
        gate: Any = self.gate
        lost_keys, lost_tags = gate.lost(keys), gate.lost(tags)
        if not lost_keys and not lost_tags:
            return await super().read(keys, tags, deadline)
        here = [key for key in keys if key not in lost_keys]
        there = [tag for tag in tags if tag not in lost_tags]
        if not here and not there:
            return await super().read(keys, tags, deadline)  # raises
        reading = await super().read(here, there, deadline)
        slots = dict(zip(here, zip(reading.slots, reading.spaces, strict=True), strict=True))
        nonces = dict(zip(there, reading.nonces, strict=True))
        unknown = (Slot(SlotState.BLOCK), None)
        every = [slots.get(key, unknown) for key in keys]
        part = Reading(
            [slot for slot, _ in every],
            [space for _, space in every],
            [nonces.get(tag) for tag in tags],
        )
        self.counts["read in part"] += 1
        gate._failed(gate.scheduler.current, "read", "part away")
        raise NodeLost("read", lost_keys, lost_tags, part)

    async def _each(self, tell: Any, name: str, names: Any, *args: Any, tags: bool) -> None:
        gate: Any = self.gate
        lost = gate.lost(names)
        here = [each for each in names if each not in lost]
        await tell(here or lost, *args)
        if here and lost:
            self.counts["told in part"] += 1
            gate._failed(gate.scheduler.current, name, "part away")
            raise NodeLost(name, () if tags else lost, lost if tags else ())

    async def void(self, keys: Any, deadline: Any) -> None:
        await self._each(super().void, "void", keys, deadline, tags=False)

    async def drop_tags(self, tags: Any, deadline: Any) -> None:
        await self._each(super().drop_tags, "drop_tags", tags, deadline, tags=True)
