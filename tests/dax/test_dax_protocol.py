"""The protocol of ``cachekit.dax``: its rules one by one, and random schedules of all of them."""

from __future__ import annotations

import os

import pytest
from item_races import (
    any_writer_fills,
    epoch_only,
    naive,
    no_hold,
    stale_schedules,
    whole,
)

from cachekit.dax.protocol import Outcome, Protocol
from cachekit.testing.clock import ManualClock

NIGHTLY = os.environ.get("CACHEKIT_NIGHTLY") == "1"
SCHEDULES = range(60_000 if NIGHTLY else 4_000)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def protocol(clock: ManualClock) -> Protocol:
    return Protocol(clock, settle=2.0, hold=60.0)


def read_may_fill(protocol: Protocol, *names: str, strong: bool = False) -> bool:
    look = protocol.look(names)
    try:
        return protocol.may_fill(look, was_strong=strong)
    finally:
        protocol.leave(look)


# -- schedules -----------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [False, True], ids=["replies", "lost replies"])
def test_no_schedule_leaves_a_stale_item_at_rest(lost: bool) -> None:
    wrong, fills = stale_schedules(whole, SCHEDULES, lost_replies=lost)
    assert not wrong
    assert fills > len(SCHEDULES) // 2, "it kept next to nothing"


@pytest.mark.parametrize("variant", [naive, epoch_only, any_writer_fills])
def test_the_same_schedules_catch_a_weaker_protocol(variant: object) -> None:
    wrong, _ = stale_schedules(variant, SCHEDULES)  # type: ignore[arg-type]  # one of three
    assert wrong


def test_the_same_schedules_catch_a_protocol_that_does_not_wait_for_lost_writes() -> None:
    wrong, _ = stale_schedules(no_hold, SCHEDULES, lost_replies=True)
    assert wrong


# -- reads ---------------------------------------------------------------------------------


def test_a_quiet_key_is_filled_by_any_read(protocol: Protocol) -> None:
    assert read_may_fill(protocol, "a")


def test_a_read_that_began_before_a_write_fills_nothing(protocol: Protocol) -> None:
    look = protocol.look(["a"])
    protocol.end(protocol.begin(["a"]), Outcome.APPLIED)
    assert not protocol.may_fill(look, was_strong=True)


def test_a_read_that_began_during_a_write_fills_nothing(protocol: Protocol) -> None:
    write = protocol.begin(["a"])
    look = protocol.look(["a"])
    assert look.held
    protocol.end(write, Outcome.REFUSED)
    assert not protocol.may_fill(look, was_strong=True)


def test_the_settle_window_wants_strong_reads_and_ends(
    protocol: Protocol, clock: ManualClock
) -> None:
    protocol.end(protocol.begin(["a"]), Outcome.APPLIED)
    assert protocol.look(["a"]).strong
    assert not read_may_fill(protocol, "a")
    assert read_may_fill(protocol, "a", strong=True)
    assert read_may_fill(protocol, "b"), "another key is not concerned"
    clock.advance(2.0)
    assert read_may_fill(protocol, "a")


def test_a_refused_write_opens_no_window(protocol: Protocol) -> None:
    protocol.end(protocol.begin(["a"]), Outcome.REFUSED)
    assert read_may_fill(protocol, "a")


def test_a_write_of_unknown_outcome_holds_its_key_and_settles_after(
    protocol: Protocol, clock: ManualClock
) -> None:
    protocol.end(protocol.begin(["a"]), Outcome.UNKNOWN)
    assert not read_may_fill(protocol, "a", strong=True)
    clock.advance(60.0)
    assert not read_may_fill(protocol, "a"), "it may have landed just now"
    assert read_may_fill(protocol, "a", strong=True)
    clock.advance(2.0)
    assert read_may_fill(protocol, "a")


