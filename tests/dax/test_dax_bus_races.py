"""Fleets under random schedules: nothing stale at rest; what tells too little is caught."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
from fleet_races import catches, stale_fleets

from cachekit.dax.fleet import Fleet
from cachekit.dax.others import Others

NIGHTLY = os.environ.get("CACHEKIT_NIGHTLY") == "1"
SEEDS = range(4_000 if NIGHTLY else 150)
FEW = range(600)

pytestmark = pytest.mark.timeout(900 if NIGHTLY else 120)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_processes_on_a_bus_keep_nothing_stale_at_rest() -> None:
    wrong, kept = stale_fleets(SEEDS, deaths=0, cuts=0)
    assert not wrong, wrong[0]
    assert kept > len(SEEDS), "next to nothing was kept"


def test_nor_where_the_bus_is_cut_and_processes_die_in_a_write() -> None:
    wrong, kept = stale_fleets(SEEDS)
    assert not wrong, wrong[0]
    assert kept, "nothing was kept"


async def _nothing(self: Fleet, *_: Any) -> None:
    return None


def test_telling_only_after_a_write_is_caught_where_writers_die(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fleet, "begin", _nothing)
    assert catches(FEW, deaths=0.1, cuts=0)


def test_telling_only_before_a_write_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fleet, "end", _nothing)
    # Else what was begun is held until nobody can read anything else of it.
    monkeypatch.setattr(Others, "_begin", lambda self, one: self.written(one[1], one[2]))
    assert catches(FEW, deaths=0, cuts=0)


def test_keeping_what_was_kept_when_the_bus_was_cut_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fleet, "forget_near", lambda self: None)
    assert catches(FEW, deaths=0)


def test_trusting_at_once_who_has_just_joined_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fleet, "most", lambda self, asked: float("inf"))
    assert catches(FEW, deaths=0.1)
