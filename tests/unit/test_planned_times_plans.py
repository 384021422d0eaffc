"""When planned times come, on days of change too."""

from __future__ import annotations

from datetime import UTC, timedelta
from datetime import time as day_time
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from schedule_stage import BERLIN, ms, row, utc

from cachekit.schedules.plans import Cron, Daily, Every


def test_a_period_counts_from_the_epoch_so_that_a_fleet_agrees() -> None:
    plan = Every("10m")
    assert row(plan, "2026-06-01T10:03:20+00:00", 2) == ["06-01 10:10:00", "06-01 10:20:00"]
    assert plan.after(ms("2026-06-01T10:10:00+00:00")) == ms("2026-06-01T10:20:00+00:00")
    assert plan.latest(ms("2026-06-01T10:10:00+00:00"), 0) == ms("2026-06-01T10:10:00+00:00")
    assert Every(timedelta(seconds=1.5)).period == 1500


def test_a_time_of_day_within_the_gap_comes_at_the_first_moment_after_it() -> None:
    # Berlin, 2026-03-29: 02:00 becomes 03:00, which is 01:00 UTC.
    plan = Daily("02:30", BERLIN)
    assert row(plan, "2026-03-27T12:00:00+00:00", 3) == [
        "03-28 01:30:00",
        "03-29 01:00:00",
        "03-30 00:30:00",
    ]
    assert utc(plan.latest(ms("2026-03-29T01:20:00+00:00"), 0)) == "03-29 01:00:00"
    assert utc(plan.latest(ms("2026-03-29T00:59:59+00:00"), 0)) == "03-28 01:30:00"


def test_a_time_of_day_that_comes_twice_fires_once_the_first_time() -> None:
    # Berlin, 2026-10-25: 03:00 becomes 02:00, which is 01:00 UTC.
    plan = Daily(day_time(2, 30), BERLIN)
    assert row(plan, "2026-10-24T12:00:00+00:00", 2) == ["10-25 00:30:00", "10-26 01:30:00"]
    assert utc(plan.latest(ms("2026-10-25T01:45:00+00:00"), 0)) == "10-25 00:30:00"
    assert row(Daily("03:00:30", UTC), "2026-10-25T03:00:30+00:00", 1) == ["10-26 03:00:30"]


def test_a_day_that_a_zone_skips_counts_at_its_end() -> None:
    # Apia had no 2011-12-30.
    plan = Daily("12:00", ZoneInfo("Pacific/Apia"))
    assert row(plan, "2011-12-29T23:00:00+00:00", 2) == ["12-30 10:00:00", "12-30 22:00:00"]


def test_cron_keeps_to_debians_rules_when_the_offset_changes() -> None:
    once = Cron("30 2 * * *", BERLIN)
    assert row(once, "2026-03-28T12:00:00+00:00", 2) == ["03-29 01:00:00", "03-30 00:30:00"]
    assert row(once, "2026-10-24T12:00:00+00:00", 2) == ["10-25 00:30:00", "10-26 01:30:00"]
    # Asked within the hour that comes a second time.
    assert row(once, "2026-10-25T01:10:00+00:00", 1) == ["10-26 01:30:00"]
    often = Cron("*/30 * * * *", BERLIN)
    assert row(often, "2026-10-24T23:45:00+00:00", 5) == [
        "10-25 00:00:00",
        "10-25 00:30:00",
        "10-25 01:00:00",
        "10-25 01:30:00",
        "10-25 02:00:00",
    ]
    assert row(often, "2026-03-29T00:15:00+00:00", 3) == [
        "03-29 00:30:00",
        "03-29 01:00:00",
        "03-29 01:30:00",
    ]


@pytest.mark.parametrize(
    ("expression", "now", "last"),
    [
        ("*/5 * * * *", "2026-06-01T10:07:00+00:00", "06-01 10:05:00"),
        ("0 4 * * MON", "2026-06-04T10:07:00+00:00", "06-01 04:00:00"),
        ("0 0 1 1 *", "2026-06-04T10:07:00+00:00", "01-01 00:00:00"),
        ("0 0 29 2 *", "2026-06-04T10:07:00+00:00", "02-29 00:00:00"),
    ],
)
def test_the_last_time_of_a_cron_expression_is_found_however_far_back(
    expression: str, now: str, last: str
) -> None:
    assert utc(Cron(expression, UTC).latest(ms(now), ms("2020-01-01T00:00:00+00:00"))) == last


@pytest.mark.parametrize(
    ("plan", "step"),
    [
        (Daily("02:30", BERLIN), 600),
        (Daily("00:00", ZoneInfo("America/Havana")), 600),
        (Cron("15,45 1,2,3 * * *", BERLIN), 300),
        (Cron("*/20 2 * * *", BERLIN), 300),
    ],
)
def test_the_last_and_the_next_time_meet_at_every_moment_of_a_day_of_change(
    plan: Any, step: int
) -> None:
    for day in ("2026-03-29", "2026-10-25"):
        start = ms(f"{day}T00:00:00+00:00") - 3_600_000
        for now in range(start, start + 6 * 3_600_000, step * 1000):
            last = plan.latest(now, now - 40 * 86_400_000)
            assert last <= now < plan.after(now)
            assert plan.after(last - 1) == last
            assert plan.after(last) == plan.after(now)
