"""The write-back queue against a model that a reader can check by eye."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cachekit.core.buffer import Buffer
from cachekit.core.ops import Op, OpKind

KEYS = st.sampled_from("abcd")


class BufferMachine(RuleBasedStateMachine):
    """The model: per key every accepted operation that is not yet settled, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = Buffer()
        self.now = 0.0
        self.source: dict[str, int] = {}  # key -> version applied last
        self.last: dict[str, Op] = {}  # key -> the last operation accepted
        self.unsettled: dict[str, list[tuple[int, float]]] = {}  # key -> (version, accepted at)
        self.batches: list[list[Op]] = []
        self.parked: list[int] = []

    @rule(key=KEYS, delete=st.booleans())
    def offer(self, key: str, delete: bool) -> None:
        self.now += 1
        kind = OpKind.DELETE if delete else OpKind.PUT
        op = self.buffer.offer(kind, key, self.now, self.now)
        assert op.version == self.buffer.last_version
        assert op.version > max([v for v in self.source.values()], default=0)
        self.last[key] = op
        self.unsettled.setdefault(key, []).append((op.version, self.now))

    @rule(key=KEYS, delete=st.booleans(), most=st.sampled_from((0, 1, 2, 3, float("inf"))))
    def offer_within(self, key: str, delete: bool, most: float) -> None:
        self.now += 1
        kind = OpKind.DELETE if delete else OpKind.PUT
        op = self.buffer.offer_within(most, kind, key, self.now, self.now, None)
        # A key that has an operation already takes no new room.
        assert (op is None) == (key not in self.unsettled and len(self.unsettled) >= most)
        if op is not None:
            assert op.version == self.buffer.last_version
            assert self.buffer.pending(key) is op
            self.last[key] = op
            self.unsettled.setdefault(key, []).append((op.version, self.now))

    @rule(keys=st.lists(KEYS, max_size=4))
    def take_in(self, keys: list[str]) -> None:
        rows = []
        for key in keys:
            self.now += 1
            version = self.buffer.last_version + len(rows) + 1
            rows.append((OpKind.PUT, key, self.now, self.now, None, version))
            self.unsettled.setdefault(key, []).append((version, self.now))
        self.buffer.take_in(rows)
        for key in keys:
            op = self.buffer.pending(key)
            assert op is not None
            self.last[key] = op

    @rule(limit=st.integers(1, 3))
    def take(self, limit: int) -> None:
        ready = self.buffer.ready
        batch = self.buffer.take(limit)
        assert len(batch) == min(limit, ready)
        assert len({op.key for op in batch}) == len(batch)
        out = {op.key for other in self.batches for op in other}
        assert out.isdisjoint(op.key for op in batch)  # never two batches of one key
        for op in batch:
            assert op.version > self.source.get(op.key, 0)  # per key versions only grow
        if batch:
            self.batches.append(batch)

    @rule(pick=st.randoms(use_true_random=False))
    def ack(self, pick: object) -> None:
        batch = self._some(pick)
        self.buffer.ack(batch)
        for op in batch:
            self.source[op.key] = op.version
            self._settle(op)

    @rule(pick=st.randoms(use_true_random=False))
    def nack(self, pick: object) -> None:
        self.buffer.nack(self._some(pick))

    @rule(pick=st.randoms(use_true_random=False))
    def park(self, pick: object) -> None:
        for op in self._some(pick):
            self.buffer.park(op, "poison")
            self.parked.append(op.version)
            self._settle(op)

    def _some(self, pick: object) -> list[Op]:
        """Some operations of one batch; the rest stays out."""
        if not self.batches:
            return []
        batch = self.batches[pick.randrange(len(self.batches))]  # type: ignore[attr-defined]
        some = pick.sample(batch, pick.randint(1, len(batch)))  # type: ignore[attr-defined]
        for op in some:
            batch.remove(op)
        self.batches = [b for b in self.batches if b]
        return some

    def _settle(self, op: Op) -> None:
        left = [(v, at) for v, at in self.unsettled[op.key] if v > op.version]
        self.unsettled[op.key] = left
        if not left:
            del self.unsettled[op.key]

    @invariant()
    def the_counts_are_right(self) -> None:
        assert self.buffer.depth == len(self.unsettled)
        out = {op.key for batch in self.batches for op in batch}
        waiting = {k for k in self.unsettled if k not in out or self.last[k].version > self._out(k)}
        assert self.buffer.ready == len(waiting - out)
        assert [dead.op.version for dead in self.buffer.dead] == self.parked
        oldest = min((v for ops in self.unsettled.values() for v, _ in ops), default=None)
        if oldest is None:
            assert not self.buffer.has_undone(self.buffer.last_version)
        else:
            assert self.buffer.has_undone(oldest)
            assert not self.buffer.has_undone(oldest - 1)
        for key in "abcd":
            assert self.buffer.knows(key) == (key in self.unsettled)

    def _out(self, key: str) -> int:
        return next(op.version for batch in self.batches for op in batch if op.key == key)

    @invariant()
    def the_newest_unwritten_operation_is_what_readers_see(self) -> None:
        for key in "abcd":
            seen = self.buffer.pending(key)
            assert (seen is not None) == (key in self.unsettled)
            if seen is not None:
                assert seen.version == self.last[key].version
                assert (seen.kind, seen.value) == (self.last[key].kind, self.last[key].value)

    @invariant()
    def the_age_counts_from_the_oldest_unwritten_operation(self) -> None:
        times = [at for ops in self.unsettled.values() for _, at in ops]
        assert self.buffer.oldest() == (min(times) if times else None)

    def teardown(self) -> None:
        for batch in self.batches:
            self.buffer.nack(batch)
        self.batches = []
        while batch := self.buffer.take(2):
            self.buffer.ack(batch)
            for op in batch:
                self.source[op.key] = op.version
        assert self.buffer.depth == 0
        assert self.buffer.oldest() is None
        for key, op in self.last.items():
            assert self.source.get(key) == op.version or op.version in self.parked


BufferMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestBuffer = BufferMachine.TestCase


def test_the_oldest_key_leaves_first() -> None:
    buffer = Buffer()
    for key in "abc":
        buffer.offer(OpKind.PUT, key, 1, 0.0)
    buffer.offer(OpKind.PUT, "a", 2, 1.0)  # coalesced: a keeps its turn
    assert [op.key for op in buffer.take(2)] == ["a", "b"]
    assert buffer.superseded == 1


def test_what_failed_comes_before_what_is_new_and_counts_its_attempts() -> None:
    buffer = Buffer()
    buffer.offer(OpKind.PUT, "a", 1, 0.0)
    (first,) = buffer.take(1)
    buffer.offer(OpKind.PUT, "b", 1, 1.0)
    buffer.nack([first])
    again = buffer.take(2)
    assert [(op.key, op.attempts) for op in again] == [("a", 1), ("b", 0)]
    assert again[0].version == first.version


def test_a_late_answer_about_an_operation_that_left_changes_nothing() -> None:
    buffer = Buffer()
    buffer.offer(OpKind.PUT, "a", 1, 0.0)
    (op,) = buffer.take(1)
    buffer.ack([op])
    buffer.offer(OpKind.PUT, "a", 2, 1.0)
    (newer,) = buffer.take(1)
    buffer.ack([op])
    buffer.nack([op])
    assert buffer.take(1) == []  # the newer one is still out
    assert buffer.pending("a") is newer


def test_undone_up_to_counts_only_what_was_accepted_by_then() -> None:
    buffer = Buffer()
    for key in "abc":
        buffer.offer(OpKind.PUT, key, 1, 0.0)
    buffer.take(1)
    assert buffer.undone_up_to(2) == 2
    assert buffer.undone_up_to(3) == 3


def test_a_key_that_is_out_and_waits_again_is_one_undone_key() -> None:
    buffer = Buffer()
    buffer.offer(OpKind.PUT, "a", 1, 0.0)
    (first,) = buffer.take(1)
    buffer.offer(OpKind.PUT, "a", 2, 1.0)
    assert (buffer.undone_up_to(1), buffer.undone_up_to(2)) == (1, 1)
    buffer.ack([first])
    assert (buffer.undone_up_to(1), buffer.undone_up_to(2)) == (0, 1)


def test_versions_of_a_log_are_kept_with_their_gaps() -> None:
    buffer = Buffer("lane")
    for version, key in ((3, "a"), (7, "b"), (12, "a")):
        buffer.offer(OpKind.PUT, key, version, float(version), f"id-{key}", version=version)
    assert buffer.last_version == 12
    assert buffer.superseded == 1
    taken = buffer.take(5)
    assert [(op.key, op.version, op.since, op.at, op.id, op.lane) for op in taken] == [
        ("a", 12, 3, 3.0, "id-a", "lane"),
        ("b", 7, 7, 7.0, "id-b", "lane"),
    ]
    assert (buffer.undone_up_to(2), buffer.undone_up_to(3), buffer.undone_up_to(7)) == (0, 1, 2)


def test_what_failed_and_was_superseded_keeps_its_age_and_its_place() -> None:
    buffer = Buffer()
    buffer.offer(OpKind.PUT, "a", 1, 0.0)
    (first,) = buffer.take(1)
    buffer.offer(OpKind.PUT, "b", 1, 1.0)
    buffer.offer(OpKind.DELETE, "a", None, 2.0)
    buffer.nack([first])
    assert buffer.oldest() == 0.0
    assert buffer.undone_up_to(1) == 1  # a's newer operation stands for the failed one
    taken = buffer.take(2)
    assert [(op.key, op.kind, op.version, op.attempts) for op in taken] == [
        ("a", OpKind.DELETE, 3, 0),
        ("b", OpKind.PUT, 2, 0),
    ]


def test_part_of_a_batch_may_be_answered_at_a_time() -> None:
    buffer = Buffer()
    for key in "abc":
        buffer.offer(OpKind.PUT, key, 1, 0.0)
    a, b, c = buffer.take(3)
    buffer.ack([a])
    buffer.park(b, "no")
    assert (buffer.depth, buffer.ready) == (1, 0)
    buffer.nack([c])
    assert (buffer.depth, buffer.ready) == (1, 1)
    assert [op.key for op in buffer.take(3)] == ["c"]
    assert [(dead.op.key, dead.error) for dead in buffer.dead] == [("b", "no")]


def test_a_key_that_waits_while_it_is_out_takes_the_room_of_one() -> None:
    buffer = Buffer()
    buffer.offer(OpKind.PUT, "a", 1, 0.0)
    buffer.take(1)
    buffer.offer(OpKind.PUT, "a", 2, 1.0)
    assert buffer.offer_within(2, OpKind.PUT, "b", 1, 2.0, None) is not None
    assert buffer.offer_within(2, OpKind.PUT, "c", 1, 3.0, None) is None
    assert buffer.offer_within(2, OpKind.PUT, "a", 3, 4.0, None) is not None
