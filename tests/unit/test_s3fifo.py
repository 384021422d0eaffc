"""S3-FIFO against a reference of thirty lines with an exact ghost."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cachekit
from cachekit.core.entry import INF, Entry
from cachekit.core.s3fifo import S3Fifo


class Reference:
    """The paper's algorithm; the ghost holds as many keys as there is room."""

    def __init__(self, room: int) -> None:
        self.room, self.small_room = room, max(1, room // 10)
        self.small: deque[int] = deque()
        self.main: deque[int] = deque()
        self.uses: dict[int, int] = {}
        self.ghost: OrderedDict[int, None] = OrderedDict()
        self.filling = True

    def ask(self, key: int) -> bool:
        if key in self.uses:
            self.uses[key] += 1
            return True
        if len(self.uses) >= self.room:
            self.evict()
        if self.ghost.pop(key, self) is None:
            self.main.append(key)
        else:
            self.small.append(key)
            if self.filling and len(self.small) > self.small_room:
                self.main.append(self.small.popleft())
        self.uses[key] = 0
        return False

    def evict(self) -> None:
        self.filling = False
        while True:
            if self.small and (len(self.main) <= self.room - self.small_room or not self.main):
                key = self.small.popleft()
                if self.uses[key] < 2:
                    self.ghost[key] = None
                    if len(self.ghost) > self.room:
                        self.ghost.popitem(last=False)
                    break
                self.uses[key] = 0
            else:
                key = self.main.popleft()
                if not self.uses[key]:
                    break
                self.uses[key] = min(self.uses[key], 3) - 1
            self.main.append(key)
        del self.uses[key]


def _zipf(seed: int, keys: int, skew: float, length: int) -> list[int]:
    rng = random.Random(seed)
    weights = list(itertools.accumulate(1 / (i + 1) ** skew for i in range(keys)))
    return rng.choices(range(keys), cum_weights=weights, k=length)


@pytest.mark.parametrize(
    "trace",
    [
        _zipf(1, 2_000, 0.8, 20_000),
        _zipf(2, 2_000, 1.1, 20_000),
        [random.Random(3).randrange(600) for _ in range(20_000)],
        random.Random(4).choices(range(400), k=20_000),
        _zipf(6, 500, 1.0, 10_000) + list(range(10_000, 12_000)) + _zipf(7, 500, 1.0, 8_000),
    ],
    ids=["zipf 0.8", "zipf 1.1", "one key", "uniform", "scan"],
)
@pytest.mark.parametrize("room", [50, 200])
def test_the_hit_ratio_is_the_references(trace: list[int], room: int) -> None:
    reference = Reference(room)
    expected = sum(reference.ask(key) for key in trace)
    cache = cachekit.Cache(max_entries=room)

    @cache.cached
    def load(key: int) -> int:
        return key

    for key in trace:
        assert load(key) == key
    info = load.cache_info()
    assert info.hits + info.misses == len(trace)
    assert info.currsize <= room
    assert abs(info.hits - expected) <= 0.015 * len(trace)


@given(st.lists(st.integers(0, 12), max_size=120), st.integers(1, 8))
def test_every_choice_is_the_references_while_nobody_comes_back(
    steps: list[int], room: int
) -> None:
    """With each evicted key renamed on its return the ghost plays no part: exact equality."""
    reference = Reference(room)
    cache = cachekit.Cache(max_entries=room)

    @cache.cached
    def load(key: int) -> int:
        return key

    names: dict[int, int] = {}
    fresh = itertools.count(100)
    for step in steps:
        key = names.get(step)
        if key is None or (key not in reference.uses):
            key = names[step] = next(fresh)
        reference.ask(key)
        load(key)
        kept = load.cached_function.table.shelf.hot
        assert set(kept) == set(reference.uses)


def _queue(room: int) -> tuple[S3Fifo, list[float]]:
    folded: list[float] = []
    return S3Fifo(room, lambda e: e.deadline != -INF, lambda e, hits: folded.append(hits)), folded


def _entry(key: int) -> Entry:
    return Entry(key, INF, key, int, None, None)


def test_dead_entries_are_passed_over_and_swept() -> None:
    queue, _ = _queue(10)
    entries = [_entry(i) for i in range(6)]
    for entry in entries:
        queue.add(entry)
    for entry in entries[:5]:
        entry.deadline = -INF
    queue.sweep()
    assert len(queue) == 1
    assert queue.evict() is entries[5]
    assert queue.evict() is None


def test_no_hit_is_lost_when_an_entry_is_given_another_turn() -> None:
    queue, folded = _queue(4)
    for i in range(4):
        entry = _entry(i)
        entry.uses = 7.0
        queue.add(entry)
    left = queue.evict()
    rest = [*queue.small, *queue.main]
    assert left is not None
    assert sum(folded) + left.uses + sum(e.uses for e in rest) == 28.0


def test_who_returns_from_the_ghost_goes_to_main() -> None:
    queue, _ = _queue(4)
    for i in range(4):
        queue.add(_entry(i))
    gone = queue.evict()
    assert gone is not None
    queue.add(_entry(gone.key))  # type: ignore[arg-type]  # an int
    assert gone.key in [e.key for e in queue.main]


def test_clearing_gives_the_memory_back() -> None:
    queue, _ = _queue(4)
    for i in range(20):
        queue.add(_entry(i))
        if i > 2:
            queue.evict()
    assert queue.ghost is not None
    queue.clear()
    assert len(queue) == 0
    assert queue.ghost is None


@pytest.mark.parametrize("weight", [1, 50])
def test_a_bound_of_weight_is_as_good_as_one_of_as_many_entries(weight: int) -> None:
    rng = random.Random(7)
    trace = [min(int(rng.paretovariate(0.9)), 5_000) for _ in range(40_000)]
    ratios = []
    for bound in ({"max_entries": 500}, {"max_weight": 500 * weight, "weigh": lambda v: weight}):
        loads: list[int] = []
        cache = cachekit.Cache(**bound)

        @cache.cached(key="k:{n}")
        def load(n: int, loads: list[int] = loads) -> int:
            loads.append(n)
            return n

        for n in trace[:20_000]:
            load(n)
        loads.clear()
        for n in trace[20_000:]:
            load(n)
        ratios.append(1 - len(loads) / 20_000)
    assert ratios[1] > 0.98 * ratios[0]


def test_the_room_follows_a_bound_of_weight_both_ways() -> None:
    cache = cachekit.Cache(max_weight=1_000, weigh=lambda v: v)
    near = cache.parts.near
    for n in range(100):
        cache.set(f"a{n}", 100)
    assert (near.live, near._queue.room) == (10, 10)
    for n in range(5_000):
        cache.set(f"b{n}", 1)
    assert near.live == 1_000
    assert 666 <= near._queue.room <= 1_000
