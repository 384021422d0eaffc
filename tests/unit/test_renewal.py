"""The keeper of leases: when its thread runs and ends, what it renews and for how long."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cachekit import Cache
from cachekit.backends.memory import MemoryBackend
from cachekit.core.policy import Policy
from cachekit.errors import BackendUnavailable
from cachekit.observe import Meter
from cachekit.packing import Right
from cachekit.runtime import Runtime
from cachekit.strategies.renewal import IDLE_ROUNDS, LEASES, Keeper
from cachekit.testing.clock import ManualClock

LEASE = 0.08


def _until(holds: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


class Leases:
    """A far tier that only renews; ``answers`` come first, an error is raised."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.renewed: list[str] = []
        self.answers: list[bool | Exception] = []

    def deadline(self, world: Any) -> Any:
        return world.deadline(1.0)

    async def renew(self, world: Any, key: str, token: bytes, lease: float, until: Any) -> bool:
        self.renewed.append(key)
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer


def _right(number: int = 1) -> Right:
    return Right(bytes([number]) * 16, b"space", {}, None)


def _keepers() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name == "cachekit-leases"}


_others: set[threading.Thread] = set()  # of caches of earlier tests


def _threads() -> int:
    return len(_keepers() - _others)


@pytest.fixture(autouse=True)
def _begin() -> None:
    _others.clear()
    _others.update(_keepers())


@pytest.fixture
def real() -> Iterator[Keeper]:
    runtime = Runtime()
    keeper = Keeper(runtime, Leases(runtime), Meter())  # type: ignore[arg-type]  # renews only
    yield keeper
    keeper.close()
    _until(lambda: _threads() == 0)


class Still:
    """A keeper whose time stands still and whose rounds are made by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        runtime = Runtime(clock=self.clock)
        self.far = Leases(runtime)
        self.meter = Meter()
        self.keeper = Keeper(runtime, self.far, self.meter)  # type: ignore[arg-type]  # as above
        monkeypatch.setattr(self.keeper, "_start", lambda: None)

    def round(self, seconds: float) -> bool:
        self.clock.advance(seconds)
        return self.keeper.renew()


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Still:
    return Still(monkeypatch)


def test_the_thread_ends_after_idle_rounds_and_comes_back(real: Keeper) -> None:
    policy = Policy.make(lease=LEASE)
    for number in (1, 2):
        right = _right(number)
        real.hold("k", right, policy)
        _until(lambda: _threads() == 1)
        time.sleep(IDLE_ROUNDS * real.pause * 2)
        assert _threads() == 1  # not idle while one is held
        real.let_go(right)
        _until(lambda: _threads() == 0)
    assert len(real.far.renewed) >= 2  # type: ignore[attr-defined]  # of Leases


def test_one_thread_serves_all_who_hold_at_once(real: Keeper) -> None:
    rights = [_right(number) for number in range(20)]
    policy = Policy.make(lease=LEASE)
    holders = [threading.Thread(target=real.hold, args=("k", r, policy)) for r in rights]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join()
    assert _threads() == 1


def test_a_thread_asleep_over_a_long_lease_wakes_for_a_short_one(real: Keeper) -> None:
    real.hold("long", _right(1), Policy.make(lease=10))
    _until(lambda: _threads() == 1)
    time.sleep(0.05)  # it looks again in 2.5 s
    real.hold("short", _right(2), Policy.make(lease=LEASE))
    _until(lambda: "short" in real.far.renewed, 1.5)  # type: ignore[attr-defined]  # of Leases


def test_the_thread_goes_with_a_cache_that_nobody_closed() -> None:
    cache = Cache(backend=MemoryBackend())
    assert cache.get_or_set("k", lambda: 1, lease=LEASE) == 1
    assert _threads() == 1
    gone = weakref.ref(cache.parts.reader.keeper)
    del cache
    gc.collect()
    _until(lambda: gone() is None)
    _until(lambda: _threads() == 0)


def test_a_round_with_nothing_held_counts_as_idle_and_one_with_something_starts_anew(
    still: Still,
) -> None:
    right, policy = _right(), Policy.make(lease=10)
    assert all(still.round(1) for _ in range(IDLE_ROUNDS - 1))
    still.keeper.hold("k", right, policy)
    assert still.round(1)
    still.keeper.let_go(right)
    assert [still.round(1) for _ in range(IDLE_ROUNDS)] == [True] * (IDLE_ROUNDS - 1) + [False]


def test_it_renews_at_half_the_lease_and_at_most_six_leases_long(still: Still) -> None:
    still.keeper.hold("k", _right(), Policy.make(lease=10))
    rounds = int(LEASES * 10 / 2.5)
    moments = []
    for number in range(1, 2 * rounds):
        before = len(still.far.renewed)
        still.round(2.5)
        if len(still.far.renewed) > before:
            moments.append(number * 2.5)
    assert moments == [5.0 * n for n in range(1, int(LEASES * 10 / 5))]


def test_it_renews_to_the_load_timeout_where_there_is_one(still: Still) -> None:
    still.keeper.hold("k", _right(), Policy.make(lease=10, load_timeout=12))
    for _ in range(20):
        still.round(2.5)
    assert len(still.far.renewed) == 2


def test_what_was_voided_is_renewed_no_more(still: Still) -> None:
    still.keeper.hold("k", _right(), Policy.make(lease=10))
    still.far.answers = [True, False]
    for _ in range(10):
        still.round(2.5)
    assert len(still.far.renewed) == 2


def test_a_renewal_that_failed_is_tried_again_soon(still: Still) -> None:
    still.keeper.hold("k", _right(), Policy.make(lease=10))
    still.far.answers = [BackendUnavailable("away", backend="b", operation="renew")]
    still.round(5)
    still.round(1.25)
    assert len(still.far.renewed) == 2
    assert still.meter.counts["leases_renewed"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_holds_nothing_and_starts_its_own_thread(real: Keeper) -> None:
    policy = Policy.make(lease=LEASE)
    real.hold("parent", _right(1), policy)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            real.reset_after_fork()
            assert real._held == {}
            assert _threads() == 0
            real.far.renewed.clear()  # type: ignore[attr-defined]  # of Leases
            real.hold("child", _right(2), policy)
            _until(lambda: "child" in real.far.renewed)  # type: ignore[attr-defined]  # of Leases
            assert "parent" not in real.far.renewed  # type: ignore[attr-defined]  # of Leases
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
