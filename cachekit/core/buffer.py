"""The write-back queue as a state machine: offer, take, ack, nack, park.

Pure: no clock, no lock, no waiting. Coalesces per key to the newest operation, never lets two
batches of one key out at a time, and counts every operation until it is applied, superseded by a
newer one, or parked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any

from .ops import Dead, Op, OpKind


class Buffer:
    """Operations by key, of one ``lane`` of a log. ``depth`` counts keys with unwritten
    operations, out ones included."""

    __slots__ = ("_out", "_version", "_waiting", "dead", "lane", "superseded")

    def __init__(self, lane: str = "") -> None:
        self.lane = lane
        self._waiting: dict[Hashable, Op] = {}  # in order of each key's oldest unwritten operation
        self._out: dict[Hashable, Op] = {}
        self._version = 0
        self.dead: list[Dead] = []
        self.superseded = 0

    @property
    def depth(self) -> int:
        return len(self._waiting) + sum(1 for key in self._out if key not in self._waiting)

    @property
    def ready(self) -> int:
        """How many keys could be taken now."""
        if not self._out:
            return len(self._waiting)
        return len(self._waiting) - sum(1 for key in self._out if key in self._waiting)

    @property
    def last_version(self) -> int:
        return self._version

    def knows(self, key: Hashable) -> bool:
        return key in self._waiting or key in self._out

    def offer(
        self,
        kind: OpKind,
        key: Hashable,
        value: Any,
        at: float,
        id: Any = None,
        *,
        version: int | None = None,
    ) -> Op:
        """Accept the newest operation of a key; it replaces one that is still waiting.

        ``version``: given by a log, and greater than any before; else it is counted here."""
        self._version = self._version + 1 if version is None else version
        old = self._waiting.get(key)
        if old is not None:
            self.superseded += 1
        # Age counts from the oldest operation this one stands for.
        op = Op(
            key,
            kind,
            value,
            id,
            self._version,
            lane=self.lane,
            since=old.since if old is not None else self._version,
            at=old.at if old is not None else at,
        )
        self._waiting[key] = op
        return op

    def pending(self, key: Hashable) -> Op | None:
        """The newest unwritten operation: waiting before out."""
        return self._waiting.get(key) or self._out.get(key)

    def take(self, limit: int) -> list[Op]:
        """The oldest waiting operations of keys that are not out."""
        batch: list[Op] = []
        for key, op in self._waiting.items():
            if len(batch) >= limit:
                break
            if key not in self._out:
                batch.append(op)
        for op in batch:
            self._out[op.key] = op
            del self._waiting[op.key]
        return batch

    def ack(self, ops: Iterable[Op]) -> None:
        for op in ops:
            self._leave(op)

    def nack(self, ops: Iterable[Op]) -> None:
        """Back to the head of the queue, unless a newer operation waits already."""
        back: dict[Hashable, Op] = {}
        for op in ops:
            if self._out.get(op.key) is not op:
                continue  # settled meanwhile
            self._leave(op)
            newer = self._waiting.get(op.key)
            if newer is not None:
                self.superseded += 1
                back[op.key] = replace(
                    newer, at=min(op.at, newer.at), since=min(op.since, newer.since)
                )
            else:
                back[op.key] = replace(op, attempts=op.attempts + 1)
        if back:
            ops = (*back.values(), *(o for o in self._waiting.values() if o.key not in back))
            self._waiting = {op.key: op for op in sorted(ops, key=lambda op: op.at)}

    def recall(self) -> None:
        """Everything that is out, back to the head of the queue."""
        self.nack(list(self._out.values()))

    def park(self, op: Op, error: str) -> None:
        """A dead letter: the operation leaves the queue with its error, and stays listed."""
        self._leave(op)
        self.dead.append(Dead(op, error))

    def oldest(self) -> float | None:
        """When the oldest unwritten operation was accepted."""
        first = next(iter(self._waiting.values()), None)
        times = [op.at for op in self._out.values()]
        if first is not None:
            times.append(first.at)
        return min(times) if times else None

    def undone_up_to(self, version: int) -> int:
        """How many keys have an unwritten operation accepted at or before a version, even if a
        newer one took its place."""
        ops = (*self._waiting.values(), *self._out.values())
        return len({op.key for op in ops if op.since <= version})

    def _leave(self, op: Op) -> None:
        if self._out.get(op.key) is op:
            del self._out[op.key]
