"""Which tags count as blocked by a writer, and for how long."""

from __future__ import annotations

import pytest

from cachekit.core.tag_clock import TagClock
from cachekit.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tags(clock: ManualClock) -> TagClock:
    return TagClock(clock)


def test_without_a_writer_nothing_is_blocked(tags: TagClock) -> None:
    assert not tags.blocked(["a"])
    assert not tags.blocked([])
    assert not tags.blocked(None)


def test_one_blocked_tag_of_several_is_enough(tags: TagClock) -> None:
    tags.seize(["a", "b"], "writer", 10)
    assert tags.blocked(["x", "b"])
    assert not tags.blocked(["x", "y"])
    assert not tags.blocked([])


def test_tags_that_are_not_known_yet_are_blocked_while_any_is(
    tags: TagClock, clock: ManualClock
) -> None:
    tags.seize(["a"], "writer", 10)
    tags.seize(["b"], "other", 20)
    assert tags.blocked(None)
    tags.end(["b"], "other")
    assert tags.blocked(None)
    clock.advance(10)
    assert not tags.blocked(None)


def test_a_block_ends_with_its_last_writer_or_with_its_lease(
    tags: TagClock, clock: ManualClock
) -> None:
    for writer in ("one", "two"):
        tags.seize(["a"], writer, 10)
    tags.end(["a"], "one")
    assert tags.blocked(["a"])
    tags.end(["a"], "two")
    assert not tags.blocked(["a"])
    tags.seize(["a"], "dead", 10)
    clock.advance(9.9)
    assert tags.blocked(["a"])
    clock.advance(0.1)
    assert not tags.blocked(["a"])


def test_what_is_blocked_has_moved_at_every_moment(tags: TagClock, clock: ManualClock) -> None:
    tags.invalidate(["a"])
    assert not tags.moved(["a"], tags.seq)
    tags.seize(["a"], "writer", 10)
    assert tags.moved(["a"], tags.seq)
    assert not tags.moved(["b"], tags.seq)
    clock.advance(10)
    assert not tags.moved(["a"], tags.seq)


def test_the_parents_writers_block_nothing_in_a_child(tags: TagClock) -> None:
    tags.seize(["a"], "writer", 10)
    tags.reset_after_fork()
    assert not tags.blocked(["a"])
    assert not tags.blocked(None)
