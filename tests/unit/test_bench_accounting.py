from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from cachekit.bench.accounting import LOADED, Ledger


def test_a_read_after_an_acknowledged_write_may_not_see_the_loaded_row():
    ledger = Ledger(10)
    version = ledger.begin(3)
    ledger.acknowledge(3, version)
    floor = ledger.floor(3)
    assert ledger.is_stale(floor, LOADED)
    assert ledger.is_stale(floor, None)
    assert not ledger.is_stale(floor, version)


def test_a_read_concurrent_with_a_write_may_return_either():
    ledger = Ledger(10)
    version = ledger.begin(3)
    floor = ledger.floor(3)  # the read begins before the acknowledgement
    ledger.acknowledge(3, version)
    assert not ledger.is_stale(floor, LOADED)
    assert not ledger.is_stale(floor, version)


def test_racing_writers_may_leave_either_value():
    ledger = Ledger(10)
    first, second = ledger.begin(3), ledger.begin(3)
    ledger.acknowledge(3, second)
    ledger.acknowledge(3, first)
    floor = ledger.floor(3)
    assert not ledger.is_stale(floor, first)
    assert not ledger.is_stale(floor, second)
    assert ledger.is_stale(floor, LOADED)
    assert ledger.lost([(3, first)]).writes == 0
    assert ledger.lost([(3, second)]).writes == 0


def test_a_value_overwritten_by_a_later_write_is_stale_though_another_raced_it():
    ledger = Ledger(10)
    first, second = ledger.begin(3), ledger.begin(3)
    ledger.acknowledge(3, first)
    ledger.acknowledge(3, second)
    third = ledger.begin(3)
    ledger.acknowledge(3, third)
    floor = ledger.floor(3)
    assert ledger.is_stale(floor, first)
    assert ledger.is_stale(floor, second)


def test_a_write_of_unknown_outcome_may_be_seen_or_not():
    ledger = Ledger(10)
    failed = ledger.begin(3)  # never acknowledged
    assert not ledger.is_stale(ledger.floor(3), failed)
    assert not ledger.is_stale(ledger.floor(3), LOADED)
    later = ledger.begin(3)
    ledger.acknowledge(3, later)
    assert not ledger.is_stale(ledger.floor(3), failed)  # it may have landed late
    assert ledger.lost([(3, failed)]).writes == 0


def test_a_row_that_was_never_there_may_be_absent():
    ledger = Ledger(10)
    assert not ledger.is_stale(ledger.floor(10), None)
    version = ledger.begin(10)
    assert not ledger.is_stale(ledger.floor(10), None)
    ledger.acknowledge(10, version)
    assert ledger.is_stale(ledger.floor(10), None)


def test_a_value_is_old_from_the_acknowledgement_of_the_first_write_that_replaced_it():
    ledger = Ledger(10)
    before = time.perf_counter()
    first = ledger.begin(3)
    ledger.acknowledge(3, first)
    acknowledged = time.perf_counter()
    racing = ledger.begin(3)
    second = ledger.begin(3)
    ledger.acknowledge(3, second)
    ledger.acknowledge(3, racing)
    at = time.perf_counter() + 5
    assert ledger.stale_for(3, LOADED, before) is None
    age = ledger.stale_for(3, LOADED, at)
    assert at - acknowledged <= age <= at - before
    assert ledger.stale_for(3, first, at) < at - acknowledged
    assert ledger.stale_for(3, racing, at) is ledger.stale_for(3, second, at) is None
    assert ledger.stale_for(3, None, at) > age  # it was there from the beginning
    assert ledger.stale_for(11, None, at) is None
    assert ledger.stale_for(4, LOADED, at) is None


def test_lost_writes_are_counted_by_write_and_by_key():
    ledger = Ledger(10)
    for key in (1, 1, 1, 2):
        ledger.acknowledge(key, ledger.begin(key))
    assert ledger.lost([(1, 3), (2, 4)]) == (0, 0)
    assert ledger.lost([(1, 1), (2, 4)]) == (2, 1)  # writes 2 and 3 are gone
    assert ledger.lost([(1, 0), (2, 0)]) == (4, 2)
    assert ledger.lost([(1, 3)]) == (1, 1)  # the row of key 2 is gone altogether


@given(st.data())
def test_an_honest_register_is_never_accused_and_an_old_value_always_is(data):
    """Random interleavings of writers over one linearizable register."""
    ledger = Ledger(1)
    value, overwritten = LOADED, set()
    begun: list[int] = []
    applied: list[int] = []
    for _ in range(data.draw(st.integers(1, 30))):
        step = data.draw(st.sampled_from(["begin", "apply", "acknowledge", "read"]))
        if step == "begin":
            begun.append(ledger.begin(0))
        elif step == "apply" and begun:
            version = begun.pop(data.draw(st.integers(0, len(begun) - 1)))
            value = version
            applied.append(version)
        elif step == "acknowledge" and applied:
            version = applied.pop(data.draw(st.integers(0, len(applied) - 1)))
            ledger.acknowledge(0, version)
        elif step == "read":
            assert not ledger.is_stale(ledger.floor(0), value)
    if not begun and not applied:
        assert ledger.lost([(0, value)]).writes == 0
    at = time.perf_counter()
    for version in range(len(ledger._ended)):
        old = ledger.stale_for(0, version, at)
        assert (old is not None) == ledger.is_stale(ledger.floor(0), version)
    before = ledger.floor(0)
    version = ledger.begin(0)
    ledger.acknowledge(0, version)
    overwritten.add(before)
    assert all(ledger.is_stale(ledger.floor(0), old) for old in overwritten)
    assert ledger.lost([(0, before)]).writes >= 1
