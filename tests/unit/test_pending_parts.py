"""Pending invalidations stop the reads that need them, and are told part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from cachekit import Cache
from cachekit.backends.memory import MemoryBackend
from cachekit.core.entry import Verdict
from cachekit.core.keys import physical
from cachekit.errors import BackendError, PartUnavailable
from cachekit.invalidation import Invalidator
from cachekit.packing import Found
from cachekit.pending import SPACE
from cachekit.pending_reads import LOOKS, read
from cachekit.protocols import SlotState
from cachekit.runtime import Runtime, drive


class _Lost(PartUnavailable):
    def __init__(self, keys: Sequence[str] = (), tags: Sequence[str] = ()) -> None:
        super().__init__("a part is away")
        self.keys, self.tags = frozenset(keys), frozenset(tags)


class Desk:
    """A cache over memory of which some keys and tags can not be told; nothing is replayed unless
    the test says so. ``told`` is what the far tier was told."""

    def __init__(self) -> None:
        runtime = Runtime()
        runtime.background = lambda work: False  # type: ignore[method-assign]
        self.cache = Cache(
            backend=MemoryBackend(), invalidation="replay", coherence="strict", runtime=runtime
        )
        self.away: set[str] = set()
        self.told: list[str] = []
        self.world = runtime.threads
        far = self.cache.parts.far
        assert far is not None
        self.far = far
        slots: Any = far.store(self.world).slots
        slots.void = self._telling(slots.void, _Lost)
        slots.drop_tags = self._telling(slots.drop_tags, lambda names: _Lost(tags=names))

    def _telling(self, inner: Any, error: Callable[[list[str]], BackendError]) -> Any:
        async def tell(names: Sequence[str], deadline: Any) -> None:
            here = [name for name in names if name not in self.away]
            await inner(here, deadline)
            self.told += here
            if len(here) < len(names):
                raise error([n for n in names if n in self.away] if here else [])

        return tell

    @property
    def invalidator(self) -> Invalidator:
        return self.cache.parts.invalidator

    def owed(self) -> set[Any]:
        return set(self.invalidator.pending.take())

    def read(
        self, keys: Sequence[str], tags: Any = None, *, whole: bool = False, **ways: Any
    ) -> list[Any]:
        """The values that the far tier has, MISS for none, None where it can not be said."""
        own = tags or [()] * len(keys)
        between = ways.get("between")

        async def ask(some: Sequence[int]) -> list[Found]:
            codec, late = self.cache.parts.codec, self.far.deadline(self.world)
            asked = [keys[i] for i in some], [own[i] for i in some]
            found = await self.far.read(self.world, *asked, codec, late)
            if between is not None:
                between()
            return found

        deadline = self.far.deadline(self.world)
        found = drive(read(self.invalidator, self.world, keys, own, ask, deadline, whole=whole))
        return [f if f is None else f.value if f.readable else Verdict.MISS for f in found]


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.away.clear()
    desk.cache.close()


MISS = Verdict.MISS


def test_a_pending_name_is_due_for_its_own_reads_only_and_the_namespace_for_all(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = desk.invalidator.due
    assert not due()
    desk.invalidator.postpone([("key", "a"), ("tag", "t"), ("event", b"e")])
    assert due()
    assert [due(["b", "a"]), due(["b"], ["t"]), due((), ["t"])] == [True] * 3
    assert not due(["b", "t"], ["a", "u"])
    desk.invalidator.postpone([SPACE])
    assert [due(["b"]), due((), ["u"])] == [True] * 2
    drive(desk.invalidator.settle(desk.world))
    assert desk.owed() == {("event", b"e")}
    assert not due()
    monkeypatch.setattr("cachekit.pending.MAX_PENDING", 3)
    desk.invalidator.postpone(("key", str(n)) for n in range(4))  # type: ignore[arg-type]  # once
    assert desk.owed() == {SPACE}
    assert due(["b"])


def test_what_one_part_can_not_take_stops_nothing_else(desk: Desk) -> None:
    desk.away = {physical("a1"), "t1"}
    desk.invalidator.postpone(
        [("key", "a1"), ("key", "a2"), ("tag", "t1"), ("tag", "t2"), ("key", "a3")]
    )
    with pytest.raises(PartUnavailable):
        drive(desk.invalidator.settle(desk.world))
    assert desk.owed() == {("key", "a1"), ("tag", "t1")}
    desk.told.clear()
    drive(desk.invalidator.settle(desk.world, keys=["a9"], tags=["t9"]))  # nothing of theirs
    assert desk.told == []
    desk.away = {physical("a1")}
    drive(desk.invalidator.settle(desk.world, keys=["a9"], tags=["t1"]))
    assert desk.owed() == {("key", "a1")}


def test_an_invalidation_queues_what_could_not_be_told_and_no_more(desk: Desk) -> None:
    desk.away = {physical("a"), "t"}
    desk.cache.invalidate(keys=["a", "b"], tags=["t", "u"])
    assert desk.owed() == {("key", "a"), ("tag", "t")}
    assert {physical("b"), "u"} <= set(desk.told)
    # Without a word on which, all of them: what was told may be told again.
    desk.away = {physical("c"), physical("d")}
    desk.cache.invalidate(keys=["c", "d"])
    assert {("key", "c"), ("key", "d")} <= desk.owed()


def test_a_read_of_many_goes_without_those_that_can_not_be_told(desk: Desk) -> None:
    for key in "abc":
        desk.cache.set(key, key.upper(), tags=["u"])
    desk.away = {physical("a")}
    desk.cache.invalidate(keys=["a", "b"])
    assert desk.owed() == {("key", "a")}
    assert desk.read(["a", "b", "c", "d"]) == [None, MISS, "C", MISS]
    with pytest.raises(PartUnavailable):
        desk.read(["a", "c"], whole=True)
    with pytest.raises(PartUnavailable):
        desk.read(["a"])
    desk.away = set()
    assert desk.read(["a", "c"]) == [MISS, "C"]
    assert desk.owed() == set()


def test_an_entry_whose_unknown_tag_is_pending_is_no_answer(desk: Desk) -> None:
    desk.cache.set("a", "old", tags=["t"])
    desk.cache.set("b", "fine", tags=["u"])
    desk.away = {"t"}
    desk.cache.invalidate(tags=["t"])
    assert desk.read(["a", "b"]) == [None, "fine"]
    assert desk.read(["b"]) == ["fine"]
    assert desk.read(["a", "b"], [("t",), ("u",)]) == [None, "fine"]
    with pytest.raises(PartUnavailable):
        desk.read(["a"])
    desk.away = set()
    assert desk.read(["a", "b"]) == [MISS, "fine"]  # told of by the read itself
    assert desk.owed() == set()


def test_a_tag_that_is_told_of_between_a_read_and_its_answer_makes_it_read_again(
    desk: Desk,
) -> None:
    desk.cache.set("a", "old", tags=["t"])
    desk.away = {"t"}
    desk.cache.invalidate(tags=["t"])
    asked = []

    def tell() -> None:
        asked.append(desk.owed())
        desk.away = set()
        drive(desk.invalidator.settle(desk.world))

    assert desk.read(["a"], between=tell) == [MISS]
    assert asked == [{("tag", "t")}, set()]


def test_a_tag_that_is_lost_in_the_overflow_between_a_read_and_its_answer_still_counts(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachekit.pending.MAX_PENDING", 3)
    desk.cache.set("a", "old", tags=["t"])
    desk.away = {"t"}
    desk.cache.invalidate(tags=["t"])
    asked = []

    def overflow() -> None:
        if not asked:
            desk.invalidator.postpone([("key", str(n)) for n in range(4)])
        asked.append(desk.owed())

    assert desk.read(["a"], between=overflow) == [MISS]
    assert asked[0] == {SPACE}
    assert desk.owed() == set()


def test_tags_that_are_told_of_without_end_make_no_read_endless(desk: Desk) -> None:
    desk.cache.set("a", "value", tags=["t"])
    desk.away = {physical("x")}
    desk.cache.invalidate(keys=["x"])
    count = 0

    def tell() -> None:
        nonlocal count
        count += 1
        desk.invalidator.postpone([("tag", f"u{count}")])
        drive(desk.invalidator.settle(desk.world, keys=(), tags=[f"u{count}"]))

    assert desk.read(["a"], between=tell) == [MISS]
    assert count == LOOKS
    assert desk.read(["a"]) == ["value"]


@pytest.mark.parametrize("times", [1, LOOKS])
def test_a_key_that_is_invalidated_again_while_it_is_told_of_is_no_error(
    desk: Desk, times: int
) -> None:
    """As others of this process do all the time: nobody's far tier failed."""
    desk.cache.set("a", "old")
    desk.invalidator.postpone([("key", "a"), ("key", "b")])
    slots: Any = desk.far.store(desk.world).slots
    inner, left = slots.void, times

    async def void(names: Sequence[str], deadline: Any) -> None:
        nonlocal left
        await inner(names, deadline)
        if left:
            left -= 1
            desk.invalidator.postpone([("key", "a")])

    slots.void = void
    assert desk.read(["a"], whole=True) == [MISS]
    assert desk.owed() == ({("key", "b")} if times < LOOKS else {("key", "a"), ("key", "b")})
    left = LOOKS
    desk.cache.set("c", "fine")
    assert desk.read(["a", "c"], whole=True) == [MISS, "fine"]
    assert desk.cache.get_or_set("a", lambda: "new") == "new"


def test_nothing_pending_costs_a_read_no_more_than_the_question(desk: Desk) -> None:
    asked = []

    async def ask(some: Sequence[int]) -> list[Found | None]:
        asked.append(list(some))
        return [Found(Verdict.MISS, SlotState.NOTHING), None]

    deadline = desk.far.deadline(desk.world)
    found = drive(read(desk.invalidator, desk.world, ["a", "b"], [(), ()], ask, deadline))
    assert asked == [[0, 1]]
    assert found[1] is None  # the far tier's own word passes through


def test_a_key_may_be_withdrawn_and_takes_nothing_else_along(desk: Desk) -> None:
    desk.invalidator.postpone([SPACE, ("key", "a"), ("key", "b"), ("tag", "a")])
    desk.invalidator.withdraw([("key", "a"), ("key", "c")])
    assert desk.owed() == {SPACE, ("key", "b"), ("tag", "a")}
