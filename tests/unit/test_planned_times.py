"""Planned invalidations are carried out in time, whatever the clock does and whatever fails."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from datetime import time as day_time
from typing import Any

import pytest
from schedule_stage import Stage, invalidate_by, utc, wait_until

import cachekit
from cachekit.errors import ConfigurationError
from cachekit.schedules import Scheduler


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.scheduler.close()
    made.cache.close()


# -- firing ------------------------------------------------------------------------------


def test_keys_and_tags_go_at_the_planned_time_and_not_before(stage: Stage) -> None:
    stage.cache.set("k", 1)
    stage.cache.set("t", 2, tags=["group"])
    schedule = stage.scheduler.add(keys=["k"], tags=["group"], every="10s")
    assert schedule.next == datetime(2026, 6, 1, 10, 0, 10, tzinfo=UTC)
    assert stage.turn() == 0
    assert stage.pause == pytest.approx(9.5)
    assert stage.turn(9.4) == 0
    assert stage.cache.get_many(["k", "t"]) == {"k": 1, "t": 2}
    assert stage.turn(0.2) == 1
    assert stage.cache.get_many(["k", "t"]) == {}
    assert stage.turn() == 0
    assert schedule.next == datetime(2026, 6, 1, 10, 0, 20, tzinfo=UTC)
    assert stage.cache.stats().counts["schedule_fired"] == 1


def test_functions_give_the_names_at_each_firing(stage: Stage) -> None:
    days = iter(["mon", "tue"])
    stage.scheduler.add(tags=lambda: [f"day:{next(days)}"], every=10)
    stage.scheduler.add(everything=True, at="10:01")
    stage.turn(10)
    stage.turn(10)
    assert stage.fired == [([], ["day:mon"], False), ([], ["day:tue"], False)]
    stage.failing = 0
    assert stage.turn(60) >= 1
    assert ([], [], True) in stage.fired


def test_what_was_missed_asleep_is_made_up_for_once(stage: Stage) -> None:
    stage.scheduler.add(keys=["k"], every=60)
    stage.turn()
    assert stage.turn(3600) == 1
    assert stage.turn(1) == 0
    assert stage.turn(60) == 1


def test_a_clock_set_back_fires_no_planned_time_twice_and_misses_no_new_one(
    stage: Stage,
) -> None:
    schedule = stage.scheduler.add(keys=["k"], every=600, name="s")
    for _ in range(6):
        assert stage.turn(600) == 1  # 10:10 .. 11:00
    stage.wall -= 3600
    assert stage.turn() == 0
    assert schedule.next == datetime(2026, 6, 1, 11, 10, tzinfo=UTC)
    for _ in range(6):
        assert stage.turn(600) == 0
    assert stage.turn(600) == 1


def test_a_clock_set_forward_by_mistake_costs_one_firing_and_no_silence(stage: Stage) -> None:
    schedule = stage.scheduler.add(keys=["k"], every=600)
    stage.wall += 3600
    assert stage.turn() == 1  # 11:00
    stage.wall -= 3600
    assert stage.turn() == 0
    assert schedule.next == datetime(2026, 6, 1, 10, 10, tzinfo=UTC)
    assert [stage.turn(600) for _ in range(6)] == [1, 1, 1, 1, 1, 0]
    assert stage.turn(600) == 1


def test_a_time_fired_too_early_does_not_hide_the_missed_ones_before_it(stage: Stage) -> None:
    stage.scheduler.add(keys=["k"], every=600)
    stage.wall += 3600
    assert stage.turn() == 1
    stage.wall -= 3600
    assert stage.turn() == 0
    assert stage.turn(3900) == 1
    assert stage.turn(1) == 0
    assert [utc(planned) for planned in stage.planned] == ["06-01 11:00:00", "06-01 10:50:00"]


def test_a_firing_that_waits_while_the_clock_is_set_back_waits_for_its_time(stage: Stage) -> None:
    stage.scheduler.add(keys=["k"], every=600)
    stage.failing = 1
    stage.turn(600)
    stage.wall -= 300
    stage.clock.advance(60)
    assert stage.turn() == 0
    assert stage.turn(300) == 1


def test_no_look_at_the_clock_is_more_than_half_a_minute_away(stage: Stage) -> None:
    stage.scheduler.add(keys=["k"], at="09:00")
    stage.turn()
    assert stage.pause == 30


def test_a_firing_that_fails_is_tried_again_at_growing_intervals(stage: Stage) -> None:
    stage.scheduler.add(keys=["k"], every=600)
    stage.failing = 3
    tries = []
    stage.turn(600)
    while not stage.fired:
        tries.append(stage.pause)
        stage.turn(stage.pause)
    assert tries == [pytest.approx(0.5), pytest.approx(1.0), pytest.approx(2.0)]
    counts = stage.cache.stats().counts
    assert counts["schedule_failed"] == 3
    assert counts["schedule_fired"] == 1
    assert stage.turn(1) == 0


def test_a_firing_that_fails_until_the_next_one_is_replaced_by_it(stage: Stage) -> None:
    stage.scheduler.add(keys=["k"], every=60)
    stage.failing = 1000
    stage.turn(60)
    for _ in range(10):
        stage.turn(10)
    stage.failing = 0
    assert stage.turn(10) == 1
    assert stage.turn(1) == 0


def test_a_name_that_a_function_can_not_give_is_a_failed_firing(stage: Stage) -> None:
    stage.scheduler.add(tags=lambda: "one text", every=60, name="wrong")
    stage.scheduler.add(tags=lambda: [1 // 0], every=60, name="raises")
    stage.scheduler.add(keys=["k"], every=60)
    assert stage.turn(60) == 1
    assert stage.cache.stats().counts["schedule_failed"] == 2


def test_a_cancelled_schedule_fires_no_more_and_frees_its_name(stage: Stage) -> None:
    schedule = stage.scheduler.add(keys=["k"], every=60, name="s")
    schedule.cancel()
    schedule.cancel()
    assert schedule.next is None
    assert stage.turn(60) == 0
    again = stage.scheduler.add(keys=["k"], every=60, name="s")
    schedule.cancel()
    assert stage.turn(60) == 1
    again.cancel()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"every": 0}, "every"),
        ({"every": "soon"}, "every"),
        ({"every": float("nan")}, "every"),
        ({"at": "25:00"}, "at"),
        ({"at": 3}, "at"),
        ({"at": day_time(3, tzinfo=UTC)}, "tz="),
        ({"at": "03:00", "tz": "Europe/Atlantis"}, "tz"),
        ({"at": "03:00", "tz": "../../etc/passwd"}, "tz"),
        ({"at": "03:00", "tz": 2}, "tz"),
        ({"every": 5, "tz": "UTC"}, "tz"),
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "0 0 31 2 *"}, "cron"),
        ({"cron": ""}, "cron"),
        ({"cron": 5}, "cron"),
        ({}, "exactly one"),
        ({"every": 5, "at": "03:00"}, "exactly one"),
        ({"every": 5, "keys": "k"}, "keys"),
        ({"every": 5, "keys": [""]}, "keys"),
        ({"every": 5, "tags": [7]}, "a tag"),
        ({"every": 5, "keys": ()}, "everything"),
        ({"every": 5, "name": ""}, "name"),
        ({"every": 5, "name": 5}, "name"),
    ],
)
def test_a_wrong_option_is_refused_at_once_by_its_name(
    stage: Stage, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        stage.scheduler.add(**{"keys": ["k"], **options})
    assert stage.turn(600) == 0


def test_two_schedules_need_two_names_and_a_closed_scheduler_takes_none(stage: Stage) -> None:
    stage.scheduler.add(keys=["k"], every=60)
    with pytest.raises(ConfigurationError, match="name"):
        stage.scheduler.add(keys=["k"], every=60)
    stage.scheduler.add(keys=["k"], every=60, name="other")
    stage.scheduler.close()
    with pytest.raises(ConfigurationError, match="closed"):
        stage.scheduler.add(keys=["x"], every=60)


def test_a_zone_may_be_any_tzinfo_and_shows_in_the_next_time(stage: Stage) -> None:
    zone = timezone(timedelta(hours=5))
    schedule = stage.scheduler.add(keys=["k"], at="16:00", tz=zone)
    assert schedule.next == datetime(2026, 6, 1, 16, 0, tzinfo=zone)
    assert schedule.next.utcoffset() == timedelta(hours=5)


# -- the thread --------------------------------------------------------------------------


def running() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "cachekit-schedules"]


def test_one_thread_for_all_schedules_starts_with_the_first_and_ends_at_the_close() -> None:
    before = len(running())
    cache = cachekit.Cache()
    calls: list[str] = []
    made = Scheduler(cache.parts, lambda keys, tags, everything: calls.append(keys[0]))
    assert len(running()) == before
    made.add(keys=["slow"], at="03:00")
    time.sleep(0.05)  # it waits for the next look now, which is far away
    made.add(keys=["quick"], every=0.1)
    assert len(running()) == before + 1
    wait_until(lambda: calls.count("quick") >= 3, 10)
    assert "slow" not in calls
    made.close()
    made.close()
    assert len(running()) == before
    cache.close()


def test_a_schedule_added_while_others_are_carried_out_is_not_overlooked() -> None:
    cache = cachekit.Cache()
    calls: list[str] = []

    class Busy(Scheduler):
        def run_due(self) -> float:
            super().run_due()
            if len(self._schedules) == 1:
                self.add(keys=["late"], every=0.1)
                return 30.0
            return 0.01

    made = Busy(cache.parts, lambda keys, tags, everything: calls.append(keys[0]))
    made.add(keys=["first"], at="03:00")
    wait_until(lambda: "late" in calls, 10)
    made.close()
    cache.close()


def test_a_scheduler_that_was_dropped_takes_its_thread_along() -> None:
    import gc

    before = len(running())
    cache = cachekit.Cache()
    fired = threading.Event()
    made = Scheduler(cache.parts, lambda keys, tags, everything: fired.set())
    made.add(keys=["k"], every=0.1)
    assert fired.wait(10)
    assert len(running()) == before + 1
    cache.close()
    del made, cache
    wait_until(lambda: gc.collect() >= 0 and len(running()) == before, 10)


def test_a_forked_child_fires_its_own() -> None:
    cache = cachekit.Cache()
    made = Scheduler(cache.parts, invalidate_by(cache))
    made.add(keys=["k"], every=0.2)
    wait_until(lambda: cache.parts.meter.counts["schedule_fired"] >= 1, 10)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            cache.set("k", "from the child")
            end = time.monotonic() + 10
            while cache.get("k") is not None and time.monotonic() < end:
                time.sleep(0.01)
            os.write(writer, b"gone" if cache.get("k") is None else b"kept")
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    assert os.read(reader, 10) == b"gone"
    assert os.waitpid(child, 0)[1] == 0
    os.close(reader)
    made.close()
    cache.close()
