"""The write-back queue as a state machine: offer, take, ack, nack, park.

Pure: no clock, no lock, no waiting. Coalesces per key to the newest operation, never lets two
batches of one key out at a time, and counts every operation until it is applied, superseded by a
newer one, or parked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from .ops import Dead, Op, OpKind


class Buffer:
    """Operations by key, of one ``lane`` of a log. ``depth`` counts keys with unwritten
    operations, out ones included."""

    __slots__ = (
        "_moves", "_out", "_taken_at", "_version", "_waiting", "dead", "lane", "superseded",
    )  # fmt: skip

    def __init__(self, lane: str = "") -> None:
        self.lane = lane
        self._waiting: dict[Hashable, Op] = {}  # in order of each key's oldest unwritten operation
        self._out: dict[Hashable, Op] = {}
        self._moves = 0  # how often anything ceased to be out
        self._version = 0
        self.dead: list[Dead] = []
        self.superseded = 0
        self._taken_at = 0  # ``superseded`` at the last take

    @property
    def depth(self) -> int:
        return len(self._waiting) + len(self._out) - self._both()

    @property
    def ready(self) -> int:
        """How many keys could be taken now."""
        return len(self._waiting) - self._both()

    @property
    def accepted(self) -> int:
        """How many operations those that could be taken now stand for, about."""
        return self.ready + self.superseded - self._taken_at

    @property
    def out(self) -> int:
        """How many keys are out."""
        return len(self._out)

    def _both(self) -> int:
        # Looked up, not counted: an exception out of a signal handler can come between two steps.
        return len(self._out.keys() & self._waiting.keys()) if self._out else 0

    @property
    def last_version(self) -> int:
        return self._version

    def knows(self, key: Hashable) -> bool:
        """As :meth:`pending`."""
        return self.pending(key) is not None

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
        if version is None:
            version = self._version + 1
        self.take_in(((kind, key, value, at, id, version),))
        return self._waiting[key]

    def offer_within(
        self, most: float, kind: OpKind, key: Hashable, value: Any, at: float, id: Any
    ) -> Op | None:
        """As :meth:`offer`, unless it would be one more than ``most`` keys: then None."""
        waiting, out = self._waiting, self._out
        version = since = self._version + 1
        old = waiting.get(key)
        if old is not None:
            self.superseded += 1
            # Age counts from the oldest operation this one stands for.
            since, at = old.since, old.at
        elif len(waiting) + len(out) >= most and self.depth >= most and key not in out:
            return None
        self._version = version
        op = waiting[key] = Op(key, kind, value, id, version, 0, self.lane, 0, since, at)
        return op

    def take_in(self, rows: Sequence[tuple[OpKind, Hashable, Any, float, Any, int]]) -> None:
        """As :meth:`offer` of each (kind, key, value, at, id, version)."""
        waiting, lane = self._waiting, self.lane
        for kind, key, value, at, id, version in rows:
            since = version
            old = waiting.get(key)
            if old is not None:
                self.superseded += 1
                since, at = old.since, old.at
            waiting[key] = Op(key, kind, value, id, version, 0, lane, 0, since, at)
        if rows:
            self._version = rows[-1][5]

    def pending(self, key: Hashable) -> Op | None:
        """The newest unwritten operation: waiting before out. May be asked beside any other step:
        whatever that does, an operation is in one of the two at every moment, and one that was
        there when nothing had ceased to be out is found."""
        while True:
            moves = self._moves
            op = self._waiting.get(key) or self._out.get(key)
            if op is not None or moves == self._moves:
                return op

    def newest(self, ops: Iterable[Op]) -> list[Op]:
        """Those of what is out for whose key nothing newer waits."""
        waiting, out = self._waiting, self._out
        return [op for op in ops if op.key not in waiting and out.get(op.key) is op]

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
        self._taken_at = self.superseded
        return batch

    def ack(self, ops: Iterable[Op]) -> None:
        out = self._out
        self._moves += 1
        for op in ops:
            if out.get(op.key) is op:
                del out[op.key]

    def nack(self, ops: Iterable[Op]) -> None:
        """Back to the head of the queue, unless a newer operation waits already."""
        back: dict[Hashable, Op] = {}
        gone: list[Op] = []
        for op in ops:
            if self._out.get(op.key) is not op:
                continue  # settled meanwhile
            gone.append(op)
            newer = self._waiting.get(op.key)
            if newer is not None:
                self.superseded += 1
                back[op.key] = replace(
                    newer, at=min(op.at, newer.at), since=min(op.since, newer.since)
                )
            else:
                back[op.key] = replace(op, attempts=op.attempts + 1)
        if back:
            rest = (*back.values(), *(o for o in self._waiting.values() if o.key not in back))
            self._waiting = {op.key: op for op in sorted(rest, key=lambda op: op.at)}
            self.ack(gone)

    def recall(self) -> None:
        """Everything that is out, back to the head of the queue."""
        self.nack(list(self._out.values()))

    def park(self, op: Op, error: str) -> None:
        """A dead letter: the operation leaves the queue with its error, and stays listed."""
        self.ack((op,))
        self.dead.append(Dead(op, error))

    def oldest(self) -> float | None:
        """When the oldest unwritten operation was accepted. May be asked beside any other step."""
        times = [op.at for op in [*self._out.values()]]
        try:
            times += [op.at for op in islice(self._waiting.values(), 1)]
        except RuntimeError:  # one came or went between two steps of this line
            return self.oldest()
        return min(times) if times else None

    def undone_up_to(self, version: int) -> int:
        """How many keys have an unwritten operation accepted at or before a version, even if a
        newer one took its place."""
        ops = [*self._waiting.values(), *self._out.values()]
        return len({op.key for op in ops if op.since <= version})

    def has_undone(self, version: int) -> bool:
        """Whether there is any; mostly found at the first look."""
        ops = chain(self._out.values(), self._waiting.values())
        try:
            return any(op.since <= version for op in ops)
        except RuntimeError:  # a signal handler put something meanwhile: look again
            return True
