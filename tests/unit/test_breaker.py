"""The circuit breaker: closed, open, half-open."""

from __future__ import annotations

import threading

import pytest

from cachekit.core.breaker import Breaker, BreakerState
from cachekit.testing import ManualClock


def _open(clock: ManualClock) -> Breaker:
    breaker = Breaker(clock, failures=3, reset=2.0)
    for _ in range(3):
        assert breaker.allow()
        breaker.failure()
    return breaker


def test_it_opens_after_the_stated_failures_in_a_row() -> None:
    breaker = Breaker(ManualClock(), failures=3, reset=2.0)
    breaker.failure()
    breaker.failure()
    breaker.success()  # the row is broken
    breaker.failure()
    breaker.failure()
    assert breaker.state is BreakerState.CLOSED
    breaker.failure()
    assert breaker.state is BreakerState.OPEN
    assert not breaker.allow()
    assert breaker.opened == 1


def test_one_probe_goes_out_when_the_reset_has_passed() -> None:
    clock = ManualClock()
    breaker = _open(clock)
    clock.advance(1.999)
    assert not breaker.allow()
    clock.advance(0.001)
    assert breaker.allow()
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.allow()


def test_the_probes_success_closes_and_its_failure_opens_for_another_reset() -> None:
    clock = ManualClock()
    breaker = _open(clock)
    clock.advance(2.0)
    assert breaker.allow()
    breaker.failure()
    assert not breaker.allow()
    clock.advance(2.0)
    assert breaker.allow()
    breaker.success()
    assert breaker.state is BreakerState.CLOSED
    assert breaker.allow()
    assert breaker.opened == 1


def test_an_abandoned_probe_lets_the_next_call_probe() -> None:
    clock = ManualClock()
    breaker = _open(clock)
    clock.advance(2.0)
    assert breaker.allow()
    breaker.abandon()
    assert breaker.allow()


def test_of_many_threads_one_becomes_the_probe() -> None:
    clock = ManualClock()
    breaker = _open(clock)
    clock.advance(2.0)
    barrier, allowed = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait()
        allowed.append(breaker.allow())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert allowed.count(True) == 1


@pytest.mark.parametrize(("failures", "reset"), [(0, 1.0), (1, 0.0), (1, -1.0)])
def test_impossible_settings_are_refused(failures: int, reset: float) -> None:
    with pytest.raises(ValueError, match="breaker"):
        Breaker(ManualClock(), failures, reset)
