"""Blocks of writers in flight, as this process knows them."""

from __future__ import annotations

from cachekit.core.writers import Writers
from cachekit.testing import ManualClock


def test_while_a_writer_is_at_work_no_load_fills_and_he_alone_may() -> None:
    writers = Writers(ManualClock())
    assert writers.may_fill("k", None)
    writers.seize(["k"], "w", 30)
    assert not writers.may_fill("k", None)
    assert writers.may_fill("k", "w")
    assert not writers.may_fill("k", "other")
    assert writers.may_fill("free", None)
    writers.end("k", "w")
    assert writers.may_fill("k", None)
    assert not writers.may_fill("k", "w")


def test_two_writers_contest_each_other_until_the_last_has_ended() -> None:
    writers = Writers(ManualClock())
    writers.seize(["k"], "a", 30)
    writers.seize(["k"], "b", 30)
    assert not writers.may_fill("k", "a")
    assert not writers.may_fill("k", "b")
    writers.end("k", "a")
    assert not writers.may_fill("k", "b")  # he was not alone from beginning to end
    assert not writers.may_fill("k", None)
    writers.end("k", "b")
    assert writers.may_fill("k", None)


def test_an_invalidation_contests_a_block_and_does_not_end_it() -> None:
    writers = Writers(ManualClock())
    writers.seize(["k", "l"], "w", 30)
    writers.contest("k")
    assert not writers.may_fill("k", "w")
    assert not writers.may_fill("k", None)
    assert writers.may_fill("l", "w")
    writers.contest_all()
    assert not writers.may_fill("l", "w")


def test_a_block_whose_writer_never_ends_stops_standing_at_its_time() -> None:
    clock = ManualClock()
    writers = Writers(clock)
    writers.seize(["k"], "a", 10)
    writers.seize(["k"], "b", 5)  # the longer of the two counts
    clock.advance(9.9)
    assert not writers.may_fill("k", None)
    clock.advance(0.1)
    assert writers.may_fill("k", None)
    assert not writers.may_fill("k", "a")  # too late to fill: a load may have begun


def test_who_comes_back_after_his_block_expired_only_contests_his_successor() -> None:
    clock = ManualClock()
    writers = Writers(clock)
    writers.seize(["k"], "late", 1)
    clock.advance(1)
    writers.seize(["k"], "next", 10)
    writers.end("k", "late")
    assert not writers.may_fill("k", None)
    assert not writers.may_fill("k", "next")


def test_blocks_of_writers_that_died_do_not_pile_up() -> None:
    clock = ManualClock()
    writers = Writers(clock)
    for number in range(5_000):
        writers.seize([number], "dead", 1)
        clock.advance(0.1)
    assert len(writers) < 200
