"""The engine under random schedules: nothing stale at rest; weaker settings are caught."""

from __future__ import annotations

import os

import pytest
from engine_races import LAG, stale_courses

NIGHTLY = os.environ.get("CACHEKIT_NIGHTLY") == "1"
SEEDS = range(6_000 if NIGHTLY else 400)

pytestmark = pytest.mark.timeout(900 if NIGHTLY else 120)


def test_no_schedule_of_requests_leaves_a_stale_item_or_page_at_rest() -> None:
    wrong, kept = stale_courses(SEEDS)
    assert not wrong, wrong[0]
    assert kept > len(SEEDS), "next to nothing was kept"


def test_the_preset_dax_leaves_no_stale_item_and_its_pages_are_stale_as_it_says() -> None:
    wrong, _ = stale_courses(SEEDS, preset="dax")
    assert any("ExpressionAttributeValues" in each or "{}" in each for each in wrong)
    assert not [each for each in wrong if ": ('" in each], "an item"


def test_the_same_schedules_catch_settings_that_are_too_short() -> None:
    assert stale_courses(SEEDS, settle=0)[0], "replicas that lag"
    assert stale_courses(SEEDS, quarantine=0, settle=LAG)[0], "writes that land late"