def test_a_read_depends_on_every_spot_it_names(protocol: Protocol) -> None:
    look = protocol.look(["key", "table"])
    protocol.end(protocol.begin(["table"]), Outcome.REFUSED)
    assert not protocol.may_fill(look, was_strong=True)


# -- writes --------------------------------------------------------------------------------


def test_a_write_alone_fills_and_one_in_company_does_not(protocol: Protocol) -> None:
    assert protocol.end(protocol.begin(["a", "b"]), Outcome.APPLIED) == [True, True]
    first = protocol.begin(["a"])
    second = protocol.begin(["a"])
    assert protocol.end(second, Outcome.APPLIED) == [False]
    assert protocol.end(first, Outcome.APPLIED) == [False], "which one was last is not known"
    assert protocol.end(protocol.begin(["a"]), Outcome.APPLIED) == [True]


def test_a_write_fills_nothing_beside_a_write_of_the_whole_table(protocol: Protocol) -> None:
    one = protocol.begin(["a"], ["table"])
    whole_table = protocol.begin(["table"])
    assert protocol.end(one, Outcome.APPLIED) == [False]
    protocol.end(whole_table, Outcome.APPLIED)
    one = protocol.begin(["a"], ["table"])
    protocol.end(protocol.begin(["table"]), Outcome.APPLIED)
    assert protocol.end(one, Outcome.APPLIED) == [False]
    one = protocol.begin(["a"], ["table"])
    protocol.end(protocol.begin_all(), Outcome.APPLIED)
    assert protocol.end(one, Outcome.APPLIED) == [False]


def test_a_write_fills_nothing_while_a_lost_one_may_land(
    protocol: Protocol, clock: ManualClock
) -> None:
    protocol.end(protocol.begin(["a"]), Outcome.UNKNOWN)
    assert protocol.end(protocol.begin(["a"]), Outcome.APPLIED) == [False]
    over_the_end = protocol.begin(["a"])
    beside = protocol.begin(["b"], ["a"])
    clock.advance(60.0)
    assert protocol.end(over_the_end, Outcome.APPLIED) == [False], "the lost one may be newer"
    assert protocol.end(beside, Outcome.APPLIED) == [False]
    assert protocol.end(protocol.begin(["a"]), Outcome.APPLIED) == [True]


def test_ending_a_write_twice_changes_nothing(protocol: Protocol) -> None:
    write = protocol.begin(["a"])
    protocol.end(write, Outcome.REFUSED)
    other = protocol.begin(["a"])
    assert protocol.end(write, Outcome.UNKNOWN) == [False]
    assert protocol.end(other, Outcome.APPLIED) == [True]


def test_what_changes_everything_stops_every_read(protocol: Protocol) -> None:
    look = protocol.look(["a"])
    protocol.disturb_all()
    assert not protocol.may_fill(look, was_strong=True)
    assert not read_may_fill(protocol, "never seen")
    assert read_may_fill(protocol, "never seen", strong=True)


# -- size ----------------------------------------------------------------------------------


def test_the_state_is_that_of_the_traffic(protocol: Protocol, clock: ManualClock) -> None:
    for number in range(20_000):
        protocol.end(protocol.begin([number]), Outcome.APPLIED)
        clock.advance(0.01)  # 200 windows are open at any moment
    assert len(protocol) < 4_000


def test_too_many_windows_become_one_over_everything(clock: ManualClock) -> None:
    protocol = Protocol(clock, settle=2.0, hold=60.0, max_spots=2_000)
    running = protocol.begin(["running"])
    for number in range(10_000):
        protocol.end(protocol.begin([number]), Outcome.APPLIED)
    assert protocol.merged
    assert len(protocol) < 8_000
    assert not read_may_fill(protocol, "other")
    assert not read_may_fill(protocol, 0), "its window was forgotten"  # type: ignore[arg-type]  # any name
    assert not read_may_fill(protocol, "running", strong=True)
    assert protocol.end(running, Outcome.APPLIED) == [True]
    clock.advance(2.0)
    assert read_may_fill(protocol, "other")
