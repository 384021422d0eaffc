"""Two state machines of write-back against a dict: its buffer alone, and log, owners and source.

Both are random mixes of puts and deletes with whatever may befall them on the way to the source.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cachekit.core.buffer import Buffer
from cachekit.core.ops import Op, OpKind
from cachekit.errors import FencedOut
from cachekit.protocols import Bounds, Letter, Record
from cachekit.runtime import Runtime, drive
from cachekit.testing import ManualClock

sys.path.append(str(Path(__file__).parents[1] / "contract"))
from reference_log import Place, ReferenceLog

NAMES = "abcd"
KEYS = st.sampled_from(NAMES)
LEASE = 10.0
READS = st.integers(0, 5)
LIMITS = st.integers(1, 4)
PICKS = st.randoms(use_true_random=False)


class BufferMachine(RuleBasedStateMachine):
    """Accepted operations by key, versions given by a log, and a sink that is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = Buffer()
        self.now = 0.0
        self.version = 0
        self.wanted: dict[str, Any] = {}  # the dict; None: deleted
        self.sink: dict[str, Any] = {}
        self.open: dict[str, list[tuple[int, float]]] = {}  # accepted and not settled
        self.batches: list[list[Op]] = []
        self.settled: list[Op] = []
        self.delivered: dict[str, int] = {}  # the newest version that was ever delivered
        self.attempts: dict[tuple[str, int], int] = {}
        self.parked: set[int] = set()
        self.last: dict[str, int] = {}

    @rule(key=KEYS, delete=st.booleans(), gap=st.integers(1, 3))
    def offer(self, key: str, delete: bool, gap: int) -> None:
        self.now += 1
        self.version += gap
        kind, value = (OpKind.DELETE, None) if delete else (OpKind.PUT, self.version)
        self.buffer.offer(kind, key, value, self.now, f"id-{key}", version=self.version)
        self.wanted[key] = value
        self.last[key] = self.version
        self.open.setdefault(key, []).append((self.version, self.now))

    @rule(limit=st.integers(1, 3))
    def take(self, limit: int) -> None:
        ready = [key for key in self.open if key not in self._out() and self._waits(key)]
        batch = self.buffer.take(limit)
        assert len(batch) == min(limit, len(ready))
        assert len({op.key for op in batch}) == len(batch)
        for op in batch:
            assert op.key in ready, "a key has two batches out"
            assert op.id == f"id-{op.key}"
            assert op.version == self.last[op.key], "not the newest operation"
            assert op.version >= self.delivered.get(op.key, 0), "versions went back"
            assert op.attempts == self.attempts.get((op.key, op.version), 0)
            self.delivered[op.key] = op.version
        ages = [self.open[key][0][1] for key in ready]
        assert [self.open[op.key][0][1] for op in batch] == sorted(ages)[: len(batch)]
        if batch:
            self.batches.append(batch)

    @rule(pick=PICKS)
    def ack(self, pick: random.Random) -> None:
        """Some of one batch; the rest stays out."""
        some = self._some(pick)
        for op in some:
            assert op.version not in self.parked
            assert op not in self.settled
            self.sink[op.key] = op.value
        self.buffer.ack(some)
        self._settle(some)

    @rule(pick=PICKS)
    def nack(self, pick: random.Random) -> None:
        some = self._some(pick)
        for op in some:
            self.attempts[op.key, op.version] = op.attempts + 1
        self.buffer.nack(some)

    @rule(pick=PICKS)
    def park(self, pick: random.Random) -> None:
        some = self._some(pick)
        for op in some:
            self.buffer.park(op, "poison")
            self.parked.add(op.version)
        self._settle(some)

    @precondition(lambda self: self.settled)
    @rule(pick=PICKS)
    def a_late_answer(self, pick: random.Random) -> None:
        """About what was settled long ago: nothing changes (see the invariants)."""
        op = pick.choice(self.settled)
        pick.choice([self.buffer.ack, self.buffer.nack])([op])

    def _some(self, pick: random.Random) -> list[Op]:
        if not self.batches:
            return []
        batch = pick.choice(self.batches)
        some = pick.sample(batch, pick.randint(1, len(batch)))
        for op in some:
            batch.remove(op)
        self.batches = [other for other in self.batches if other]
        return some

    def _settle(self, ops: list[Op]) -> None:
        for op in ops:
            self.settled.append(op)
            self.open[op.key] = [(v, at) for v, at in self.open[op.key] if v > op.version]
            if not self.open[op.key]:
                del self.open[op.key]

    def _out(self) -> dict[str, int]:
        return {op.key: op.version for batch in self.batches for op in batch}

    def _waits(self, key: str) -> bool:
        return key in self.open and self.last[key] > self._out().get(key, 0)

    @invariant()
    def the_counts_are_the_models(self) -> None:
        assert self.buffer.depth == len(self.open)
        out = self._out()
        assert self.buffer.ready == sum(key not in out for key in self.open)
        times = [at for ops in self.open.values() for _, at in ops]
        assert self.buffer.oldest() == min(times, default=None)
        for version in (0, self.version // 2, self.version - 1, self.version):
            undone = sum(any(v <= version for v, _ in ops) for ops in self.open.values())
            assert self.buffer.undone_up_to(version) == undone
        assert sorted(dead.op.version for dead in self.buffer.dead) == sorted(self.parked)

    @invariant()
    def a_reader_sees_the_dict(self) -> None:
        for key in NAMES:
            op = self.buffer.pending(key)
            assert (op is not None) == (key in self.open) == self.buffer.knows(key)
            if op is not None:
                assert (op.version, op.value) == (self.last[key], self.wanted[key])
            elif self.last.get(key) not in self.parked:
                assert self.sink.get(key) == self.wanted.get(key)

    def teardown(self) -> None:
        for batch in self.batches:
            self.buffer.nack(batch)
        while batch := self.buffer.take(2):
            self.buffer.ack(batch)
            self.sink.update((op.key, op.value) for op in batch)
        assert (self.buffer.depth, self.buffer.ready, self.buffer.oldest()) == (0, 0, None)
        for key, value in self.wanted.items():
            if self.last[key] not in self.parked:
                assert self.sink.get(key) == value


class Source:
    """Rows with the version they were written at, and the fence: the highest epoch seen."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, Any]] = {}  # value None: deleted
        self.epoch = 0

    def write(self, ops: list[Op], epoch: int, upto: int) -> None:
        """Apply the first ``upto`` of a batch."""
        self.refuse(epoch)
        for op in ops[:upto]:
            before = self.rows.get(op.key, (0, None))[0]
            assert op.version >= before, f"{op.key}: {op.version} over {before}"
            self.rows[op.key] = (op.version, op.value)

    def refuse(self, epoch: int) -> None:
        if epoch <= self.epoch:
            raise FencedOut(f"{epoch} after {self.epoch}")
        self.epoch = epoch


class Owner:
    """A worker's memory: lost with it."""

    def __init__(self, name: bytes, epoch: int, now: float) -> None:
        self.name = name
        self.epoch = epoch
        self.renew_at = now + LEASE / 3
        self.cursor = 0
        self.deliveries = 0
        self.buffer = Buffer()
        self.applied: list[list[Op]] = []  # in the source, not settled yet


def live(machine: Any) -> bool:
    return any(machine.workers)


class LogMachine(RuleBasedStateMachine):
    """A log, two workers at a time that crash, sleep beyond their lease and wake up, a source
    that fails half way, batches that land late, dead letters that are revived."""

    source_kind = Source
    reads_all_at_first = True  # what the last owner had read, before the first batch

    def __init__(self) -> None:
        super().__init__()
        self.world = Runtime().threads
        self.clock = ManualClock()
        self.place = Place(self.clock)
        self.log = self._open()
        self.source = self.source_kind()
        self.workers: list[Owner | None] = [None, None]
        self.late: list[tuple[list[Op], int]] = []  # sent, not landed, and given up
        self.wanted: dict[str, Any] = {}
        self.unsure: set[str] = set()  # keys whose newest operation was parked
        self.serial = 0
        self.claim(0)

    def _open(self) -> ReferenceLog:
        return ReferenceLog(self.place, "q", Bounds(operations=12))

    def _do(self, verb: str, *given: Any, **named: Any) -> Any:
        return drive(
            getattr(self.log, verb)(self.world, *given, self.world.deadline(60.0), **named)
        )

    @rule(keys=st.lists(KEYS, min_size=1, max_size=4), delete=st.booleans())
    def write(self, keys: list[str], delete: bool) -> None:
        records = []
        for key in keys:
            self.serial += 1
            kind, data = (OpKind.DELETE, b"") if delete else (OpKind.PUT, b"%d" % self.serial)
            records.append(Record(key, kind, data, at=float(self.serial)))
        for record, version in zip(records, self._do("append", records), strict=True):
            if version is not None:
                self.wanted[record.key] = _value(record)
                self.unsure.discard(record.key)

    @precondition(lambda self: None in self.workers)
    @rule(who=st.integers(0, 1))
    def claim(self, who: int) -> None:
        name = bytes([who]) * 16
        epoch = self._do("claim", 0, name, LEASE, beyond=self.source.epoch >> 32)
        if epoch is None:
            return
        assert epoch > self.source.epoch >> 32
        owner = self.workers[who] = Owner(name, epoch, self.clock())
        if self.reads_all_at_first:
            while self._read(owner, 3):
                pass

    def _read(self, owner: Owner, limit: int) -> int:
        records = self._do("read", 0, owner.cursor, limit)
        for r in records:
            owner.buffer.offer(r.kind, r.key, _value(r), r.at, r.key, version=r.version)
            owner.cursor = r.version
        return len(records)

    @precondition(live)
    @rule(who=st.integers(0, 1), reads=READS, limit=LIMITS, pick=PICKS)
    def deliver(self, who: int, reads: int, limit: int, pick: random.Random) -> None:
        """All of a batch, or the source answers what it refused."""
        self._send(who, reads, limit, pick.choice(["applied", "refuses some"]), pick)

    @precondition(live)
    @rule(who=st.integers(0, 1), reads=READS, limit=LIMITS, pick=PICKS)
    def deliver_half(self, who: int, reads: int, limit: int, pick: random.Random) -> None:
        """The whole batch counts as failed."""
        self._send(who, reads, limit, "half", pick)

    @precondition(live)
    @rule(who=st.integers(0, 1), reads=READS, limit=LIMITS, pick=PICKS)
    def deliver_late(self, who: int, reads: int, limit: int, pick: random.Random) -> None:
        """No answer in time: it will be sent again, and may land all the same."""
        self._send(who, reads, limit, "late", pick)

    @precondition(live)
    @rule(who=st.integers(0, 1), reads=READS, limit=LIMITS, pick=PICKS)
    def deliver_poison(self, who: int, reads: int, limit: int, pick: random.Random) -> None:
        self._send(who, reads, limit, "poison", pick)

    def _send(self, who: int, reads: int, limit: int, fate: str, pick: random.Random) -> None:
        who = self._living(who)
        owner = self._kept(who)
        if owner is None:
            return
        self._read(owner, reads)
        batch = owner.buffer.take(limit)
        if not batch:
            return
        owner.deliveries += 1
        epoch = owner.epoch << 32 | owner.deliveries
        if fate == "late":
            self.late.append((batch, epoch))
            owner.buffer.nack(batch)
            return
        done = len(batch) if fate == "applied" else pick.randrange(len(batch))
        try:
            self.source.write(batch, epoch, done)
        except FencedOut:
            self.workers[who] = None
            return
        if fate == "half":
            owner.buffer.nack(batch)
            return
        owner.applied.append(batch[:done])
        if fate == "poison":
            owner.buffer.nack(batch[done + 1 :])
            self._park(who, owner, batch[done])
        else:
            owner.buffer.nack(batch[done:])

    def _living(self, who: int) -> int:
        return who if self.workers[who] is not None else 1 - who

    def _park(self, who: int, owner: Owner, op: Op) -> None:
        (record,) = self._do("read", 0, op.version - 1, 1) or [None]
        letters = [Letter(record, "poison")] if record and record.version == op.version else []
        newest = self._do("look", [op.key], 0).pending[0]
        if not self._do("settle", 0, owner.epoch, [], letters):
            self.workers[who] = None
            return
        owner.buffer.park(op, "poison")
        if newest is not None and newest.version == op.version:
            self.unsure.add(op.key)

    @precondition(live)
    @rule(who=st.integers(0, 1))
    def settle(self, who: int) -> None:
        who = self._living(who)
        owner = self.workers[who]
        if owner is None or not owner.applied:
            return
        batch = owner.applied.pop(0)
        if self._do("settle", 0, owner.epoch, [(op.key, op.version) for op in batch], []):
            owner.buffer.ack(batch)
        else:
            self.workers[who] = None

    @precondition(lambda self: self.late)
    @rule(pick=PICKS)
    def land(self, pick: random.Random) -> None:
        """A batch that nobody waits for any more reaches the source, or a half of it."""
        ops, epoch = self.late.pop(pick.randrange(len(self.late)))
        try:
            self.source.write(ops, epoch, pick.randint(0, len(ops)))
        except FencedOut:
            pass

    @precondition(live)
    @rule(who=st.integers(0, 1))
    def crash(self, who: int) -> None:
        self.workers[who] = None
        drive(self.log.close(self.world))
        self.log = self._open()

    @rule(who=st.integers(0, 1), dies=st.booleans())
    def take_over(self, who: int, dies: bool) -> None:
        if dies:
            self.crash(1 - who)
        self.clock.advance(LEASE + 1)
        self.claim(who)

    @precondition(live)
    @rule(who=st.integers(0, 1), seconds=st.sampled_from([1.0, LEASE / 2, LEASE + 1]))
    def sleep(self, who: int, seconds: float) -> None:
        self.clock.advance(seconds)
        self._kept(self._living(who))

    def _kept(self, who: int) -> Owner | None:
        """The worker, who renews in time or knows that he is late: what he does without looking
        is to finish a batch (it lands late)."""
        owner = self.workers[who]
        if owner is not None and self.clock() >= owner.renew_at:
            owner.renew_at = self.clock() + LEASE / 3
            if not self._do("renew", 0, owner.name, owner.epoch, LEASE):
                self.workers[who] = owner = None
        return owner

    @rule(pick=PICKS)
    def revive(self, pick: random.Random) -> None:
        letters = self._do("letters", 0, 100)
        if not letters:
            return
        letter = pick.choice(letters)
        key = letter.record.key
        waits = self._do("look", [key], 0).pending[0] is not None
        revived = self._do("revive", [letter.record.version], False)
        assert bool(revived) == (not letter.outdated and not waits)
        if revived:
            assert key in self.unsure, "a newer operation was overtaken"
            self.wanted[key] = _value(letter.record)
            self.unsure.discard(key)

    @invariant()
    def a_reader_sees_the_dict(self) -> None:
        """What waits in the log, else the source's row: at every moment what was written last."""
        for key, waiting in zip(NAMES, self._do("look", list(NAMES), 0).pending, strict=True):
            if key not in self.unsure:
                row = self.source.rows.get(key, (0, None))[1]
                assert (_value(waiting) if waiting else row) == self.wanted.get(key)

    def teardown(self) -> None:
        self.clock.advance(2 * LEASE)
        epoch = self._do("claim", 0, b"l" * 16, LEASE, beyond=self.source.epoch >> 32)
        owner = Owner(b"l" * 16, epoch, self.clock())
        while self._read(owner, 3):
            pass
        number = 0
        while batch := owner.buffer.take(2):
            number += 1
            self.source.write(batch, epoch << 32 | number, len(batch))
            assert self._do("settle", 0, epoch, [(op.key, op.version) for op in batch], [])
            owner.buffer.ack(batch)
        if number:  # whoever wakes up now comes too late
            for ops, old in self.late:
                try:
                    self.source.write(ops, old, len(ops))
                except FencedOut:
                    continue
                raise AssertionError("an old batch was let in")
        assert self._do("standing").depth == 0
        for key, value in self.wanted.items():
            if key not in self.unsure:
                assert self.source.rows.get(key, (0, None))[1] == value


def _value(record: Any) -> Any:
    return None if record.kind is OpKind.DELETE else record.data
