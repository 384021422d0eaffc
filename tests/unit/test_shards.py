"""Streams that a script plays: splits, rotations, expired iterators, trimmed data, throttling."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest
from stream_script import EXPIRES, ITEMS, MAX_LAG, Stage

from cachekit.feeds.shards import Gap, Listed, Record, Shards, plain, record_of


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    made.run()
    assert made.events == ["feed_began"]
    assert made.flushes == 1
    made.load()
    return made


# -- order -------------------------------------------------------------------------------


def test_all_iterators_are_held_before_anything_is_trusted() -> None:
    stage = Stage()
    stage.script.refusals = ["", "", "", "ThrottlingException"]  # the second iterator's
    stage.reader.step()
    assert stage.script.asked[-2:] == ["get_shard_iterator", "get_shard_iterator"]
    assert stage.events == ["feed_failed", "feed_behind"]
    stage.run()
    assert stage.events[2:] == ["feed_began", "feed_caught_up"]
    verbs = stage.script.asked
    assert verbs.index("get_records") > 3


def test_parents_are_read_to_their_end_before_their_children(stage: Stage) -> None:
    script = stage.script
    for _ in range(3):
        for _ in range(5):
            script.put(0)
        script.end(script.home(0), split=True)
    script.put(0)
    assert stage.settled()
    assert stage.told == [(0, n) for n in range(1, 17)]
    assert stage.flushes == 1
    assert stage.kept.keys() == set(ITEMS) - {0}


def test_a_list_in_any_order_gives_the_same_tree() -> None:
    listed = [Listed("c", "b"), Listed("b", "a", True), Listed("d", "b"), Listed("a", None, True)]
    for order in (listed, listed[::-1], [listed[2], listed[0], listed[3], listed[1]]):
        shards = Shards([Listed("a")], 5.0)
        shards.learn(order)
        assert [s.name for s in shards.readable()] == ["a"]
        shards.advance("a", None, "1", 6.0)
        assert [(s.name, s.start) for s in shards.readable()] == [("b", "TRIM_HORIZON")]
        assert shards.known() == 6.0
        shards.advance("b", None, "2", 7.0)
        assert {s.name for s in shards.readable()} == {"c", "d"}
        assert shards.known() == 7.0


def test_a_shard_whose_successor_is_not_listed_yet_is_known_up_to_its_end() -> None:
    shards = Shards([Listed("a")], 5.0)
    shards.advance("a", "next", None, 6.0)
    shards.advance("a", None, None, 8.0)  # it may have ended right after the look before
    assert [s.name for s in shards.childless()] == ["a"]
    assert shards.known() == 6.0
    shards.learn([Listed("a", None, True), Listed("b", "a")])
    shards.advance("b", "next", None, 9.0)
    assert (shards.childless(), shards.known()) == ([], 9.0)
    shards.learn([Listed("b", "a")])  # the parent is beyond its 24 hours
    assert [s.name for s in shards.open()] == ["b"]


def test_what_ended_before_the_beginning_is_not_read_when_it_is_listed_late() -> None:
    shards = Shards([Listed("a", None, True), Listed("d", "c")], 5.0)
    late = [Listed("a", None, True), Listed("b", "a", True), Listed("c", "b", True)]
    shards.learn([Listed("d", "c"), *late, Listed("e", "c")])
    assert [(s.name, s.start) for s in shards.readable()] == [
        ("d", "LATEST"),
        ("e", "TRIM_HORIZON"),
    ]
    assert shards.known() == 5.0


@pytest.mark.parametrize("late", [Listed("x"), Listed("x", "y"), Listed("x", "x")])
def test_a_shard_of_unknown_descent_is_a_gap(late: Listed) -> None:
    shards = Shards([Listed("a")], 5.0)
    with pytest.raises(Gap, match="descends"):
        shards.learn([Listed("a"), late])


# -- what goes wrong ---------------------------------------------------------------------


def test_an_expired_iterator_goes_on_after_what_was_applied_last(stage: Stage) -> None:
    script = stage.script
    for item in ITEMS:
        script.put(item)
    stage.run()
    script.put(0)
    script.now += EXPIRES + 1  # asleep
    stage.reader.step()
    stage.run()
    assert stage.told.count((0, 2)) == 1
    assert len(stage.told) == 9
    assert "feed_lost" not in stage.events


def test_a_sleep_beyond_the_retention_is_a_gap_whatever_can_still_be_read(stage: Stage) -> None:
    for item in ITEMS:
        stage.script.put(item)
    stage.run()
    stage.load()
    stage.script.now += 21 * 3600
    stage.reader.step()
    assert stage.events[-2:] == ["feed_lost", "feed_behind"]
    assert stage.kept == {}


@pytest.mark.parametrize("verb", ["get_shard_iterator", "get_records"])
def test_a_round_of_slow_answers_leaves_nothing_outdated(stage: Stage, verb: str) -> None:
    script = stage.script
    script.anew()
    for item in ITEMS[2:]:
        script.begin(None, {item})
    script.now += 10.0
    stage.reader.step()  # the table has another stream
    if verb == "get_records":
        stage.reader.step()
    script.slow = 3.0
    seen: list[float] = []
    give = getattr(script, verb)

    def watched(**asked: object) -> object:
        seen.append(max(stage.outdated().values(), default=0.0))
        stage.load()
        script.put(7)
        script.refusals = ["ThrottlingException"] if verb == "get_records" else []
        return give(**asked)

    setattr(script, verb, watched)
    stage.reader.step()
    assert len(seen) == 8
    assert max(seen) <= MAX_LAG + 2 * script.slow


def test_an_expired_iterator_without_anything_applied_is_a_gap(stage: Stage) -> None:
    stage.script.put(0)
    stage.script.now += EXPIRES + 1
    assert stage.settled()
    assert stage.told == []
    assert stage.events.count("feed_lost") == 1
    assert stage.kept == {}


@pytest.mark.parametrize(
    "how", ["trimmed", "gone", "anew", "disabled", "disabling", "unknown", "garbage"]
)
def test_a_gap_flushes_and_the_reading_begins_anew(stage: Stage, how: str) -> None:
    script = stage.script
    home = script.home(0)
    script.put(0)
    if how == "trimmed":
        script.trim(home, 1)
    elif how == "gone":
        script.end(home)
        script.parts.pop(home)
    elif how == "anew":
        script.anew()
    elif how in ("disabled", "disabling"):
        script.status = how.upper()
    elif how == "unknown":
        script.begin(None, set())
    else:
        script.parts[home].records[-1]["dynamodb"]["Keys"] = {"id": {"X": "?"}}
    end = script.now + 15.0
    while "feed_lost" not in stage.events:
        assert script.now < end
        script.now += stage.reader.step()
    assert stage.kept == {}, "at once, and not when the reading begins anew"
    script.status = "ENABLED"
    stage.run(15.0)
    stage.load()
    before = stage.flushes
    script.put(0)
    assert stage.settled()
    assert (stage.told[-1], stage.flushes) == ((0, script.values[0]), before)


def test_a_child_of_a_split_that_is_listed_last_is_read_from_its_beginning(stage: Stage) -> None:
    script = stage.script
    _, second = script.end(script.home(0), split=True)
    script.parts[second].listed = False
    for item in ITEMS:
        script.put(item)
    stage.run(5.0)
    assert len(stage.told) == 6
    script.parts[second].listed = True
    assert stage.settled()
    assert len(stage.told) == 8
    assert "feed_lost" not in stage.events


def test_throttling_is_waited_out_and_holds_up_no_other_shard(stage: Stage) -> None:
    script = stage.script
    script.put(0)
    script.put(7)
    script.refusals = ["LimitExceededException"]
    stage.reader.step()
    assert len(stage.told) == 1
    assert stage.settled()
    assert (sorted(stage.told), stage.flushes) == ([(0, 1), (7, 1)], 1)


def test_a_page_that_could_not_be_applied_is_told_again(stage: Stage) -> None:
    stage.script.put(0)
    stage.failing = 2
    assert stage.settled()
    assert (stage.told, stage.flushes) == ([(0, 1)], 1)


def test_beyond_max_lag_everything_is_flushed_again_and_again_until_caught_up(
    stage: Stage,
) -> None:
    script = stage.script
    script.put(0)
    script.refusals = ["InternalServerError"] * 1000
    before = stage.flushes
    for _ in range(20):
        stage.run(3.0)
        stage.load()
        script.put(1)
        assert max(stage.outdated().values()) <= MAX_LAG
    assert stage.flushes >= before + 4
    assert stage.events.count("feed_behind") == 1
    script.refusals = []
    stage.run(6.0)
    assert (stage.outdated(), stage.events[-1]) == ({}, "feed_caught_up")
    before = stage.flushes
    stage.run(60.0)
    assert stage.flushes == before


def test_a_wrong_clock_here_hides_no_lag(stage: Stage) -> None:
    page = {"ResponseMetadata": {"HTTPHeaders": {"date": "Thu, 01 Jan 1970 02:00:00 GMT"}}}
    assert stage.reader._now(page) == 7200.0
    assert stage.reader._now({}) == stage.script.now


@pytest.mark.parametrize("seed", range(40))
def test_nothing_outdated_stands_longer_than_max_lag_whatever_the_stream_does(seed: int) -> None:
    rng = random.Random(seed)
    stage = Stage()
    script = stage.script
    hidden: list[list[str]] = []
    for _ in range(250):
        script.now += rng.choice([0.0, 0.1, 0.5, 1.0])
        deed = rng.random()
        name = rng.choice([n for n, p in script.parts.items() if not p.closed])
        if deed < 0.35:
            script.put(rng.choice(ITEMS))
        elif deed < 0.40:
            listed = script.parts[name].listed and rng.random() < 0.5
            children = script.end(name, split=rng.random() < 0.5, listed=listed)
            hidden += [] if listed else [children]
        elif deed < 0.44 and hidden:
            for child in hidden.pop(0):
                script.parts[child].listed = True
        elif deed < 0.47:
            # Before its first iterator nothing of a shard is as old as 24 hours.
            script.trim(rng.choice([n for n, p in script.parts.items() if p.met] or [name]), 2)
        elif deed < 0.50:
            codes = ["ThrottlingException", "", "ExpiredIteratorException", "InternalServerError"]
            script.refusals = rng.choices(codes, k=rng.randrange(1, 12))
        elif deed < 0.51:
            script.anew()
            hidden = []
        elif deed < 0.52:
            script.status = rng.choice(["ENABLED", "DISABLED"])
        elif deed < 0.54:
            stage.failing = rng.randrange(4)
        else:
            stage.load()
            stage.reader.step()
            assert max(stage.outdated().values(), default=0.0) <= MAX_LAG
    script.refusals, script.status = [], "ENABLED"
    for part in script.parts.values():
        part.listed = True
    stage.run(60.0)
    assert stage.outdated() == {}
    for item in ITEMS:
        versions = [version for each, version in stage.told if each == item]
        assert versions == sorted(set(versions)), "in order, and none twice"
    before = stage.flushes
    stage.load()
    stage.run(60.0)
    assert (stage.flushes, len(stage.kept)) == (before, len(ITEMS))


# -- records -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "value"),
    [
        ({"S": "x"}, "x"),
        ({"N": "100"}, 100),
        ({"N": "1E+2"}, 100),
        ({"N": "1.50"}, Decimal("1.50")),
        ({"N": "9" * 38}, int("9" * 38)),
        ({"B": b"x"}, b"x"),
        ({"BOOL": False}, False),
        ({"NULL": True}, None),
        ({"NS": ["1", "2.5"]}, {1, Decimal("2.5")}),
        ({"L": [{"M": {"a": {"SS": ["x"]}}}]}, [{"a": {"x"}}]),
    ],
)
def test_attribute_values_become_plain(wire: Any, value: Any) -> None:
    assert plain(wire) == value
    assert type(plain(wire)) is type(value)


def test_a_record_of_keys_alone_has_no_images() -> None:
    told = {"Keys": {"id": {"S": "a"}}, "SequenceNumber": "1"}
    record = record_of("users", {"eventName": "REMOVE", "dynamodb": told})
    assert record == Record("users", "remove", {"id": "a"}, sequence="1")
    assert record.images == []
